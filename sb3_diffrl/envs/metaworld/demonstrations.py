"""Meta-World's scripted experts: demonstrations, and how well they do."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.envs.metaworld.perturbations import Perturbation
from sb3_diffrl.envs.metaworld.tasks import make_expert, task_name

ENV_ID = "sb3_diffrl/MetaWorld-v0"


def metaworld_demonstrations(
    task: str,
    n_episodes: int = 20,
    spread: float = 0.02,
    seed: int = 0,
    perturbation: str | Mapping[str, Any] | Perturbation | None = None,
    reward: str = "dense",
    max_attempts: int | None = None,
    progress_bar: bool = False,
) -> Demonstrations:
    """
    Successful episodes of Meta-World's scripted expert.

    :param task: see :class:`~sb3_diffrl.envs.metaworld.MetaWorldEnv`
    :param n_episodes: how many
    :param spread: object and goal within ± this, in m, of the centre of the task's box
    :param seed: of the positions
    :param perturbation: see :class:`~sb3_diffrl.envs.metaworld.MetaWorldEnv`
    :param reward: ``"dense"`` or ``"sparse"``
    :param max_attempts: episodes begun at most, by default ten for each that is wanted
    :param progress_bar: whether to show one
    :return: observations ``(M, 39)``, actions ``(M, 4)`` within [-1, 1], rewards and successes
    :raises RuntimeError: where too few of the attempts succeeded
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes: {n_episodes}, expected at least 1")
    if max_attempts is None:
        max_attempts = 10 * n_episodes
    env = gym.make(ENV_ID, task=task, spread=spread, perturbation=perturbation, reward=reward)
    expert = make_expert(task_name(task))
    episodes: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    bar = _progress(n_episodes, f"{task}: demonstrations", not progress_bar)
    with bar:
        for attempt in range(max_attempts):
            *episode, success = _play(env, expert, seed if attempt == 0 else None)
            if success:
                episodes.append((episode[0], episode[1], episode[2]))
                bar.update()
            if len(episodes) == n_episodes:
                break
    env.close()
    if len(episodes) < n_episodes:
        raise RuntimeError(
            f"{task}: the expert succeeded in {len(episodes)} of {max_attempts} episodes, "
            f"{n_episodes} were wanted. Perturb less or raise max_attempts."
        )
    observations, actions, rewards = zip(*episodes, strict=True)
    return Demonstrations.from_arrays(
        observations=list(observations),
        actions=list(actions),
        rewards=list(rewards),
        successes=np.ones(n_episodes, bool),
    )


def expert_success(
    task: str,
    perturbation: str | Mapping[str, Any] | Perturbation | None = None,
    n_episodes: int = 100,
    seed: int = 0,
    spread: float = 0.02,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """
    Let the scripted expert act in the same environment as a policy. It is given what a policy would
    see, sensing perturbations included.

    :param task: see :class:`~sb3_diffrl.envs.metaworld.MetaWorldEnv`
    :param perturbation: see :class:`~sb3_diffrl.envs.metaworld.MetaWorldEnv`
    :param n_episodes: how many, ``E``
    :param seed: of the environment
    :param spread: see :class:`~sb3_diffrl.envs.metaworld.MetaWorldEnv`
    :return: which episodes succeeded, ``(E,)`` bool, and their lengths, ``(E,)`` steps
    """
    env = gym.make(ENV_ID, task=task, spread=spread, perturbation=perturbation)
    expert = make_expert(task_name(task))
    successes, lengths = [], []
    for episode in range(n_episodes):
        _, actions, _, success = _play(env, expert, seed if episode == 0 else None)
        successes.append(success)
        lengths.append(len(actions))
    env.close()
    return np.array(successes), np.array(lengths)


def _play(
    env: gym.Env, expert: Any, seed: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], bool]:
    """One episode: observations ``(T, 39)``, actions ``(T, 4)``, rewards ``(T,)`` and success."""
    observation, info = env.reset(seed=seed)
    observations, actions, rewards, done = [], [], [], False
    while not done:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constant.s. may be too high")  # clipped here
            action = expert(observation[:39].astype(np.float64)).astype(np.float32)
        observations.append(observation)
        actions.append(action)
        observation, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        done = terminated or truncated
    return (
        np.array(observations, np.float32),
        np.array(actions, np.float32),
        np.array(rewards, np.float32),
        info["is_success"],
    )


def _progress(total: int, description: str, disable: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=description, disable=disable)
