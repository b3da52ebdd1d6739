"""Observations that are off and actions that are late."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray


class PerturbationWrapper(gym.Wrapper[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]):
    """
    Noise and an offset on the observation, a delay of the actions.

    ``reset(seed=)`` seeds the perturbations too, by a generator of their own: the environment
    inside draws what it would draw without the wrapper.

    :param env: environment whose observations are vectors and whose actions are a Box
    :param observation_noise: standard deviation of Gaussian noise, anew in every step, in the
        observation's units
    :param observation_offset: each entry is shifted by U(−this, this), drawn at every reset
    :param action_delay: number of steps ``d`` by which actions are late; in the first ``d`` steps
        of an episode zeros are done (or what of the action space is nearest to them)
    :param indices: entries of the observation that are perturbed, all by default
    :param previous: entry by entry, where an observation repeats the one before it: ``{22: 4}``
        where entry 22 is what 4 was one step ago. It then shows what was seen at 4 one step ago,
        and after a reset what is seen now. None of them may be among ``indices``
    :raises ValueError: for negative values, other spaces, and entries that do not exist
    """

    def __init__(
        self,
        env: gym.Env[NDArray[Any], NDArray[Any]],
        observation_noise: float = 0.0,
        observation_offset: float = 0.0,
        action_delay: int = 0,
        indices: Sequence[int] | None = None,
        previous: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(env)
        space, actions = env.observation_space, env.action_space
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"observation space: {space}, expected a Box with vectors")
        if not isinstance(actions, spaces.Box):
            raise ValueError(f"action space: {actions}, expected a Box")
        for name, value in (
            ("observation_noise", observation_noise),
            ("observation_offset", observation_offset),
            ("action_delay", action_delay),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: {value}, expected a finite number from 0")
        if action_delay % 1:
            raise ValueError(f"action_delay: {action_delay}, expected a whole number of steps")
        self.observation_noise = observation_noise
        self.observation_offset = observation_offset
        self.action_delay = int(action_delay)
        n = space.shape[0]
        previous = previous or {}
        self.indices = np.arange(n) if indices is None else np.array(indices, np.int64)
        self._copies = np.array([*previous.keys()], np.int64)
        self._originals = np.array([*previous.values()], np.int64)
        for name, entries in (
            ("indices", self.indices),
            ("previous", np.concatenate([self._copies, self._originals])),
        ):
            if len(entries) and not (entries.min() >= 0 and entries.max() < n):
                raise ValueError(f"{name}: {entries.tolist()}, expected entries from 0 to {n - 1}")
        if both := sorted({*self._copies.tolist()} & {*self.indices.tolist()}):
            raise ValueError(f"previous: {both} are also among indices; leave them out there")

        bounds = np.stack([space.low, space.high])
        if (observation_noise or observation_offset) and len(self.indices):
            # Gaussian noise has no bounds.
            reach = math.inf if observation_noise else observation_offset
            bounds[:, self.indices] += np.array([[-reach], [reach]], bounds.dtype)
            bounds[:, self._copies] = bounds[:, self._originals]
        self.observation_space = spaces.Box(*bounds, dtype=space.dtype.type)
        self._rest = np.clip(np.zeros(actions.shape, actions.dtype), actions.low, actions.high)
        self._rng: np.random.Generator | None = None
        self._offset = np.zeros(len(self.indices))
        self._waiting: deque[NDArray[Any]] = deque()
        self._seen: NDArray[Any] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """
        :param seed: of the environment and of the perturbations
        :param options: of the environment
        :return: what is seen first, and the environment's info
        """
        if seed is not None or self._rng is None:
            # The second number keeps the draws apart from the environment's, which has this seed.
            self._rng = np.random.default_rng(None if seed is None else [seed, 1])
        limit = self.observation_offset
        self._offset = self._rng.uniform(-limit, limit, len(self.indices))
        self._waiting = deque([self._rest] * self.action_delay)
        self._seen = None
        observation, info = self.env.reset(seed=seed, options=options)
        return self._perturbed(observation), info

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], Any, bool, bool, dict[str, Any]]:
        """
        :param action: what is done in ``action_delay`` steps
        :return: what is seen, and the environment's reward, terminated, truncated and info
        """
        self._waiting.append(np.array(action))
        observation, reward, terminated, truncated, info = self.env.step(self._waiting.popleft())
        return self._perturbed(observation), reward, terminated, truncated, info

    def _perturbed(self, observation: NDArray[Any]) -> NDArray[Any]:
        assert self._rng is not None, "reset comes first"
        seen = np.array(observation)
        noise = self.observation_noise * self._rng.standard_normal(len(self.indices))
        seen[self.indices] += (self._offset + noise).astype(seen.dtype)
        before = seen if self._seen is None else self._seen
        seen[self._copies] = before[self._originals]
        self._seen = seen
        return seen.copy()
