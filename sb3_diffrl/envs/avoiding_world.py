"""
Geometry and physics of the Avoiding task, batched over ``N`` worlds. Lengths are in metres.

A planar effector starts at the bottom and must pass three rows of one, two and three obstacles to
the finish line at the top. The rows leave two, three and four gaps, so 24 distinct ways
lead there::

    y .95  -------------------------------   finish line
    y .75       o        o        o          row 2, 4 gaps
    y .50           o        o               row 1, 3 gaps
    y .25                o                   row 0, 2 gaps
    y .00               start
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]
Ints: TypeAlias = NDArray[np.integer[Any]]
Bools: TypeAlias = NDArray[np.bool_]

OBSTACLES = np.array([[0, 0.25], [-0.35, 0.5], [0.35, 0.5], [-0.6, 0.75], [0, 0.75], [0.6, 0.75]])
ROW_STARTS = np.array([0, 1, 3])  # index of each row's first obstacle
RADIUS = 0.09
START_X = 0.05  # the start is uniform within ± this, at y 0
FINISH_Y = 0.95
STEP = 0.03  # how far an action of 1 moves the effector
LOW, HIGH = np.array([-1.0, -0.1]), np.array([1.0, 1.0])  # positions are clipped to this workspace
MAX_EPISODE_STEPS = 120
MAX_DISPLACEMENT = 0.15  # beyond it the rows leave no room between them
DISPLACEMENT_RATIO = np.array([1.0, 0.3])  # x and y share of ``displacement``
N_WAYS = 24
_WAY_WEIGHTS = np.array([12, 4, 4, 1, 1, 1])  # way = 12 * gap 0 + 4 * gap 1 + gap 2


def start_positions(rng: np.random.Generator, n: int) -> Floats:
    """
    :param rng: source of randomness
    :param n: how many
    :return: start positions, ``(n, 2)``
    """
    return np.stack([rng.uniform(-START_X, START_X, n), np.zeros(n)], axis=-1)


def displaced_layouts(rng: np.random.Generator, n: int, displacement: float) -> Floats:
    """
    :param rng: source of randomness
    :param n: how many
    :param displacement: each obstacle moves uniformly within ± this in x, ± 0.3 of it in y
    :return: obstacle positions, ``(n, 6, 2)``
    """
    return OBSTACLES + displacement * DISPLACEMENT_RATIO * rng.uniform(-1, 1, (n, 6, 2))


def observe(position: Floats, obstacles: Floats) -> NDArray[np.float32]:
    """
    :param position: ``(N, 2)``
    :param obstacles: ``(N, 6, 2)``
    :return: both, flattened and joined, ``(N, 14)``
    """
    observation = np.empty((len(position), 14), np.float32)
    observation[:, :2] = position
    observation[:, 2:] = obstacles.reshape(-1, 12)
    return observation


def advance(
    position: Floats, obstacles: Floats, right: Bools, action: ArrayLike
) -> tuple[Floats, Bools, Bools, Bools]:
    """
    Move every effector by one step.

    Collisions are tested at the end of the step: a step (.042 at most) is far shorter than an
    obstacle is wide (.18), so none can be jumped over.

    :param position: effector positions, ``(N, 2)``
    :param obstacles: obstacle positions, ``(N, 6, 2)``
    :param right: for each obstacle, whether the effector was to its right when last not above
        it, ``(N, 6)``
    :param action: displacement in units of ``STEP``, clipped to [-1, 1], ``(N, 2)``
    :return: the new ``position`` and ``right``, who collided ``(N,)``, and who crossed the finish
        line without colliding ``(N,)``
    """
    move = np.minimum(np.maximum(action, -1.0), 1.0)
    after = np.minimum(np.maximum(position + STEP * move, LOW), HIGH)
    offset = after[:, None] - obstacles
    positive = offset > 0
    right = np.where(positive[..., 1], right, positive[..., 0])
    offset *= offset
    collision = (offset[..., 0] + offset[..., 1] < RADIUS**2).any(axis=1)
    return after, right, collision, (after[:, 1] >= FINISH_Y) & ~collision


def ways_taken(right: Bools) -> Ints:
    """
    Number the way by its three gaps, counted from the left: ``12 * gap 0 + 4 * gap 1 + gap 2``.

    :param right: as :func:`advance` returns it, ``(N, 6)``
    :return: 0 to 23, ``(N,)``
    """
    ways: Ints = right @ _WAY_WEIGHTS
    return ways


def mode_entropy(ways: ArrayLike) -> float:
    """
    Evenness of the ways used: ``-Σ p log₂₄ p``, 1 when all 24 are equally frequent.

    :param ways: ways of the successful episodes; -1 (failed) is ignored
    :return: 0 to 1; 0 where no episode succeeded
    """
    ways = np.asarray(ways, dtype=np.int64).ravel()
    counts = np.bincount(ways[ways >= 0], minlength=N_WAYS)
    if len(counts) > N_WAYS:
        raise ValueError(f"ways: {len(counts) - 1} found, expected -1 to {N_WAYS - 1}")
    p = counts[counts > 0] / max(counts.sum(), 1)
    return float(abs(np.sum(p * np.log(p))) / np.log(N_WAYS))
