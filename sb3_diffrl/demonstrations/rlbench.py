"""RLBench's folders of demonstrations, read without RLBench."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sb3_diffrl.demonstrations.arrays import Array, Source
from sb3_diffrl.demonstrations.dataset import Demonstrations
from sb3_diffrl.demonstrations.images import png_array
from sb3_diffrl.demonstrations.reading import (
    DEFAULT_MEMORY,
    LANGUAGE,
    Embedding,
    Keys,
    assemble,
    checked,
    embedded,
    names_of,
)
from sb3_diffrl.demonstrations.safe_pickle import Record, load_pickle

_PICKLE = "low_dim_obs.pkl"
# What RLBench's Gymnasium environments show in the mode "state", in their order.
STATE = (
    *("joint_velocities", "joint_positions", "joint_forces", "gripper_open", "gripper_pose"),
    *("gripper_joint_positions", "gripper_touch_forces", "task_low_dim_state"),
)
CAMERAS = ("left_shoulder", "right_shoulder", "overhead", "wrist", "front")
IMAGES = tuple(f"{camera}_rgb" for camera in CAMERAS)
MAX_JOINT_DELTA = 0.1

ActionMode = Literal["joint_deltas", "joint_positions"]


class Demo(Record):
    """Stands in for ``rlbench.demo.Demo``: a demonstration."""

    _observations: list[Any]


class Observation(Record):
    """Stands in for ``rlbench.backend.observation.Observation``: a time step."""


_CLASSES = {"rlbench.demo.Demo": Demo, "rlbench.backend.observation.Observation": Observation}


def read(
    path: str | os.PathLike[str],
    observation_keys: Keys = None,
    concatenate: bool = False,
    actions: ActionMode = "joint_deltas",
    language: Embedding | None = None,
    transpose_images: bool = True,
    memory: int = DEFAULT_MEMORY,
    progress_bar: bool = False,
) -> Demonstrations:
    """
    Read demonstrations that RLBench (https://github.com/stepjam/RLBench) has written:
    ``variation<i>/episodes/episode<j>`` with ``low_dim_obs.pkl`` and a folder of images for each
    camera. A demonstration of ``T + 1`` observations has ``T`` decisions.

    :param path: the folder of a task, of a variation or of an episode
    :param observation_keys: one key, several for a dictionary, a mapping of keys to names of the
        observation space, or None for the state as RLBench's environments show it; images are keys
        such as ``"front_rgb"``
    :param concatenate: join the vectors of all keys, in their order
    :param actions: ``"joint_deltas"``: changes of the joints towards the recorded target (the
        joints reached, where none was recorded), clipped to ±0.1 as the environment's bounds are,
        and the gripper, 1 open; ``"joint_positions"``: the targets themselves
    :param language: embeds the instruction of each episode, the first of its variation's
        descriptions (``n`` sentences to ``(n, d)``), as the observation ``language``
    :param transpose_images: give images as ``(channels, height, width)``
    :param memory: larger data stay on disk; only images can be that large
    :param progress_bar: show one while reading
    :return: the demonstrations, all successful, as RLBench records no others
    :raises UnsafePickleError: if a pickle refers to more than RLBench's two classes and arrays
    :raises ValueError: if a file is missing or truncated or lacks a key, naming it
    """
    if actions not in get_args(ActionMode):
        raise ValueError(f"actions: {actions!r}, expected one of {get_args(ActionMode)}")
    from tqdm import tqdm

    folders = _episode_folders(Path(path))
    demos = [_load(f) for f in tqdm(folders, unit="episodes", disable=not progress_bar)]
    lengths = [len(demo) - 1 for demo in demos]
    ends = np.cumsum(lengths)
    there = [key for key in STATE if getattr(demos[0][0], key, None) is not None]
    cameras = [key for key in IMAGES if (folders[0] / key).is_dir()]
    named = names_of(
        there if observation_keys is None else observation_keys,
        [*there, *cameras],
        str(folders[0] / _PICKLE),
    )
    observations: dict[str, Source] = {}
    for key, name in named.items():
        if key in cameras:
            observations[name] = png_array(
                [
                    folder / key / f"{t}.png"
                    for folder, length in zip(folders, lengths, strict=True)
                    for t in range(length)
                ]
            )
        else:
            parts = [_column(f, d, key)[:-1] for f, d in zip(folders, demos, strict=True)]
            _check_widths(folders, parts, key)
            observations[name] = np.concatenate(parts)
    if language is not None:
        observations[LANGUAGE] = embedded([_instruction(f) for f in folders], language, ends)
    return assemble(
        observations,
        _actions(folders, demos, actions),
        ends,
        successes=np.ones(len(folders), bool),
        single=isinstance(observation_keys, str) and language is None,
        concatenate=concatenate,
        transpose_images=transpose_images,
        memory=memory,
        progress_bar=progress_bar,
    )


def instructions(path: str | os.PathLike[str]) -> list[str]:
    """
    What the episodes were asked to do.

    :param path: as of :func:`read`
    :return: a sentence for each episode
    """
    return [_instruction(folder) for folder in _episode_folders(Path(path))]


def _episode_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    found = [file.parent for file in root.rglob(_PICKLE)]
    if not found:
        raise ValueError(
            f"{root}: no {_PICKLE} anywhere below; expected the folder of a task, with "
            "variation0/episodes/episode0 in it"
        )
    return sorted(found, key=lambda folder: _numbers(folder.relative_to(root)))


def _numbers(folder: Path) -> list[int]:
    """So that episode2 comes before episode10."""
    return [int(number) for number in re.findall(r"\d+", str(folder))]


def _load(folder: Path) -> list[Any]:
    path = folder / _PICKLE
    demo = load_pickle(path, _CLASSES)
    steps = demo if isinstance(demo, list) else getattr(demo, "_observations", None)
    if not isinstance(steps, list) or not all(isinstance(step, Observation) for step in steps):
        raise ValueError(f"{path}: {type(demo).__name__}, expected a Demo with its observations")
    if len(steps) < 2:
        raise ValueError(f"{path}: {len(steps)} observations, expected two or more")
    return steps


def _column(folder: Path, steps: Sequence[Any], key: str) -> Array:
    """``(T + 1, n)`` values of a key."""
    where = f"{folder / _PICKLE}: {key}"
    rows = []
    for t, step in enumerate(steps):
        value = getattr(step, key, None)
        if value is None:
            raise ValueError(f"{where}[{t}] is missing, though the first demonstration has it")
        rows.append(np.atleast_1d(np.asarray(value)))
        if rows[t].shape != rows[0].shape:
            raise ValueError(f"{where}[{t}]: shape {rows[t].shape}, expected {rows[0].shape}")
    return checked(np.stack(rows), where).astype(np.float32)


def _check_widths(folders: Sequence[Path], parts: Sequence[Array], key: str) -> None:
    for folder, part in zip(folders, parts, strict=True):
        if part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(
                f"{folder / _PICKLE}: {key} has shape {part.shape[1:]}, expected "
                f"{parts[0].shape[1:]}, as in {folders[0]}; choose other observation_keys, or "
                "variations alike"
            )


def _actions(folders: Sequence[Path], demos: Sequence[list[Any]], mode: ActionMode) -> Array:
    joints, targets = [], []
    for folder, steps in zip(folders, demos, strict=True):
        positions = _column(folder, steps, "joint_positions")
        gripper = _column(folder, steps, "gripper_open")
        target = np.concatenate([positions, gripper], axis=1)[1:]
        for t, step in enumerate(steps[1:]):
            recorded = (getattr(step, "misc", None) or {}).get("joint_position_action")
            if recorded is not None:
                where = f"{folder / _PICKLE}: misc['joint_position_action'] of step {t + 1}"
                value = checked(np.ravel(recorded), where)
                if value.shape != target[t].shape:
                    raise ValueError(f"{where}: shape {value.shape}, expected {target[t].shape}")
                target[t] = value
        joints.append(positions[:-1])
        targets.append(target)
    _check_widths(folders, targets, "joint_positions")
    chosen = np.concatenate(targets)
    if mode == "joint_positions":
        return chosen
    deltas = chosen[:, :-1] - np.concatenate(joints)
    clipped = np.clip(deltas, -MAX_JOINT_DELTA, MAX_JOINT_DELTA)
    share = float(np.mean(clipped != deltas))
    if share > 0.01:
        warnings.warn(
            f"{share:.0%} of the joints' changes were beyond ±{MAX_JOINT_DELTA} and are clipped; "
            "played back, these demonstrations fall behind",
            stacklevel=3,
        )
    return np.concatenate([clipped, chosen[:, -1:]], axis=1)


def _instruction(folder: Path) -> str:
    """The episode's own descriptions, or those of its variation, two folders above."""
    name = "variation_descriptions.pkl"
    places = [folder / name, folder.parent.parent / name]
    for path in places:
        if path.is_file():
            descriptions = load_pickle(path)
            if not isinstance(descriptions, list) or not descriptions:
                raise ValueError(f"{path}: expected a list of sentences")
            return str(descriptions[0])
    raise ValueError(f"{places[1]}: no such file; without descriptions leave language out")
