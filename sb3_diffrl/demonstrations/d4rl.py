"""The layout of D4RL: flat arrays, and flags where episodes end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_diffrl.demonstrations.arrays import ConvertedArray, is_lazy
from sb3_diffrl.demonstrations.files import load_npz
from sb3_diffrl.demonstrations.hdf5 import HDF5Array, open_file

if TYPE_CHECKING:
    from sb3_diffrl.demonstrations.dataset import Demonstrations

_SUCCESS = ("infos/success", "infos/goal_achieved")


def read(source: str | os.PathLike[str] | Mapping[str, Any]) -> Demonstrations:
    """See :meth:`Demonstrations.from_d4rl`."""
    from sb3_diffrl.demonstrations.dataset import Demonstrations

    name = "dataset" if isinstance(source, Mapping) else str(source)
    arrays = source if isinstance(source, Mapping) else _open(Path(source))
    missing = [key for key in ("observations", "actions", "terminals") if key not in arrays]
    if missing:
        raise ValueError(
            f"{name}: lacks {missing}; expected the layout of D4RL, there are {sorted(arrays)[:20]}"
        )
    actions = arrays["actions"]
    m = len(actions)
    ended = _flags(name, "terminals", arrays, m)
    if "timeouts" in arrays:
        ended = ended | _flags(name, "timeouts", arrays, m)
    ends = np.flatnonzero(ended) + 1
    if not len(ends) or ends[-1] < m:
        ends = np.append(ends, m)
    successes = None
    for key in _SUCCESS:
        if key in arrays:
            starts = np.concatenate([[0], ends[:-1]])
            successes = np.logical_or.reduceat(_flags(name, key, arrays, m), starts)
            break
    try:
        return Demonstrations(arrays["observations"], actions, ends, _rewards(arrays, m), successes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _open(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".npz":
        return load_npz(path)
    arrays: dict[str, Any] = {}

    def visit(key: str, found: Any) -> None:
        if getattr(found, "shape", ()) and found.dtype.kind in "biuf":
            arrays[key] = HDF5Array(path, key)

    open_file(path).visititems(visit)
    return arrays


def _rewards(arrays: Mapping[str, Any], m: int) -> Any:
    rewards = arrays.get("rewards")
    if rewards is None or np.shape(rewards) != (m, 1):
        return rewards
    return ConvertedArray(rewards, np.ravel) if is_lazy(rewards) else np.ravel(rewards)


def _flags(name: str, key: str, arrays: Mapping[str, Any], m: int) -> np.ndarray:
    flags = np.asarray(arrays[key])
    if flags.shape not in ((m,), (m, 1)):
        raise ValueError(
            f"{name}: {key!r} has shape {flags.shape}, expected ({m},), one for each action"
        )
    wrong = ~np.isin(flags, (0, 1)).reshape(m)
    if wrong.any():
        index = int(np.argmax(wrong))
        raise ValueError(f"{name}: {key}[{index}] = {flags[index]}, expected 0 or 1")
    return flags.reshape(m).astype(bool)
