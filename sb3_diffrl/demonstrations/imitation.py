"""Trajectories of imitation (https://imitation.readthedocs.io): its objects and its folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffrl.demonstrations.arrays import Array, ConcatenatedArray, Source
from sb3_diffrl.demonstrations.dataset import Demonstrations
from sb3_diffrl.demonstrations.reading import (
    DEFAULT_MEMORY,
    CheckedArray,
    assemble,
    optional_module,
)

_ONE = ""
_SUCCESS_KEYS = ("is_success", "success")


def read(
    source: str | os.PathLike[str] | Iterable[Any],
    memory: int = DEFAULT_MEMORY,
    progress_bar: bool = False,
) -> Demonstrations:
    """
    Read imitation's trajectories. The last observation of each, seen after its last action, is
    dropped.

    :param source: ``Trajectory`` or ``TrajectoryWithRew`` objects, known by their attributes
        ``obs`` ``(T + 1, ...)`` (an array, or a ``DictObs``), ``acts`` ``(T, ...)``, ``infos`` and
        ``rews`` ``(T,)``; or the folder that ``imitation.data.serialize.save`` wrote, which is
        mapped into memory and read without imitation
    :param memory: larger data stay in the folder's files and are read in pieces
    :param progress_bar: show one while reading
    :return: the demonstrations; an episode succeeded where its last info says ``is_success`` or
        ``success``, and unknown where one lacks both. Infos of a folder are read as JSON: nothing
        in them is decoded to objects
    :raises ValueError: naming file or trajectory and key
    """
    if isinstance(source, str | os.PathLike):
        trajectories = _from_folder(Path(source))
    else:
        trajectories = [_from_object(i, item) for i, item in enumerate(source)]
    if not trajectories:
        raise ValueError("no trajectories; expected at least one")
    for t in trajectories:
        t.check(trajectories[0])

    def joined(key: str) -> Source:
        return ConcatenatedArray(
            [CheckedArray(t.obs[key][:-1], f"{t.where}: {_name(key)}") for t in trajectories],
            _name(key),
        )

    rewards = None
    if trajectories[0].rews is not None:
        rewards = ConcatenatedArray(
            [CheckedArray(t.rews, f"{t.where}: rews") for t in trajectories], "rews"
        )
    successes = [t.success for t in trajectories if t.success is not None]
    keys = list(trajectories[0].obs)
    return assemble(
        {key: joined(key) for key in keys},
        ConcatenatedArray([CheckedArray(t.acts, f"{t.where}: acts") for t in trajectories], "acts"),
        np.cumsum([len(t.acts) for t in trajectories]),
        rewards,
        successes if len(successes) == len(trajectories) else None,
        single=keys == [_ONE],
        memory=memory,
        progress_bar=progress_bar,
    )


def _name(key: str) -> str:
    return "obs" if key == _ONE else f"obs[{key!r}]"


@dataclass
class _Trajectory:
    """
    :param where: for messages
    :param obs: ``(T + 1, ...)`` for each key
    :param acts: ``(T, ...)``
    :param rews: ``(T,)``
    :param success: as the last info says
    """

    where: str
    obs: dict[str, Array]
    acts: Array
    rews: Array | None
    success: bool | None

    def check(self, first: _Trajectory) -> None:
        steps = len(self.acts)
        if steps == 0:
            raise ValueError(f"{self.where}: acts is empty; drop this trajectory")
        if self.obs.keys() != first.obs.keys():
            raise ValueError(
                f"{self.where}: obs has the keys {sorted(self.obs)}, expected {sorted(first.obs)}"
            )
        for key, values in self.obs.items():
            if len(values) != steps + 1:
                raise ValueError(
                    f"{self.where}: {_name(key)} has {len(values)} rows, expected {steps + 1}, one "
                    "more than acts"
                )
        if (self.rews is None) != (first.rews is None):
            raise ValueError(f"{self.where}: some trajectories have rews and others have none")
        if self.rews is not None and self.rews.shape != (steps,):
            raise ValueError(f"{self.where}: rews has shape {self.rews.shape}, expected ({steps},)")


def _from_object(index: int, item: Any) -> _Trajectory:
    where = f"trajectory {index}"
    missing = [name for name in ("obs", "acts") if not hasattr(item, name)]
    if missing:
        raise ValueError(
            f"{where}: {type(item).__name__} has no {missing}, expected a Trajectory of imitation"
        )
    obs = item.obs
    by_key = dict(obs.items()) if hasattr(obs, "items") else {_ONE: obs}
    infos = getattr(item, "infos", None)
    rews = getattr(item, "rews", None)
    return _Trajectory(
        where,
        {key: np.asarray(values) for key, values in by_key.items()},
        np.asarray(item.acts),
        None if rews is None else np.asarray(rews),
        None if infos is None or len(infos) == 0 else _success(infos[-1]),
    )


def _success(info: Any) -> bool | None:
    found = [info[key] for key in _SUCCESS_KEYS if isinstance(info, Mapping) and key in info]
    known = [value for value in found if isinstance(value, bool | np.bool_ | int | float)]
    return bool(known[0]) if known else None


def _from_folder(root: Path) -> list[_Trajectory]:
    pa = optional_module("pyarrow", "demonstrations")
    state = root / "state.json"
    if not state.is_file():
        raise ValueError(
            f"{state}: no such file; expected a folder written by imitation.data.serialize.save. "
            "Older .npz and .pkl files are converted by imitation itself: load, then save"
        )
    try:
        names = [entry["filename"] for entry in json.loads(state.read_text())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state}: truncated or not as expected ({error!r})") from error
    found: list[_Trajectory] = []
    for name in names:
        path = root / Path(name).name
        try:
            table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        except FileNotFoundError as error:
            raise ValueError(f"{path}: no such file, though {state.name} names it") from error
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path}: truncated or corrupt ({error})") from error
        missing = [key for key in ("obs", "acts") if key not in table.column_names]
        if missing:
            raise ValueError(f"{path}: no column {missing}; found {table.column_names}")
        for batch in table.to_batches():
            found += _from_batch(path, len(found), batch)
    return found


def _from_batch(path: Path, offset: int, batch: Any) -> list[_Trajectory]:
    columns = {key: batch.column(key) for key in batch.schema.names}
    obs = _episodes(f"{path}: the trajectories' obs", columns["obs"])
    acts = _episodes(f"{path}: the trajectories' acts", columns["acts"])
    rews = None
    if "rews" in columns:
        rews = _episodes(f"{path}: the trajectories' rews", columns["rews"])
    found = []
    for i in range(batch.num_rows):
        infos = columns["infos"][i].values if "infos" in columns else []
        found.append(
            _Trajectory(
                f"{path}: trajectory {offset + i}",
                {_ONE: obs[i]},
                acts[i],
                None if rews is None else rews[i],
                _success(_decoded(path, infos[-1].as_py())) if len(infos) else None,
            )
        )
    return found


def _decoded(path: Path, info: Any) -> Any:
    try:
        return json.loads(info)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: an info is no JSON ({error})") from error


def _episodes(where: str, column: Any) -> list[Array]:
    """Lists of lists as arrays over the mapped file, one for each trajectory."""
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    flat, inner = column.flatten(), []
    while hasattr(flat.type, "value_type"):
        widths = np.unique(flat.value_lengths().to_numpy(zero_copy_only=False))
        if len(widths) != 1:
            raise ValueError(f"{where} are ragged: entries of lengths {widths.tolist()}")
        inner.append(int(widths[0]))
        flat = flat.flatten()
    if flat.null_count:
        raise ValueError(f"{where}: {flat.null_count} values are missing")
    values = flat.to_numpy(zero_copy_only=False).reshape(-1, *inner)
    return np.split(values, np.cumsum(lengths)[:-1].astype(np.int64))
