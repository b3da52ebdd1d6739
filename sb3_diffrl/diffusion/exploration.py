"""Exploration noise that is learned within bounds."""

from collections.abc import Sequence
from itertools import pairwise

import torch as th
from torch import nn


class LearnedNoise(nn.Module):
    """
    Exploration floor of each denoising step, ``sigma_min (sigma_max / sigma_min)^sigmoid(l)``, with
    ``l`` a parameter of the step or a network's output.

    The standard deviation of a step is the larger of the floor and DDIM's.

    :param process_std: ``(k,)`` DDIM's standard deviations of the fine-tuned steps
    :param sigma_min: lower bound of the floor
    :param sigma_max: upper bound
    :param condition_dim: entries of the denoiser's condition
    :param net_arch: hidden layers of the network; None for floors that are the same everywhere
    :raises ValueError: unless ``sigma_min < sigma_max``
    """

    process_std: th.Tensor

    def __init__(
        self,
        process_std: th.Tensor,
        sigma_min: float,
        sigma_max: float,
        condition_dim: int,
        net_arch: Sequence[int] | None = None,
    ):
        super().__init__()
        if not sigma_min < sigma_max:
            raise ValueError(
                f"sigma_max must exceed sigma_min={sigma_min}, got {sigma_max}. "
                "Leave it out for a fixed floor."
            )
        self.sigma_min, self.ratio = sigma_min, sigma_max / sigma_min
        self.register_buffer("process_std", process_std.clone(), persistent=False)
        # A little above the lower bound, where the gradient has not yet vanished.
        self.logits = nn.Parameter(th.full((len(process_std),), -2.0))
        widths = [] if net_arch is None else [condition_dim, *net_arch, len(process_std)]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.SiLU()]
        self.network = nn.Sequential(*layers[:-1]) if layers else None
        if layers:
            nn.init.zeros_(layers[-2].get_parameter("weight"))
            nn.init.zeros_(layers[-2].get_parameter("bias"))

    def forward(self, condition: th.Tensor) -> th.Tensor:
        """
        :param condition: ``(B, C)`` of the denoiser, through which no gradient flows back
        :return: ``(B, k)`` standard deviations
        """
        logits = self.logits.expand(len(condition), -1)
        if self.network is not None:
            logits = logits + self.network(condition.detach())
        floor = self.sigma_min * self.ratio ** logits.float().sigmoid()
        return th.maximum(floor, self.process_std)
