"""Prediction types, the capped schedule and the sampler's options, against their definitions."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.diffusion import (
    NOISE_SCHEDULES,
    PREDICTION_TYPES,
    Denoiser,
    DiffusionProcess,
    gaussian_log_prob,
    make_alpha_bar,
)
from sb3_diffrl.imitation import imitation_losses
from sb3_diffrl.imitation_buffer import ImitationBuffer
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from tests.envs import TargetEnv, demonstrations

TYPES = sorted(PREDICTION_TYPES)
KINDS = sorted(NOISE_SCHEDULES)


def output_of(kind: str, clean: th.Tensor, epsilon: th.Tensor, kept: th.Tensor) -> th.Tensor:
    """What a perfect network of the type predicts, written out; ``v`` after Salimans and Ho."""
    return {
        "epsilon": epsilon,
        "sample": clean,
        "v": kept.sqrt() * epsilon - (1 - kept).sqrt() * clean,
    }[kind]


class ExactDenoiser(Denoiser):
    """The exact network of actions drawn from N(0.3, 0.1^2), for any prediction type."""

    def __init__(self, kind: str, alpha_bar: th.Tensor):
        super().__init__(1, 2, len(alpha_bar) - 1)
        self.kind, self.alpha_bar = kind, alpha_bar

    def condition(self, features: th.Tensor) -> th.Tensor:
        return features

    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        kept = self.alpha_bar[levels].unsqueeze(-1)
        shrink = kept.sqrt() * 0.01 / (kept * 0.01 + 1 - kept)
        clean = 0.3 + shrink * (noisy - kept.sqrt() * 0.3)
        epsilon = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
        return output_of(self.kind, clean, epsilon, kept)


def posterior(
    now: th.Tensor, after: th.Tensor, clean: th.Tensor, noisy: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """Mean and variance of q(a_{t-1} | a_t, a_0), Ho et al. 2020, eq. 6 and 7."""
    added = 1 - now / after
    mean = (
        after.sqrt() * added / (1 - now) * clean
        + (1 - added).sqrt() * (1 - after) / (1 - now) * noisy
    )
    return mean, (1 - after) / (1 - now) * added


# -- schedule and levels -----------------------------------------------------------------------


@pytest.mark.parametrize("n_levels", [1, 5, 20, 100, 1000])
def test_the_capped_schedule_is_that_of_published_checkpoints(n_levels: int) -> None:
    """Written out as a loop over betas; of DPPO's form the last factor is the same."""

    def kept(t: float) -> float:
        return float(np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2)

    product, expected = np.float32(1), [1.0]
    for level in range(1, n_levels + 1):
        beta = min(1 - kept(level / n_levels) / kept((level - 1) / n_levels), 0.999)
        product = product * (np.float32(1) - np.float32(beta))
        expected.append(float(product))

    found = make_alpha_bar("squared_cosine_capped", n_levels)

    np.testing.assert_allclose(found, expected, rtol=1e-5)
    steps = n_levels + 1
    grid = np.cos((np.linspace(0, steps, steps) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.clip(1 - grid[1:] / grid[:-1], 0, 0.999).astype(np.float32)
    np.testing.assert_allclose(found[1:], np.cumprod(1 - betas), rtol=1e-5)


@pytest.mark.parametrize(
    ("spacing", "n_levels", "n_steps", "timesteps"),
    [  # as diffusers 0.42.1 gives them
        ("leading", 100, 10, [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]),
        ("leading", 20, 6, [15, 12, 9, 6, 3, 0]),
        ("trailing", 100, 10, [99, 89, 79, 69, 59, 49, 39, 29, 19, 9]),
        ("trailing", 20, 6, [19, 16, 12, 9, 6, 2]),
        ("linspace", 100, 5, [99, 74, 50, 25, 0]),
        ("linspace", 100, 1, [0]),
    ],
)
def test_level_t_is_timestep_t_minus_1(
    spacing: str, n_levels: int, n_steps: int, timesteps: list[int]
) -> None:
    process = DiffusionProcess(
        noise_levels=n_levels, denoising_steps=n_steps, timestep_spacing=spacing
    )
    assert (process.levels - 1).tolist() == timesteps


# -- targets and means -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("schedule", KINDS)
def test_a_perfect_network_gives_the_posterior_of_ddpm(kind: str, schedule: str) -> None:
    n_levels = 12
    process = DiffusionProcess(schedule, n_levels, n_levels, prediction_type=kind).double()
    alpha_bar = make_alpha_bar(schedule, n_levels)
    clean = th.rand(7, 3, dtype=th.float64) * 2 - 1
    for step, level in enumerate(range(n_levels, 0, -1)):
        now, after = alpha_bar[level], alpha_bar[level - 1]
        epsilon = th.randn(7, 3, dtype=th.float64)
        noisy = now.sqrt() * clean + (1 - now).sqrt() * epsilon
        levels = th.full((7,), level)

        target = process.target(clean, levels, epsilon)

        th.testing.assert_close(target, output_of(kind, clean, epsilon, now), rtol=1e-6, atol=1e-6)
        mean, variance = posterior(now, after, clean, noisy)
        found = process.transition_mean(noisy, output_of(kind, clean, epsilon, now), step)
        # The tables are in single precision, whose errors a tiny signal magnifies.
        loose = 1e-5 if kind != "epsilon" else max(1e-5, 1e-7 / float(now.sqrt()))
        th.testing.assert_close(found, mean, rtol=1e-5, atol=loose)
        assert float(process.sampling_std[step] ** 2) == pytest.approx(float(variance), rel=1e-5)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("clip", [None, 1.0, 1.5])
@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_clipping_bounds_the_clean_action_and_the_noise_follows_if_asked(
    kind: str, clip: float | None, follows: bool, eta: float
) -> None:
    """Song et al. 2021, eq. 12, with the estimate and the noise taken apart."""
    process = DiffusionProcess(
        noise_levels=20,
        denoising_steps=5,
        eta=eta,
        prediction_type=kind,
        clip_sample=clip,
        use_clipped_model_output=follows,
    ).double()
    alpha_bar = make_alpha_bar("cosine", 20)
    clean = th.tensor([[2.5, -4.0, 0.5, 1.2]], dtype=th.float64)
    epsilon = th.tensor([[0.3, -0.2, 1.0, -1.5]], dtype=th.float64)
    for step, (level, following) in enumerate(itertools.pairwise([20, 16, 12, 8, 4, 0])):
        now, after = alpha_bar[level], alpha_bar[following]
        noisy = now.sqrt() * clean + (1 - now).sqrt() * epsilon
        bounded = clean if clip is None else clean.clamp(-clip, clip)
        direction = (noisy - now.sqrt() * bounded) / (1 - now).sqrt() if follows else epsilon
        std = eta * ((1 - after) / (1 - now) * (1 - now / after)).sqrt()
        expected = after.sqrt() * bounded + (1 - after - std**2).clamp(min=0).sqrt() * direction

        output = output_of(kind, clean, epsilon, now)
        found = process.transition_mean(noisy, output, step)
        th.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        steps = slice(step, step + 1)
        together = process.transition_mean(noisy.unsqueeze(1), output.unsqueeze(1), steps)
        th.testing.assert_close(together[:, 0], found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("ode", [True, False])
def test_the_prediction_type_changes_the_network_not_the_chain(kind: str, ode: bool) -> None:
    noise = th.randn(6, 50, 2)
    chains = []
    for each in ("epsilon", kind):
        process = DiffusionProcess(prediction_type=each)
        net = ExactDenoiser(each, make_alpha_bar("cosine", 20).float())
        chain, [means] = process.sample([(net, th.zeros(50, 1))], noise, ode=ode)
        if not ode:
            evaluated = process.chain_means(net, chain, th.zeros(50, 1))
            th.testing.assert_close(evaluated, means, rtol=1e-5, atol=1e-5)
        chains.append(chain)
    th.testing.assert_close(chains[1], chains[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_the_denoising_loss_is_least_for_the_exact_network(kind: str) -> None:
    process = DiffusionProcess(noise_levels=6, denoising_steps=3, prediction_type=kind)
    alpha_bar = make_alpha_bar("cosine", 6).float()
    actions = 0.3 + 0.1 * th.randn(40_000, 2)

    def loss_of(each: str, actions: th.Tensor) -> float:
        th.manual_seed(0)
        net = ExactDenoiser(each, alpha_bar)
        return float(process.denoising_loss(net, th.zeros(40_000, 1), actions).mean())

    # Var(output | a_t), level by level: of the clean action d^2 Var(eps) etc. by linearity.
    kept = alpha_bar[1:]
    clean_variance = 0.01 * (1 - kept) / (kept * 0.01 + 1 - kept)
    factor = {"epsilon": kept / (1 - kept), "sample": 1 + 0 * kept, "v": 1 / (1 - kept)}[kind]
    assert loss_of(kind, actions) == pytest.approx(
        float((clean_variance * factor).mean()), rel=0.03
    )
    assert all(loss_of(kind, actions) < loss_of(other, actions) for other in {*TYPES} - {kind})


# -- likelihood ratio --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("n_levels", [5, 100])
def test_the_ratio_is_one_on_a_fresh_buffer_of_nearly_pure_noise(kind: str, n_levels: int) -> None:
    model = DiffusionPPO(
        "policy",
        TargetEnv(),
        n_steps=64,
        policy_kwargs={
            "net_arch": [16, 16],
            "noise_schedule": "squared_cosine_capped",
            "noise_levels": n_levels,
            "prediction_type": kind,
        },
        beta=0.1,
        seed=0,
        device="cpu",
    )
    model.learn(64)
    _, callback = model._setup_learn(64)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    for batch in model.rollout_buffer.get(13):
        with th.no_grad():
            _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        assert float(((log_prob - batch.old_log_prob).exp() - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["sample", "v"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_rounding_error_of_the_network_hardly_moves_the_ratio(kind: str, eta: float) -> None:
    """What another device or batch size rounds differently, from the noisiest of levels on."""
    process = DiffusionProcess(
        "squared_cosine_capped", 100, 5, eta=eta, prediction_type=kind, sigma_min=0.1
    )
    noisy = th.randn(1000, 5, 4)
    output = th.rand(1000, 5, 4) * 2 - 1
    rounded = output * (1 + 6e-8 * th.randint(-2, 3, output.shape))
    drawn = process.transition_mean(noisy, output) + process.std.unsqueeze(-1) * th.randn(
        1000, 5, 4
    )
    first, second = (
        gaussian_log_prob(drawn, process.transition_mean(noisy, out), process.std)
        for out in (output, rounded)
    )
    assert float(((second - first).exp() - 1).abs().max()) < 1e-5


# -- imitation ---------------------------------------------------------------------------------


def velocity_of(kind: str, error: float, kept: th.Tensor) -> float:
    """The velocity that an output with an error implies, at a fixed noisy action."""
    noisy, epsilon = th.tensor(0.3, dtype=th.float64), th.tensor(0.8, dtype=th.float64)
    signal, noise = kept.sqrt(), (1 - kept).sqrt()
    output = output_of(kind, (noisy - noise * epsilon) / signal, epsilon, kept) + error
    implied = {
        "epsilon": signal * output - noise * (noisy - noise * output) / signal,
        "sample": signal * (noisy - signal * output) / noise - noise * output,
        "v": output,
    }
    return float(implied[kind])


@pytest.mark.parametrize("kind", TYPES)
def test_errors_are_weighed_in_units_of_the_velocity(kind: str) -> None:
    """By finite differences: how far an error of the output moves the velocity it implies."""
    process = DiffusionProcess(noise_levels=10, prediction_type=kind)
    for level in range(1, 11):
        kept = make_alpha_bar("cosine", 10)[level]
        difference = velocity_of(kind, 1e-4, kept) - velocity_of(kind, -1e-4, kept)
        expected = min((difference / 2e-4) ** 2, 5.0)
        assert float(1 / process.velocity_scale[level]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_imitation_without_a_prior_has_the_target_of_the_type(kind: str) -> None:
    policy = DiffusionActorCriticPolicy(
        TargetEnv().observation_space,
        spaces.Box(-1, 1, (2,)),
        lambda _: 1e-3,
        net_arch=[8],
        prediction_type=kind,
    )
    buffer = ImitationBuffer()
    buffer.set_demonstrations(demonstrations(), policy)
    weights = {"demonstrations": 1.0, "context": 0.0, "successes": 0.0}
    visited = th.zeros(1, 3)
    th.manual_seed(1)
    with th.no_grad():
        loss = imitation_losses(policy, buffer, visited, weights, 4000)["demonstrations"]

    data = buffer.batches("demonstrations", policy)
    assert data is not None
    obs, actions = data.take(th.arange(len(data)))
    assert isinstance(obs, th.Tensor)
    th.manual_seed(1)
    batch = th.randint(len(actions), (4000,))
    levels = policy.process.levels[th.randint(5, (4000,))]
    epsilon = th.randn_like(actions[batch])
    kept = make_alpha_bar("cosine", 20)[levels].float().unsqueeze(1)
    noisy = kept.sqrt() * actions[batch] + (1 - kept).sqrt() * epsilon
    predicted = policy.actor.denoiser(noisy, levels, policy.actor.condition(obs[batch]))
    error = (predicted - output_of(kind, actions[batch], epsilon, kept)).square().mean(1)
    scale = {"epsilon": kept, "sample": 1 - kept, "v": th.ones_like(kept)}[kind].clamp(min=0.2)
    assert float(loss) == pytest.approx(float((error / scale[:, 0]).mean()), rel=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_pretraining_learns_with_every_type(kind: str) -> None:
    model = DiffusionPPO(
        "policy",
        TargetEnv(),
        n_steps=16,
        batch_size=16,
        policy_kwargs={
            "net_arch": [32, 32],
            "prediction_type": kind,
            "noise_schedule": "squared_cosine_capped",
        },
        seed=0,
        device="cpu",
    )
    model.pretrain(demonstrations(n_episodes=40), gradient_steps=800, batch_size=128)
    data = demonstrations(n_episodes=10)
    actions, _ = model.predict(np.asarray(data.observations))
    assert float(np.abs(actions - data.actions).mean()) < 0.2


# -- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prediction_type": "noise"}, r"prediction_type 'noise'.*\['epsilon', 'sample', 'v'\]"),
        ({"timestep_spacing": "even"}, r"timestep_spacing 'even'.*'leading'"),
        ({"clip_sample": 0.0}, r"clip_sample must be positive.*got 0.0"),
    ],
)
def test_unknown_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionProcess(**arguments)


def test_a_prior_of_another_prediction_type_is_refused() -> None:
    model, other = (
        DiffusionPPO("policy", TargetEnv(), policy_kwargs={"prediction_type": kind}, device="cpu")
        for kind in ("epsilon", "v")
    )
    with pytest.raises(ValueError, match=r"prediction_type is 'v', the policy's is 'epsilon'"):
        model.set_prior(other.policy)
