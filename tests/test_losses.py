"""The losses, in value and gradient, against references written out one step at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_diffrl.actor import DiffusionActor
from sb3_diffrl.diffusion import make_alpha_bar
from sb3_diffrl.losses import clipped_surrogate, value_loss
from sb3_diffrl.policies import DiffusionActorCriticPolicy

N_LEVELS, N_STEPS, ACTION_DIM, SIGMA_MIN = 8, 3, 2, 0.15


# -- PPO's surrogate ---------------------------------------------------------------------------


def surrogate_and_gradient(
    log_prob: np.ndarray,
    old_log_prob: np.ndarray,
    advantages: np.ndarray,
    clip_range: float,
    gamma_denoise: float,
) -> tuple[float, np.ndarray, float, float]:
    """Loss, its gradient, clip fraction and approximate KL, entry by entry in plain Python."""
    n, n_steps = log_prob.shape
    loss, gradient = 0.0, np.zeros_like(log_prob)
    n_clipped, kl = 0, 0.0
    for i in range(n):
        for k in range(n_steps):
            advantage = advantages[i] * gamma_denoise ** (n_steps - 1 - k)
            ratio = math.exp(log_prob[i, k] - old_log_prob[i, k])
            clipped = min(max(ratio, 1 - clip_range), 1 + clip_range)
            loss -= min(advantage * ratio, advantage * clipped) / n
            # The minimum is the constant, clipped branch where that lowers the objective.
            flat = ratio > 1 + clip_range if advantage > 0 else ratio < 1 - clip_range
            if not flat:
                gradient[i, k] = -advantage * ratio / n
            n_clipped += abs(ratio - 1) > clip_range
            kl += (ratio - 1 - math.log(ratio)) / n
    return loss, gradient, n_clipped / (n * n_steps), kl


@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("clip_range", [0.02, 0.2])
@pytest.mark.parametrize("gamma_denoise", [1.0, 0.9, 0.0])
def test_the_surrogate_and_its_gradient(
    n_steps: int, clip_range: float, gamma_denoise: float
) -> None:
    old = th.randn(60, n_steps, dtype=th.float64)
    new = (old + 1.5 * clip_range * th.randn_like(old)).requires_grad_()
    advantages = th.randn(60, dtype=th.float64)

    result = clipped_surrogate(new, old, advantages, clip_range, gamma_denoise)
    result.loss.backward()

    loss, gradient, clip_fraction, approx_kl = surrogate_and_gradient(
        new.detach().numpy(), old.numpy(), advantages.numpy(), clip_range, gamma_denoise
    )
    assert new.grad is not None
    # The powers of gamma_denoise are in single precision.
    assert result.loss.item() == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(new.grad, gradient, rtol=1e-6, atol=1e-15)
    assert float(result.clip_fraction) == pytest.approx(clip_fraction, rel=1e-6)
    assert 0.1 < clip_fraction < 0.9
    assert float(result.approx_kl) == pytest.approx(approx_kl, rel=1e-9)
    np.testing.assert_allclose(result.ratio, (new - old).detach().exp())
    assert not result.ratio.requires_grad
    assert not result.approx_kl.requires_grad


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        (2.0, 1.0, -2.0, -2.0),
        (2.0, 1.1, -2.2, -2.2),
        (2.0, 1.5, -2.4, 0.0),  # good, already much likelier: clipped
        (2.0, 0.5, -1.0, -1.0),  # good, become rare: pulled back
        (-2.0, 0.5, 1.6, 0.0),  # bad, already rare: clipped
        (-2.0, 1.5, 3.0, 3.0),  # bad, become likelier: pushed away
        (0.0, 1.5, 0.0, 0.0),
    ],
)
def test_the_surrogate_of_a_single_step_at_known_points(
    advantage: float, ratio: float, loss: float, slope: float
) -> None:
    log_prob = th.tensor([[math.log(ratio)]], requires_grad=True)

    result = clipped_surrogate(log_prob, th.zeros(1, 1), th.tensor([advantage]), 0.2)
    result.loss.backward()

    assert log_prob.grad is not None
    assert result.loss.item() == pytest.approx(loss, abs=1e-6)
    assert log_prob.grad.item() == pytest.approx(slope, abs=1e-6)


def test_gamma_denoise_discounts_by_the_steps_still_to_go() -> None:
    """The last step carries the whole advantage; each one before it a factor less."""
    log_prob = th.zeros(2, 4, requires_grad=True)
    advantages = th.tensor([1.0, -3.0])

    result = clipped_surrogate(log_prob, th.zeros(2, 4), advantages, 0.2, gamma_denoise=0.5)
    result.loss.backward()

    expected = th.tensor([[0.125, 0.25, 0.5, 1.0], [-0.375, -0.75, -1.5, -3.0]])
    assert log_prob.grad is not None
    th.testing.assert_close(log_prob.grad, -expected / 2)
    assert result.loss.item() == pytest.approx(-float(expected.sum()) / 2)


def test_equal_likelihoods_have_ratio_1_and_nothing_clipped() -> None:
    log_prob = 50 * th.randn(10, 5)

    result = clipped_surrogate(log_prob, log_prob.clone(), th.randn(10), 0.01)

    assert th.equal(result.ratio, th.ones(10, 5))
    assert result.clip_fraction == 0
    assert result.approx_kl == 0


# -- the critic's loss -------------------------------------------------------------------------


@pytest.mark.parametrize("clip_range_vf", [None, 0.3])
def test_the_value_loss_and_its_gradient(clip_range_vf: float | None) -> None:
    old, returns = th.randn(2, 50, dtype=th.float64)
    values = (old + 0.5 * th.randn(50, dtype=th.float64)).requires_grad_()

    loss = value_loss(values, old, returns, clip_range_vf)
    loss.backward()

    expected, gradient = 0.0, np.zeros(50)
    for i in range(50):
        change = float(values[i].detach() - old[i])
        clipped = clip_range_vf is not None and abs(change) > clip_range_vf
        if clip_range_vf is not None:
            change = min(max(change, -clip_range_vf), clip_range_vf)
        error = float(old[i]) + change - float(returns[i])
        expected += error**2 / 50
        gradient[i] = 0 if clipped else 2 * error / 50
    assert values.grad is not None
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(values.grad, gradient, rtol=1e-9, atol=1e-15)
    assert (clip_range_vf is None) == bool((values.grad != 0).all())


# -- the complete loss of a policy -------------------------------------------------------------


class LinearExtractor(BaseFeaturesExtractor):
    """An encoder that learns."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 4)
        self.layer = th.nn.Linear(3, 4)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations)


def small_policy(share_features_extractor: bool = False) -> DiffusionActorCriticPolicy:
    """In double precision, with a prior that differs from the actor."""
    policy = DiffusionActorCriticPolicy(
        spaces.Box(-2, 2, (3,)),
        spaces.Box(-1, 1, (ACTION_DIM,)),
        lambda _: 1e-3,
        net_arch=[8, 8],
        noise_levels=N_LEVELS,
        denoising_steps=N_STEPS,
        sigma_min=SIGMA_MIN,
        features_extractor_class=LinearExtractor,
        share_features_extractor=share_features_extractor,
    ).double()
    policy.actor.normalizer.fit(2 * np.random.default_rng(0).standard_normal((100, 3)))
    policy.freeze_prior()
    with th.no_grad():
        for parameter in policy.actor.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    return policy


def standardized(actor: DiffusionActor, obs: th.Tensor) -> th.Tensor:
    standardizer = actor.normalizer.standardizer()
    return (obs - standardizer.mean) / standardizer.scale


def reference_log_probs_and_means(
    actor: DiffusionActor, obs: th.Tensor, chain: th.Tensor
) -> tuple[list[th.Tensor], list[th.Tensor], list[float]]:
    """
    Of one chain ``(K + 1, D)``: per step the log-likelihood, the mean and the deviation.

    One call of the network per step; the transition from the noise schedule alone.
    """
    alpha_bar = make_alpha_bar("cosine", N_LEVELS).tolist()
    levels = [8, 5, 3, 0]
    condition = actor.denoiser.condition(actor.features_extractor(standardized(actor, obs)))
    log_probs, means, deviations = [], [], []
    for step in range(N_STEPS):
        now, after = alpha_bar[levels[step]], alpha_bar[levels[step + 1]]
        epsilon = actor.denoiser(chain[step], th.tensor(levels[step]), condition)
        clean = (chain[step] - math.sqrt(1 - now) * epsilon) / math.sqrt(now)
        clean = clean.clamp(-1, 1)
        epsilon = (chain[step] - math.sqrt(now) * clean) / math.sqrt(1 - now)
        ddim = math.sqrt((1 - after) / (1 - now) * (1 - now / after))
        mean = math.sqrt(after) * clean + math.sqrt(1 - after - ddim**2) * epsilon
        sigma = max(ddim, SIGMA_MIN)
        log_prob = th.zeros((), dtype=th.float64)
        for d in range(ACTION_DIM):
            error = chain[step + 1, d] - mean[d]
            log_prob = log_prob - 0.5 * (error / sigma) ** 2
            log_prob = log_prob - math.log(sigma) - 0.5 * math.log(2 * math.pi)
        log_probs.append(log_prob)
        means.append(mean)
        deviations.append(sigma)
    return log_probs, means, deviations


def reference_loss(
    policy: DiffusionActorCriticPolicy,
    obs: th.Tensor,
    chains: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    returns: th.Tensor,
    mixing: float,
    coefficients: tuple[float, float, float, float],
) -> th.Tensor:
    """Surrogate + beta KL + vf_coef value loss, decision by decision and step by step."""
    beta, vf_coef, clip_range, gamma_denoise = coefficients
    n = len(obs)
    total = th.zeros((), dtype=th.float64)
    for i in range(n):
        ours, means, deviations = reference_log_probs_and_means(policy.actor, obs[i], chains[i])
        with th.no_grad():
            theirs, prior_means, _ = reference_log_probs_and_means(policy.prior, obs[i], chains[i])
        joint_before = th.ones((), dtype=th.float64)
        a, b = th.ones((), dtype=th.float64), th.ones((), dtype=th.float64)
        for k in range(N_STEPS):
            a, b = a * ours[k].exp(), b * theirs[k].exp()
            joint = mixing * a + (1 - mixing) * b
            ratio = joint / joint_before / old_log_prob[i, k].exp()
            joint_before = joint
            advantage = advantages[i] * gamma_denoise ** (N_STEPS - 1 - k)
            clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
            total = total - th.minimum(advantage * ratio, advantage * clipped) / n
            kl = ((means[k] - prior_means[k]) ** 2).sum() / (2 * deviations[k] ** 2)
            total = total + beta * kl / n
        features = policy.vf_features_extractor(standardized(policy.actor, obs[i]))
        if policy.share_features_extractor:  # the encoder is the actor's own to train
            features = features.detach()
        value = policy.value_net(features).squeeze()
        total = total + vf_coef * (value - returns[i]) ** 2 / n
    return total


@pytest.mark.parametrize("mixing", [1.0, 0.6, 0.05])
@pytest.mark.parametrize("share_features_extractor", [False, True])
def test_gradients_of_the_complete_loss_against_a_reference_written_per_step(
    mixing: float, share_features_extractor: bool
) -> None:
    policy = small_policy(share_features_extractor)
    policy.set_mixing(mixing)
    # The exact number that the policy keeps, in single precision by then.
    mixing = float(policy.mixing)
    n, beta, vf_coef, clip_range, gamma_denoise = 12, 0.3, 0.7, 0.2, 0.9
    obs = 1.5 * th.randn(n, 3, dtype=th.float64)
    with th.no_grad():
        flat, _, sampled_log_prob = policy(obs)
        # The rollout is a little older than the actor, so that some ratios are clipped.
        old_log_prob = sampled_log_prob + 0.2 * th.randn_like(sampled_log_prob)
    advantages, returns = th.randn(2, n, dtype=th.float64)
    chains = flat.view(n, N_STEPS + 1, ACTION_DIM)
    parameters = [p for p in policy.parameters() if p.requires_grad]

    # preprocess_obs makes single precision of what the policy is shown.
    reference = reference_loss(
        policy,
        obs.float().double(),
        chains,
        old_log_prob,
        advantages,
        returns,
        mixing,
        (beta, vf_coef, clip_range, gamma_denoise),
    )
    expected = th.autograd.grad(reference, parameters)
    evaluation = policy.evaluate_chains(obs, flat)
    surrogate = clipped_surrogate(
        evaluation.log_prob, old_log_prob, advantages, clip_range, gamma_denoise
    )
    assert evaluation.prior_kl is not None
    loss = (
        surrogate.loss
        + beta * evaluation.prior_kl.mean()
        + vf_coef * value_loss(evaluation.values.flatten(), th.zeros(n), returns, None)
    )
    gradients = th.autograd.grad(loss, parameters)

    assert 0.1 < float(surrogate.clip_fraction) < 0.9
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    for gradient, wanted in zip(gradients, expected, strict=True):
        th.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
        assert float(wanted.abs().max()) > 1e-3


def test_each_term_of_the_loss_reaches_its_own_networks() -> None:
    """KL and surrogate move the actor, the value loss the critic; the prior nothing."""
    policy = small_policy()
    policy.set_mixing(0.5)
    obs = th.randn(6, 3)
    with th.no_grad():
        flat, _, _ = policy(obs)
    evaluation = policy.evaluate_chains(obs, flat)
    assert evaluation.prior_kl is not None
    actor, critic = list(policy.actor.parameters()), policy.critic_parameters()
    everything = [*actor, *critic]

    def reached(term: th.Tensor) -> list[bool]:
        gradients = th.autograd.grad(
            term, everything, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [bool((gradient != 0).any()) for gradient in gradients]

    actor_alone = [True] * len(actor) + [False] * len(critic)
    assert reached(evaluation.prior_kl.sum()) == actor_alone
    assert reached(evaluation.log_prob.sum()) == actor_alone
    assert reached(evaluation.values.sum()) == [not flag for flag in actor_alone]
    assert not any(p.requires_grad for p in policy.prior.parameters())


def test_without_a_prior_there_is_no_kl() -> None:
    policy = DiffusionActorCriticPolicy(
        spaces.Box(-2, 2, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, net_arch=[8]
    )
    with th.no_grad():
        flat, _, _ = policy(th.zeros(4, 3))

    assert policy.evaluate_chains(th.zeros(4, 3), flat).prior_kl is None


def test_an_actor_equal_to_its_prior_has_no_kl_and_no_kl_gradient() -> None:
    policy = small_policy()
    policy.freeze_prior()
    with th.no_grad():
        flat, _, _ = policy(th.randn(5, 3))

    kl = policy.evaluate_chains(th.randn(5, 3), flat).prior_kl

    assert kl is not None
    assert th.equal(kl, th.zeros_like(kl))
    for gradient in th.autograd.grad(kl.sum(), list(policy.actor.parameters())):
        assert (gradient == 0).all()
