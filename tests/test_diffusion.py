"""The mathematics of the denoising chain, against closed forms, sampling and brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.nn import functional as F

from sb3_diffrl.diffusion import (
    NOISE_SCHEDULES,
    Denoiser,
    DiffusionProcess,
    MlpDenoiser,
    gaussian_log_prob,
    make_alpha_bar,
    mixture_log_prob,
    pathwise_kl,
)
from sb3_diffrl.policies import DiffusionActorCriticPolicy

KINDS = sorted(NOISE_SCHEDULES)
# (T, K): DDPM's case, a coarse sampler, an uneven division, one step, one level.
SIZES = [(20, 20), (20, 5), (17, 5), (20, 1), (1, 1)]


class GaussianDenoiser(Denoiser):
    """
    The exact epsilon-network of actions drawn from N(center, spread^2) in every entry.

    ``E[a | a_t] = m + r_t (a_t - sqrt(alpha_bar_t) m)`` with
    ``r_t = sqrt(alpha_bar_t) s^2 / (alpha_bar_t s^2 + 1 - alpha_bar_t)``.
    """

    alpha_bar: th.Tensor

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        noise_levels: int,
        center: float = 0.3,
        spread: float = 0.1,
        **_: Any,
    ):
        super().__init__(features_dim, action_dim, noise_levels)
        self.spread = spread
        self.center = th.nn.Parameter(th.tensor(center))
        alpha_bar = make_alpha_bar("cosine", noise_levels).float()
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)

    def condition(self, features: th.Tensor) -> th.Tensor:
        return features[..., :0]

    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        kept = self.alpha_bar[levels].unsqueeze(-1)
        shrink = kept.sqrt() * self.spread**2 / (kept * self.spread**2 + 1 - kept)
        clean = self.center + shrink * (noisy - kept.sqrt() * self.center)
        return (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()


class RecordingDenoiser(Denoiser):
    """Predicts a fixed function of what it is asked and keeps the questions."""

    def __init__(self, features_dim: int, action_dim: int, noise_levels: int):
        super().__init__(features_dim, action_dim, noise_levels)
        self.calls: list[tuple[th.Tensor, th.Tensor, th.Tensor]] = []

    def condition(self, features: th.Tensor) -> th.Tensor:
        return features

    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        self.calls.append((noisy, levels, condition))
        return th.sin(3 * noisy) + 0.1 * levels.unsqueeze(-1) + condition.mean(-1, keepdim=True)


def visited_levels(n_levels: int, n_steps: int) -> list[tuple[int, int]]:
    """(level, next level) of each step, in whole numbers: halves go to the even neighbour."""
    levels = [round(n_levels * (n_steps - i) / n_steps) for i in range(n_steps + 1)]
    return list(itertools.pairwise(levels))


def affine_chain(
    process: DiffusionProcess, center: float, spread: float, std: th.Tensor, ode: bool = False
) -> list[tuple[float, float]]:
    """
    (slope, offset) of every transition mean of :class:`GaussianDenoiser`, from the textbook.

    Song et al. 2021, eq. 12: ``sqrt(ab') x0 + sqrt(1 - ab' - sigma^2) eps``.
    """
    alpha_bar = process.alpha_bar.double()
    steps = []
    pairs = visited_levels(process.noise_levels, process.denoising_steps)
    for (now, after), sigma in zip(pairs, std.double(), strict=True):
        a, b = alpha_bar[now], alpha_bar[after]
        r = a.sqrt() * spread**2 / (a * spread**2 + 1 - a)
        x0_slope, x0_offset = r, center * (1 - r * a.sqrt())
        direction = (1 - b - (0 if ode else sigma**2)).clamp(min=0).sqrt() / (1 - a).sqrt()
        slope = b.sqrt() * x0_slope + direction * (1 - a.sqrt() * x0_slope)
        offset = (b.sqrt() - direction * a.sqrt()) * x0_offset
        steps.append((float(slope), float(offset)))
    return steps


def moments(
    steps: list[tuple[float, float]], std: th.Tensor, mean: float = 0.0, variance: float = 1.0
) -> list[tuple[float, float]]:
    """(mean, variance) of every entry of a linear-Gaussian chain, from its start to its end."""
    out = [(mean, variance)]
    for (slope, offset), sigma in zip(steps, std.tolist(), strict=True):
        mean, variance = slope * mean + offset, slope**2 * variance + sigma**2
        out.append((mean, variance))
    return out


def gaussian_policy(
    center: float, spread: float = 0.1, action_dim: int = 2, **diffusion: Any
) -> DiffusionActorCriticPolicy:
    return DiffusionActorCriticPolicy(
        spaces.Box(-1, 1, (3,)),
        spaces.Box(-1, 1, (action_dim,)),
        lambda _: 1e-3,
        net_arch=[4],
        denoiser_class=GaussianDenoiser,
        denoiser_kwargs={"center": center, "spread": spread},
        **diffusion,
    )


# -- noise schedules ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_levels", [1, 2, 3, 5, 20, 100, 1000])
def test_alpha_bar_falls_from_the_action_to_nearly_pure_noise(kind: str, n_levels: int) -> None:
    alpha_bar = make_alpha_bar(kind, n_levels)

    assert alpha_bar.shape == (n_levels + 1,)
    assert alpha_bar.dtype == th.float64
    assert alpha_bar[0] == 1
    assert (alpha_bar.diff() < 0).all()
    # What is left shifts the start of a chain by less than a sixth of the action.
    assert 0 < alpha_bar[-1] < 1 / 36


def test_cosine_alpha_bar_is_the_published_function_up_to_its_end() -> None:
    """Nichol and Dhariwal 2021, eq. 17, stretched so that the last level meets what is left."""

    def published(t: np.ndarray) -> np.ndarray:
        return np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2

    alpha_bar = make_alpha_bar("cosine", 20).numpy()
    grid = np.linspace(0, 1, 100_001)
    end = grid[np.argmin(np.abs(published(grid) - alpha_bar[-1]))]

    assert 0.9 < end < 1
    np.testing.assert_allclose(alpha_bar, published(end * np.arange(21) / 20), atol=2e-5)


def test_linear_alpha_bar_has_a_noise_rate_that_rises_linearly() -> None:
    """``-d log(alpha_bar) / dt`` is a straight line, as in Ho et al. 2020 for many small levels."""
    rate = -make_alpha_bar("linear", 1000).log().diff()

    np.testing.assert_allclose(rate.diff(), float(rate[1] - rate[0]), rtol=1e-6)
    assert float(rate[-1] / rate[0]) == pytest.approx(200, rel=0.1)
    assert (rate > 0).all()


# -- forward process ---------------------------------------------------------------------------


def test_the_forward_process_has_the_moments_that_define_it() -> None:
    process = DiffusionProcess(noise_levels=10, denoising_steps=5)
    n = 100_000
    action = th.tensor([0.8, -0.4])

    for level in (1, 4, 10):
        kept = float(make_alpha_bar("cosine", 10)[level])
        noisy = process.diffuse(action.expand(n, 2), th.full((n,), level), th.randn(n, 2))
        error = math.sqrt((1 - kept) / n)
        np.testing.assert_allclose(noisy.mean(0), math.sqrt(kept) * action, atol=5 * error)
        np.testing.assert_allclose(noisy.var(0), 1 - kept, rtol=5 * math.sqrt(2 / n))


def test_the_forward_process_takes_each_row_to_its_own_level() -> None:
    process = DiffusionProcess(noise_levels=10, denoising_steps=5)
    actions, noise = th.randn(4, 3), th.randn(4, 3)
    levels = th.tensor([1, 10, 3, 7])
    alpha_bar = make_alpha_bar("cosine", 10)

    noisy = process.diffuse(actions, levels, noise)

    for row, level in enumerate(levels.tolist()):
        signal, rest = math.sqrt(alpha_bar[level]), math.sqrt(1 - alpha_bar[level])
        expected = signal * actions[row] + rest * noise[row]
        th.testing.assert_close(noisy[row], expected)


def test_the_denoising_loss_is_the_squared_error_of_one_draw() -> None:
    """From the noisy actions and levels that the network was shown, each draw is worked out."""
    process = DiffusionProcess(noise_levels=6, denoising_steps=3)
    denoiser = RecordingDenoiser(2, 3, 6)
    actions, condition = th.rand(12_000, 3) * 2 - 1, th.randn(12_000, 2)

    loss = process.denoising_loss(denoiser, condition, actions)

    [(noisy, levels, seen)] = denoiser.calls
    assert loss.shape == (12_000,)
    assert seen is condition
    kept = make_alpha_bar("cosine", 6)[levels].unsqueeze(1)
    noise = (noisy - kept.sqrt() * actions) / (1 - kept).sqrt()
    for row in range(5):
        predicted = th.sin(3 * noisy[row]) + 0.1 * levels[row] + condition[row].mean()
        expected = sum((noise[row, d] - predicted[d]) ** 2 for d in range(3)) / 3
        assert float(loss[row]) == pytest.approx(float(expected), rel=1e-4)
    # Every level from 1 to T equally often, and noise that is standard normal at each of them.
    counts = th.bincount(levels, minlength=7)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / 12_000, 1 / 6, atol=5 * math.sqrt(1 / 6 / 12_000))
    for level in range(1, 7):
        drawn = noise[levels == level].flatten()
        assert abs(float(drawn.mean())) < 5 / math.sqrt(len(drawn))
        assert abs(float(drawn.var()) - 1) < 5 * math.sqrt(2 / len(drawn))


def test_the_exact_network_has_the_least_denoising_loss() -> None:
    """For a Gaussian target the loss is the posterior variance of the noise, level by level."""
    process = DiffusionProcess(noise_levels=5, denoising_steps=5)
    denoiser = GaussianDenoiser(1, 1, 5, center=0.3, spread=0.2)
    n = 200_000
    actions = 0.3 + 0.2 * th.randn(n, 1)

    with th.no_grad():
        loss = process.denoising_loss(denoiser, th.zeros(n, 0), actions)

    # Var(eps | a_t) = ab s^2 / (ab s^2 + 1 - ab)
    kept = make_alpha_bar("cosine", 5)[1:]
    expected = float((kept * 0.04 / (kept * 0.04 + 1 - kept)).mean())
    assert float(loss.mean()) == pytest.approx(expected, abs=5 * float(loss.std()) / math.sqrt(n))


# -- reverse transitions -----------------------------------------------------------------------


@pytest.mark.parametrize("n_levels", range(1, 30))
def test_the_steps_visit_distinct_levels_from_the_noisiest_down(n_levels: int) -> None:
    for n_steps in range(1, n_levels + 1):
        process = DiffusionProcess(noise_levels=n_levels, denoising_steps=n_steps)
        levels = process.levels.tolist()

        assert len(levels) == n_steps
        assert levels[0] == n_levels
        assert levels[-1] >= 1
        assert all(a > b for a, b in itertools.pairwise(levels))
        if n_steps == n_levels:
            assert levels == list(range(n_levels, 0, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_levels_and_eta_1_the_transition_is_the_posterior_of_ddpm(kind: str) -> None:
    """Ho et al. 2020, eq. 6 and 7: mean and variance of q(a_{t-1} | a_t, a_0)."""
    n_levels = 12
    process = DiffusionProcess(kind, n_levels, n_levels, eta=1.0, sigma_min=1e-6).double()
    alpha_bar = make_alpha_bar(kind, n_levels)
    clean = th.rand(7, 3, dtype=th.float64) * 2 - 1
    for step in range(n_levels):
        t = n_levels - step
        now, after = alpha_bar[t], alpha_bar[t - 1]
        added = 1 - now / after
        epsilon = th.randn(7, 3, dtype=th.float64)
        noisy = now.sqrt() * clean + (1 - now).sqrt() * epsilon

        mean = process.transition_mean(noisy, epsilon, step)

        posterior_mean = (
            after.sqrt() * added / (1 - now) * clean
            + (1 - added).sqrt() * (1 - after) / (1 - now) * noisy
        )
        posterior_variance = (1 - after) / (1 - now) * added
        th.testing.assert_close(mean, posterior_mean, rtol=1e-5, atol=1e-6)
        assert float(process.sampling_std[step] ** 2) == pytest.approx(
            float(posterior_variance), rel=1e-5
        )


def test_a_clean_action_out_of_bounds_is_clipped_and_the_noise_follows() -> None:
    """The mean must be DDPM's posterior mean given the clipped clean action, entry by entry."""
    n_levels = 8
    process = DiffusionProcess("cosine", n_levels, n_levels).double()
    alpha_bar = make_alpha_bar("cosine", n_levels)
    step, t = 3, 5
    now, after = alpha_bar[t], alpha_bar[t - 1]
    added = 1 - now / after
    clean = th.tensor([[2.5, -4.0, 0.5]], dtype=th.float64)
    epsilon = th.tensor([[0.3, -0.2, 1.0]], dtype=th.float64)
    noisy = now.sqrt() * clean + (1 - now).sqrt() * epsilon

    mean = process.transition_mean(noisy, epsilon, step)

    clipped = th.tensor([[1.0, -1.0, 0.5]], dtype=th.float64)
    expected = (
        after.sqrt() * added / (1 - now) * clipped
        + (1 - added).sqrt() * (1 - after) / (1 - now) * noisy
    )
    th.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n_levels", "n_steps"), SIZES)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_transitions_are_those_of_ddim(n_levels: int, n_steps: int, eta: float) -> None:
    """Song et al. 2021, eq. 12 and 16, with the floor under the standard deviation alone."""
    process = DiffusionProcess("cosine", n_levels, n_steps, eta=eta, sigma_min=0.05).double()
    alpha_bar = make_alpha_bar("cosine", n_levels)
    clean = th.rand(4, n_steps, 2, dtype=th.float64) * 2 - 1
    epsilon = th.randn(4, n_steps, 2, dtype=th.float64)
    pairs = visited_levels(n_levels, n_steps)
    signal = th.tensor([math.sqrt(alpha_bar[now]) for now, _ in pairs], dtype=th.float64).unsqueeze(
        -1
    )
    noise = th.tensor(
        [math.sqrt(1 - alpha_bar[now]) for now, _ in pairs], dtype=th.float64
    ).unsqueeze(-1)

    means = process.transition_mean(signal * clean + noise * epsilon, epsilon)

    for step, (now, after) in enumerate(pairs):
        a, b = float(alpha_bar[now]), float(alpha_bar[after])
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        expected = (
            math.sqrt(b) * clean[:, step] + math.sqrt(max(1 - b - sigma**2, 0)) * epsilon[:, step]
        )
        th.testing.assert_close(means[:, step], expected, rtol=1e-4, atol=1e-4)
        assert float(process.sampling_std[step]) == pytest.approx(sigma, abs=1e-6)
        assert float(process.std[step]) == pytest.approx(max(sigma, 0.05), abs=1e-6)
    # The last step lands on the clean action, and without the floor it adds no noise.
    th.testing.assert_close(means[:, -1], clean[:, -1], rtol=1e-4, atol=1e-4)
    assert process.sampling_std[-1] == 0


@pytest.mark.parametrize(("n_levels", "n_steps"), SIZES)
def test_the_ode_is_ddim_with_eta_0(n_levels: int, n_steps: int) -> None:
    """With the true noise it keeps to one noise vector, level by level down to the action."""
    noisy_process = DiffusionProcess("cosine", n_levels, n_steps, eta=1.0).double()
    ode_process = DiffusionProcess("cosine", n_levels, n_steps, eta=0.0).double()
    assert (ode_process.sampling_std == 0).all()
    alpha_bar = make_alpha_bar("cosine", n_levels)
    clean = th.rand(5, 3, dtype=th.float64) * 2 - 1
    epsilon = th.randn(5, 3, dtype=th.float64)

    for step, (now, after) in enumerate(visited_levels(n_levels, n_steps)):
        noisy = alpha_bar[now].sqrt() * clean + (1 - alpha_bar[now]).sqrt() * epsilon
        expected = alpha_bar[after].sqrt() * clean + (1 - alpha_bar[after]).sqrt() * epsilon

        as_ode = noisy_process.transition_mean(noisy, epsilon, step, ode=True)
        th.testing.assert_close(as_ode, expected, rtol=1e-5, atol=1e-5)
        without_eta = ode_process.transition_mean(noisy, epsilon, step)
        th.testing.assert_close(as_ode, without_eta, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n_levels", "n_steps"), SIZES)
def test_all_steps_at_once_equal_the_steps_one_by_one(n_levels: int, n_steps: int) -> None:
    process = DiffusionProcess("cosine", n_levels, n_steps).double()
    denoiser = MlpDenoiser(4, 3, n_levels, net_arch=(16, 16)).double()
    chain = th.randn(6, n_steps + 1, 3, dtype=th.float64)
    condition = denoiser.condition(th.randn(6, 4, dtype=th.float64))

    together = process.chain_means(denoiser, chain, condition)

    assert together.shape == (6, n_steps, 3)
    epsilon = denoiser.stepwise(process.levels, condition)
    for step in range(n_steps):
        noisy = chain[:, step]
        alone = process.transition_mean(noisy, epsilon(noisy, step), step)
        th.testing.assert_close(together[:, step], alone, rtol=1e-12, atol=1e-12)


# -- sampler -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_levels", "n_steps", "eta"),
    [(20, 20, 1.0), (20, 5, 1.0), (20, 5, 0.5), (20, 5, 0.0), (20, 1, 1.0)],
)
@pytest.mark.parametrize("explore", [True, False])
def test_sampled_chains_have_the_moments_of_the_closed_form(
    n_levels: int, n_steps: int, eta: float, explore: bool
) -> None:
    """With the exact network of a Gaussian every chain is linear and Gaussian in every entry."""
    center, spread, sigma_min, n = 0.3, 0.1, 0.07, 40_000
    policy = gaussian_policy(
        center,
        spread,
        noise_levels=n_levels,
        denoising_steps=n_steps,
        eta=eta,
        sigma_min=sigma_min,
    )
    process = policy.process
    ddim_std = process.sampling_std
    steps = affine_chain(process, center, spread, ddim_std)
    drawn_std = ddim_std.clamp(min=sigma_min) if explore else ddim_std
    expected = moments(steps, drawn_std)

    with th.no_grad():
        if explore:
            flat, values, log_prob = policy(th.zeros(n, 3))
            chain = flat.view(n, n_steps + 1, 2)
            assert values.shape == (n, 1)
            assert log_prob.shape == (n, n_steps)
        else:
            chain = policy._predict(th.zeros(n, 3)).unsqueeze(1)
            expected = expected[-1:]

    for entry, (mean, variance) in zip(chain.unbind(1), expected, strict=True):
        error = math.sqrt(variance / (2 * n))
        # The absolute parts are for rounding errors, which one step from noise divides by `signal`.
        assert float(entry.mean()) == pytest.approx(mean, abs=5 * error + 1e-5)
        relative = 5 * math.sqrt(1 / n) + 1e-3
        assert float(entry.var()) == pytest.approx(variance, rel=relative, abs=1e-10)


def test_ddpm_of_all_levels_recovers_the_target() -> None:
    """
    The closed form itself: with many small steps the final distribution is the target's.

    The last level is not pure noise, which the ODE remembers and the noisy chain nearly forgets.
    """
    center, spread = -0.4, 0.15
    process = DiffusionProcess("cosine", 1000, 1000)
    steps = affine_chain(process, center, spread, process.sampling_std)
    mean, variance = moments(steps, process.sampling_std)[-1]

    assert mean == pytest.approx(center, abs=0.001)
    assert math.sqrt(variance) == pytest.approx(spread, rel=0.02)
    ode = affine_chain(process, center, spread, process.sampling_std, ode=True)
    mean, variance = moments(ode, th.zeros(1000))[-1]
    assert mean == pytest.approx(center, abs=0.01)
    assert math.sqrt(variance) == pytest.approx(spread, rel=0.02)


def test_the_deterministic_action_follows_the_ode_from_the_fixed_noise() -> None:
    policy = gaussian_policy(0.3, noise_levels=20, denoising_steps=5)
    x = policy.initial_noise.clone()
    ode = affine_chain(policy.process, 0.3, 0.1, policy.process.sampling_std, ode=True)
    for slope, offset in ode:
        x = slope * x + offset

    with th.no_grad():
        action = policy._predict(th.randn(3, 3), deterministic=True)

    th.testing.assert_close(action, x.expand(3, 2), rtol=1e-4, atol=1e-5)


def test_log_likelihoods_of_sampled_chains_are_those_of_the_closed_form() -> None:
    """Each step against N(slope x + offset, std^2) worked out by hand; D entries are summed."""
    policy = gaussian_policy(0.3, action_dim=3, noise_levels=10, denoising_steps=4, sigma_min=0.2)
    with th.no_grad():
        flat, _, log_prob = policy(th.zeros(50, 3))
    chain = flat.view(50, 5, 3).double()
    ddim_std = policy.process.sampling_std
    for step, (slope, offset) in enumerate(affine_chain(policy.process, 0.3, 0.1, ddim_std)):
        sigma = max(float(ddim_std[step]), 0.2)
        normal = th.distributions.Normal(slope * chain[:, step] + offset, sigma)
        expected = normal.log_prob(chain[:, step + 1]).sum(1)
        np.testing.assert_allclose(log_prob[:, step], expected, rtol=1e-3, atol=1e-3)


# -- likelihood and KL -------------------------------------------------------------------------


def test_gaussian_log_prob_is_that_of_torch() -> None:
    value, mean = th.randn(2, 5, 4, 3, dtype=th.float64)
    std = th.rand(4, dtype=th.float64) + 0.1
    normal = th.distributions.Independent(
        th.distributions.Normal(mean, std.view(1, 4, 1).expand(5, 4, 3)), 1
    )

    th.testing.assert_close(gaussian_log_prob(value, mean, std), normal.log_prob(value))
    one_step = gaussian_log_prob(value[:, 2], mean[:, 2], std[2])
    th.testing.assert_close(one_step, normal.log_prob(value)[:, 2])


def test_pathwise_kl_is_the_sum_of_the_steps_gaussian_kls() -> None:
    mean, prior_mean = th.randn(2, 6, 4, 3, dtype=th.float64)
    std = th.rand(4, dtype=th.float64) + 0.1
    sigma = std.view(1, 4, 1).expand(6, 4, 3)
    kl = th.distributions.kl_divergence(
        th.distributions.Normal(mean, sigma), th.distributions.Normal(prior_mean, sigma)
    )

    th.testing.assert_close(pathwise_kl(mean, prior_mean, std), kl.sum(dim=(1, 2)))


@pytest.mark.parametrize(("n_levels", "n_steps"), [(20, 5), (10, 10), (20, 1)])
def test_pathwise_kl_against_monte_carlo_and_the_closed_form(n_levels: int, n_steps: int) -> None:
    """
    Policy and prior are the exact networks of two Gaussians, so both chains are linear-Gaussian.

    Three ways to the same number: moments of the closed form, the average of ``pathwise_kl`` over
    the policy's chains, and the average log-likelihood ratio of these chains.
    """
    n, action_dim, sigma_min = 40_000, 2, 0.1
    shape: dict[str, Any] = {"noise_levels": n_levels, "denoising_steps": n_steps}
    policy = gaussian_policy(-0.2, 0.2, action_dim, sigma_min=sigma_min, **shape)
    policy.freeze_prior()
    prior = policy.prior.denoiser
    assert isinstance(prior, GaussianDenoiser)
    prior.center.fill_(0.25)
    prior.spread = 0.1

    std = policy.process.std
    ddim_std = policy.process.sampling_std
    ours = affine_chain(policy.process, -0.2, 0.2, ddim_std)
    theirs = affine_chain(policy.process, 0.25, 0.1, ddim_std)
    closed_form = 0.0
    path = moments(ours, std)
    for (a, b), (c, d), (mean, variance), sigma in zip(
        ours, theirs, path[:-1], std.tolist(), strict=True
    ):
        squared = (a - c) ** 2 * variance + ((a - c) * mean + b - d) ** 2
        closed_form += action_dim * squared / (2 * sigma**2)

    obs = th.zeros(n, 3)
    with th.no_grad():
        flat, _, log_prob = policy(obs)
        evaluation = policy.evaluate_chains(obs, flat)
        assert evaluation.prior_kl is not None
        chain = flat.view(n, n_steps + 1, action_dim)
        prior_means = policy.process.chain_means(prior, chain, policy.prior.condition(obs))
        ratio = (log_prob - gaussian_log_prob(chain[:, 1:], prior_means, std)).sum(1)

    assert closed_form > 0.5
    pathwise = evaluation.prior_kl
    tolerance = 5 / math.sqrt(n)
    assert float(pathwise.mean()) == pytest.approx(
        closed_form, abs=tolerance * float(pathwise.std()) + 1e-3 * closed_form
    )
    assert float(ratio.mean()) == pytest.approx(
        closed_form, abs=tolerance * float(ratio.std()) + 1e-3 * closed_form
    )
    # The data-processing inequality: the actions alone differ no more than the chains.
    (m1, v1), (m2, v2) = path[-1], moments(theirs, std)[-1]
    marginal = action_dim * 0.5 * (v1 / v2 + (m1 - m2) ** 2 / v2 - 1 + math.log(v2 / v1))
    assert 0 < marginal < closed_form


@pytest.mark.parametrize("mixing", [0.01, 0.3, 0.9, 1.0])
def test_mixture_likelihood_against_enumeration_of_the_components(mixing: float) -> None:
    """
    The joint of the first i steps is ``p prod a + (1 - p) prod b``.

    Its quotients are the conditional densities of the steps.
    """
    ours, prior = th.randn(2, 30, 4, dtype=th.float64)

    mixed = mixture_log_prob(ours, prior, mixing)

    for row in range(30):
        a, b = ours[row].exp().tolist(), prior[row].exp().tolist()
        joint = [mixing * math.prod(a[:i]) + (1 - mixing) * math.prod(b[:i]) for i in range(5)]
        assert joint[0] == 1
        for step in range(4):
            expected = math.log(joint[step + 1] / joint[step])
            assert float(mixed[row, step]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert float(mixed[row].sum()) == pytest.approx(math.log(joint[4]), rel=1e-9, abs=1e-9)


def test_the_mixture_likelihood_integrates_to_one() -> None:
    """A chain of two one-dimensional steps on a grid: neither mass nor marginal is lost."""
    grid = th.linspace(-8, 8, 401, dtype=th.float64)
    x, y = th.meshgrid(grid, grid, indexing="ij")
    normal = th.distributions.Normal
    ours = th.stack([normal(0.5, 1.0).log_prob(x), normal(0.8 * x, 0.7).log_prob(y)], dim=-1)
    prior = th.stack([normal(-1.0, 0.6).log_prob(x), normal(-0.5 * x, 1.1).log_prob(y)], dim=-1)
    cell = float(grid[1] - grid[0])

    density = mixture_log_prob(ours, prior, 0.4).sum(-1).exp()

    assert float(density.sum()) * cell**2 == pytest.approx(1, abs=1e-6)
    first = (
        0.4 * normal(0.5, 1.0).log_prob(grid).exp() + 0.6 * normal(-1.0, 0.6).log_prob(grid).exp()
    )
    np.testing.assert_allclose(density.sum(1) * cell, first, atol=1e-6)


def test_mixing_1_is_the_policy_alone_to_the_bit() -> None:
    ours = (100 * th.randn(50, 5)).requires_grad_()
    prior = 100 * th.randn(50, 5)
    weights = th.randn(50, 5)

    for mixing in (1.0, th.tensor(1.0)):
        mixed = mixture_log_prob(ours, prior, mixing)
        assert th.equal(mixed, ours)
        [gradient] = th.autograd.grad((weights * mixed).sum(), ours)
        assert th.equal(gradient, weights)


@pytest.mark.parametrize("mixing", [0.01, 0.5, 0.99])
def test_mixture_gradients_against_brute_force(mixing: float) -> None:
    ours = th.randn(20, 3, dtype=th.float64).requires_grad_()
    prior = th.randn(20, 3, dtype=th.float64)
    weights = th.randn(20, 3, dtype=th.float64)
    loss = th.zeros((), dtype=th.float64)
    for row in range(20):
        before = th.ones((), dtype=th.float64)
        for step in range(3):
            joint = (
                mixing * ours[row, : step + 1].exp().prod()
                + (1 - mixing) * prior[row, : step + 1].exp().prod()
            )
            loss = loss + weights[row, step] * (joint / before).log()
            before = joint
    [expected] = th.autograd.grad(loss, ours)

    mixed = (weights * mixture_log_prob(ours, prior, mixing)).sum()
    [gradient] = th.autograd.grad(mixed, ours)

    th.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)
    assert float(gradient.abs().max()) > 0.1


@pytest.mark.parametrize("mixing", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6])
def test_mixture_likelihood_and_gradient_stay_finite(mixing: float, scale: float) -> None:
    """However far the components are apart, in single precision."""
    ours = (scale * th.randn(100, 5)).requires_grad_()
    prior = scale * th.randn(100, 5)

    mixed = mixture_log_prob(ours, prior, mixing)
    [gradient] = th.autograd.grad(mixed.sum(), ours)

    assert th.isfinite(mixed).all()
    assert th.isfinite(gradient).all()
    # The sum is the exact mixture, dominated by the better component.
    total = th.logaddexp(
        math.log(mixing) + ours.double().sum(1),
        (math.log1p(-mixing) if mixing < 1 else -math.inf) + prior.double().sum(1),
    )
    np.testing.assert_allclose(mixed.detach().sum(1), total.detach(), rtol=1e-4, atol=1e-4 * scale)


# -- denoiser ----------------------------------------------------------------------------------


@pytest.mark.parametrize("net_arch", [(8,), (8, 8, 8), (8, 5, 5), (4, 9)])
def test_the_mlp_is_residual_where_widths_agree(net_arch: tuple[int, ...]) -> None:
    net = MlpDenoiser(4, 3, 10, net_arch=net_arch, activation_fn=th.nn.Tanh)
    noisy, features, levels = th.randn(6, 3), th.randn(6, 4), th.randint(1, 11, (6,))

    predicted = net(noisy, levels, net.condition(features))

    hidden = F.linear(noisy, net.action_layer.weight, net.action_layer.bias)
    hidden = hidden + F.linear(features, net.features_layer.weight, net.features_layer.bias)
    embedded = net.level_embedding[levels]
    hidden = hidden + F.linear(embedded, net.level_layer.weight, net.level_layer.bias)
    assert len(net.hidden_layers) == len(net_arch) - 1
    for layer, n_in, n_out in zip(net.hidden_layers, net_arch, net_arch[1:], strict=False):
        assert isinstance(layer, th.nn.Linear)
        update = F.linear(hidden.tanh(), layer.weight, layer.bias)
        hidden = hidden + update if n_in == n_out else update
    output = net.output_layer
    assert isinstance(output, th.nn.Linear)
    th.testing.assert_close(predicted, F.linear(hidden.tanh(), output.weight, output.bias))


def test_without_hidden_layers_the_denoiser_is_affine() -> None:
    net = MlpDenoiser(4, 3, 10, net_arch=[])
    level = th.tensor(4)
    x, y = th.randn(2, 5, 3)
    s, t = th.randn(2, 5, 4)

    def f(noisy: th.Tensor, features: th.Tensor) -> th.Tensor:
        return net(noisy, level, net.condition(features))

    combined = f(0.3 * x + 0.7 * y, 0.3 * s + 0.7 * t)
    assert combined.shape == (5, 3)
    th.testing.assert_close(combined, 0.3 * f(x, s) + 0.7 * f(y, t))
    assert not th.allclose(f(x, s), f(x, t))
    assert not th.allclose(f(x, s), f(y, s))


@pytest.mark.parametrize("net_arch", [(), (16, 16)])
def test_the_condition_is_computed_once_and_broadcasts(net_arch: tuple[int, ...]) -> None:
    """One call for a batch of chains, each level its own, equals a call for every single entry."""
    net = MlpDenoiser(4, 3, 10, net_arch=net_arch).double()
    chains = th.randn(6, 5, 3, dtype=th.float64)
    levels = th.tensor([10, 8, 6, 4, 2])
    features = th.randn(6, 4, dtype=th.float64)

    together = net(chains, levels, net.condition(features).unsqueeze(1))

    assert together.shape == (6, 5, 3)
    for row, step in itertools.product(range(6), range(5)):
        alone = net(chains[row, step], levels[step], net.condition(features[row]))
        th.testing.assert_close(together[row, step], alone, rtol=1e-12, atol=1e-12)


def test_every_level_looks_different_to_the_denoiser() -> None:
    net = MlpDenoiser(2, 2, 50, net_arch=(16,))
    noisy, condition = th.zeros(50, 2), net.condition(th.zeros(2))

    predicted = net(noisy, th.arange(1, 51), condition)

    distance = th.cdist(predicted, predicted).detach() + th.eye(50)
    assert float(distance.min()) > 1e-4


# -- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"denoising_steps": 0}, r"denoising_steps.*between 1 and noise_levels=20.*got 0"),
        ({"denoising_steps": 21}, r"denoising_steps.*between 1 and noise_levels=20.*got 21"),
        ({"noise_levels": 3}, r"denoising_steps.*noise_levels=3.*got 5"),
        ({"noise_levels": 0, "denoising_steps": 0}, r"noise_levels"),
        ({"eta": -0.1}, r"eta must lie between 0 .* and 1 .*got -0.1"),
        ({"eta": 1.1}, r"eta must lie between 0 .* and 1 .*got 1.1"),
        ({"eta": math.nan}, r"eta.*nan"),
        ({"sigma_min": 0.0}, r"sigma_min must be positive.*got 0.0"),
        ({"sigma_min": -1.0}, r"sigma_min must be positive.*got -1.0"),
        ({"sigma_min": math.nan}, r"sigma_min must be positive.*got nan"),
        ({"noise_schedule": "sigmoid"}, r"'sigmoid'.*\['cosine', 'linear', "),
    ],
)
def test_a_process_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionProcess(**arguments)


@pytest.mark.parametrize("n_levels", [0, -1])
def test_no_noise_level_is_refused(n_levels: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {n_levels}"):
        make_alpha_bar("cosine", n_levels)
