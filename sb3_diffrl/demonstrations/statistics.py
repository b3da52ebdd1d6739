"""Statistics of arrays that need not fit into memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sb3_diffrl.demonstrations.arrays import Source, chunks

QUANTILES = (0.01, 0.99)

_SAMPLE_ROWS = 100_000
_SAMPLE_BYTES = 64 * 2**20

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """
    Of each entry, over all decisions; all ``(*shape)``.

    :param minimum: smallest value
    :param maximum: largest value
    :param mean: mean
    :param std: standard deviation, not corrected for the mean
    :param low: 1 % quantile
    :param high: 99 % quantile
    """

    minimum: Floats
    maximum: Floats
    mean: Floats
    std: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, array: Source) -> Statistics:
        """
        Read an array, in chunks, twice.

        :param array: ``(M, *shape)``
        :return: its statistics
        """
        return cls(*extremes(array), *moments(array), *quantiles(array))


def moments(array: Source) -> tuple[Floats, Floats]:
    """
    Mean and standard deviation, chunks joined as by Chan et al. (1983, "Algorithms for computing
    the sample variance").

    :param array: ``(M, *shape)``
    :return: each ``(*shape)``
    """
    mean, squares = np.zeros(array.shape[1:]), np.zeros(array.shape[1:])
    for start, chunk in chunks(array):
        n = len(chunk)
        theirs = chunk.mean(axis=0, dtype=np.float64)
        difference = theirs - mean
        mean = mean + difference * (n / (start + n))
        squares = squares + chunk.var(axis=0, dtype=np.float64) * n
        squares = squares + difference**2 * (start * n / (start + n))
    return mean, np.sqrt(squares / len(array))


def extremes(array: Source) -> tuple[Floats, Floats]:
    """
    :param array: ``(M, *shape)``
    :return: minimum and maximum, each ``(*shape)``
    """
    low, high = np.full(array.shape[1:], np.inf), np.full(array.shape[1:], -np.inf)
    for _, chunk in chunks(array):
        low, high = np.minimum(low, chunk.min(axis=0)), np.maximum(high, chunk.max(axis=0))
    return low, high


def quantiles(array: Source, levels: tuple[float, float] = QUANTILES) -> tuple[Floats, Floats]:
    """
    Exact up to 100,000 rows and 64 MB, beyond that of so many rows drawn evenly and always alike.

    :param array: ``(M, *shape)``
    :param levels: which quantiles, in [0, 1]
    :return: each ``(*shape)``
    """
    row_bytes = max(1, array.dtype.itemsize * math.prod(array.shape[1:]))
    n = min(len(array), _SAMPLE_ROWS, max(1, _SAMPLE_BYTES // row_bytes))
    rows = np.arange(len(array))
    if n < len(array):
        rows = np.sort(np.random.default_rng(0).choice(len(array), n, replace=False))
    sample = np.asarray(array[rows])
    if sample.dtype == bool:  # which NumPy does not subtract
        sample = sample.view(np.uint8)
    low, high = np.quantile(sample, levels, axis=0)
    return low, high
