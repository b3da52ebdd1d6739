"""robomimic's HDF5 files."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from sb3_diffrl.demonstrations.arrays import ConcatenatedArray
from sb3_diffrl.demonstrations.dataset import Demonstrations
from sb3_diffrl.demonstrations.hdf5 import HDF5Array, close_files, open_file
from sb3_diffrl.demonstrations.reading import (
    DEFAULT_MEMORY,
    CheckedArray,
    Keys,
    assemble,
    names_of,
)


def read(
    path: str | os.PathLike[str],
    observation_keys: Keys = None,
    concatenate: bool = False,
    mask: str | None = None,
    success_reward: float | None = 1.0,
    transpose_images: bool = True,
    memory: int = DEFAULT_MEMORY,
    progress_bar: bool = False,
) -> Demonstrations:
    """
    Read an HDF5 file in the layout of robomimic (https://robomimic.github.io, "Dataset Contents"):
    ``data/demo_<i>`` with ``obs/<key>``, ``actions``, ``rewards``.

    :param path: the file
    :param observation_keys: one key of ``obs``, several for a dictionary, a mapping of keys to
        names of the observation space, or None for all
    :param concatenate: join the vectors of all keys, in their order
    :param mask: a filter of the file, such as ``"train"`` or ``"valid"``; None takes all episodes
    :param success_reward: an episode with at least this reward in a step succeeded (robomimic's
        own tasks pay 1); None leaves success unknown
    :param transpose_images: give images as ``(channels, height, width)``
    :param memory: larger data stay in the file and are read in pieces
    :param progress_bar: show one while reading
    :return: the demonstrations
    :raises ValueError: if the file is truncated or lacks a key, naming it
    """
    path = Path(path)
    demos = _episodes(path, mask)
    chosen = names_of(observation_keys, _keys(path, demos[0]), f"{path}: {demos[0]}/obs")
    actions = [_array(path, demo, "actions") for demo in demos]
    lengths = [len(part) for part in actions]

    def joined(key: str) -> ConcatenatedArray:
        parts = [_array(path, demo, key, n) for demo, n in zip(demos, lengths, strict=True)]
        return ConcatenatedArray(parts, f"{path}: {key}")

    rewards = joined("rewards") if f"{demos[0]}/rewards" in open_file(path) else None
    successes = None
    if rewards is not None and success_reward is not None:
        successes = [bool(np.max(part[:]) >= success_reward) for part in rewards.parts]
    demonstrations = assemble(
        {name: joined(f"obs/{key}") for key, name in chosen.items()},
        ConcatenatedArray(actions, f"{path}: actions"),
        np.cumsum(lengths),
        rewards,
        successes,
        single=isinstance(observation_keys, str),
        concatenate=concatenate,
        transpose_images=transpose_images,
        memory=memory,
        progress_bar=progress_bar,
    )
    if not demonstrations.is_lazy:
        close_files()
    return demonstrations


def masks(path: str | os.PathLike[str]) -> dict[str, int]:
    """
    The filters of a file.

    :param path: the file
    :return: the number of episodes of each
    """
    return {name: len(names) for name, names in open_file(path).get("mask", {}).items()}


def _episodes(path: Path, mask: str | None) -> list[str]:
    """The names of the groups that hold the episodes."""
    file = open_file(path)
    data = file.get("data")
    if not hasattr(data, "keys"):
        raise ValueError(
            f"{path}: lacks the group 'data', found {sorted(file)}; expected robomimic's layout, "
            "data/demo_<i>/obs/<key> and data/demo_<i>/actions"
        )
    names = list(data)
    if mask is not None:
        known = file.get("mask", {})
        if mask not in known:
            raise ValueError(f"{path}: no mask/{mask}; there are {sorted(known)}")
        names = [n.decode() if isinstance(n, bytes) else str(n) for n in known[mask][:]]
        absent = [name for name in names if name not in data]
        if absent:
            raise ValueError(f"{path}: mask/{mask} names {absent[0]}, which data lacks")
    if not names:
        raise ValueError(f"{path}: no episodes in data" + (f" under mask/{mask}" if mask else ""))
    return [f"data/{name}" for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    """So that demo_2 comes before demo_10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]


def _keys(path: Path, demo: str) -> list[str]:
    group = open_file(path).get(f"{demo}/obs")
    if not hasattr(group, "keys"):
        raise ValueError(f"{path}: {demo} lacks the group 'obs'; expected robomimic's layout")
    return list(group)


def _array(path: Path, demo: str, key: str, length: int | None = None) -> CheckedArray:
    array = HDF5Array(path, f"{demo}/{key}")
    where = f"{path}: {demo}/{key}"
    if len(array) == 0:
        raise ValueError(f"{where}: shape {array.shape}, expected at least one step")
    if length is not None and len(array) != length:
        raise ValueError(f"{where}: {len(array)} steps, expected {length}, as actions has")
    return CheckedArray(array, where)
