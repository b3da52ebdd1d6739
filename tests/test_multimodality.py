"""Entropy and modes of samples, of models' actions, over training, and the figure of Avoiding."""

import argparse
import csv
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import configure

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.bench import multimodality as bench
from sb3_diffrl.bench.methods import METHODS
from sb3_diffrl.bench.multimodality_figure import multimodality_figure
from sb3_diffrl.bench.runs import Run, plan_run
from sb3_diffrl.bench.tasks import avoiding
from sb3_diffrl.bench.training import builder
from sb3_diffrl.callbacks import MultimodalityCallback
from sb3_diffrl.envs.avoiding import AvoidingEnv, AvoidingVectorEnv, mode_entropy
from sb3_diffrl.envs.avoiding_planner import scene_layout
from sb3_diffrl.envs.avoiding_world import OBSTACLES, RADIUS
from sb3_diffrl.multimodality import (
    action_samples,
    count_modes,
    knn_entropy,
    start_observations,
)
from tests.envs import ASYMMETRIC, MATRIX, TargetEnv, several

TINY = {"net_arch": [16], "denoising_steps": 2}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def diffusion(env: Any = None, **kwargs: Any) -> DiffusionPPO:
    env = TargetEnv() if env is None else env
    sizes: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "policy_kwargs": TINY}
    return DiffusionPPO("policy", env, seed=0, device="cpu", **(sizes | kwargs))


def ppo(env: Any = None, **kwargs: Any) -> PPO:
    env = TargetEnv() if env is None else env
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    return PPO(policy, env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu", **kwargs)


def sac(env: Any = None, **kwargs: Any) -> SAC:
    return SAC("MlpPolicy", env or TargetEnv(), learning_starts=8, seed=0, device="cpu", **kwargs)


# -- entropy of samples ------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_entropy_of_gaussians(dim: int, k: int) -> None:
    factor = 0.3 * rng(1).normal(size=(dim, dim)) + 2 * np.eye(dim)
    samples = rng(2).normal(size=(4000, dim)) @ factor.T
    expected = dim / 2 * math.log(2 * math.pi * math.e) + np.linalg.slogdet(factor)[1]
    tolerance = 0.06 if dim < 5 else 0.2  # the density changes within the neighbours' distance
    assert knn_entropy(samples, k) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_entropy_of_a_uniform_cube(dim: int) -> None:
    samples = rng().uniform(-1, 1, (5000, dim))
    assert knn_entropy(samples) == pytest.approx(dim * math.log(2), abs=0.1)


def test_entropy_of_a_mixture_is_that_of_the_choice_and_of_what_is_chosen() -> None:
    weights, stds = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.03, 0.2])
    centres = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    chosen = rng(1).choice(3, 6000, p=weights)
    samples = centres[chosen] + stds[chosen, None] * rng(2).normal(size=(6000, 2))
    choice = -np.sum(weights * np.log(weights))
    components = np.log(2 * math.pi * math.e * stds**2)
    assert knn_entropy(samples) == pytest.approx(choice + weights @ components, abs=0.06)


def test_entropy_is_the_formula() -> None:
    """Against distances by brute force, and digamma by its harmonic sum."""
    samples, k = rng().normal(size=(30, 3)), 4

    def digamma(n: int) -> float:
        return -float(np.euler_gamma) + sum(1 / i for i in range(1, n))

    distances = np.linalg.norm(samples[:, None] - samples[None], axis=-1)
    radii = np.sort(distances, axis=1)[:, k]
    expected = digamma(30) - digamma(k) + math.log(4 / 3 * math.pi) + 3 * np.log(radii).mean()
    assert knn_entropy(samples, k) == pytest.approx(expected, rel=1e-12)


def test_entropy_moves_with_scale_and_not_with_place() -> None:
    samples = rng().normal(size=(500, 3))
    entropy = knn_entropy(samples)
    assert knn_entropy(samples + np.array([5, -3, 100])) == pytest.approx(entropy, abs=1e-9)
    assert knn_entropy(7 * samples) == pytest.approx(entropy + 3 * math.log(7), abs=1e-9)
    rotation = np.linalg.qr(rng(1).normal(size=(3, 3)))[0]
    assert knn_entropy(samples @ rotation) == pytest.approx(entropy, abs=1e-9)


def test_samples_that_coincide_have_no_density() -> None:
    assert knn_entropy(np.zeros((100, 2))) == -math.inf
    samples = rng().normal(size=(100, 2))
    samples[:4] = 0  # each has 3 others in its place
    assert knn_entropy(samples) == -math.inf
    assert math.isfinite(knn_entropy(samples, k=4))


def test_resolution_bounds_the_entropy_from_below() -> None:
    atom = np.full((3000, 2), 0.3)
    blur = math.log(2 * math.pi * math.e * 0.05**2)
    assert knn_entropy(atom, resolution=0.05) == pytest.approx(blur, abs=0.05)
    two = np.where(rng().random((3000, 1)) < 0.5, -1.0, 1.0) * np.ones(2)
    assert knn_entropy(two, resolution=0.05) == pytest.approx(blur + math.log(2), abs=0.05)
    gaussian = 0.12 * rng().normal(size=(3000, 2))  # variances add
    expected = math.log(2 * math.pi * math.e * 0.13**2)
    assert knn_entropy(gaussian, resolution=0.05) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("measure", [knn_entropy, count_modes])
@pytest.mark.parametrize(
    ("samples", "arguments", "message"),
    [
        (np.zeros(9), {}, r"expected shape \(M, D\), got \(9,\)"),
        (np.zeros((9, 0)), {}, r"got \(9, 0\)"),
        (np.zeros((3, 2)), {"k": 3}, "k=3 neighbours need .* got 3"),
        (np.zeros((9, 2)), {"k": 0}, "k=0"),
        (np.full((20, 2), np.nan), {}, "NaN or infinite"),
        (np.full((20, 2), np.inf), {}, "NaN or infinite"),
        (np.zeros((20, 2)), {"resolution": -0.1}, "resolution: -0.1"),
    ],
)
def test_bad_samples_are_refused(
    measure: Any, samples: np.ndarray, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(samples, **arguments)


# -- modes of samples --------------------------------------------------------------------------


def mixture(n_modes: int, dim: int, std: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples around points of a circle, and which point."""
    angles = 2 * math.pi * np.arange(n_modes) / n_modes
    centres = np.zeros((n_modes, dim))
    centres[:, :2] = 0.7 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    chosen = rng(seed).integers(n_modes, size=500)
    return centres[chosen] + std * rng(seed + 100).normal(size=(500, dim)), chosen


@pytest.mark.parametrize("dim", [2, 8])
@pytest.mark.parametrize("n_modes", [2, 3, 6])
def test_modes_of_mixtures(n_modes: int, dim: int) -> None:
    for seed in range(4):
        samples, chosen = mixture(n_modes, dim, 0.08, seed)
        modes = count_modes(samples)
        assert modes.number == n_modes
        assert modes.evenness > 0.98 and (np.diff(modes.sizes) <= 0).all()
        for label in range(n_modes):  # each holds one component
            counts = np.bincount(chosen[modes.labels == label], minlength=n_modes)
            assert counts.max() > 0.97 * counts.sum()


@pytest.mark.parametrize("dim", [1, 2, 8])
def test_a_gaussian_is_one_mode(dim: int) -> None:
    found = [
        count_modes(std * rng(seed).normal(size=(500, dim))).number
        for std, seed in itertools.product((0.001, 0.02, 0.1, 0.5), range(5))
    ]
    assert np.mean(np.array(found) == 1) >= 0.95


def test_a_wide_plateau_is_one_mode() -> None:
    assert [count_modes(rng(s).uniform(-1, 1, (500, 2))).number for s in range(5)] == [1] * 5


def test_two_gaussians_merge_where_their_density_does() -> None:
    """Equal Gaussians have two peaks from 2 standard deviations, a deep valley only from 4."""
    numbers = []
    for distance in (0, 1, 2, 6, 8):
        centre = np.where(rng(1).random(1000) < 0.5, 0.5, -0.5) * distance
        samples = 0.1 * (
            np.stack([centre, np.zeros(1000)], axis=-1) + rng(2).normal(size=(1000, 2))
        )
        numbers.append(count_modes(samples).number)
    assert numbers == [1, 1, 1, 2, 2]


def test_resolution_says_what_is_one_mode() -> None:
    samples = np.where(rng().random((500, 1)) < 0.5, 0.0, 0.05) * np.ones(2)
    assert count_modes(samples, resolution=0.005).number == 2
    assert count_modes(samples, resolution=0.05).number == 1


def test_atoms_are_modes() -> None:
    assert count_modes(np.full((500, 2), 0.3)).number == 1
    modes = count_modes(np.where(rng().random((500, 1)) < 0.2, 0.3, -0.5) * np.ones(2))
    assert modes.number == 2
    p = modes.sizes / 500
    assert p[0] == pytest.approx(0.8, abs=0.05)
    assert modes.evenness == pytest.approx(-np.sum(p * np.log2(p)))


def test_few_scattered_samples_are_noise() -> None:
    samples, _ = mixture(3, 2, 0.03, 0)
    samples[:20] = [-3, -3] + 0.01 * rng().normal(size=(20, 2))  # 4 %, a mode needs 5
    modes = count_modes(samples)
    assert modes.number == 3
    assert (modes.labels[:20] == -1).all() and (modes.labels[20:] >= 0).all()
    assert modes.sizes.sum() == 480
    assert count_modes(samples, min_fraction=0.03).number == 4


def test_background_does_not_hide_modes() -> None:
    samples, _ = mixture(3, 2, 0.05, 1)
    samples[:50] = rng().uniform(-1, 1, (50, 2))
    assert count_modes(samples).number == 3


def test_one_mode_is_no_choice() -> None:
    assert count_modes(np.zeros((50, 1))).evenness == 0


# -- actions of models -------------------------------------------------------------------------

MODELS: dict[str, Any] = {
    "diffusion": diffusion,
    "ppo": ppo,
    "ppo_gsde": lambda env=None: ppo(env, use_sde=True, sde_sample_freq=4),
    "sac": sac,
    "sac_gsde": lambda env=None: sac(env, use_sde=True),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("space", [ASYMMETRIC, MATRIX], ids=["asymmetric", "matrix"])
def test_action_samples_are_scaled_flat_and_independent(name: str, space: Any) -> None:
    model = MODELS[name](TargetEnv(action_space=space))
    observations = start_observations(TargetEnv(), 3)
    actions = action_samples(model, observations, 50)
    assert actions.shape == (3, 50, math.prod(space.shape))
    assert (np.abs(actions) <= 1 + 1e-6).all()
    for drawn in actions:
        # Not one draw repeated: what clips apart, as PPO's, all are different.
        inside = drawn[(np.abs(drawn) < 0.999).all(axis=1)]
        assert len(np.unique(inside, axis=0)) == len(inside)
    same = action_samples(model, observations, 4, deterministic=True)
    np.testing.assert_allclose(same, same[:, :1].repeat(4, axis=1), atol=1e-6)


def test_scaled_actions_are_those_predicted() -> None:
    model = diffusion(TargetEnv(action_space=ASYMMETRIC))
    observations = np.asarray(start_observations(TargetEnv(), 2))
    found = action_samples(model, observations, 3, deterministic=True)[:, 0]
    predicted = model.predict(observations, deterministic=True)[0]
    low, high = ASYMMETRIC.low, ASYMMETRIC.high
    np.testing.assert_allclose(low + (found + 1) / 2 * (high - low), predicted, rtol=1e-5)


@pytest.mark.parametrize("gsde", [False, True])
def test_action_samples_have_the_policy_s_distribution(gsde: bool) -> None:
    """PPO's is known: a Gaussian, narrow enough here not to be clipped."""
    model = ppo(use_sde=gsde, policy_kwargs={"log_std_init": -3.0})
    observations = np.asarray(start_observations(TargetEnv(), 2))
    drawn = action_samples(model, observations, 3000)  # in several batches
    with th.no_grad():
        distribution = model.policy.get_distribution(th.as_tensor(observations)).distribution
    assert isinstance(distribution, th.distributions.Normal)
    mean, std = distribution.mean.numpy(), distribution.stddev.numpy()
    np.testing.assert_allclose(drawn.mean(axis=1), mean, atol=5 * std.max() / math.sqrt(3000))
    np.testing.assert_allclose(drawn.std(axis=1), std, rtol=0.07)
    entropy = distribution.entropy().sum(dim=-1).numpy()
    found = [knn_entropy(actions) for actions in drawn]
    np.testing.assert_allclose(found, entropy, atol=0.12)


@pytest.mark.parametrize("make", [diffusion, ppo])
def test_dictionaries_of_observations(make: Any) -> None:
    env = TargetEnv("dict")
    observations = start_observations(env, 3)
    assert isinstance(observations, dict) and len(observations["state"]) == 3
    assert action_samples(make(env), observations, 5).shape == (3, 5, 2)


@pytest.mark.parametrize("name", MODELS)
def test_drawing_leaves_no_trace(name: str) -> None:
    model = MODELS[name]()
    observations = start_observations(TargetEnv(), 2)
    th.manual_seed(3)
    np.random.seed(4)

    def draws() -> list[Any]:
        again = [model.predict(observations)[0] for _ in range(2)]
        return [*again, th.rand(2).numpy(), np.random.rand()]

    states = th.get_rng_state(), np.random.get_state()
    expected = draws()
    th.set_rng_state(states[0])
    np.random.set_state(states[1])
    first = action_samples(model, observations, 7, seed=1)
    for found, value in zip(draws(), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    np.testing.assert_array_equal(action_samples(model, observations, 7, seed=1), first)
    assert not np.array_equal(action_samples(model, observations, 7, seed=2), first)


def test_what_has_no_action_samples_is_refused() -> None:
    single = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"expected a batch, \(B, \*\(3,\)\)"):
        action_samples(ppo(), single)
    with pytest.raises(ValueError, match=r"continuous actions \(a Box\), got Discrete"):
        action_samples(ppo(TargetEnv(action_space=spaces.Discrete(3))), single[None])


def test_start_observations_are_of_resets() -> None:
    found = np.asarray(start_observations(AvoidingVectorEnv(4), 10, seed=5))
    assert found.shape == (10, 14) and len(np.unique(found[:, 0])) == 10
    np.testing.assert_array_equal(found, start_observations(AvoidingVectorEnv(4), 10, seed=5))
    first = AvoidingEnv().reset(seed=5)[0]
    np.testing.assert_array_equal(found[0], first)


# -- the callback ------------------------------------------------------------------------------


def weights(model: BaseAlgorithm) -> dict[str, th.Tensor]:
    return {key: value.clone() for key, value in model.policy.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_callback_leaves_training_alone(name: str, tmp_path: Path) -> None:
    observations = start_observations(TargetEnv(), 2)
    states = []
    for watched in (False, True):
        model = MODELS[name](several(2) if "sac" not in name else TargetEnv())
        model.set_logger(configure(str(tmp_path / str(watched)), ["csv"]))
        callback = MultimodalityCallback(observations, 20, n_samples=30)
        model.learn(64, callback=callback if watched else None)
        states.append(weights(model))
    assert all(th.equal(states[0][key], states[1][key]) for key in states[0])
    assert [point.env_steps for point in callback.curve][::3][0] == 0
    assert callback.curve[-1].env_steps == 64 and len(callback.curve) > 2
    # The last point is of the trained model, and logged.
    drawn = action_samples(model, observations, 30)
    point = callback.curve[-1]
    entropies = [knn_entropy(actions, resolution=0.02) for actions in drawn]
    assert point.entropy == pytest.approx(np.mean(entropies))
    assert point.modes == pytest.approx(np.mean([count_modes(a).number for a in drawn]))
    rows = list(csv.DictReader((tmp_path / "True" / "progress.csv").open()))
    logged = [row["multimodality/entropy"] for row in rows if row["multimodality/entropy"]]
    assert float(logged[-1]) == pytest.approx(point.entropy)


def test_callback_sees_a_policy_narrow() -> None:
    """PPO's Gaussian: its entropy is known, and what a smaller standard deviation takes from it."""
    model = ppo(policy_kwargs={"log_std_init": -2.0})
    observations = start_observations(TargetEnv(), 2)
    callback = MultimodalityCallback(observations, 10, name="starts", resolution=0.0)
    model.set_logger(configure())
    callback.init_callback(model)
    callback.measure(0)
    with th.no_grad():
        model.policy.log_std.sub_(1)
    callback.measure(10)
    wide, narrow = callback.curve
    expected = math.log(2 * math.pi * math.e) - 4
    assert wide.entropy == pytest.approx(expected, abs=0.15)
    assert narrow.entropy == pytest.approx(wide.entropy - 2, abs=0.02)
    assert wide.modes == narrow.modes == 1
    assert (wide.env_steps, narrow.env_steps) == (0, 10)


def test_callback_refuses_a_frequency_of_nothing() -> None:
    with pytest.raises(ValueError, match="eval_freq_env_steps must be at least 1, got 0"):
        MultimodalityCallback(np.zeros((1, 3)), 0)


# -- the figure of Avoiding --------------------------------------------------------------------


def test_decision_points_lie_where_ways_part() -> None:
    points = bench.decision_points(OBSTACLES)
    x, y = [0, -0.16, 0.16, -0.51, 0, 0.51], [0, 0.3125, 0.3125, 0.5625, 0.5625, 0.5625]
    np.testing.assert_allclose(points, np.array([x, y]).T, atol=1e-12)
    for scene in range(10):
        layout = scene_layout(scene, 0.10)
        distances = np.linalg.norm(bench.decision_points(layout)[:, None] - layout[None], axis=-1)
        assert distances.min() > RADIUS


def small_run(method: str, env_steps: int) -> Run:
    run = plan_run(avoiding(), METHODS[method], "scene:0", env_steps=env_steps)
    found = run.hyperparams | {"n_envs": 4, "n_steps": 32, "batch_size": 64, "n_epochs": 1}
    if method == "diffrl":
        found["pretrain"] = {"gradient_steps": 3, "patience": None}
        found["policy_kwargs"] = dict(TINY)
    return dataclasses.replace(run, hyperparams=found)


def test_plans_are_episodes() -> None:
    """As the environment plays them, for a policy that does not draw."""
    run = small_run("ppo", 128)
    model = builder(run.algo)(run, None).learn(128)
    obstacles = scene_layout(3, 0.10)
    plans = bench.make_plans(model, obstacles, 20)
    assert plans.actions.shape == (20, 120, 2) and plans.ways.shape == (20,)
    assert len(np.unique(plans.actions[:, 0], axis=0)) > 1  # gSDE's noise is drawn for each
    env = AvoidingEnv("scene:3")
    for actions, way in zip(plans.actions, plans.ways, strict=True):
        env.reset(seed=0)
        env._position = np.zeros((1, 2))
        for t, action in enumerate(actions):
            _, _, terminated, _, info = env.step(action)
            if terminated:
                assert not actions[t + 1 :].any()
                break
        assert info["way"] == way
    assert plans.success_rate == np.mean(plans.ways >= 0)
    assert plans.mode_entropy == mode_entropy(plans.ways)
    again = bench.make_plans(model, obstacles, 20)
    np.testing.assert_array_equal(again.actions, plans.actions)


def test_similar_plans_are_embedded_side_by_side() -> None:
    left, right = np.zeros((30, 120, 2)), np.zeros((30, 120, 2))
    left[..., 0], right[..., 0] = -1, 1
    ways = np.zeros(30, int)
    panels = [
        bench.Plans(0, np.concatenate([left, right]), np.zeros(60)),
        bench.Plans(1, left, ways),
    ]
    both, alone = bench.embed(panels)
    centres = both[:30].mean(axis=0), both[30:].mean(axis=0), alone.mean(axis=0)
    apart = np.linalg.norm(centres[0] - centres[1])
    assert np.linalg.norm(centres[0] - centres[2]) < 0.3 * apart
    assert both.shape == (60, 2) and alone.shape == (30, 2)


def test_histories_and_their_figure(tmp_path: Path) -> None:
    files = dict(zip(bench.METHODS, bench.NAMES, strict=True))
    histories = [
        history
        for method, name in files.items()
        for history in bench.train(method, small_run(name, 512), 0, 20, tmp_path)
    ]
    assert [(h.method, h.layout) for h in histories] == list(
        itertools.product(bench.METHODS, bench.LAYOUTS)
    )
    for history in histories:
        steps = [plans.env_steps for plans in history.plans]
        assert steps == [point.env_steps for point in history.curve]
        assert steps == [0, 128, 256, 384, 512]
        assert [plans.env_steps for plans in history.panels()] == [0, 128, 256, 512]

    rows = list(csv.DictReader(bench.curves_csv(histories).splitlines()))
    assert len(rows) == 4 * 5
    assert float(rows[6]["entropy"]) == pytest.approx(histories[1].curve[1].entropy, abs=1e-4)
    assert float(rows[6]["success_rate"]) == histories[1].plans[1].success_rate

    embedded = bench.embed(plans for history in histories for plans in history.panels())
    bench.save_embedding(tmp_path / "figure.npz", histories, embedded)
    with np.load(tmp_path / "figure.npz") as saved:
        assert set(saved) == {"method", "layout", "env_steps", "way", "x", "y"}
        assert len(saved["x"]) == 16 * 20
        np.testing.assert_array_equal(saved["way"][:20], histories[0].plans[0].ways)
        np.testing.assert_allclose(saved["y"][-20:], embedded[-1][:, 1], rtol=1e-6)
    multimodality_figure(tmp_path / "figure.png", histories, embedded)
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    assert not list(tmp_path.glob("*.tmp*"))


def test_command() -> None:
    parser = argparse.ArgumentParser()
    bench.multimodality(parser)
    args = parser.parse_args(["--steps", "100", "--output", "figure.pdf"])
    assert (args.steps, args.ppo_steps, args.seed, args.samples) == (100, 400_000, 0, 400)
    with pytest.raises(ValueError, match=r"figure\.pdf: expected a name that ends in \.png"):
        args.run(args)
