"""Small environments for the tests, and demonstrations of how to act in them."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_diffrl import Demonstrations

ASYMMETRIC = spaces.Box(np.array([-2.0, 1.0], np.float32), np.array([0.5, 5.0], np.float32))
MATRIX = spaces.Box(-1.0, 3.0, (3, 2), np.float32)
UNIT = spaces.Box(-1.0, 1.0, (2,), np.float32)


def observation_space(kind: str) -> spaces.Space[Any]:
    """
    :param kind: ``"vector"``, ``"discrete"``, ``"image"`` (channels last), or ``"dict"`` of image
        and vector
    :return: the space
    """
    image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    vector = spaces.Box(-1.0, 1.0, (3,), np.float32)
    return {
        "vector": vector,
        "discrete": spaces.Discrete(4),
        "image": image,
        "dict": spaces.Dict({"camera": image, "state": vector}),
    }[kind]


class TargetEnv(gym.Env[Any, np.ndarray]):
    """
    Each step shows a number in [-1, 1]; the nearer the scaled action is to it, the higher the
    reward.

    :param kind: of the observations, see :func:`observation_space`
    :param action_space: Box
    :param episode_length: decisions
    :param time_limit: whether episodes end by truncation, else by termination
    :param reward_scale: 0 for no reward at all
    :param success: what ``info["is_success"]`` says at the end; None for no such entry
    """

    def __init__(
        self,
        kind: str = "vector",
        action_space: spaces.Space[Any] = UNIT,
        episode_length: int = 8,
        time_limit: bool = True,
        reward_scale: float = 1.0,
        success: bool | None = None,
    ):
        self.kind = kind
        self.observation_space = observation_space(kind)
        self.action_space = action_space
        self.episode_length = episode_length
        self.time_limit = time_limit
        self.reward_scale, self.success = reward_scale, success
        self.received: list[np.ndarray] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), (action, self.action_space)
        self.received.append(action)
        space = self.action_space
        assert isinstance(space, spaces.Box)
        scaled = 2 * (action.astype(float) - space.low) / (space.high.astype(float) - space.low) - 1
        reward = self.reward_scale * (1 - float(np.square(scaled - self.target).mean()))
        self.steps += 1
        over = self.steps >= self.episode_length
        info = {"is_success": self.success} if over and self.success is not None else {}
        terminated, truncated = over and not self.time_limit, over and self.time_limit
        return self._observe(), reward, terminated, truncated, info

    def _observe(self) -> Any:
        self.target = float(self.np_random.uniform(-1, 1))
        brightness = round((self.target + 1) / 2 * 255)
        image = np.full((36, 36, 1), brightness, np.uint8)
        vector = np.array([self.target, self.target**2, 0.5], np.float32)
        return {
            "vector": vector,
            "discrete": np.int64(brightness // 64),
            "image": image,
            "dict": {"camera": image, "state": vector},
        }[self.kind]


class CountingEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Observes (number of the env, episode, step); episodes differ in length, every other succeeds.

    :param number: of the env
    :param env_steps: what ``info["env_steps"]`` says of each decision; None for no such entry
    """

    def __init__(self, number: int = 0, env_steps: int | None = None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = UNIT
        self.number, self.env_steps = number, env_steps
        self.episode = -1

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return self._observe(), {"started": self.episode}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        over = self.steps >= self.length
        info: dict[str, Any] = {"number": self.number, "step": self.steps}
        if over:
            info["is_success"] = self.succeeds
        if self.env_steps is not None:
            info["env_steps"] = self.env_steps
        # Every third episode is cut by a time limit.
        cut = over and self.episode % 3 == 2
        return self._observe(), float(action[0]), over and not cut, cut, info

    @property
    def length(self) -> int:
        return 3 + (2 * self.episode + self.number) % 5

    @property
    def succeeds(self) -> bool:
        return (self.episode + self.number) % 2 == 1

    def _observe(self) -> np.ndarray:
        return np.array([self.number, self.episode, self.steps], np.float32)


RISING = [1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]  # ScriptedEnv: four episodes in 16 steps


class ScriptedEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Four decisions per episode, whose success or return a list says, whatever the actions.

    :param outcomes: of the episodes, the last one repeated
    :param reports_success: whether ``info["is_success"]`` tells, or the return alone
    """

    def __init__(self, outcomes: Sequence[float], reports_success: bool = True):
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = UNIT
        self.outcomes, self.reports_success = list(outcomes), reports_success
        self.episode = -1

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        over = self.steps == 4
        outcome = self.outcomes[min(self.episode, len(self.outcomes) - 1)]
        info = {"is_success": bool(outcome)} if self.reports_success else {}
        return np.zeros(2, np.float32), outcome if over else 0.0, over, False, info


class RewardOneEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    A reward of 1 at each step.

    :param episode_length: steps
    :param time_limit: whether episodes end by truncation, else by termination
    """

    def __init__(self, episode_length: int, time_limit: bool):
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = UNIT
        self.episode_length, self.time_limit = episode_length, time_limit

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        over = self.steps == self.episode_length
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return observation, 1.0, over and not self.time_limit, over and self.time_limit, {}


class ContextEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Observes (a moving number, a context); the context stays what it was built with. No reward.

    :param context: in [-1, 1]
    """

    def __init__(self, context: float):
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = UNIT
        self.context = context

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.np_random.uniform(-1, 1), self.context], np.float32)


def several(n_envs: int, kind: str = "vector", **kwargs: Any) -> DummyVecEnv:
    """:return: ``n_envs`` of :class:`TargetEnv` as a VecEnv"""
    return DummyVecEnv([lambda: TargetEnv(kind, **kwargs) for _ in range(n_envs)])


def counting(n_envs: int, **kwargs: Any) -> DummyVecEnv:
    """:return: ``n_envs`` of :class:`CountingEnv` as a VecEnv"""
    return DummyVecEnv([lambda i=i: CountingEnv(i, **kwargs) for i in range(n_envs)])  # type: ignore[misc]


def demonstrations(env: TargetEnv | None = None, n_episodes: int = 20) -> Demonstrations:
    """:return: episodes of ``env`` in which the action hits the target"""
    env = env or TargetEnv()
    assert isinstance(env.action_space, spaces.Box)
    low, high = env.action_space.low, env.action_space.high
    observations: list[Any] = []
    actions = []
    for episode in range(n_episodes):
        observation, _ = env.reset(seed=episode)
        seen, done = [], []
        for _ in range(env.episode_length):
            seen.append(observation)
            done.append((low + (env.target + 1) / 2 * (high - low)).astype(env.action_space.dtype))
            observation, *_ = env.step(np.clip(done[-1], low, high))
        if env.kind == "dict":
            observations.append({key: np.stack([part[key] for part in seen]) for key in seen[0]})
        else:
            observations.append(np.stack(seen))
        actions.append(np.clip(np.stack(done), low, high))
    return Demonstrations.from_arrays(observations, actions)


def counted_demonstrations() -> Demonstrations:
    rng = np.random.default_rng(0)
    observations = np.stack([np.tile([0, 1], 20), np.arange(40) // 4, np.arange(40) % 4], axis=1)
    return Demonstrations.from_arrays(
        observations.astype(np.float32),
        rng.uniform(-1, 1, (40, 2)).astype(np.float32),
        episode_ends=np.arange(4, 41, 4),
    )
