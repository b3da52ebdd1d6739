"""
LeRobot datasets, versions 2.x and 3.x, read without LeRobot.

A dataset is a folder: ``meta/info.json`` says which features there are and how the files are
named, ``data/`` holds tables of frames, an episode in a file of its own (2.x) or many in one (3.x),
with images inside, and ``videos/`` what was encoded as video.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffrl.demonstrations.arrays import ConvertedArray, RowsOf, Source
from sb3_diffrl.demonstrations.dataset import Demonstrations
from sb3_diffrl.demonstrations.parquet import (
    Block,
    ParquetArray,
    ParquetImages,
    read_rows,
    row_groups,
)
from sb3_diffrl.demonstrations.reading import (
    DEFAULT_MEMORY,
    LANGUAGE,
    Embedding,
    Keys,
    assemble,
    embedded,
    names_of,
    optional_module,
)
from sb3_diffrl.demonstrations.videos import Clip, VideoArray

_OBSERVATION = "observation."
_READABLE = (2, 3)


def read(
    path: str | os.PathLike[str],
    observation_keys: Keys = None,
    concatenate: bool = False,
    action_key: str = "action",
    episodes: Sequence[int] | None = None,
    language: Embedding | None = None,
    transpose_images: bool = True,
    memory: int = DEFAULT_MEMORY,
    progress_bar: bool = False,
) -> Demonstrations:
    """
    Read a LeRobot dataset that lies on disk (format 2.0, 2.1 or 3.0).

    :param path: the folder that holds ``meta/info.json``
    :param observation_keys: one feature, such as ``"observation.state"``, several for a dictionary,
        a mapping of features to names of the observation space, or None for all that begin with
        ``observation.``, videos aside. Without a mapping ``observation.images.top`` becomes
        ``images_top``: PyTorch allows no dots in the names of modules
    :param concatenate: join the vectors of all keys, in their order
    :param action_key: the feature that was done
    :param episodes: which, by default all
    :param language: embeds the instructions of the episodes: given ``n`` sentences it returns
        ``(n, d)`` vectors; they become the observation ``language``. :func:`instructions` gives the
        sentences themselves
    :param transpose_images: give images as ``(channels, height, width)``
    :param memory: larger data stay on disk and are read in pieces
    :param progress_bar: show one while reading
    :return: the demonstrations; an episode succeeded where ``next.success`` is true in any of its
        frames, and unknown without that feature
    :raises ValueError: if a file is missing, truncated or does not fit the others, naming it
    """
    dataset = _Dataset(Path(path))
    features = dataset.features
    default = [
        key
        for key, feature in features.items()
        if key.startswith(_OBSERVATION) and feature["dtype"] != "video"
    ]
    named = names_of(
        _short_names(default if observation_keys is None else observation_keys),
        list(features),
        str(dataset.info_path),
    )
    if action_key not in features:
        raise ValueError(
            f"{dataset.info_path}: no feature {action_key!r}; found {sorted(features)}"
        )
    chosen = dataset.select(episodes)
    ends = np.cumsum([episode.length for episode in chosen])
    rows = np.concatenate([np.arange(e.start, e.start + e.length) for e in chosen])
    whole = np.array_equal(rows, np.arange(sum(block.n_rows for block in dataset.blocks)))

    def column(key: str) -> Source:
        if features[key]["dtype"] == "video":
            return dataset.video(key, chosen)
        array = dataset.column(key)
        return array if whole else RowsOf(array, rows)

    observations = {name: column(key) for key, name in named.items()}
    if language is not None:
        observations[LANGUAGE] = embedded([e.task for e in chosen], language, ends)
    successes = None
    if "next.success" in features:
        successes = np.logical_or.reduceat(
            np.asarray(column("next.success")).reshape(-1).astype(bool), [0, *ends[:-1]]
        )
    return assemble(
        observations,
        column(action_key),
        ends,
        _flat(column("next.reward")) if "next.reward" in features else None,
        successes,
        single=isinstance(observation_keys, str) and language is None,
        concatenate=concatenate,
        transpose_images=transpose_images,
        memory=memory,
        progress_bar=progress_bar,
    )


def instructions(path: str | os.PathLike[str], episodes: Sequence[int] | None = None) -> list[str]:
    """
    The instructions of a dataset's episodes.

    :param path: the folder
    :param episodes: which, by default all
    :return: a sentence for each episode
    """
    return [episode.task for episode in _Dataset(Path(path)).select(episodes)]


@dataclass(frozen=True)
class _Episode:
    """
    :param index: its number
    :param start: its first row in the tables laid end to end
    :param length: its frames
    :param task: its instruction, empty where there is none
    :param meta: what else the dataset says of it
    :param place: numbers of chunk and file, in format 3
    """

    index: int
    start: int
    length: int
    task: str
    meta: dict[str, Any]
    place: tuple[int, int] = (0, 0)


class _Dataset:
    """The folder: where which rows lie."""

    def __init__(self, root: Path):
        optional_module("pyarrow", "demonstrations")
        self.root, self.info_path = root, root / "meta/info.json"
        self.info = _read_json(self.info_path)
        self.features: dict[str, dict[str, Any]] = self._entry("features")
        for key, feature in self.features.items():
            if not {"dtype", "shape"} <= feature.keys():
                raise ValueError(f"{self.info_path}: feature {key!r} lacks dtype or shape")
        version = str(self._entry("codebase_version"))
        major = int(version.lstrip("v").split(".")[0])
        if major not in _READABLE:
            raise ValueError(
                f"{self.info_path}: codebase_version {version}, expected 2.x or 3.x; convert it "
                "with LeRobot's own scripts"
            )
        self.in_one_file = major == 3
        self.episodes = self._read_episodes_v3() if self.in_one_file else self._read_episodes_v2()
        if not self.episodes:
            raise ValueError(f"{root}/meta: no episodes")
        self.blocks = self._blocks()

    def _entry(self, key: str) -> Any:
        if key not in self.info:
            raise ValueError(f"{self.info_path}: lacks {key!r}")
        return self.info[key]

    def select(self, indices: Sequence[int] | None) -> list[_Episode]:
        if indices is None:
            return self.episodes
        known = {episode.index: episode for episode in self.episodes}
        absent = [index for index in indices if index not in known]
        if absent or not len(indices):
            raise ValueError(
                f"{self.root}: episodes {list(absent)} are not there, of {len(known)}; "
                "name at least one that is"
            )
        return [known[index] for index in indices]

    def column(self, key: str) -> Source:
        shape = tuple(self.features[key]["shape"])
        if self.features[key]["dtype"] == "image":
            return ParquetImages(key, self.blocks)
        return ParquetArray(key, self.blocks, shape)

    def video(self, key: str, episodes: Sequence[_Episode]) -> Source:
        fps = float(self._entry("fps"))
        clips = []
        for e in episodes:
            begin = e.meta.get(f"videos/{key}/from_timestamp", 0.0)
            names = (
                {
                    "chunk_index": e.meta[f"videos/{key}/chunk_index"],
                    "file_index": e.meta[f"videos/{key}/file_index"],
                }
                if self.in_one_file
                else self._names_of_v2(e.index)
            )
            file = self.root / self._entry("video_path").format(video_key=key, **names)
            clips.append(Clip(file, begin, fps, e.length))
        return VideoArray(clips)

    def _names_of_v2(self, index: int) -> dict[str, int]:
        return {"episode_chunk": index // self._entry("chunks_size"), "episode_index": index}

    def _read_episodes_v2(self) -> list[_Episode]:
        file = self.root / "meta/episodes.jsonl"
        found, start = [], 0
        for number, line in enumerate(_lines(file)):
            try:
                meta = json.loads(line)
                index, length = int(meta["episode_index"]), int(meta["length"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}, line {number + 1}: {error!r}") from error
            found.append(_Episode(index, start, length, _task(meta), meta))
            start += length
        return found

    def _read_episodes_v3(self) -> list[_Episode]:
        files = sorted((self.root / "meta/episodes").glob("*/*.parquet"))
        if not files:
            raise ValueError(f"{self.root}/meta/episodes: no parquet files")
        found = []
        for file in files:
            for meta in read_rows(file, lambda name: not name.startswith("stats/")):
                try:
                    begin, end = int(meta["dataset_from_index"]), int(meta["dataset_to_index"])
                    index, length = int(meta["episode_index"]), int(meta["length"])
                    place = int(meta["data/chunk_index"]), int(meta["data/file_index"])
                except (KeyError, TypeError) as error:
                    raise ValueError(f"{file}: lacks a value: {error!r}") from error
                if end - begin != length:
                    raise ValueError(
                        f"{file}: episode {index} has length {length} and the rows {begin} to {end}"
                    )
                found.append(_Episode(index, begin, length, _task(meta), meta, place))
        return sorted(found, key=lambda episode: episode.index)

    def _blocks(self) -> list[Block]:
        pattern = self._entry("data_path")
        if not self.in_one_file:
            return [
                Block(self.root / pattern.format(**self._names_of_v2(e.index)), None, e.length)
                for e in self.episodes
            ]
        places = sorted({episode.place for episode in self.episodes})
        blocks = [
            block
            for chunk, file in places
            for block in row_groups(self.root / pattern.format(chunk_index=chunk, file_index=file))
        ]
        there = sum(block.n_rows for block in blocks)
        needed = max(episode.start + episode.length for episode in self.episodes)
        if there < needed:
            raise ValueError(
                f"{self.root}/data: {there} frames, expected {needed}, as meta/episodes says"
            )
        return blocks


def _short_names(keys: str | Sequence[str] | Mapping[str, str]) -> Mapping[str, str]:
    if isinstance(keys, Mapping):
        return keys
    chosen = [keys] if isinstance(keys, str) else keys
    return {key: key.removeprefix(_OBSERVATION).replace(".", "_") for key in chosen}


def _task(meta: dict[str, Any]) -> str:
    return next(iter(meta.get("tasks") or []), "")


def _flat(array: Source) -> Source:
    return ConvertedArray(array, np.ravel)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: no such file; expected the folder of a LeRobot dataset"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: truncated or no JSON ({error})") from error


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, though meta/info.json says format 2.x")
    return [line for line in path.read_text().splitlines() if line.strip()]
