"""
The denoising chain: forward process, reverse transitions, likelihood, prior KL, denoising loss.

Shapes: ``B`` batch, ``K`` denoising steps taken, ``T`` noise levels trained, ``D`` action entries.
A chain is ``(B, K + 1, D)`` in the order in which it is sampled: ``chain[:, 0]`` is pure noise,
``chain[:, K]`` the action in [-1, 1]. Step ``i`` (0 to K - 1) leads from ``chain[:, i]`` to
``chain[:, i + 1]``. The end of a chain, its last ``k`` steps, is ``(B, k + 1, D)``.

========  ===================================================================
symbol    meaning
========  ===================================================================
a_t       noisy action at level t: sqrt(alpha_bar_t) a_0 + sqrt(1 - alpha_bar_t) eps
tau_i     the noise level which step i denoises, tau_0 = T
mu_i      mean of the reverse transition of step i
sigma_i   its standard deviation, max(DDIM's, sigma_min)
========  ===================================================================
"""

import math
from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_diffrl.diffusion.denoisers import Denoiser
from sb3_diffrl.diffusion.noise_schedules import make_alpha_bar
from sb3_diffrl.diffusion.parametrization import PREDICTION_TYPES, TIMESTEP_SPACINGS

# Tables of the transition's mean, along the ODE or not.
COEFFICIENTS = {
    ode: (
        *("estimate_noisy", "estimate_output", "estimate_limit"),
        *(f"{name}_weight{suffix}" for name in ("clean", "noisy", "unclipped")),
    )
    for ode, suffix in ((False, ""), (True, "_ode"))
}
# Squared errors in units of the velocity are divided by no less, lest the levels where they are
# large drown the others.
MIN_VELOCITY_SCALE = 0.2


class DiffusionProcess(nn.Module):
    """
    Forward process over ``T`` levels and DDIM reverse process over ``K`` of them (Song et al. 2021,
    eq. 12).

    Every reverse transition is ``N(mu_i, sigma_i^2 I)``: with ``eta = 1`` and ``K = T`` it is
    DDPM's, with ``eta = 0`` and no floor it is deterministic. ``sigma_min`` keeps every step
    stochastic, so that it has a likelihood and explores. The defaults clip the estimates of the
    clean action to [-1, 1] and recompute the noise from the clipped value; the options are those of
    diffusers' schedulers, for policies trained with them.

    :param noise_schedule: a key of ``NOISE_SCHEDULES``
    :param noise_levels: number of levels ``T`` which the denoiser is trained on
    :param denoising_steps: number of steps ``K`` which the sampler takes, 1 to ``T``
    :param eta: stochasticity of DDIM, 0 (ODE) to 1 (DDPM)
    :param sigma_min: exploration floor of the transitions' standard deviation, in scaled action
        units, above 0
    :param prediction_type: what the denoiser predicts: the noise ``"epsilon"``, the clean action
        ``"sample"`` or the velocity ``"v"``, a key of ``PREDICTION_TYPES``
    :param clip_sample: bound of the clean action's estimates, None for none
    :param timestep_spacing: which levels the sampler visits, a key of ``TIMESTEP_SPACINGS``
    :param use_clipped_model_output: whether the noise is recomputed from the clipped estimate;
        False for DDIM as diffusers does it by default
    :raises ValueError: for a value out of its range
    """

    alpha_bar: th.Tensor
    levels: th.Tensor
    std: th.Tensor
    sampling_std: th.Tensor
    target_clean: th.Tensor
    target_noise: th.Tensor
    velocity_scale: th.Tensor

    def __init__(
        self,
        noise_schedule: str = "cosine",
        noise_levels: int = 20,
        denoising_steps: int = 5,
        eta: float = 1.0,
        sigma_min: float = 0.1,
        prediction_type: str = "epsilon",
        clip_sample: float | None = 1.0,
        timestep_spacing: str = "trailing",
        use_clipped_model_output: bool = True,
    ):
        super().__init__()
        if not 1 <= denoising_steps <= noise_levels:
            raise ValueError(
                f"denoising_steps must lie between 1 and noise_levels={noise_levels}, "
                f"got {denoising_steps}."
            )
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie between 0 (ODE) and 1 (DDPM), got {eta}.")
        if not sigma_min > 0:
            raise ValueError(
                f"sigma_min must be positive, else the chain has no likelihood; got {sigma_min}."
            )
        for name, value, known in (
            ("prediction_type", prediction_type, PREDICTION_TYPES),
            ("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS),
        ):
            if value not in known:
                raise ValueError(f"Unknown {name} {value!r}: expected one of {sorted(known)}.")
        if clip_sample is not None and not clip_sample > 0:
            raise ValueError(
                f"clip_sample must be positive, or None for no clipping, got {clip_sample}."
            )
        self.noise_levels, self.denoising_steps = noise_levels, denoising_steps
        self.use_clipped_model_output = use_clipped_model_output
        with th.device("cpu"):  # where their values can be read, whatever device is the default
            alpha_bar = make_alpha_bar(noise_schedule, noise_levels)
            signals, noises = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            p, q = PREDICTION_TYPES[prediction_type](signals, noises)
            determinant = p * noises - q * signals

            # Each step leads to the next of the visited levels, the last to 0.
            levels = TIMESTEP_SPACINGS[timestep_spacing](noise_levels, denoising_steps)
            now, after = alpha_bar[levels], alpha_bar[[*levels[1:].tolist(), 0]]
            ddim_std = eta * ((1 - after) / (1 - now) * (1 - now / after)).clamp(min=0).sqrt()
            # The clean action is scaled by |determinant| throughout, lest it be divided by little.
            signal, noise, scale = signals[levels], noises[levels], determinant[levels].abs()
            sign = determinant[levels].sign()
            tables = {
                "alpha_bar": alpha_bar,  # (T + 1,), like the next three
                "target_clean": p,
                "target_noise": q,
                "velocity_scale": (determinant**2).clamp(min=MIN_VELOCITY_SCALE),
                "estimate_noisy": -q[levels] * sign,  # (K,), like all that follow
                "estimate_output": noise * sign,
                "estimate_limit": scale * (math.inf if clip_sample is None else clip_sample),
                "sampling_std": ddim_std,  # without the floor: no noise in the last step
                "std": ddim_std.clamp(min=sigma_min),
            }
            # The mean sqrt(after) a_0 + direction eps, where eps = (a_t - signal a_0) / noise, is
            # linear in the noisy action, the clipped estimate, and where eps keeps to it the
            # unclipped one.
            for suffix, std in (("", ddim_std), ("_ode", th.zeros_like(ddim_std))):
                noisy_weight = (1 - after - std**2).clamp(min=0).sqrt() / noise
                of_clean, of_noise = after.sqrt() / scale, noisy_weight * (signal / scale)
                recomputes = use_clipped_model_output
                tables[f"clean_weight{suffix}"] = of_clean - of_noise * recomputes
                tables[f"noisy_weight{suffix}"] = noisy_weight
                tables[f"unclipped_weight{suffix}"] = -of_noise * (not recomputes)
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)
        self.register_buffer("levels", levels, persistent=False)
        # The same as numbers, which cost a single step neither an index nor a wait for the device.
        numbers = {name: table.float().tolist() for name, table in tables.items()}
        self._std = {True: numbers["sampling_std"], False: numbers["std"]}
        self._coefficients = {
            ode: list(zip(*(numbers[name] for name in names), strict=True))
            for ode, names in COEFFICIENTS.items()
        }

    def diffuse(self, actions: th.Tensor, levels: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        Forward process: the action at a noise level.

        :param actions: ``(B, D)`` clean actions in [-1, 1]
        :param levels: ``(B,)`` levels, 1 to ``T``
        :param noise: ``(B, D)`` standard normal
        :return: ``(B, D)`` noisy actions
        """
        kept = self.alpha_bar[levels].unsqueeze(-1)
        return kept.sqrt() * actions + (1 - kept).sqrt() * noise

    def target(self, actions: th.Tensor, levels: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """
        What the denoiser is to predict, by the prediction type.

        :param actions: ``(B, D)`` clean actions in [-1, 1]
        :param levels: ``(B,)`` levels, 1 to ``T``
        :param noise: ``(B, D)`` standard normal, as in :meth:`diffuse`
        :return: ``(B, D)``
        """
        clean_part, noise_part = self.target_clean[levels], self.target_noise[levels]
        return clean_part.unsqueeze(-1) * actions + noise_part.unsqueeze(-1) * noise

    def denoising_loss(
        self, denoiser: Denoiser, condition: th.Tensor, actions: th.Tensor
    ) -> th.Tensor:
        """
        One draw of ``||eps - eps_theta(a_t, t, s)||^2`` per action (paper, section 2.1), or of the
        same error of another prediction type, levels drawn uniformly.

        :param denoiser: the network
        :param condition: ``(B, C)`` what ``denoiser.condition`` made of the observations
        :param actions: ``(B, D)`` clean actions in [-1, 1]
        :return: ``(B,)`` squared errors, averaged over ``D``
        """
        levels = th.randint(1, self.noise_levels + 1, actions.shape[:1], device=actions.device)
        noise = th.randn_like(actions)
        predicted = denoiser(self.diffuse(actions, levels, noise), levels, condition)
        return (self.target(actions, levels, noise) - predicted).square().mean(dim=-1)

    def transition_mean(
        self,
        noisy: th.Tensor,
        output: th.Tensor,
        step: int | slice = slice(None),
        ode: bool = False,
    ) -> th.Tensor:
        """
        Mean ``mu_i`` of the reverse transition (Song et al. 2021, eq. 12, with the clipped clean
        action).

        :param noisy: ``(B, D)`` for one step, ``(B, k, D)`` for a slice of ``k`` steps
        :param output: what the denoiser predicts, of the same shape
        :param step: index ``i`` of the step, or the slice of steps
        :param ode: whether to follow the probability-flow ODE (``eta = 0``)
        :return: mean of the next, less noisy action, of the same shape
        """
        output = output.to(noisy.dtype)  # of a network in lower precision
        if isinstance(step, int):
            (of_noisy, of_output, limit, clean_weight, noisy_weight, unclipped_weight) = (
                self._coefficients[ode][step]
            )
            scaled = noisy if of_noisy == 1 else noisy * of_noisy
            estimate = scaled.add(output, alpha=of_output)
            mean = estimate.clamp(-limit, limit).mul_(clean_weight).add_(noisy, alpha=noisy_weight)
            return mean.add_(estimate, alpha=unclipped_weight) if unclipped_weight else mean
        of_noisy, of_output, limit, clean_weight, noisy_weight, unclipped_weight = (
            getattr(self, name)[step].unsqueeze(-1) for name in COEFFICIENTS[ode]
        )
        estimate = of_noisy * noisy + of_output * output
        mean = clean_weight * estimate.clamp(-limit, limit) + noisy_weight * noisy
        return mean if self.use_clipped_model_output else mean + unclipped_weight * estimate

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
        Draw chains: the one place where the sampler steps.

        :param networks: denoiser and condition ``(N, C)`` of the policy and, where it takes part,
            of the prior
        :param noise: ``(K + 1, N, D)`` standard normal, of which the ODE uses the first
        :param sampling_std: draw without the exploration floor
        :param ode: follow the probability-flow ODE
        :param frozen_steps: number of first steps that the last of the networks takes for all
        :param from_policy: ``(N, 1)`` whether the policy acts or the prior; None for the policy
        :return: ends of the chains ``(N, k + 1, D)``, where ``k = K - frozen_steps``, and their
            means ``(N, k, D)`` under the policy and, given ``from_policy``, under the prior
        """
        std = self._std[sampling_std]
        noisy, *fresh = noise.unbind()

        def draw(mean: th.Tensor, step: int) -> th.Tensor:
            return mean if ode else mean.add(fresh[step], alpha=std[step])

        if frozen_steps:
            net, condition = networks[-1]
            output = net.stepwise(self.levels[:frozen_steps], condition)
            for step in range(frozen_steps):
                noisy = draw(self.transition_mean(noisy, output(noisy, step), step, ode), step)

        n_tuned = 1 if from_policy is None else 2
        levels = self.levels[frozen_steps:]
        outputs = [net.stepwise(levels, condition) for net, condition in networks[:n_tuned]]
        chain, means = [noisy], []
        for i, step in enumerate(range(frozen_steps, self.denoising_steps)):
            means += [self.transition_mean(noisy, out(noisy, i), step, ode) for out in outputs]
            mean = means[-1]
            if from_policy is not None:
                mean = th.where(from_policy, means[-2], mean)
            noisy = draw(mean, step)
            chain.append(noisy)
        return th.stack(chain, dim=1), [th.stack(means[i::n_tuned], dim=1) for i in range(n_tuned)]

    def chain_means(self, denoiser: Denoiser, chain: th.Tensor, condition: th.Tensor) -> th.Tensor:
        """
        Means of the transitions of stored chains, in one call of the network.

        :param denoiser: the network
        :param chain: ``(B, k + 1, D)``, whole chains or their ends
        :param condition: ``(B, C)`` from ``denoiser.condition``
        :return: ``(B, k, D)`` mean of ``chain[:, 1:]`` given the entry before
        """
        noisy = chain[:, :-1]
        steps = slice(self.denoising_steps - noisy.shape[1], None)
        output = denoiser(noisy, self.levels[steps], condition.unsqueeze(1))
        return self.transition_mean(noisy, output, steps)


def gaussian_log_prob(value: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    ``log N(value; mean, std^2 I)``, summed over the action entries.

    :param value: ``(..., D)``
    :param mean: ``(..., D)``
    :param std: broadcastable to ``(...)``
    :return: ``(...)`` in nats
    """
    squared = ((value - mean) / std.unsqueeze(-1)).square().sum(dim=-1)
    return -0.5 * squared - value.shape[-1] * (std.log() + 0.5 * math.log(2 * math.pi))


def pathwise_kl(mean: th.Tensor, prior_mean: th.Tensor, std: th.Tensor) -> th.Tensor:
    """
    KL divergence between two chains with equal standard deviations, along given chains.

    Averaged over chains of the first process it is exactly ``KL(chain || prior chain)``, and by the
    data-processing inequality an upper bound on the KL divergence of the actions. On chains drawn
    earlier or from a mixture it is a surrogate.

    :param mean: ``(..., K, D)`` transition means of the policy
    :param prior_mean: ``(..., K, D)`` transition means of the prior on the same chains
    :param std: ``(K,)``
    :return: ``(...)`` nats per decision
    """
    return ((mean - prior_mean) / std.unsqueeze(-1)).square().sum(dim=(-2, -1)) / 2


def mixture_log_prob(
    log_prob: th.Tensor, prior_log_prob: th.Tensor, mixing: float | th.Tensor
) -> th.Tensor:
    """
    Per-step likelihood of chains drawn from ``p * policy + (1 - p) * prior``, one component per
    decision.

    At step ``i`` the conditional density is ``w_i policy + (1 - w_i) prior``, where ``w_i`` is the
    posterior probability of the policy given the steps before. The sum over steps is the exact
    mixture likelihood.

    :param log_prob: ``(..., K)`` log-likelihood of each step under the policy
    :param prior_log_prob: ``(..., K)`` the same under the prior
    :param mixing: weight ``p`` of the policy, above 0; 1 is the policy alone
    :return: ``(..., K)`` in nats
    """
    prior_odds: float | th.Tensor
    if isinstance(mixing, th.Tensor):
        prior_odds = th.logit(mixing)
    else:
        prior_odds = math.inf if mixing == 1 else math.log(mixing) - math.log1p(-mixing)
    evidence = (log_prob - prior_log_prob).cumsum(dim=-1)
    before = th.cat([th.zeros_like(evidence[..., :1]), evidence[..., :-1]], dim=-1)
    logit = before + prior_odds
    return th.logaddexp(
        nn.functional.logsigmoid(logit) + log_prob,
        nn.functional.logsigmoid(-logit) + prior_log_prob,
    )
