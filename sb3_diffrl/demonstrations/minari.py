"""Datasets of Minari (https://minari.farama.org), read and written by its own package."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from sb3_diffrl.demonstrations.arrays import Cache, ConcatenatedArray, LazyArray, LoadedArray
from sb3_diffrl.demonstrations.hdf5 import HDF5Array, dataset, open_file

if TYPE_CHECKING:
    from sb3_diffrl.demonstrations.dataset import Demonstrations

_SUCCESS = ("success", "is_success")


def read(source: Any, download: bool) -> Demonstrations:
    """See :meth:`Demonstrations.from_minari`."""
    from sb3_diffrl.demonstrations.dataset import Demonstrations

    found = _open(source, download)
    for name, space in (("observations", found.observation_space), ("actions", found.action_space)):
        for key, part in _parts(name, space):
            if part.shape is None or isinstance(part, spaces.Text):
                raise ValueError(f"{found.id}: {key} has the space {part}, expected an array")
    episodes = _Episodes(found)
    return Demonstrations(
        episodes.observations(),
        episodes.joined("actions", found.action_space, extra=0),
        np.cumsum(episodes.lengths),
        episodes.joined("rewards", spaces.Box(-np.inf, np.inf, ()), extra=0),
        episodes.successes(),
    )


class _Episodes:
    """The episodes of a dataset, read from its HDF5 file where they lie there as plain arrays."""

    def __init__(self, found: Any):
        self.found = found
        self.indices = [int(i) for i in found.episode_indices]
        metadata = found.storage.get_episode_metadata(self.indices)
        self.lengths = [int(each["total_steps"]) for each in metadata]
        if not self.indices:
            raise ValueError(f"{found.id}: holds no episodes")
        file = Path(found.storage.data_path, "main_data.hdf5")
        self.file = file if file.is_file() else None
        self._load = Cache(self._decode)

    def _decode(self, index: int) -> dict[str, np.ndarray]:
        (episode,) = self.found.iterate_episodes([index])
        arrays = {"actions": np.asarray(episode.actions), "rewards": np.asarray(episode.rewards)}
        for key, _ in _parts("observations", self.found.observation_space):
            value = episode.observations
            arrays[key] = np.asarray(value[key.partition("/")[2]] if "/" in key else value)
        return arrays

    def observations(self) -> Any:
        parts = dict(_parts("observations", self.found.observation_space))
        joined = {key: self.joined(key, space, extra=1) for key, space in parts.items()}
        if "observations" in joined:
            return joined["observations"]
        return {key.partition("/")[2]: array for key, array in joined.items()}

    def joined(self, key: str, space: spaces.Space[Any], extra: int) -> ConcatenatedArray:
        """The first rows of a field, of all episodes; ``extra`` are there beyond the actions."""
        arrays = [
            self._array(index, key, space, length, extra)
            for index, length in zip(self.indices, self.lengths, strict=True)
        ]
        return ConcatenatedArray(arrays, f"{self.found.id}: {key}")

    def _array(
        self, index: int, key: str, space: spaces.Space[Any], length: int, extra: int
    ) -> LazyArray:
        assert space.shape is not None
        if self.file is not None:
            path = f"episode_{index}/{key}"
            stored = dataset(self.file, path)
            if len(stored) != length + extra:
                raise ValueError(
                    f"{self.file}: {path!r} has length {len(stored)}, expected {length + extra}, "
                    f"for the episode has {length} steps"
                )
            if stored.shape[1:] == space.shape:
                return HDF5Array(self.file, path, length)

        def load() -> np.ndarray:
            rows: np.ndarray = self._load(index)[key]
            if len(rows) != length + extra:
                raise ValueError(
                    f"{self.found.id}: episode {index}: {key!r} has length {len(rows)}, expected "
                    f"{length + extra}"
                )
            return rows[:length]

        return LoadedArray(load, (length, *space.shape), space.dtype or np.float64)

    def successes(self) -> np.ndarray | None:
        for key in _SUCCESS:
            flags = [self._info(index, key) for index in self.indices]
            if all(flag is not None for flag in flags):
                return np.array([np.any(flag) for flag in flags])
        return None

    def _info(self, index: int, key: str) -> np.ndarray | None:
        if self.file is not None:
            stored = open_file(self.file).get(f"episode_{index}/infos/{key}")
            return None if stored is None else np.asarray(stored[()])
        (episode,) = self.found.iterate_episodes([index])
        flags = (episode.infos or {}).get(key)
        return None if flags is None else np.asarray(flags)


def write(
    demonstrations: Demonstrations,
    dataset_id: str,
    env: Any,
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
    progress_bar: bool,
    metadata: Mapping[str, Any],
) -> Any:
    """See :meth:`Demonstrations.to_minari`."""
    minari = _package()
    from minari.storage.datasets_root_dir import get_dataset_path
    from tqdm.auto import tqdm

    folder = Path(get_dataset_path(dataset_id))
    if folder.exists():
        raise ValueError(f"{dataset_id}: there is such a dataset in {folder}; choose another id")
    try:
        found = minari.create_dataset_from_buffers(
            dataset_id,
            [],
            env,
            observation_space=observation_space,
            action_space=action_space,
            **{"data_format": "hdf5", "jpeg_encoding": False, **metadata},
        )
        demonstrations.validate(found.observation_space, found.action_space)
        bar = tqdm(range(len(demonstrations)), "writing", unit="episode", disable=not progress_bar)
        found.storage.update_episodes(_buffer(demonstrations, i, minari) for i in bar)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return minari.load_dataset(dataset_id)


def _buffer(demonstrations: Demonstrations, index: int, minari: ModuleType) -> Any:
    episode = demonstrations.subset([index]).in_memory()
    n = episode.n_decisions

    def with_last(array: Any) -> np.ndarray:
        return np.concatenate([array, array[-1:]])

    observations: Any = episode.observations
    if isinstance(observations, dict):
        observations = {key: with_last(array) for key, array in observations.items()}
    else:
        observations = with_last(observations)
    infos = None
    if episode.successes is not None:
        infos = {"success": np.append(np.zeros(n, bool), episode.successes)}
    return minari.data_collector.EpisodeBuffer(
        observations=observations,
        actions=episode.actions,
        rewards=np.zeros(n) if episode.rewards is None else episode.rewards,
        terminations=np.zeros(n, bool),
        truncations=np.arange(n) == n - 1,
        infos=infos,
    )


def _open(source: Any, download: bool) -> Any:
    minari = _package()
    if isinstance(source, minari.MinariDataset):
        return source
    folder = Path(source)
    try:
        if folder.is_dir():
            return minari.MinariDataset(folder / "data" if (folder / "data").is_dir() else folder)
        return minari.load_dataset(os.fspath(source), download=download)
    except Exception as error:  # many kinds: of files, JSON, the network
        raise ValueError(
            f"{source}: no Minari dataset that can be read ({type(error).__name__}: {error})"
        ) from error


def _package() -> ModuleType:
    try:
        import minari
    except ImportError as error:
        raise ImportError(
            "demonstrations from Minari need it: pip install 'sb3-diffrl[minari]'"
        ) from error
    return minari


def _parts(name: str, space: spaces.Space[Any]) -> Iterator[tuple[str, spaces.Space[Any]]]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield f"{name}/{key}", part
    else:
        yield name, space
