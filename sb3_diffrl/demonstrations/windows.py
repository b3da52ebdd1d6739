"""
Step-wise episodes as the decisions of an env that predicts chunks and sees histories.

The window of the step at ``t`` is, with ``n_observations = 2``, ``horizon = 4`` and ``start = 1``::

    step              t-1   t  t+1  t+2
    observations       o    o
    actions            a    a    a    a     those before `start` belong to the past

Beyond the ends of its episode a window repeats the first or the last step, as in Diffusion Policy
(Chi et al. 2023).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sb3_diffrl.demonstrations.arrays import Array, LazyArray, Rows, Source


class WindowedArray(LazyArray):
    """
    Around each row of an array, rows of its episode; read when asked for.

    :param source: ``(M, ...)``
    :param episode_ends: ``(E,)`` exclusive ends of the episodes
    :param offsets: ``(L,)`` steps relative to each row
    :param layout: of the windows ``(n, L, ...)`` that are read
    """

    def __init__(
        self,
        source: Source,
        episode_ends: NDArray[np.int64],
        offsets: ArrayLike,
        layout: Callable[[Array], Array] = np.asarray,
    ):
        self.source, self.episode_ends, self.layout = source, episode_ends, layout
        self.offsets = np.asarray(offsets, np.int64)
        example = layout(np.empty((1, len(self.offsets), *source.shape[1:]), source.dtype))
        super().__init__((len(source), *example.shape[1:]), source.dtype)

    def read(self, rows: Rows) -> Array:
        """See :meth:`LazyArray.read`."""
        windows = window_indices(self.episode_ends, self.offsets, rows)
        found = np.asarray(self.source[windows.ravel()])
        return self.layout(found.reshape(*windows.shape, *self.source.shape[1:]))


def window_indices(
    episode_ends: NDArray[np.int64], offsets: ArrayLike, rows: Rows | None = None
) -> Rows:
    """
    :param episode_ends: ``(E,)`` exclusive ends of the episodes, ``M`` steps in all
    :param offsets: ``(L,)`` steps relative to each step ``t``
    :param rows: ``(n,)`` which steps; by default all ``M``
    :return: ``(n, L)`` indices of the steps ``t + offset``, kept within the episode of ``t``
    """
    rows = np.arange(episode_ends[-1]) if rows is None else rows
    episodes = np.searchsorted(episode_ends, rows, side="right")
    starts = np.concatenate([[0], episode_ends[:-1]])
    steps = rows[:, None] + np.asarray(offsets, np.int64)
    return np.clip(steps, starts[episodes][:, None], episode_ends[episodes][:, None] - 1)


def lay_out_history(observations: Array, axis: int = 0) -> Array:
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
