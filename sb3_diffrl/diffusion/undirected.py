"""Exploration without the chain: the ODE's action from a fixed noise, and Gaussian noise on it."""

import math
from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_diffrl.diffusion.chain import DiffusionProcess
from sb3_diffrl.diffusion.denoisers import Denoiser


class ActionNoiseProcess(DiffusionProcess):
    """
    The same denoiser, whose only noise is isotropic and on the action: ``N(f_theta(s), sigma_min^2
    I)``, where ``f_theta`` follows the probability-flow ODE from the initial noise (Song et al.
    2021) through all ``K`` steps. The last step's estimate is not clipped, for at a bound it would
    have no gradient: as of any Gaussian policy, the env's bounds clip the action.

    A chain of it is ``(B, 2, D)``, the initial noise and the action, with one transition. Its
    likelihood and the KL divergence from a prior are those of the Gaussian, exactly; gradients go
    back through all denoising steps.

    :param kwargs: as in :class:`DiffusionProcess`, with ``sigma_min`` the standard deviation of the
        action; ``eta`` has no effect
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        sigma = kwargs.get("sigma_min", 0.1)
        with th.device("cpu"):
            self.std, self.sampling_std = th.tensor([sigma]), th.zeros(1)
        self._std = {True: [0.0], False: [sigma]}
        of_noisy, of_output, _, *weights = self._coefficients[True][-1]
        self._coefficients[True][-1] = (of_noisy, of_output, math.inf, *weights)

    def sample(
        self,
        networks: Sequence[tuple[Denoiser, th.Tensor]],
        noise: th.Tensor,
        sampling_std: bool = False,
        ode: bool = False,
        frozen_steps: int = 0,
        from_policy: th.Tensor | None = None,
    ) -> tuple[th.Tensor, list[th.Tensor]]:
        """
        Draw actions; parameters as in :meth:`DiffusionProcess.sample`.

        :param networks: as there
        :param noise: ``(2 or more, N, D)``, where the ODE starts first, the action's noise last
        :param sampling_std: draw without noise on the action
        :param ode: the same
        :param frozen_steps: not supported, 0
        :param from_policy: as there
        :return: chains ``(N, 2, D)`` and their means ``(N, 1, D)``
        """
        if frozen_steps:
            raise ValueError(f"frozen_steps must be 0 for noise on the action, got {frozen_steps}.")
        start = noise[0]
        means = [self._follow(denoiser, start, condition) for denoiser, condition in networks]
        mean = means[0] if from_policy is None else th.where(from_policy, means[0], means[1])
        action = mean if ode else mean + self._std[sampling_std][0] * noise[-1]
        return th.stack([start, action], dim=1), [each.unsqueeze(1) for each in means]

    def chain_means(self, denoiser: Denoiser, chain: th.Tensor, condition: th.Tensor) -> th.Tensor:
        """
        What the ODE leads to from the stored initial noise.

        :param denoiser: the network
        :param chain: ``(B, 2, D)``
        :param condition: ``(B, C)`` from ``denoiser.condition``
        :return: ``(B, 1, D)`` mean of the action
        """
        return self._follow(denoiser, chain[:, 0], condition).unsqueeze(1)

    def _follow(self, denoiser: Denoiser, noisy: th.Tensor, condition: th.Tensor) -> th.Tensor:
        """The end ``(B, D)`` of the ODE."""
        output = denoiser.stepwise(self.levels, condition)
        for step in range(self.denoising_steps):
            noisy = self.transition_mean(noisy, output(noisy, step), step, ode=True)
        return noisy


#: Ways to explore, by name.
EXPLORATIONS: dict[str, type[DiffusionProcess]] = {
    "chain": DiffusionProcess,
    "action": ActionNoiseProcess,
}
