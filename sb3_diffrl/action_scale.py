"""Between an environment's actions and the network's, which lie in [-1, 1]."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces


class ActionScale:
    """
    The affine map between the network's actions and the env's.

    :param space: Box with finite, distinct bounds
    :param action_range: lowest and highest action that -1 and 1 stand for, in the env's units and
        broadcast to the space; by default the space's bounds
    :param limit: of the network's actions where ``action_range`` is given, None for none; else 1
    :raises ValueError: where the space or the range do not serve, saying what to use
    """

    def __init__(
        self,
        space: spaces.Space,
        action_range: Sequence[Sequence[float]] | None = None,
        limit: float | None = None,
    ):
        self.space = check_action_space(space)
        if action_range is None:
            # In float64 narrow integers do not overflow.
            self.low, self.high = (
                end.astype(np.float64) for end in (self.space.low, self.space.high)
            )
            self._limit = 1.0
        else:
            self.low, self.high = _fitting(action_range, self.space)
            self._limit = np.inf if limit is None else limit

    def equals(self, other: "ActionScale") -> bool:
        """:return: whether another scale has the same ends"""
        return np.array_equal(self.low, other.low) and np.array_equal(self.high, other.high)

    def scale(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: ``(N, *shape)`` in the env's units
        :return: ``(N, *shape)`` float32, the network's
        """
        return (2 * (actions - self.low) / (self.high - self.low) - 1).astype(np.float32)

    def clip(self, scaled: np.ndarray) -> np.ndarray:
        """
        :param scaled: ``(N, *shape)`` or flattened, the network's
        :return: the same shape, the network's actions that are executed
        """
        low, high = self.scale(np.stack([self.space.low, self.space.high]))
        limited = scaled.reshape(-1, *self.low.shape).clip(-self._limit, self._limit)
        return limited.clip(low, high).reshape(scaled.shape)

    def unscale(self, scaled: np.ndarray) -> np.ndarray:
        """
        :param scaled: ``(N, *shape)`` or flattened, the network's; clipped to its limit
        :return: ``(N, *shape)`` in the env's units, dtype and bounds
        """
        limited = scaled.reshape(-1, *self.low.shape).clip(-self._limit, self._limit)
        actions = self.low + (limited + 1) / 2 * (self.high - self.low)
        if np.issubdtype(self.space.dtype, np.integer):
            actions = np.rint(actions)
        # Rounding to the space's dtype must not step over its bounds.
        return actions.astype(self.space.dtype).clip(self.space.low, self.space.high)


def check_action_space(space: spaces.Space) -> spaces.Box:
    """
    :param space: action space
    :return: the same
    :raises ValueError: unless it is a Box with finite, distinct bounds, saying what to use
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(
            f"DiffusionPPO needs a Box action space, got {space}. "
            "Use SB3's PPO for discrete actions, or wrap the env to expose a continuous action."
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"DiffusionPPO needs finite action bounds, got {space}. Wrap the env, for instance in "
            "gymnasium.wrappers.RescaleAction or ClipAction with a finite Box."
        )
    if not (space.low < space.high).all():
        raise ValueError(
            f"DiffusionPPO needs low < high for every action entry, got {space}. "
            "Remove the constant entries by a wrapper."
        )
    return space


def _fitting(action_range: Any, space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of a range, broadcast to the space; raises ValueError where they do not fit."""
    ends = [np.asarray(end, np.float64) for end in action_range]
    try:
        fits = len(ends) == 2 and all(
            np.broadcast_shapes(end.shape, space.shape) == space.shape for end in ends
        )
    except ValueError:
        fits = False
    if not (fits and np.isfinite(ends).all() and (ends[0] < ends[1]).all()):
        raise ValueError(
            f"action_range must be the lowest and the highest action, finite and fitting the "
            f"action space {space}; got {action_range}."
        )
    low, high = (np.broadcast_to(end, space.shape) for end in ends)
    return low, high
