"""What the readers of file formats share: checks as rows are read, choice of keys, memory."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sb3_diffrl.demonstrations.arrays import (
    Array,
    ConcatenatedArray,
    LazyArray,
    Rows,
    RowsOf,
    Source,
    is_lazy,
)
from sb3_diffrl.demonstrations.dataset import Demonstrations
from sb3_diffrl.demonstrations.images import channels_first

Keys: TypeAlias = str | Sequence[str] | Mapping[str, str] | None
Embedding: TypeAlias = Callable[[list[str]], ArrayLike]

DEFAULT_MEMORY = 512 * 2**20
LANGUAGE = "language"
_ROWS_AT_ONCE = 256


def optional_module(name: str, extra: str) -> Any:
    """
    Import what only one format needs.

    :param name: of the module
    :param extra: of this package, which installs it
    :return: the module
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this format is read with {name.split('.')[0]}: pip install 'sb3-diffrl[{extra}]'"
        ) from error


def checked(values: Any, where: str, rows: Rows | None = None) -> Array:
    """
    Refuse what is no finite number; float64 becomes float32.

    :param values: ``(n, ...)`` as stored
    :param where: file and key, for the message
    :param rows: the index of each row in the file; by default they are counted from 0
    :return: ``(n, ...)``
    :raises ValueError: naming file, key, index and value
    """
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{where}: dtype {values.dtype}, expected real numbers")
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values)
        if bad.any():
            first = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
            index = (first[0] if rows is None else int(rows[first[0]]), *first[1:])
            raise ValueError(
                f"{where}{list(index)} = {values[first]}, expected a finite number; "
                "drop or repair the episode"
            )
    return values.astype(np.float32) if values.dtype == np.float64 else values


class CheckedArray(LazyArray):
    """
    An array of a file whose rows are checked as they are read.

    :param source: ``(m, ...)``: an HDF5 dataset, a mapped or a lazy array
    :param where: file and key, for messages
    """

    def __init__(self, source: Any, where: str):
        if source.dtype.kind not in "biuf":
            raise ValueError(f"{where}: dtype {source.dtype}, expected real numbers")
        self.source, self.where = ConcatenatedArray([source]), where
        super().__init__(source.shape, np.float32 if source.dtype == np.float64 else source.dtype)

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`."""
        return checked(self.source.read(rows), self.where, rows)


class SideBySide(LazyArray):
    """
    Vectors of several keys as one vector.

    :param parts: ``(M, n_i)`` or ``(M,)`` each
    """

    def __init__(self, parts: Sequence[Source]):
        self.parts = [ConcatenatedArray([part]) for part in parts]
        width = sum(math.prod(part.shape[1:]) for part in parts)
        super().__init__((len(parts[0]), width), np.result_type(*(part.dtype for part in parts)))

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`."""
        return np.concatenate([p.read(rows).reshape(len(rows), -1) for p in self.parts], axis=1)


def names_of(keys: Keys, available: Sequence[str], where: str) -> dict[str, str]:
    """
    What the user wants to observe.

    :param keys: one key, several, a mapping of keys to names of the observation, or None for all
    :param available: the keys that there are
    :param where: file, for the message
    :return: the name under which each key is observed
    :raises ValueError: where a key is not there, or two have one name
    """
    chosen = [keys] if isinstance(keys, str) else available if keys is None else list(keys)
    missing = [key for key in chosen if key not in available]
    if missing or not chosen:
        raise ValueError(
            f"{where}: no observation {missing}; there are {sorted(available)}"
            if missing
            else f"{where}: no observations to choose from; name at least one key"
        )
    named = dict(keys) if isinstance(keys, Mapping) else {key: key for key in chosen}
    key_of: dict[str, str] = {}
    for key, name in named.items():
        other = key_of.setdefault(name, key)
        if other != key:
            raise ValueError(
                f"{where}: {other!r} and {key!r} are both to be named {name!r}; give each key a "
                "name of its own by a mapping of keys to names"
            )
    return named


def per_episode(values: ArrayLike, episode_ends: NDArray[np.int64]) -> Source:
    """
    Repeat what belongs to an episode at each of its decisions.

    :param values: ``(E, n)``
    :param episode_ends: ``(E,)``
    :return: ``(M, n)``, without copies
    """
    rows = np.repeat(np.arange(len(episode_ends)), np.diff(episode_ends, prepend=0))
    return RowsOf(np.asarray(values), rows)


def embedded(sentences: Sequence[str], embed: Embedding, episode_ends: NDArray[np.int64]) -> Source:
    """
    The instruction of each episode as a vector at each of its decisions.

    :param sentences: ``E`` instructions
    :param embed: of ``n`` sentences to ``(n, d)`` vectors, such as
        ``SentenceTransformer(...).encode``; asked once for each distinct sentence
    :param episode_ends: ``(E,)``
    :return: ``(M, d)`` float32
    """
    distinct = sorted(set(sentences))
    vectors = np.asarray(embed(distinct), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(distinct):
        raise ValueError(
            f"language: shape {vectors.shape}, expected ({len(distinct)}, d), "
            "a vector for each distinct instruction"
        )
    place = {sentence: i for i, sentence in enumerate(distinct)}
    return per_episode(vectors[[place[sentence] for sentence in sentences]], episode_ends)


def assemble(
    observations: dict[str, Source],
    actions: Source,
    episode_ends: ArrayLike,
    rewards: Source | None = None,
    successes: ArrayLike | None = None,
    *,
    single: bool = False,
    concatenate: bool = False,
    transpose_images: bool = True,
    memory: int = DEFAULT_MEMORY,
    progress_bar: bool = False,
) -> Demonstrations:
    """
    Lazy arrays to demonstrations; what fits in memory is read, and so checked, at once.

    :param observations: ``(M, ...)`` for each name
    :param actions: ``(M, ...)``
    :param episode_ends: ``(E,)``
    :param rewards: ``(M,)``
    :param successes: ``(E,)``
    :param single: the one observation stands alone, not in a dictionary
    :param concatenate: the vectors of all names become one vector, in their order
    :param transpose_images: give images as ``(channels, height, width)``
    :param memory: up to how many bytes all is read at once
    :param progress_bar: show one while reading
    :return: the demonstrations
    """
    if transpose_images:
        observations = {name: channels_first(array) for name, array in observations.items()}
    arrays = {f"o:{name}": array for name, array in observations.items()} | {"a": actions}
    if rewards is not None:
        arrays["r"] = rewards
    if sum(map(_n_bytes, arrays.values())) <= memory:
        arrays = _in_memory(arrays, progress_bar)
    chosen = {name: arrays[f"o:{name}"] for name in observations}
    seen: Any = chosen
    if concatenate:
        wide = [name for name, array in chosen.items() if array.ndim > 2]
        if wide:
            raise ValueError(f"{wide} are no vectors and cannot be concatenated; leave them out")
        joined = SideBySide(list(chosen.values()))
        seen = joined if any(map(is_lazy, chosen.values())) else np.asarray(joined)
    elif single:
        (seen,) = chosen.values()
    return Demonstrations(
        observations=seen,
        actions=arrays["a"],
        episode_ends=np.asarray(episode_ends),
        rewards=arrays.get("r"),
        successes=None if successes is None else np.asarray(successes, bool),
    )


def _n_bytes(array: Source) -> int:
    return array.dtype.itemsize * math.prod(array.shape)


def _in_memory(arrays: dict[str, Source], progress_bar: bool) -> dict[str, Source]:
    """Read rows of all arrays before the next rows, as a file may hold several of them."""
    from tqdm import tqdm

    n = len(next(iter(arrays.values())))
    found = {name: np.empty(array.shape, array.dtype) for name, array in arrays.items()}
    with tqdm(total=n, unit="rows", disable=not progress_bar) as bar:
        for start in range(0, n, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            for name, array in arrays.items():
                found[name][rows] = array[rows]
            bar.update(len(range(*rows.indices(n))))
    return dict(found)
