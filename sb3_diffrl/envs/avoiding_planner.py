"""A planner that solves the Avoiding task in each of its ways, and the demonstrations it gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.envs.avoiding_world import (
    HIGH,
    LOW,
    MAX_EPISODE_STEPS,
    N_WAYS,
    ROW_STARTS,
    STEP,
    Bools,
    Floats,
    Ints,
    advance,
    displaced_layouts,
    observe,
    start_positions,
    ways_taken,
)

CLEARANCE = 0.16  # distance from the centre of a row's outer obstacle when passing beside the row
LINE_UP = 0.125  # distance before the first row at which to line up
TURN = 0.08  # distance from a line, or from a gap's centre, at which to begin to turn
NOISE = 0.05
MIN_SCENE_SUCCESS = 0.9
MAX_ATTEMPTS = 1000  # of an episode
_ROWS = (slice(0, 1), slice(1, 3), slice(3, 6))


def gap_centres(obstacles: Floats, way: Ints) -> Floats:
    """
    :param obstacles: ``(N, 6, 2)``
    :param way: ``(N,)``
    :return: x of the middle of the gap chosen in each row, ``(N, 3)``
    """
    gaps = np.stack(np.unravel_index(way, (2, 3, 4)), axis=-1)
    centres = np.empty(gaps.shape)
    for row, part in enumerate(_ROWS):
        x = obstacles[:, part, 0]
        edges = np.concatenate([x[:, :1] - 2 * CLEARANCE, x, x[:, -1:] + 2 * CLEARANCE], axis=1)
        chosen = gaps[:, row, None]
        both = np.take_along_axis(edges, np.concatenate([chosen, chosen + 1], axis=1), axis=1)
        centres[:, row] = both.mean(axis=1)
    return np.asarray(np.clip(centres, LOW[0], HIGH[0]))


def plan(position: Floats, obstacles: Floats, way: Ints) -> Floats:
    """
    The planner's action: head for the gap's centre on the line midway before the next row (.125
    before the row where nothing is displaced), turn up as it comes near, pass, and so on to the
    finish.

    :param position: ``(N, 2)``
    :param obstacles: ``(N, 6, 2)``
    :param way: the way to take, ``(N,)``
    :return: actions in [-1, 1], ``(N, 2)``
    """
    y = obstacles[..., 1]
    top = np.maximum.reduceat(y, ROW_STARTS, axis=1)
    bottom = np.minimum.reduceat(y, ROW_STARTS, axis=1)
    before = np.concatenate([bottom[:, :1] - 2 * LINE_UP, top[:, :-1]], axis=1)
    line_up = (before + bottom) / 2

    turn_at = (top + np.concatenate([line_up[:, 1:], top[:, -1:] + LINE_UP], axis=1)) / 2
    passed = (position[:, 1:] > turn_at).sum(axis=1)
    at = np.arange(len(position)), np.minimum(passed, 2)
    offset = np.stack([gap_centres(obstacles, way)[at], line_up[at]], axis=-1) - position
    action = np.clip(offset / [STEP, TURN], -1, 1)
    rise = np.clip(1 - np.abs(offset[:, 0]) / TURN, 0, 1)
    action[:, 1] = np.maximum(action[:, 1], rise)
    action[passed == 3] = [0, 1]
    return np.asarray(action)


@dataclass(frozen=True)
class Rollouts:
    """
    ``N`` planned episodes of up to ``T`` steps; entries after an episode's end are meaningless.

    :param observations: ``(N, T, 14)``
    :param actions: ``(N, T, 2)``
    :param lengths: ``(N,)``
    :param way: the way taken, -1 where the episode failed, ``(N,)``
    """

    observations: Floats
    actions: Floats
    lengths: Ints
    way: Ints

    @property
    def success(self) -> Bools:
        """Whether each episode reached the finish line, ``(N,)``."""
        return self.way >= 0


def rollout(
    obstacles: Floats, way: Ints, rng: np.random.Generator, noise: float = NOISE
) -> Rollouts:
    """
    Let the planner act for one episode in each of ``N`` worlds.

    :param obstacles: ``(N, 6, 2)``
    :param way: the way to take, ``(N,)``
    :param rng: draws the starts and the noise
    :param noise: standard deviation of the Gaussian noise on the actions, in action units
    :return: the episodes
    """
    n = len(obstacles)
    observations = np.zeros((n, MAX_EPISODE_STEPS, 14), np.float32)
    actions = np.zeros((n, MAX_EPISODE_STEPS, 2), np.float32)
    lengths = np.full(n, MAX_EPISODE_STEPS)
    taken = np.full(n, -1)
    active = np.ones(n, bool)
    position, right = start_positions(rng, n), np.zeros((n, 6), bool)
    for t in range(MAX_EPISODE_STEPS):
        planned = plan(position, obstacles, way) + noise * rng.standard_normal((n, 2))
        observations[:, t] = observe(position, obstacles)
        actions[:, t] = np.clip(planned, -1, 1)
        position, right, collision, finish = advance(position, obstacles, right, actions[:, t])
        ended = active & (collision | finish)
        lengths[ended] = t + 1
        taken = np.where(active & finish, ways_taken(right), taken)
        active &= ~ended
        if not active.any():
            break
    return Rollouts(observations, actions, lengths, taken)


@lru_cache(maxsize=256)
def _scene(seed: int, displacement: float) -> Floats:
    rng = np.random.default_rng(seed)
    ways = np.tile(np.arange(N_WAYS), 4)
    while True:
        layout = displaced_layouts(rng, 1, displacement)
        trial = rollout(np.repeat(layout, len(ways), axis=0), ways, np.random.default_rng(0))
        if trial.success.mean() >= MIN_SCENE_SUCCESS:
            return np.asarray(layout[0])


def scene_layout(seed: int, displacement: float) -> Floats:
    """
    The displaced layout with a given number: the first that its generator draws and in which the
    planner succeeds in at least 90 % of 96 episodes, four in each way.

    :param seed: the scene's number
    :param displacement: see :func:`~sb3_diffrl.envs.avoiding_world.displaced_layouts`
    :return: obstacle positions, ``(6, 2)``
    """
    return _scene(seed, displacement).copy()


def avoiding_demonstrations(
    n_episodes: int, seed: int = 0, displacement: float = 0.01, noise: float = NOISE
) -> Demonstrations:
    """
    Successful episodes of the planner that use all 24 ways as evenly as ``n_episodes`` allows.

    :param n_episodes: how many
    :param seed: seed of layouts, starts, noise and the order of the ways
    :param displacement: each episode's obstacles are displaced uniformly within ± this in x and
        ± 0.3 of it in y
    :param noise: standard deviation of the noise on the planner's actions, in action units
    :return: observations ``(M, 14)``, actions ``(M, 2)``, rewards and successes
    :raises ValueError: where the planner hardly ever succeeds under so much noise or displacement
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes: {n_episodes}, expected at least 1")
    rng = np.random.default_rng(seed)
    cycles = -(-n_episodes // N_WAYS)
    ways = np.concatenate([rng.permutation(N_WAYS) for _ in range(cycles)])[:n_episodes]
    observations: list[Floats] = [np.empty(0)] * n_episodes
    actions: list[Floats] = [np.empty(0)] * n_episodes
    missing = np.arange(n_episodes)
    for _ in range(MAX_ATTEMPTS):
        if not len(missing):
            break
        layouts = displaced_layouts(rng, len(missing), displacement)
        episodes = rollout(layouts, ways[missing], rng, noise)
        for i, episode in enumerate(missing):
            observations[episode] = episodes.observations[i, : episodes.lengths[i]]
            actions[episode] = episodes.actions[i, : episodes.lengths[i]]
        missing = missing[episodes.way != ways[missing]]
    if len(missing):
        raise ValueError(
            f"{len(missing)} of {n_episodes} episodes failed {MAX_ATTEMPTS} times each: the "
            f"planner needs less noise than {noise}, or displacement than {displacement}"
        )
    return Demonstrations.from_arrays(
        observations=observations,
        actions=actions,
        rewards=[np.eye(1, len(a), len(a) - 1, dtype=np.float32)[0] for a in actions],
        successes=np.ones(n_episodes, bool),
    )
