"""Pre-training: what it learns, averages, keeps, refuses and leaves behind."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffrl import Demonstrations, DiffusionActorCriticPolicy, DiffusionPPO, pretrain
from sb3_diffrl.batches import TensorBatches, as_tensors, check_demonstrations
from sb3_diffrl.fitting import update_average, warmup_cosine
from tests.envs import ASYMMETRIC, TargetEnv, demonstrations, several
from tests.models import make_model

SMALL: dict[str, Any] = {"net_arch": [16, 16], "noise_levels": 10, "denoising_steps": 3}
QUICK: dict[str, Any] = {"gradient_steps": 3, "batch_size": 8, "warmup_steps": 1}


class Records(KVWriter):
    """Keeps what was logged, by step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        self.rows.append({"step": step, **key_values})

    def close(self) -> None:
        pass


def vector_policy(**kwargs: Any) -> DiffusionActorCriticPolicy:
    space = TargetEnv().observation_space
    return DiffusionActorCriticPolicy(space, ASYMMETRIC, lambda _: 1e-3, **{**SMALL, **kwargs})


def vector_demonstrations(n_episodes: int = 6) -> Demonstrations:
    return demonstrations(TargetEnv(action_space=ASYMMETRIC), n_episodes)


def small_model(env: Any, **kwargs: Any) -> DiffusionPPO:
    policy_kwargs = {**SMALL, **kwargs.pop("policy_kwargs", {})}
    kwargs = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0, "beta": 0.1, **kwargs}
    return DiffusionPPO("policy", env, policy_kwargs=policy_kwargs, **kwargs)


def state(module: th.nn.Module) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, th.Tensor], b: dict[str, th.Tensor]) -> bool:
    return a.keys() == b.keys() and all(th.equal(a[name], b[name]) for name in a)


# -- what it learns ----------------------------------------------------------------------------


def test_it_recovers_both_modes_of_a_distribution_with_the_right_weights() -> None:
    """30 % of the demonstrations act near 2 and 70 % near 8, at one and the same observation."""
    n = 2_000
    rng = np.random.default_rng(0)
    low = rng.permutation(n) < 0.3 * n
    actions = np.where(low, 2.0, 8.0) + 0.3 * rng.standard_normal(n)
    observations = np.full((n, 2), 0.5, np.float32)
    demos = Demonstrations.from_arrays(
        observations, actions.astype(np.float32)[:, None], np.arange(10, n + 1, 10)
    )
    policy = DiffusionActorCriticPolicy(
        spaces.Box(-1, 1, (2,)),
        spaces.Box(0, 10, (1,)),
        lambda _: 1e-3,
        net_arch=[64, 64],
        noise_levels=50,
        denoising_steps=50,
    )

    result = pretrain(
        policy,
        demos,
        gradient_steps=1_000,
        learning_rate=5e-3,
        warmup_steps=100,
        ema_decay=0.99,
        validation_interval=250,
    )
    drawn, _ = policy.predict(np.full((10_000, 2), 0.5, np.float32))

    assert result.gradient_steps == 1_000
    assert drawn.shape == (10_000, 1)
    near_low, near_high = np.abs(drawn - 2) < 1.5, np.abs(drawn - 8) < 1.5
    assert np.mean(near_low | near_high) > 0.95
    assert np.mean(drawn < 5) == pytest.approx(0.3, abs=0.05)
    assert drawn[near_low].mean() == pytest.approx(2, abs=0.2)
    assert drawn[near_high].mean() == pytest.approx(8, abs=0.2)
    assert drawn[near_low].std() < 0.6
    assert drawn[near_high].std() < 0.6


def test_the_actions_are_scaled_to_the_unit_box() -> None:
    policy, demos = vector_policy(), vector_demonstrations()

    observations, actions = as_tensors(policy, demos)

    low, high = ASYMMETRIC.low, ASYMMETRIC.high
    assert isinstance(observations, th.Tensor)
    np.testing.assert_array_equal(observations, demos.observations)
    np.testing.assert_allclose(
        actions, 2 * (demos.actions - low) / (high - low) - 1, rtol=1e-5, atol=1e-6
    )
    assert float(actions.abs().max()) <= 1 + 1e-6


def test_the_normaliser_is_fitted_to_the_training_episodes() -> None:
    policy, demos = vector_policy(), vector_demonstrations(10)
    train, _ = demos.split(0.2, seed=4)
    assert isinstance(train.observations, np.ndarray)

    pretrain(policy, demos, validation_fraction=0.2, seed=4, **QUICK)

    standardizer = policy.actor.normalizer.standardizer()
    np.testing.assert_allclose(standardizer.mean, train.observations.mean(0), rtol=1e-5)
    expected = np.maximum(train.observations.std(0), 0.02)
    np.testing.assert_allclose(standardizer.scale, expected, rtol=1e-5)


def test_the_normaliser_can_be_left_as_it_is() -> None:
    policy = vector_policy()
    policy.actor.normalizer.fit(np.random.default_rng(0).uniform(5, 7, (20, 3)))
    before = state(policy.actor.normalizer)

    pretrain(policy, vector_demonstrations(), fit_normalizer=False, **QUICK)

    assert same(before, state(policy.actor.normalizer))
    assert same(before, state(policy.prior.normalizer))


@pytest.mark.parametrize("denoising_steps", [1, 5])
def test_the_ratio_of_a_fresh_rollout_is_1_with_a_trained_network(denoising_steps: int) -> None:
    """
    Untrained networks predict clean actions out of bounds, whose clipping hides rounding errors.

    A trained one does not, and its first step divides by ``sqrt(alpha_bar_T)``.
    """
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (1_000, 3)).astype(np.float32)
    actions = 0.5 * observations @ rng.uniform(-0.5, 0.5, (3, 6)).astype(np.float32)
    env = TargetEnv(action_space=spaces.Box(-1, 1, (6,)))
    model = small_model(
        env,
        n_steps=256,
        batch_size=64,
        policy_kwargs={
            "net_arch": [64, 64],
            "noise_levels": 20,
            "denoising_steps": denoising_steps,
        },
    )
    model.pretrain(
        Demonstrations.from_arrays(observations, actions, np.arange(10, 1_001, 10)),
        gradient_steps=400,
        learning_rate=3e-3,
        warmup_steps=50,
    )
    _, callback = model._setup_learn(256)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 256)

    worst, inside = 0.0, 0.0
    for batch in model.rollout_buffer.get(64):
        with th.no_grad():
            evaluation = model.policy.evaluate_chains(batch.observations, batch.actions)
        ratio = (evaluation.log_prob - batch.old_log_prob).exp()
        worst = max(worst, float((ratio - 1).abs().max()))
        inside = max(inside, float((batch.actions[:, -6:].abs() < 1).float().mean()))

    assert inside > 0.5
    assert worst < 1e-5


# -- optimizer, schedule, average --------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "n_steps", "warmup_steps", "value"),
    [
        (0, 100, 10, 0.1),
        (4, 100, 10, 0.5),
        (9, 100, 10, 1.0),
        (10, 100, 10, 1.0),
        (10 + 30, 100, 10, 0.75),
        (10 + 45, 100, 10, 0.5),
        (10 + 60, 100, 10, 0.25),
        (100, 100, 10, 0.0),
        (150, 100, 10, 0.0),
        (0, 100, 0, 1.0),
        (50, 100, 0, 0.5),
        (3, 5, 10, 0.4),  # cut off while still warming up
        (10, 10, 10, 1.0),
    ],
)
def test_the_learning_rate_at_known_points(
    step: int, n_steps: int, warmup_steps: int, value: float
) -> None:
    assert warmup_cosine(step, n_steps, warmup_steps) == pytest.approx(value, abs=1e-12)


def test_the_average_is_the_geometric_sum() -> None:
    decay, n_steps = 0.8, 7
    average, module = th.nn.Linear(3, 1).double(), th.nn.Linear(3, 1).double()
    for network in (average, module):
        network.register_buffer("count", th.zeros(()))
    start = average.weight.detach().clone()
    values = th.randn(n_steps, 1, 3, dtype=th.float64)

    for i, value in enumerate(values):
        with th.no_grad():
            module.weight.copy_(value)
        module.get_buffer("count").fill_(i)
        update_average(average, module, decay)

    expected = decay**n_steps * start + (1 - decay) * sum(
        decay ** (n_steps - 1 - k) * value for k, value in enumerate(values)
    )
    th.testing.assert_close(average.weight.detach(), expected)
    # Buffers are what they last were.
    assert average.get_buffer("count") == n_steps - 1


def test_what_is_kept_is_the_average_with_its_warm_up() -> None:
    """With decay 0 a run keeps its last weights; from two such runs the average is worked out."""
    policy, demos = vector_policy(), vector_demonstrations()
    shared: dict[str, Any] = {"batch_size": 16, "warmup_steps": 10, "validation_fraction": 0}

    def run(gradient_steps: int, ema_decay: float) -> dict[str, th.Tensor]:
        th.manual_seed(5)
        twin = copy.deepcopy(policy)
        pretrain(twin, demos, gradient_steps=gradient_steps, ema_decay=ema_decay, **shared)
        return {name: p.detach() for name, p in twin.actor.named_parameters()}

    one, two, kept, short = run(1, 0.0), run(2, 0.0), run(2, 0.9), run(2, 0.1)
    for name, start in policy.actor.named_parameters():
        # Decay min(0.9, (1 + step) / (10 + step)): 2 / 11, then 3 / 12.
        first = 2 / 11 * start.detach() + 9 / 11 * one[name]
        th.testing.assert_close(kept[name], 3 / 12 * first + 9 / 12 * two[name])
        first = 0.1 * start.detach() + 0.9 * one[name]
        th.testing.assert_close(short[name], 0.1 * first + 0.9 * two[name])
    assert not th.equal(kept["denoiser.action_layer.weight"], two["denoiser.action_layer.weight"])


def test_the_first_step_is_adams_at_the_warm_up_rate() -> None:
    """Adam's first step is the learning rate times the sign of the gradient, less weight decay."""
    policy, (_, demos, _) = vector_policy(), overfitted()
    before = {name: p.detach().clone() for name, p in policy.actor.named_parameters()}

    pretrain(
        policy,
        demos,
        gradient_steps=1,
        learning_rate=0.01,
        warmup_steps=10,
        weight_decay=20.0,
        ema_decay=0.0,
        validation_fraction=0,
    )

    rate = 0.01 * 1 / 10
    for name, parameter in policy.actor.named_parameters():
        step = (parameter.detach() - (1 - rate * 20.0) * before[name]).abs()
        assert float(step.max()) == pytest.approx(rate, rel=1e-3), name
        # Gradients as small as Adam's epsilon, of hardly varying inputs, make smaller steps.
        assert float((step > 0.99 * rate).float().mean()) > 0.9, name


# -- validation and early stop -----------------------------------------------------------------


def test_it_stops_once_the_validation_loss_no_longer_falls() -> None:
    """At learning rate 0 nothing improves after the first validation."""
    records = Records()

    result = pretrain(
        vector_policy(),
        vector_demonstrations(),
        gradient_steps=1_000,
        learning_rate=0.0,
        validation_interval=4,
        patience=3,
        logger=Logger(None, [records]),
    )

    assert result.stopped_early
    assert result.gradient_steps == 4 + 3 * 4
    assert [row["step"] for row in records.rows] == [4, 8, 12, 16]
    losses = {row["pretrain/validation_loss"] for row in records.rows}
    assert losses == {result.validation_loss}  # the same noise at each validation


def overfitted() -> tuple[DiffusionActorCriticPolicy, Demonstrations, dict[str, Any]]:
    """Actions that have nothing to do with what is seen: more training is soon worse."""
    rng = np.random.default_rng(0)
    demos = Demonstrations.from_arrays(
        rng.uniform(-1, 1, (40, 3)).astype(np.float32),
        rng.uniform(ASYMMETRIC.low, ASYMMETRIC.high, (40, 2)).astype(np.float32),
        np.arange(2, 41, 2),
    )
    arguments = {
        "gradient_steps": 300,
        "learning_rate": 2e-2,
        "warmup_steps": 10,
        "ema_decay": 0.9,
        "validation_fraction": 0.5,
        "validation_interval": 20,
        "batch_size": 64,
    }
    return vector_policy(net_arch=[64, 64]), demos, arguments


def validation_loss(policy: DiffusionActorCriticPolicy, demos: Demonstrations) -> float:
    """The epsilon loss on the held-out half, nearly without noise of its own."""
    obs, actions = as_tensors(policy, demos.split(0.5, seed=0)[1])
    with th.no_grad():
        losses = [policy.denoising_loss(obs, actions).mean() for _ in range(500)]
    return float(th.stack(losses).mean())


def test_with_patience_the_best_average_is_kept() -> None:
    policy, demos, arguments = overfitted()
    records = Records()

    result = pretrain(policy, demos, patience=100, logger=Logger(None, [records]), **arguments)

    logged = [row["pretrain/validation_loss"] for row in records.rows]
    assert not result.stopped_early
    assert len(logged) == 15
    assert result.validation_loss == min(logged)
    assert logged[-1] > min(logged) + 0.1
    # It is this loss that the weights which were kept have.
    assert validation_loss(policy, demos) == pytest.approx(min(logged), abs=0.1)


def test_without_patience_the_last_average_is_kept() -> None:
    policy, demos, arguments = overfitted()
    records = Records()

    result = pretrain(policy, demos, patience=None, logger=Logger(None, [records]), **arguments)

    logged = [row["pretrain/validation_loss"] for row in records.rows]
    assert (result.gradient_steps, result.stopped_early) == (300, False)
    assert result.validation_loss == logged[-1]
    assert logged[-1] > min(logged) + 0.1
    assert result.train_loss == records.rows[-1]["pretrain/loss"]
    assert result.train_loss < logged[-1] / 2


@pytest.mark.parametrize(("fraction", "n_episodes"), [(0.0, 6), (0.5, 1)])
def test_without_validation_episodes_it_trains_to_the_end(fraction: float, n_episodes: int) -> None:
    result = pretrain(
        vector_policy(),
        vector_demonstrations(n_episodes),
        gradient_steps=12,
        learning_rate=0.0,
        validation_fraction=fraction,
        validation_interval=2,
        patience=1,
    )

    assert (result.gradient_steps, result.stopped_early) == (12, False)
    assert math.isnan(result.validation_loss)
    assert result.train_loss > 0


def test_losses_and_learning_rate_are_logged_at_every_validation() -> None:
    records = Records()

    pretrain(
        vector_policy(),
        vector_demonstrations(),
        gradient_steps=25,
        learning_rate=0.1,
        warmup_steps=5,
        validation_interval=10,
        logger=Logger(None, [records]),
    )

    assert [row["step"] for row in records.rows] == [10, 20, 25]
    rates = [row["pretrain/learning_rate"] for row in records.rows]
    expected = [0.1 * 0.5 * (1 + math.cos(math.pi * t)) for t in (0.25, 0.75, 1.0)]
    np.testing.assert_allclose(rates, expected, atol=1e-12)
    assert all(math.isfinite(row["pretrain/loss"]) for row in records.rows)


def test_the_progress_bar_shows_only_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    pretrain(vector_policy(), vector_demonstrations(), **QUICK)
    assert capsys.readouterr().err == ""
    pretrain(vector_policy(), vector_demonstrations(), progress_bar=True, **QUICK)
    assert "3/3" in capsys.readouterr().err


# -- the prior ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_the_prior_is_a_frozen_copy_and_stays_so(kind: str) -> None:
    """Bit for bit the actor, image encoder and normaliser included, also after training."""
    extractor = {"features_extractor_kwargs": {"cnn_output_dim": 16}} if kind == "dict" else {}
    model = small_model(TargetEnv(kind), policy_kwargs=extractor)
    policy = model.policy
    assert not policy.has_prior
    untrained = state(policy.actor)

    model.pretrain(demonstrations(TargetEnv(kind), 4), **QUICK)

    prior = state(policy.prior)
    assert policy.has_prior
    assert same(prior, state(policy.actor))
    assert not any(th.equal(prior[name], untrained[name]) for name in prior if "weight" in name)
    assert any("normalizer" in name for name in prior)
    assert any("cnn" in name for name in prior) == (kind == "dict")
    assert not any(p.requires_grad for p in policy.prior.parameters())
    assert all(p.requires_grad for p in policy.actor.parameters())
    shared = {p.data_ptr() for p in policy.prior.parameters()}
    assert shared.isdisjoint(p.data_ptr() for p in policy.actor.parameters())

    model.learn(32)

    assert same(prior, state(policy.prior))
    assert not same(prior, state(policy.actor))
    assert not any(module.training for module in policy.prior.modules())


def test_the_same_seed_pretrains_the_same_bit_for_bit() -> None:
    def run(seed: int) -> tuple[dict[str, th.Tensor], Any]:
        model = small_model(TargetEnv(), seed=seed)
        return state(model.policy), model.pretrain(demonstrations(), gradient_steps=20)

    (first, result), (again, same_result) = run(3), run(3)
    other, other_result = run(4)

    assert same(first, again)
    assert result == same_result
    assert not same(first, other)
    assert result != other_result


def test_validation_and_logging_do_not_change_what_is_learned() -> None:
    """How often it validates is no business of the weights: the noise of validation is its own."""
    demos, policy = vector_demonstrations(), vector_policy()

    def run(validation_interval: int) -> dict[str, th.Tensor]:
        th.manual_seed(0)
        twin = copy.deepcopy(policy)
        pretrain(
            twin, demos, gradient_steps=12, patience=None, validation_interval=validation_interval
        )
        return state(twin.actor)

    assert same(run(1), run(12))


# -- bad demonstrations ------------------------------------------------------------------------


def replaced(demos: Demonstrations, **changes: Any) -> Demonstrations:
    return dataclasses.replace(demos, **changes)


def changed(array: Any, index: tuple[int, ...], value: float) -> np.ndarray:
    array = np.array(array)
    array[index] = value
    return array


Spoil = Callable[[Demonstrations], Any]
BAD: dict[str, tuple[Spoil, str]] = {
    "NaN in an observation": (
        lambda d: replaced(d, observations=changed(d.observations, (3, 1), np.nan)),
        r"observations\[3, 1\] = nan, expected a finite number",
    ),
    "infinite action": (
        lambda d: replaced(d, actions=changed(d.actions, (5, 0), np.inf)),
        r"actions\[5, 0\] = inf, expected a finite number",
    ),
    "the first of several": (
        lambda d: replaced(d, actions=changed(changed(d.actions, (9, 1), np.nan), (7, 1), np.nan)),
        r"actions\[7, 1\] = nan",
    ),
    "action above its bound": (
        lambda d: replaced(d, actions=changed(d.actions, (2, 1), 9.0)),
        r"actions\[2, 1\] = 9, expected within \[1, 5\]",
    ),
    "action below its bound": (
        lambda d: replaced(d, actions=changed(d.actions, (0, 0), -2.5)),
        r"actions\[0, 0\] = -2.5, expected within \[-2, 0.5\]",
    ),
    "observations too wide": (
        lambda d: replaced(d, observations=np.zeros((48, 4), np.float32)),
        r"observations\[0\]: shape \(4,\), expected \(3,\) in an array of shape \(M, 3\)",
    ),
    "actions too wide": (
        lambda d: replaced(d, actions=np.zeros((48, 3), np.float32)),
        r"actions\[0\]: shape \(3,\), expected \(2,\) in an array of shape \(M, 2\)",
    ),
    "flat actions": (
        lambda d: replaced(d, actions=np.zeros(48, np.float32)),
        r"actions\[0\]: shape \(\), expected \(2,\)",
    ),
    "a dictionary": (
        lambda d: replaced(d, observations={"state": d.observations}),
        r"observations: a dictionary with the keys \['state'\], expected one array .*\(M, 3\)",
    ),
    "bare arrays": (
        lambda d: {"observations": d.observations, "actions": d.actions},
        r"demonstrations: expected sb3_diffrl.Demonstrations.*from_arrays",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("normalize", [False, True])
def test_demonstrations_that_do_not_fit_are_refused_and_change_nothing(
    case: str, normalize: bool
) -> None:
    """The error names field, first index and expectation in the env's own units."""
    spoil, message = BAD[case]
    env: Any = several(1, action_space=ASYMMETRIC)
    if normalize:
        env = VecNormalize(env)
        env.obs_rms.mean[:] = [0.1, 0.2, 0.3]
    model = small_model(env)
    before = state(model.policy)

    with pytest.raises(ValueError, match=message):
        model.pretrain(spoil(vector_demonstrations()), **QUICK)

    assert same(before, state(model.policy))
    if normalize:
        assert env.obs_rms.mean.tolist() == [0.1, 0.2, 0.3]


def part(demos: Demonstrations, key: str) -> np.ndarray:
    assert isinstance(demos.observations, dict)
    return np.asarray(demos.observations[key])


def with_part(demos: Demonstrations, key: str, array: np.ndarray) -> dict[str, Any]:
    assert isinstance(demos.observations, dict)
    return {**demos.observations, key: array}


BAD_DICT: dict[str, tuple[Spoil, str]] = {
    "a key is missing": (
        lambda d: replaced(d, observations={"camera": part(d, "camera")}),
        r"observations: missing keys \['state'\], unknown keys \[\]",
    ),
    "a key too many": (
        lambda d: replaced(d, observations=with_part(d, "smell", part(d, "state"))),
        r"observations: missing keys \[\], unknown keys \['smell'\]",
    ),
    "one array": (
        lambda d: replaced(d, observations=part(d, "state")),
        r"observations: one array, expected a dictionary with the keys \['camera', 'state'\]",
    ),
    "NaN in a part": (
        lambda d: replaced(
            d, observations=with_part(d, "state", changed(part(d, "state"), (4, 2), np.nan))
        ),
        r"observations\['state'\]\[4, 2\] = nan, expected a finite number",
    ),
    "images of another size": (
        lambda d: replaced(
            d, observations=with_part(d, "camera", np.zeros((16, 36, 40, 1), np.uint8))
        ),
        r"observations\['camera'\]\[0\]: shape \(36, 40, 1\), expected \(1, 36, 36\)",
    ),
}


@pytest.mark.parametrize("case", BAD_DICT)
@pytest.mark.parametrize("normalize", [False, True])
def test_dict_demonstrations_that_do_not_fit_are_refused(case: str, normalize: bool) -> None:
    spoil, message = BAD_DICT[case]
    env: Any = several(1, "dict")
    if normalize:
        env = VecNormalize(env, norm_obs_keys=["state"])
    model = small_model(env, policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 16}})

    with pytest.raises(ValueError, match=message):
        model.pretrain(spoil(demonstrations(TargetEnv("dict"), 2)), **QUICK)

    assert not model.policy.has_prior


def test_a_discrete_observation_outside_its_space_is_refused() -> None:
    demos = demonstrations(TargetEnv("discrete"), 4)
    model = small_model(TargetEnv("discrete"))
    model.pretrain(demos, **QUICK)

    with pytest.raises(ValueError, match=r"observations\[5\] = 7, expected"):
        model.pretrain(replaced(demos, observations=changed(demos.observations, (5,), 7)), **QUICK)


@pytest.mark.parametrize("argument", ["gradient_steps", "batch_size", "validation_interval"])
def test_a_size_of_zero_is_refused(argument: str) -> None:
    """Nothing trained, a loss of NaN, a division by zero: not what anyone asks for."""
    policy = vector_policy()

    with pytest.raises(ValueError, match=argument):
        pretrain(policy, vector_demonstrations(), **{**QUICK, argument: 0})

    assert not policy.has_prior


# -- observations of every kind ----------------------------------------------------------------


def test_images_in_either_order_are_the_same_demonstrations() -> None:
    """Neither square nor alike in their channels, so that no mistaken order goes unseen."""
    rng = np.random.default_rng(0)
    last = rng.integers(0, 256, (12, 36, 40, 3), dtype=np.uint8)
    first = np.moveaxis(last, -1, 1)
    actions = rng.uniform(-1, 1, (12, 2)).astype(np.float32)
    policy = DiffusionActorCriticPolicy(
        spaces.Box(0, 255, (3, 36, 40), np.uint8),
        spaces.Box(-1, 1, (2,)),
        lambda _: 1e-3,
        features_extractor_kwargs={"features_dim": 16},
        **SMALL,
    )
    trained = []
    for images in (last, first):
        demos = Demonstrations.from_arrays(images, actions, [4, 8, 12])
        observations, _ = as_tensors(policy, check_demonstrations(demos, policy))
        assert isinstance(observations, th.Tensor)
        np.testing.assert_array_equal(observations, first)
        twin = copy.deepcopy(policy)
        th.manual_seed(0)
        pretrain(twin, demos, **QUICK)
        trained.append(state(twin.prior))

    assert same(*trained)
    encoder = "features_extractor.cnn.0.weight"
    assert not th.equal(trained[0][encoder], state(policy.prior)[encoder])


def test_images_of_a_dict_in_either_order_are_the_same_demonstrations() -> None:
    rng = np.random.default_rng(0)
    last = rng.integers(0, 256, (12, 36, 36, 2), dtype=np.uint8)
    vectors = rng.uniform(-1, 1, (12, 3)).astype(np.float32)
    space = spaces.Dict(
        {"camera": spaces.Box(0, 255, (2, 36, 36), np.uint8), "state": spaces.Box(-1, 1, (3,))}
    )
    policy = DiffusionActorCriticPolicy(
        space,
        spaces.Box(-1, 1, (2,)),
        lambda _: 1e-3,
        features_extractor_kwargs={"cnn_output_dim": 16},
        **SMALL,
    )
    trained = []
    for images in (last, np.moveaxis(last, -1, 1)):
        observations = {"camera": images, "state": vectors}
        demos = Demonstrations.from_arrays(observations, np.zeros((12, 2), np.float32), [6, 12])
        twin = copy.deepcopy(policy)
        th.manual_seed(0)
        pretrain(twin, demos, validation_fraction=0, **QUICK)
        trained.append(state(twin.prior))

    assert same(*trained)
    # Only the vector is standardised.
    np.testing.assert_allclose(
        trained[0]["normalizer.standardizers.obs_state.mean"], vectors.mean(0), rtol=1e-4, atol=1e-6
    )
    assert not any("obs_camera" in name for name in trained[0])


@pytest.mark.parametrize("kind", ["vector", "discrete", "image", "dict"])
def test_demonstrations_in_the_envs_own_layout_pretrain_a_model(kind: str) -> None:
    key = {"image": "features_dim", "dict": "cnn_output_dim"}.get(kind)
    extractor = {"features_extractor_kwargs": {key: 16}} if key else {}
    model = small_model(several(2, kind, action_space=ASYMMETRIC), policy_kwargs=extractor)
    env = TargetEnv(kind, ASYMMETRIC)

    result = model.pretrain(demonstrations(env, 4), **QUICK)

    assert math.isfinite(result.validation_loss)
    observation, _ = env.reset(seed=0)
    action, _ = model.predict(observation)
    assert ASYMMETRIC.contains(action)


# -- VecNormalize ------------------------------------------------------------------------------


def test_vec_normalize_takes_its_statistics_from_the_demonstrations_and_holds_them(
    tmp_path: Path,
) -> None:
    env = VecNormalize(several(2))
    model = small_model(env)
    model.learn(64)  # statistics of its own that have to go
    demos = demonstrations()
    assert isinstance(demos.observations, np.ndarray)
    original = demos.observations.copy()

    model.pretrain(demos, **QUICK)

    def held(wrapper: VecNormalize) -> bool:
        rms: Any = wrapper.obs_rms
        return np.allclose(rms.mean, original.mean(0)) and np.allclose(
            rms.var[:2], original.var(0)[:2], rtol=1e-4
        )

    assert held(env)
    np.testing.assert_array_equal(demos.observations, original)
    returns = copy.deepcopy(env.ret_rms)
    prior = state(model.policy.prior)
    model.learn(64)
    assert held(env)
    assert same(prior, state(model.policy.prior))
    # Rewards are still being normalised by what comes in.
    assert env.ret_rms.count > returns.count
    # Saved and loaded they are still held.
    env.save(str(tmp_path / "statistics.pkl"))
    loaded = VecNormalize.load(str(tmp_path / "statistics.pkl"), several(2))
    loaded.reset()
    for _ in range(20):
        loaded.step(np.ones((2, 2), np.float32))
    assert loaded.training
    assert held(loaded)


def test_under_vec_normalize_the_policy_learns_from_normalised_observations() -> None:
    """The policy never sees other observations than those of the wrapper."""
    env = VecNormalize(several(1))
    model = small_model(env)
    demos = demonstrations()
    assert isinstance(demos.observations, np.ndarray)

    model.pretrain(demos, validation_fraction=0, **QUICK)

    standardizer = model.policy.actor.normalizer.standardizer()
    np.testing.assert_allclose(standardizer.mean, 0, atol=1e-3)
    seen = model.policy.actor.normalizer(th.as_tensor(env.normalize_obs(demos.observations)))
    assert isinstance(seen, th.Tensor)
    np.testing.assert_allclose(seen[:, :2].mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(seen[:, :2].std(0), 1, rtol=0.02)


def test_under_vec_normalize_only_the_named_keys_of_a_dict_are_touched() -> None:
    env = VecNormalize(several(1, "dict"), norm_obs_keys=["state"])
    model = small_model(env, policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 16}})
    demos = demonstrations(TargetEnv("dict"), 4)
    assert isinstance(demos.observations, dict)

    model.pretrain(demos, validation_fraction=0, **QUICK)
    model.learn(16)

    assert isinstance(env.obs_rms, dict)
    assert set(env.obs_rms) == {"state"}
    np.testing.assert_allclose(env.obs_rms["state"].mean, part(demos, "state").mean(0), rtol=1e-6)


@pytest.mark.parametrize("kind", ["image", "dict"])
def test_vec_normalize_may_also_normalise_images(kind: str) -> None:
    """It makes a box of floats of them, which is then standardised as any vector."""
    env = VecNormalize(several(1, kind))
    model = small_model(env)

    model.pretrain(demonstrations(TargetEnv(kind), 4), validation_fraction=0, **QUICK)
    prior = state(model.policy.prior)
    model.learn(16)

    assert same(prior, state(model.policy.prior))
    observation = env.reset()
    images = observation["camera"] if isinstance(observation, dict) else observation
    assert isinstance(images, np.ndarray)
    assert np.abs(images).max() < 5


def test_without_norm_obs_vec_normalize_keeps_to_itself() -> None:
    env = VecNormalize(several(1), norm_obs=False)
    model = small_model(env)
    demos = demonstrations()
    assert isinstance(demos.observations, np.ndarray)

    model.pretrain(demos, validation_fraction=0, **QUICK)

    standardizer = model.policy.actor.normalizer.standardizer()
    np.testing.assert_allclose(standardizer.mean, demos.observations.mean(0), rtol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_what_the_demonstrations_hold_constant_does_not_explode(normalize: bool) -> None:
    """A constant entry that moves by 1 and by 2 % of its range must be told apart, not saturate."""
    env: Any = several(1)
    if normalize:
        env = VecNormalize(env)
    model = small_model(env)
    demos = demonstrations()
    assert isinstance(demos.observations, np.ndarray)
    assert (demos.observations[:, 2] == 0.5).all()

    model.pretrain(demos, validation_fraction=0, **QUICK)
    obs = np.repeat(demos.observations[:1], 3, axis=0)
    obs[1:, 2] += [0.01, 0.02]
    seen = model.policy.actor.normalizer(th.as_tensor(env.normalize_obs(obs) if normalize else obs))

    assert isinstance(seen, th.Tensor)
    np.testing.assert_allclose(seen[:, 2], [0, 0.5, 1.0], atol=0.01)


@pytest.mark.parametrize("half_range", [1.0, 1_000.0, 100_000.0])
def test_under_vec_normalize_the_bounds_of_the_space_are_no_scale(half_range: float) -> None:
    """Bounds are in the env's units, what the policy sees there is not: nothing may be squashed."""
    env = TargetEnv()
    env.observation_space = spaces.Box(-half_range, half_range, (3,))
    wrapped = VecNormalize(DummyVecEnv([lambda: env]))
    model = small_model(wrapped)
    rng = np.random.default_rng(0)
    observations = rng.uniform(-half_range, half_range, (80, 3)).astype(np.float32)
    demos = Demonstrations.from_arrays(observations, np.zeros((80, 2), np.float32))

    model.pretrain(demos, **QUICK)
    normalizer = model.policy.actor.normalizer
    seen = normalizer(th.as_tensor(wrapped.normalize_obs(observations)))

    assert isinstance(seen, th.Tensor)
    np.testing.assert_allclose(seen.std(0), 1, rtol=0.05)
    assert (normalizer.standardizer().near_constant == 0).all()


def test_held_statistics_survive_pickling() -> None:
    env = VecNormalize(several(1))
    small_model(env).pretrain(demonstrations(), **QUICK)

    twin = pickle.loads(pickle.dumps(env.obs_rms))
    before = twin.mean.copy()
    twin.update(np.full((5, 3), 100.0))

    np.testing.assert_array_equal(twin.mean, before)


def test_diverged_pretraining_is_no_prior() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"pre-training diverged: the loss is .* Lower learning_"):
        model.pretrain(demonstrations(), gradient_steps=30, learning_rate=1e30, warmup_steps=1)
    assert not model.policy.has_prior


def test_validation_goes_through_the_network_in_parts() -> None:
    data = TensorBatches(th.zeros(20_000, 3), th.zeros(20_000, 2))
    assert [len(actions) for _, actions in data.chunks()] == [8192, 8192, 3616]
