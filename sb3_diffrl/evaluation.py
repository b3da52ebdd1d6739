"""Success statistics of a policy."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.vector import VectorEnv
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecNormalize,
    unwrap_vec_wrapper,
)

from sb3_diffrl.random_state import preserved_random_state
from sb3_diffrl.wrappers import GymVecEnv


@dataclass(frozen=True)
class Evaluation:
    """
    What ``E`` episodes gave.

    :param successes: ``(E,)`` bool
    :param returns: ``(E,)`` undiscounted
    :param lengths: ``(E,)`` environment steps
    :param infos: last ``info`` of each episode
    """

    successes: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    infos: list[dict[str, Any]]

    @property
    def success_rate(self) -> float:
        """Fraction of the episodes that succeeded."""
        return float(self.successes.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the success rate."""
        return wilson_interval(int(self.successes.sum()), len(self.successes))


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """
    Score interval of a proportion (Wilson 1927).

    :param successes: number of successes
    :param n: number of trials
    :param z: quantile of the normal distribution, by default for 95 %
    :return: lower and upper bound
    """
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate(
    model: BaseAlgorithm,
    env: gym.Env | VectorEnv | VecEnv,
    n_episodes: int = 500,
    deterministic: bool = False,
    seed: int = 0,
) -> Evaluation:
    """
    Let a model act for a number of episodes, shared evenly between the envs so that short episodes
    do not count more often.

    The global random generators are left as they were: evaluating does not change a training run.
    A model that is trained under :class:`~stable_baselines3.common.vec_env.VecNormalize` sees the
    observations normalised by its statistics, if the env does not do that itself; an env that does
    keeps its statistics as they are, and its rewards count as they were.

    gSDE draws its noise as in training: for each episode, and anew after ``sde_sample_freq`` of its
    decisions.

    :param model: any model of SB3's
    :param env: environment, vectorised or not
    :param n_episodes: number of episodes ``E``
    :param deterministic: how the model predicts
    :param seed: of the envs and the policy's noise
    :return: the statistics; an episode succeeds where its last ``info["is_success"]`` says so
    :raises ValueError: for no episodes
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes: expected 1 or more, got {n_episodes}.")
    vec_env = as_vec_env(env)
    monitored = all(vec_env.env_is_wrapped(Monitor))
    statistics = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    normalizer = unwrap_vec_wrapper(vec_env, VecNormalize)
    if statistics is None or normalizer is not None:
        see: Callable[[Any], Any] = _as_they_are
    else:
        see = statistics.normalize_obs
    n_envs = vec_env.num_envs
    with (
        preserved_random_state(seed),
        fresh_exploration(model, n_envs) as redraw,
        _frozen(normalizer),
    ):
        vec_env.seed(seed)
        observations = vec_env.reset()
        quota = (n_episodes + np.arange(n_envs)) // n_envs  # sums up to n_episodes
        returns, lengths = np.zeros(n_envs), np.zeros(n_envs, int)
        decisions = np.zeros(n_envs, int)  # of the episode so far
        episodes: list[tuple[float, int, dict[str, Any]]] = []
        while quota.any():
            actions, _ = model.predict(see(observations), deterministic=deterministic)
            observations, rewards, dones, infos = vec_env.step(actions)
            returns += rewards if normalizer is None else normalizer.get_original_reward()
            decisions = np.where(dones, 0, decisions + 1)
            redraw(decisions)
            lengths += [info.get("env_steps", 1) for info in infos]  # a chunk makes several
            for i in np.flatnonzero(dones):
                if quota[i] > 0:
                    quota[i] -= 1
                    # A Monitor inside knows the rewards before chunks discount them.
                    total = infos[i]["episode"]["r"] if monitored else returns[i]
                    episodes.append((total, lengths[i], infos[i]))
                returns[i] = lengths[i] = 0
    return Evaluation(
        successes=np.array([bool(info.get("is_success", False)) for _, _, info in episodes]),
        returns=np.array([episode[0] for episode in episodes]),
        lengths=np.array([episode[1] for episode in episodes]),
        infos=[info for _, _, info in episodes],
    )


@contextmanager
def fresh_exploration(model: BaseAlgorithm, n: int) -> Iterator[Callable[[np.ndarray], None]]:
    """
    Draw gSDE's noise for each row that the model predicts inside, and put back what was there.

    Without it SB3's ``predict`` adds the noise of one and the same matrix to every row, so that
    equal observations give equal actions. Models without gSDE draw anew in every call anyway.

    :param model: any model of SB3's
    :param n: number of rows of each call of ``predict``
    :return: function that draws it anew where it is due: at the start of an episode and after each
        ``sde_sample_freq`` decisions; it takes the decisions made so far in each row's, ``(n,)``
    """
    if not getattr(model, "use_sde", False):
        yield lambda decisions: None
        return
    actor: Any = getattr(model.policy, "actor", model.policy)  # SAC and PPO keep it apart
    distribution = actor.action_dist
    every = getattr(model, "sde_sample_freq", -1)

    def redraw(decisions: np.ndarray) -> None:
        due = decisions % every == 0 if every > 0 else decisions == 0
        if due.any():
            before = distribution.exploration_matrices
            with th.no_grad():
                actor.reset_noise(n)
                distribution.exploration_matrices[~due] = before[~due]

    kept = dict(vars(distribution))
    try:
        actor.reset_noise(n)
        yield redraw
    finally:
        vars(distribution).update(kept)


@contextmanager
def _frozen(normalizer: VecNormalize | None) -> Iterator[None]:
    """Leave the statistics as they are inside."""
    if normalizer is None:
        yield
        return
    training, normalizer.training = normalizer.training, False
    try:
        yield
    finally:
        normalizer.training = training


def _as_they_are(observations: Any) -> Any:
    return observations


def as_vec_env(env: gym.Env | VectorEnv | VecEnv) -> VecEnv:
    """
    :param env: any kind of environment
    :return: SB3's kind
    """
    if isinstance(env, VecEnv):
        return env
    if isinstance(env, VectorEnv):
        return GymVecEnv(env)
    return DummyVecEnv([lambda: env])
