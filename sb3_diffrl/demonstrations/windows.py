"""
Step-wise episodes as the decisions of an env that predicts chunks and sees histories.

The window of the step at ``t`` is, with ``n_observations = 2``, ``horizon = 4`` and ``start = 1``::

    step              t-1   t  t+1  t+2
    observations       o    o
    actions            a    a    a    a     those before `start` belong to the past

Beyond the ends of its episode a window repeats the first or the last step, as in Diffusion Policy
(Chi et al. 2023).
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def window_indices(episode_ends: NDArray[np.int64], offsets: ArrayLike) -> NDArray[np.int64]:
    """
    :param episode_ends: ``(E,)`` exclusive ends of the episodes, ``M`` steps in all
    :param offsets: ``(L,)`` steps relative to each step ``t``
    :return: ``(M, L)`` indices of the steps ``t + offset``, kept within the episode of ``t``
    """
    starts = np.concatenate([[0], episode_ends[:-1]])
    lengths = episode_ends - starts
    steps = np.arange(episode_ends[-1])[:, None] + np.asarray(offsets, np.int64)
    first, last = (np.repeat(bound, lengths)[:, None] for bound in (starts, episode_ends - 1))
    return np.clip(steps, first, last)


def lay_out_history(observations: NDArray[Any], axis: int = 0) -> NDArray[Any]:
    """
    The layout of a history: images, which are uint8 with three dimensions, become images of ``n``
    times the channels, the oldest first; all else stays.

    :param observations: with the ``n`` observations along an axis, each ``(*shape)``
    :param axis: which
    :return: ``(..., n, *shape)``; for images ``(..., H, W, n C)`` or ``(..., n C, H, W)``
    """
    *batch, n = observations.shape[: axis + 1]
    shape = observations.shape[axis + 1 :]
    if len(shape) != 3 or observations.dtype != np.uint8:
        return observations
    a, b, c = shape
    if a == min(shape):  # as Stable-Baselines3 tells which end the channels are
        return observations.reshape(*batch, n * a, b, c)
    return np.moveaxis(observations, axis, -2).reshape(*batch, a, b, n * c)
