"""Episodes of a policy in vectorised environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

    from sb3_diffrl.demonstrations.dataset import Demonstrations


def record(
    policy: BaseAlgorithm | Callable[[Any], Any],
    env: VecEnv,
    n_episodes: int,
    deterministic: bool,
    seed: int | None,
    progress_bar: bool,
) -> Demonstrations:
    """See :meth:`Demonstrations.from_rollouts`."""
    from stable_baselines3.common.vec_env import unwrap_vec_normalize
    from tqdm.auto import tqdm

    from sb3_diffrl.demonstrations.dataset import Demonstrations

    if n_episodes < 1:
        raise ValueError(f"n_episodes: {n_episodes}, expected at least 1")
    act = _policy(policy, deterministic)
    normalize = unwrap_vec_normalize(env)
    wanted = np.diff(np.linspace(0, n_episodes, env.num_envs + 1).round().astype(int))
    episodes = [_Episodes(int(n)) for n in wanted]
    if seed is not None:
        env.seed(seed)
    obs: Any = env.reset()
    starts = np.ones(env.num_envs, bool)
    with tqdm(total=n_episodes, desc="recording", disable=not progress_bar) as bar:
        while any(each.wanted for each in episodes):
            raw = _copy(obs if normalize is None else normalize.get_original_obs())
            actions = act(obs, starts)
            obs, rewards, starts, infos = env.step(actions)
            if normalize is not None:
                rewards = normalize.get_original_reward()
            for i, each in enumerate(episodes):
                if each.wanted:
                    each.add(_of_env(raw, i), actions[i], rewards[i])
                    if starts[i]:
                        each.end(infos[i].get("is_success"))
                        bar.update()
    joined = [each for each in episodes if each.actions]
    successes = [success for each in joined for success in each.successes]
    return Demonstrations.from_arrays(
        [_stacked(one) for each in joined for one in each.observations],
        [np.stack(one) for each in joined for one in each.actions],
        rewards=[np.array(one, np.float32) for each in joined for one in each.rewards],
        successes=None if None in successes else successes,
    )


class _Episodes:
    """The episodes of one environment, and how many are still wanted."""

    def __init__(self, wanted: int):
        self.wanted = wanted
        self.observations: list[list[Any]] = []
        self.actions: list[list[np.ndarray]] = []
        self.rewards: list[list[float]] = []
        self.successes: list[Any] = []
        self._under_way = False

    def add(self, observation: Any, action: np.ndarray, reward: float) -> None:
        if not self._under_way:
            for parts in (self.observations, self.actions, self.rewards):
                parts.append([])
            self._under_way = True
        self.observations[-1].append(observation)
        self.actions[-1].append(np.array(action))
        self.rewards[-1].append(reward)

    def end(self, success: Any) -> None:
        self.successes.append(success)
        self.wanted -= 1
        self._under_way = False


def _policy(policy: Any, deterministic: bool) -> Callable[[Any, np.ndarray], np.ndarray]:
    if not hasattr(policy, "predict"):
        if not callable(policy):
            raise ValueError(f"policy: {policy!r}, expected a model or a function of observations")
        return lambda obs, starts: np.asarray(policy(obs))
    state: Any = None  # of recurrent policies

    def act(obs: Any, starts: np.ndarray) -> np.ndarray:
        nonlocal state
        actions, state = policy.predict(
            obs, state=state, episode_start=starts, deterministic=deterministic
        )
        return np.asarray(actions)

    return act


def _copy(obs: Any) -> Any:
    return {k: np.array(v) for k, v in obs.items()} if isinstance(obs, dict) else np.array(obs)


def _of_env(obs: Any, env: int) -> Any:
    return {k: v[env] for k, v in obs.items()} if isinstance(obs, dict) else obs[env]


def _stacked(episode: list[Any]) -> Any:
    if isinstance(episode[0], dict):
        return {key: np.stack([obs[key] for obs in episode]) for key in episode[0]}
    return np.stack(episode)
