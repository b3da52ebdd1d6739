"""Noise schedules: how much of the action is left at each of the ``T`` noise levels."""

import math
from collections.abc import Callable

import torch as th


def cosine(n_levels: int) -> th.Tensor:
    """
    Squared-cosine schedule (Nichol and Dhariwal 2021, eq. 17), each step's noise capped at 0.999.

    :param n_levels: number of noise levels ``T``
    :return: ``(T,)`` fractions of noise added by each level
    """

    def remaining(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return th.tensor(
        [
            min(1 - remaining((t + 1) / n_levels) / remaining(t / n_levels), 0.999)
            for t in range(n_levels)
        ],
        dtype=th.float64,
    )


def linear(n_levels: int) -> th.Tensor:
    """
    Linear schedule (Ho et al. 2020), rescaled so that any ``T`` ends at nearly pure noise.

    :param n_levels: number of noise levels ``T``
    :return: ``(T,)`` fractions of noise added by each level
    """
    scale = 1000 / n_levels
    return th.linspace(scale * 1e-4, scale * 0.02, n_levels, dtype=th.float64).clamp(max=0.999)


NOISE_SCHEDULES: dict[str, Callable[[int], th.Tensor]] = {"cosine": cosine, "linear": linear}


def make_alpha_bar(kind: str, n_levels: int) -> th.Tensor:
    """
    The table that defines the forward process ``a_t = sqrt(alpha_bar_t) a_0 + sqrt(1 - alpha_bar_t)
    eps``.

    :param kind: a key of ``NOISE_SCHEDULES``
    :param n_levels: number of noise levels ``T``, at least 1
    :return: ``(T + 1,)`` float64, decreasing from ``alpha_bar_0 = 1`` (the clean action)
    :raises ValueError: for an unknown kind or no level
    """
    if kind not in NOISE_SCHEDULES:
        raise ValueError(
            f"Unknown noise schedule {kind!r}: expected one of {sorted(NOISE_SCHEDULES)}."
        )
    if n_levels < 1:
        raise ValueError(f"noise_levels must be at least 1, got {n_levels}.")
    kept = th.cumprod(1 - NOISE_SCHEDULES[kind](n_levels), dim=0)
    return th.cat([th.ones(1, dtype=th.float64), kept])
