"""CALVIN's dataset folders: a file for each frame, and annotations in natural language."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_diffrl.demonstrations.arrays import Array, Cache, Source
from sb3_diffrl.demonstrations.dataset import Demonstrations
from sb3_diffrl.demonstrations.images import FrameArray
from sb3_diffrl.demonstrations.reading import (
    DEFAULT_MEMORY,
    LANGUAGE,
    Embedding,
    Keys,
    assemble,
    checked,
    embedded,
    names_of,
    per_episode,
)
from sb3_diffrl.demonstrations.safe_pickle import load_npy

_ANNOTATIONS = "lang_annotations/auto_lang_ann.npy"
_STATE = ("robot_obs", "scene_obs")
_CACHE_BYTES = 128 * 2**20


def read(
    path: str | os.PathLike[str],
    observation_keys: Keys = _STATE,
    concatenate: bool = False,
    action_key: str = "rel_actions",
    annotated: bool = True,
    language: Embedding | None = None,
    tasks: Sequence[str] | None = None,
    transpose_images: bool = True,
    memory: int = DEFAULT_MEMORY,
    progress_bar: bool = False,
) -> Demonstrations:
    """
    Read a split of CALVIN (https://github.com/mees/calvin, "dataset"), such as
    ``task_D_D/training``: ``episode_<frame>.npz``, ``ep_start_end_ids.npy`` and
    ``lang_annotations/auto_lang_ann.npy``.

    :param path: the folder of the split
    :param observation_keys: one key of the frames, several for a dictionary, a mapping of keys to
        names of the observation space, or None for all but the actions
    :param concatenate: join the vectors of all keys, the language's last
    :param action_key: ``"rel_actions"``, ``(7,)`` in [-1, 1], or ``"actions"``, absolute poses
    :param annotated: episodes are the annotated segments, with the observation ``language``; False
        takes the whole episodes of play
    :param language: embeds the sentences anew (``n`` of them to ``(n, d)``); by default the
        embeddings of the dataset are taken
    :param tasks: only the segments of these tasks
    :param transpose_images: give images as ``(channels, height, width)``
    :param memory: larger data stay on disk and are read frame by frame
    :param progress_bar: show one while reading
    :return: the demonstrations; the dataset says nothing of rewards and success
    :raises ValueError: if a file is missing, truncated or lacks a key, naming it
    """
    root = Path(path)
    segments = _play(root)
    if annotated:
        notes = _Annotations(root)
        chosen = notes.of_tasks(tasks)
        segments = notes.segments[chosen]
    elif tasks is not None or language is not None:
        raise ValueError("tasks and language need annotated=True: play has no annotations")
    for index, (start, stop) in enumerate(segments):
        if stop <= start:
            raise ValueError(f"{root}: episode {index} goes from frame {start} to {stop}")
        for frame in (start, stop - 1):
            if not _frame_path(root, frame).is_file():
                raise ValueError(
                    f"{_frame_path(root, frame)}: no such file, though episode {index} "
                    f"(frames {start} to {stop - 1}) contains it"
                )
    ends = np.cumsum(segments[:, 1] - segments[:, 0])
    frames = np.concatenate([np.arange(start, stop) for start, stop in segments])
    first = _frame_path(root, frames[0])
    available = [key for key in _keys(first) if "actions" not in key]
    named = names_of(observation_keys, available, str(first))
    load = Cache(partial(_load, root, (*named, action_key)), _CACHE_BYTES)

    def column(key: str) -> Source:
        return FrameArray(frames, partial(_pick, load, key), partial(_frame_path, root))

    observations = {name: column(key) for key, name in named.items()}
    if annotated:
        sentences = [notes.sentences[i] for i in chosen]
        embeddings = per_episode(notes.embeddings[chosen], ends)
        observations[LANGUAGE] = (
            embeddings if language is None else embedded(sentences, language, ends)
        )
    return assemble(
        observations,
        column(action_key),
        ends,
        single=isinstance(observation_keys, str) and not annotated,
        concatenate=concatenate,
        transpose_images=transpose_images,
        memory=memory,
        progress_bar=progress_bar,
    )


def instructions(path: str | os.PathLike[str]) -> list[str]:
    """
    :param path: the folder of the split
    :return: the sentence of each annotated segment
    """
    return _Annotations(Path(path)).sentences


def tasks_of(path: str | os.PathLike[str]) -> list[str]:
    """
    :param path: the folder of the split
    :return: the name of the task of each annotated segment
    """
    return _Annotations(Path(path)).tasks


class _Annotations:
    """``auto_lang_ann.npy``: a pickled dictionary, read without running what it says."""

    def __init__(self, root: Path):
        self.path = path = root / _ANNOTATIONS
        if not path.is_file():
            raise ValueError(f"{path}: no such file; annotated=False reads the play alone")
        content = load_npy(path)
        whole: Any = content.item() if content.shape == () else None
        try:
            language, info = whole["language"], whole["info"]
            self.sentences = [str(sentence) for sentence in language["ann"]]
            self.tasks = [str(task) for task in language["task"]]
            embeddings = np.asarray(language["emb"])
            segments = np.asarray(info["indx"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: {error!r}; expected {{'language': {{'ann', 'task', 'emb'}}, "
                "'info': {'indx'}}"
            ) from error
        n = len(self.sentences)
        if segments.shape != (n, 2) or segments.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: info/indx has shape {segments.shape}, expected ({n}, 2), the first frame "
                "and the one past the last of each sentence"
            )
        if len(self.tasks) != n or len(embeddings) != n or n == 0:
            raise ValueError(
                f"{path}: {n} sentences, {len(self.tasks)} tasks and {len(embeddings)} embeddings"
            )
        self.segments: NDArray[np.int64] = segments.astype(np.int64)
        self.embeddings = checked(
            embeddings.reshape(n, -1).astype(np.float32), f"{path}: language/emb"
        )

    def of_tasks(self, tasks: Sequence[str] | None) -> NDArray[np.int64]:
        unknown = sorted(set(tasks or ()) - set(self.tasks))
        if unknown:
            raise ValueError(f"{self.path}: no task {unknown}; there are {sorted(set(self.tasks))}")
        return np.array([i for i, t in enumerate(self.tasks) if tasks is None or t in tasks])


def _play(root: Path) -> NDArray[np.int64]:
    """First frame and one past the last of each episode; the file holds the last itself."""
    path = root / "ep_start_end_ids.npy"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected the folder of a split of CALVIN")
    ids = load_npy(path)
    if ids.ndim != 2 or ids.shape[1] != 2 or len(ids) == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"{path}: shape {ids.shape} of {ids.dtype}, expected (E, 2) integers")
    return np.stack([ids[:, 0], ids[:, 1] + 1], axis=1).astype(np.int64)


def _frame_path(root: Path, frame: int) -> Path:
    return root / f"episode_{int(frame):07d}.npz"


def _keys(path: Path) -> list[str]:
    return list(_opened(path).files)


def _load(root: Path, keys: tuple[str, ...], frame: int) -> dict[str, Array]:
    path = _frame_path(root, frame)
    found = {}
    with _opened(path) as file:
        for key in keys:
            if key not in file.files:
                raise ValueError(f"{path}: no key {key!r}; found {sorted(file.files)}")
            try:
                values = file[key]
            except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{path}: {key}: truncated or corrupt ({error})") from error
            found[key] = checked(values[None], f"{path}: {key}")[0]
    return found


def _opened(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file, though an episode contains it") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no .npz that can be read ({error})") from error


def _pick(load: Cache, key: str, frame: int) -> Array:
    return np.asarray(load(int(frame))[key])
