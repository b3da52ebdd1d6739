"""robomimic's HDF5 files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffrl.demonstrations.arrays import ConcatenatedArray
from sb3_diffrl.demonstrations.dataset import Demonstrations
from sb3_diffrl.demonstrations.reading import (
    DEFAULT_MEMORY,
    CheckedArray,
    Keys,
    assemble,
    names_of,
    optional_module,
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
    h5py = optional_module("h5py", "demonstrations")
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: no HDF5 file that can be read ({error})") from error
    try:
        demos = _episodes(path, file, mask)
        chosen = names_of(
            observation_keys, list(_group(path, demos[0], "obs")), f"{path}: {demos[0].name}/obs"
        )
        actions = [_array(path, demo, "actions") for demo in demos]
        lengths = [len(part) for part in actions]
        joined = {
            key: ConcatenatedArray(
                [
                    _array(path, demo, f"obs/{key}", length)
                    for demo, length in zip(demos, lengths, strict=True)
                ],
                f"{path}: obs/{key}",
            )
            for key in chosen
        }
        rewards = None
        if "rewards" in demos[0]:
            rewards = ConcatenatedArray(
                [
                    _array(path, demo, "rewards", length)
                    for demo, length in zip(demos, lengths, strict=True)
                ],
                f"{path}: rewards",
            )
        successes = None
        if rewards is not None and success_reward is not None:
            successes = [bool(np.max(part[:]) >= success_reward) for part in rewards.parts]
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path}: truncated or corrupt ({error})") from error
    return assemble(
        {name: joined[key] for key, name in chosen.items()},
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


def masks(path: str | os.PathLike[str]) -> dict[str, int]:
    """
    The filters of a file.

    :param path: the file
    :return: the number of episodes of each
    """
    with optional_module("h5py", "demonstrations").File(path, "r") as file:
        return {name: len(names) for name, names in file.get("mask", {}).items()}


def _episodes(path: Path, file: Any, mask: str | None) -> list[Any]:
    data = _group(path, file, "data")
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
    return [data[name] for name in sorted(names, key=_natural)]


def _natural(name: str) -> list[tuple[int, str]]:
    """So that demo_2 comes before demo_10."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]


def _group(path: Path, parent: Any, name: str) -> Any:
    if name not in parent:
        raise ValueError(
            f"{path}: {parent.name} lacks {name!r}, found {sorted(parent)}; expected robomimic's "
            "layout, data/demo_<i>/obs/<key> and actions"
        )
    return parent[name]


def _array(path: Path, demo: Any, key: str, length: int | None = None) -> CheckedArray:
    where = f"{path}: {demo.name}/{key}"
    dataset = _group(path, demo, key)
    if not hasattr(dataset, "dtype"):
        raise ValueError(f"{where}: a group, expected an array")
    if dataset.ndim == 0 or len(dataset) == 0:
        raise ValueError(f"{where}: shape {dataset.shape}, expected at least one step")
    if length is not None and len(dataset) != length:
        raise ValueError(f"{where}: {len(dataset)} steps, expected {length}, as actions has")
    return CheckedArray(dataset, where)
