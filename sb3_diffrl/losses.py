"""The losses of the algorithm, as pure functions of tensors."""

from typing import NamedTuple

import torch as th
from torch.nn import functional as F


class Surrogate(NamedTuple):
    """
    Result of :func:`clipped_surrogate`; all entries but ``ratio`` are scalars.

    :param loss: to be minimised, nats times advantage per decision
    :param ratio: ``(B, K)`` likelihood ratios of the denoising steps
    :param clip_fraction: fraction of ratios outside the clip range
    :param approx_kl: estimated KL divergence from the old policy, in nats per decision
    """

    loss: th.Tensor
    ratio: th.Tensor
    clip_fraction: th.Tensor
    approx_kl: th.Tensor


def clipped_surrogate(
    log_prob: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    clip_range: float,
    gamma_denoise: float = 1.0,
) -> Surrogate:
    """
    PPO's objective (Schulman et al. 2017, eq. 7) on every denoising step, as in DPPO (Ren et al.
    2024, eq. 5.2).

    :param log_prob: ``(B, K)`` log-likelihood of each step under the current policy
    :param old_log_prob: ``(B, K)`` the same when acting
    :param advantages: ``(B,)`` of the decisions
    :param clip_range: the ratio of each step is clipped to ``1 +- clip_range``
    :param gamma_denoise: discount of the advantage per denoising step still to go
    :return: the loss, summed over steps and averaged over decisions, and what to log
    """
    steps_to_go = th.arange(log_prob.shape[1] - 1, -1, -1, device=log_prob.device)
    weighted = advantages.unsqueeze(1) * gamma_denoise**steps_to_go
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = -th.min(weighted * ratio, weighted * clipped).sum(dim=1).mean()
    with th.no_grad():
        clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
        # Schulman's estimator, http://joschu.net/blog/kl-approx.html, as in SB3's PPO
        approx_kl = (ratio - 1 - log_ratio).sum(dim=1).mean()
    return Surrogate(loss, ratio.detach(), clip_fraction, approx_kl)


def value_loss(
    values: th.Tensor,
    old_values: th.Tensor,
    returns: th.Tensor,
    clip_range_vf: float | None,
) -> th.Tensor:
    """
    Squared error of the critic, on predictions clipped around the old ones as in SB3's PPO.

    :param values: ``(B,)`` predictions
    :param old_values: ``(B,)`` predictions when acting
    :param returns: ``(B,)`` TD(lambda) targets
    :param clip_range_vf: largest change of a prediction, None for any
    :return: scalar
    """
    if clip_range_vf is not None:
        values = old_values + (values - old_values).clamp(-clip_range_vf, clip_range_vf)
    return F.mse_loss(returns, values)
