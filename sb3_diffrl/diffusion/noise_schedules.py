"""
Noise schedules: how much of the action is left at each of the ``T`` noise levels.

``cosine`` and ``linear`` end at ``alpha_bar = ALPHA_BAR_END``, not at 0: from pure noise the clean
action would be the quotient of two rounding errors, and the likelihood of the first denoising step
no longer a number that float32 repeats. ``squared_cosine_capped`` is what most policies of robotics
were trained with, and goes down to 1e-7: with it, predict ``"sample"`` or ``"v"``, which divide by
nothing small, where the first step is to be fine-tuned.
"""

import math
from collections.abc import Callable

import torch as th

ALPHA_BAR_END = 0.02


def cosine(t: th.Tensor) -> th.Tensor:
    """
    Squared-cosine schedule (Nichol and Dhariwal 2021, eq. 17), stopped at ``ALPHA_BAR_END``.

    :param t: noise level as a fraction of ``T``, 0 to 1
    :return: ``alpha_bar``, of the same shape
    """
    offset = 0.008 / 1.008 * math.pi / 2
    end = math.acos(math.sqrt(ALPHA_BAR_END) * math.cos(offset))
    return ((offset + t * (end - offset)).cos() / math.cos(offset)) ** 2


def linear(t: th.Tensor) -> th.Tensor:
    """
    Noise rate that rises linearly to 200 times its start (Ho et al. 2020, in continuous time),
    scaled to end at ``ALPHA_BAR_END``.

    :param t: noise level as a fraction of ``T``, 0 to 1
    :return: ``alpha_bar``, of the same shape
    """
    return ALPHA_BAR_END ** ((t + 99.5 * t**2) / 100.5)


def squared_cosine_capped(t: th.Tensor) -> th.Tensor:
    """
    Squared-cosine schedule with the noise added per level, ``beta``, capped at 0.999 instead of
    stretched (Nichol and Dhariwal 2021, section 3.2): ``squaredcos_cap_v2`` of diffusers and the
    cosine schedule of DPPO, computed in single precision as they are. Their timestep ``t - 1`` is
    level ``t``.

    :param t: noise levels as fractions of ``T``, 0 to 1 in equal steps
    :return: ``alpha_bar``, of the same shape
    """
    kept = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    betas = (1 - kept[1:] / kept[:-1]).clamp(max=0.999).float()
    return th.cat([th.ones_like(betas[:1]), (1 - betas).cumprod(0)]).to(t.dtype)


NOISE_SCHEDULES: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "cosine": cosine,
    "linear": linear,
    "squared_cosine_capped": squared_cosine_capped,
}


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
    return NOISE_SCHEDULES[kind](th.arange(n_levels + 1, dtype=th.float64) / n_levels)
