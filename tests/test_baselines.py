"""Baselines: the cloned Gaussian policy, undirected exploration, and the YAML entries."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from benchmarks import exploration
from benchmarks.rows import read_rows, write_rows
from sb3_diffrl import Demonstrations, DiffusionPPO
from sb3_diffrl.bench.baselines import ClonedPPO, actor_parameters, pretrain_gaussian
from sb3_diffrl.bench.tasks import avoiding, metaworld
from sb3_diffrl.bench.training import algorithm_arguments, training_env
from sb3_diffrl.diffusion import ActionNoiseProcess
from sb3_diffrl.envs.avoiding import AvoidingVectorEnv, avoiding_demonstrations
from sb3_diffrl.evaluation import evaluate
from sb3_diffrl.zoo import load_demonstrations
from tests.envs import TargetEnv

ROOT = Path(__file__).parents[1]
WIDE = spaces.Box(-3.0, 3.0, (2,), np.float32)


def target_env(n_envs: int = 2, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: TargetEnv(**kwargs)] * n_envs)


def linear_demonstrations(
    n: int = 4000, noise: tuple[float, float] = (0.3, 0.05)
) -> Demonstrations:
    """Actions linear in the observation, with Gaussian noise of known size."""
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
    matrix = np.array([[1.0, -0.5], [0.3, 0.2], [-0.4, 0.8]])
    actions = observations @ matrix + 0.1 + rng.normal(0, noise, (n, 2))
    ends = np.arange(20, n + 1, 20)
    return Demonstrations.from_arrays(observations, actions.astype(np.float32), ends)


def arrays(demonstrations: Demonstrations) -> tuple[np.ndarray, np.ndarray]:
    assert not isinstance(demonstrations.observations, dict)
    return np.asarray(demonstrations.observations), np.asarray(demonstrations.actions)


def clone(**kwargs: Any) -> ClonedPPO:
    arguments: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0}
    env = kwargs.pop("env", None) or target_env(action_space=WIDE)
    return ClonedPPO("MlpPolicy", env, **(arguments | {"device": "cpu"} | kwargs))


def weights(model: BaseAlgorithm) -> dict[str, th.Tensor]:
    return {name: each.clone() for name, each in model.policy.state_dict().items()}


def differing(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not th.equal(one[name], other[name])}


# -- the cloned Gaussian -----------------------------------------------------------------------


def test_the_likeliest_gaussian_is_least_squares() -> None:
    demonstrations = linear_demonstrations()
    observations, actions = arrays(demonstrations)
    design = np.column_stack([observations, np.ones(len(actions))])
    solution, *_ = np.linalg.lstsq(design, actions, rcond=None)
    residuals = actions - design @ solution
    sigma = residuals.std(axis=0)

    model = clone(policy_kwargs={"net_arch": []})
    result = model.pretrain(
        demonstrations,
        gradient_steps=500,
        batch_size=500,
        learning_rate=0.03,
        warmup_steps=50,
        ema_decay=0.98,
        validation_fraction=0.0,
        validation_interval=100,
        sigma_min=1e-3,
    )
    predicted, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(predicted, design @ solution, atol=0.02)
    np.testing.assert_allclose(model.policy.log_std.detach().exp(), sigma, rtol=0.03)
    entropy = float(np.log(sigma).sum()) + math.log(2 * math.pi * math.e)
    assert result.train_loss == pytest.approx(entropy, abs=0.05)  # of the last 100 steps
    assert result.gradient_steps == 500 and math.isnan(result.validation_loss)


def test_the_likelihood_rises_and_sigma_is_raised_to_its_floor() -> None:
    demonstrations = linear_demonstrations()
    model = clone(policy_kwargs={"net_arch": [32]})
    observations, actions = map(th.as_tensor, arrays(demonstrations))

    def log_likelihood() -> float:
        with th.no_grad():
            return float(model.policy.evaluate_actions(observations, actions)[1].mean())

    before = log_likelihood()
    result = model.pretrain(
        demonstrations, gradient_steps=400, learning_rate=0.02, warmup_steps=50, sigma_min=0.2
    )
    assert log_likelihood() > before + 1
    assert math.isfinite(result.validation_loss)
    # The noise of the first entry is .3, of the second .05.
    np.testing.assert_allclose(model.policy.log_std.detach().exp(), [0.3, 0.2], rtol=0.1)


def test_validation_keeps_the_best_and_stops() -> None:
    """Demonstrations of pure noise: all that is learned is the noise of the training episodes."""
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (60, 3)).astype(np.float32)
    actions = rng.normal(0, 0.5, (60, 2)).astype(np.float32)
    demonstrations = Demonstrations.from_arrays(observations, actions, np.arange(10, 61, 10))
    model = clone(policy_kwargs={"net_arch": [64, 64]})
    result = model.pretrain(
        demonstrations,
        gradient_steps=2000,
        warmup_steps=10,
        validation_fraction=0.34,
        validation_interval=20,
        patience=3,
        sigma_min=1e-3,
    )
    assert result.stopped_early and result.gradient_steps < 2000
    _, held_out = demonstrations.split(0.34, seed=0)
    with th.no_grad():
        kept = -model.policy.evaluate_actions(*map(th.as_tensor, arrays(held_out)))[1].mean()
    assert float(kept) == pytest.approx(result.validation_loss, abs=1e-4)


def test_demonstrations_of_weight_zero_are_not_imitated() -> None:
    observations = np.zeros((40, 3), np.float32)
    actions = np.repeat([[0.5, 0.5], [-0.5, -0.5]], 20, axis=0).astype(np.float32)
    both = Demonstrations.from_arrays(observations, actions, [20, 40])
    model = clone(policy_kwargs={"net_arch": [8]})
    model.pretrain(
        both.weighted(np.array([1.0, 0.0])),
        gradient_steps=100,
        learning_rate=0.02,
        warmup_steps=10,
        validation_fraction=0.0,
    )
    action, _ = model.predict(observations[0], deterministic=True)
    np.testing.assert_allclose(action, [0.5, 0.5], atol=0.05)


def test_critic_warmup_leaves_the_actor_untouched() -> None:
    model = clone(critic_warmup=2)
    model.pretrain(linear_demonstrations(400), gradient_steps=20)
    n_steps = model.n_steps * model.n_envs
    before = weights(model)
    model.learn(2 * n_steps)
    critic = {name for name in before if "value_net" in name}
    assert differing(before, weights(model)) == critic
    before = weights(model)
    model.learn(n_steps, reset_num_timesteps=False)
    trained = differing(before, weights(model))
    statistics = {name for name in before if "normalizer" in name}
    assert trained == before.keys() - statistics
    actor = {id(parameter) for parameter in actor_parameters(model.policy)}
    names = {name for name, each in model.policy.named_parameters() if id(each) in actor}
    assert names == before.keys() - statistics - critic


def constant_context(context: float, n: int = 400) -> Demonstrations:
    """The third entry never varies; both entries of the action are the first entry."""
    target = np.random.default_rng(0).uniform(-1, 1, n).astype(np.float32)
    observations = np.column_stack([target, target**2, np.full(n, context, np.float32)])
    return Demonstrations.from_arrays(
        observations, np.column_stack([target, target]), np.arange(8, n + 1, 8)
    )


@pytest.mark.parametrize("context_until", [0.0, 1.0])
def test_imitation_goes_on_in_contexts_met_online(context_until: float) -> None:
    """The env shows a third entry of 0.5, the demonstrations had -0.5; there is no reward."""
    model = clone(
        env=target_env(action_space=WIDE, reward_scale=0.0),
        critic_warmup=1,
        imitation_warmup_steps=150,
        imitation_steps=5,
        context_until=context_until,
        learning_rate=3e-3,
        policy_kwargs={"net_arch": [32, 32]},
    )
    model.pretrain(constant_context(-0.5), gradient_steps=400, learning_rate=3e-3, warmup_steps=50)

    def error(context: float) -> float:
        observations, actions = arrays(constant_context(context))
        predicted, _ = model.predict(observations, deterministic=True)
        return float(np.abs(predicted - actions).mean())

    assert error(-0.5) < 0.1 and error(0.5) > 0.3
    deviation = model.policy.log_std.detach().clone()
    model.learn(32)
    assert th.equal(model.policy.log_std, deviation)  # imitation leaves it alone
    assert error(-0.5) < 0.1
    assert (error(0.5) < 0.15) == (context_until == 1.0)
    model.learn(64)
    assert model.n_iterations == 3
    assert not th.equal(model.policy.log_std, deviation)


def test_advantages_are_divided_by_no_less_than_the_floor() -> None:
    spreads = {}
    for floor in (1e-8, 100.0):
        model = clone(advantage_floor=floor).learn(32)
        assert not model.normalize_advantage
        advantages = model.rollout_buffer.advantages
        assert advantages.mean() == pytest.approx(0, abs=1e-6)
        spreads[floor] = float(advantages.std())
        # The critic's targets are as they were.
        expected = clone().learn(32).rollout_buffer.returns
        np.testing.assert_allclose(model.rollout_buffer.returns, expected, rtol=1e-6)
    assert spreads[1e-8] == pytest.approx(1, abs=1e-5) and spreads[100.0] < 0.1


def test_a_saved_clone_is_a_prior(tmp_path: Path) -> None:
    first = clone()
    first.pretrain(linear_demonstrations(400), gradient_steps=30)
    first.save(tmp_path / "clone")
    random = th.random.get_rng_state()
    model = clone(prior=tmp_path / "clone", imitation_steps=2)
    assert not differing(weights(first), weights(model))
    clone()
    fresh = th.random.get_rng_state()
    clone(prior=tmp_path / "clone")
    assert th.equal(fresh, th.random.get_rng_state()) and not th.equal(fresh, random)
    with pytest.raises(ValueError, match="set_demonstrations"):
        model.learn(32)
    model.set_demonstrations(linear_demonstrations(400))
    model.learn(32)
    assert differing(weights(first), weights(model))


def test_without_warmup_it_is_sb3s_ppo() -> None:
    """From the same weights both make the same updates."""
    ours = clone().learn(64)
    stock = PPO(
        "MlpPolicy",
        target_env(action_space=WIDE),
        policy_kwargs=ours.policy_kwargs,
        n_steps=16,
        batch_size=16,
        n_epochs=2,
        seed=0,
        device="cpu",
    ).learn(64)
    assert not differing(weights(ours), weights(stock))


def test_seeds_repeat_bit_for_bit(tmp_path: Path) -> None:
    def trained(seed: int) -> ClonedPPO:
        model = clone(seed=seed, critic_warmup=1)
        model.pretrain(linear_demonstrations(400), gradient_steps=30)
        return model.learn(64)

    first, again, other = trained(0), trained(0), trained(1)
    assert not differing(weights(first), weights(again))
    assert differing(weights(first), weights(other))

    first.save(tmp_path / "clone")
    loaded = ClonedPPO.load(tmp_path / "clone", env=target_env(action_space=WIDE), device="cpu")
    assert not differing(weights(first), weights(loaded))
    assert (loaded.critic_warmup, loaded.n_iterations) == (1, 2)
    observations, _ = arrays(linear_demonstrations(40))
    acted = [model.predict(observations, deterministic=True)[0] for model in (first, loaded)]
    np.testing.assert_array_equal(acted[0], acted[1])
    loaded.learn(32, reset_num_timesteps=False)
    # An ordinary PPO reads it as well.
    ordinary = PPO.load(tmp_path / "clone", device="cpu")
    assert not differing(weights(first), weights(ordinary))


def test_what_does_not_fit_is_refused() -> None:
    demonstrations = linear_demonstrations(40)
    with pytest.raises(ValueError, match="use_sde=False"):
        clone(use_sde=True).pretrain(demonstrations)
    with pytest.raises(ValueError, match="norm_obs=False"):
        clone(env=VecNormalize(target_env(action_space=WIDE))).pretrain(demonstrations)
    with pytest.raises(ValueError, match="sigma_min must be above 0"):
        clone().pretrain(demonstrations, sigma_min=0.0)
    with pytest.raises(ValueError, match=r"actions\[0\]: shape \(2,\), expected \(1,\)"):
        pretrain_gaussian(
            PPO("MlpPolicy", "Pendulum-v1", device="cpu"), demonstrations, gradient_steps=1
        )
    rewards = VecNormalize(target_env(action_space=WIDE), norm_obs=False)
    clone(env=rewards).pretrain(demonstrations, gradient_steps=1)


# -- undirected exploration --------------------------------------------------------------------


def undirected(**kwargs: Any) -> DiffusionPPO:
    policy_kwargs = {"net_arch": [32, 32], "exploration": "action", "sigma_min": 0.3}
    policy_kwargs |= kwargs.pop("policy_kwargs", {})
    arguments: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 0}
    arguments |= {"beta": 0.0, "device": "cpu"} | kwargs
    env = arguments.pop("env", None) or target_env()
    return DiffusionPPO("MlpPolicy", env, policy_kwargs=policy_kwargs, **arguments)


def observations_of(n: int) -> th.Tensor:
    return th.as_tensor(np.random.default_rng(0).uniform(-1, 1, (n, 3)).astype(np.float32))


def ode_action(model: DiffusionPPO, observations: th.Tensor) -> th.Tensor:
    """The chain's own ODE, stepped by the usual process from the fixed initial noise."""
    policy = model.policy
    usual = DiffusionPPO(
        "MlpPolicy",
        target_env(),
        policy_kwargs={**policy.architecture(), "exploration": "chain"},
        device="cpu",
    )
    usual.policy.actor.load_state_dict(policy.actor.state_dict())
    return usual.policy._predict(observations, deterministic=True)


def clipped(actions: th.Tensor) -> th.Tensor:
    """What the env makes of actions."""
    return actions.clamp(-1, 1)


def test_noise_is_on_the_action_alone() -> None:
    model, observations = undirected(), observations_of(5)
    policy, n = model.policy, 4000
    with th.no_grad():
        chains, _, log_prob = policy(observations.repeat(n, 1))
        mean = policy._predict(observations)
        th.testing.assert_close(clipped(mean), ode_action(model, observations))
    chains = chains.view(n, 5, 2, 2)
    assert th.equal(chains[:, :, 0], policy.initial_noise.expand(n, 5, 2))
    noise = (chains[:, :, 1] - mean) / 0.3
    assert float(noise.mean().abs()) < 0.02 and float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float(np.corrcoef(noise.reshape(-1, 2).T)[0, 1]) == pytest.approx(0, abs=0.03)
    # The likelihood is the Gaussian's of the action.
    expected = th.distributions.Normal(mean, 0.3).log_prob(chains[:, :, 1]).sum(-1)
    th.testing.assert_close(log_prob.view(n, 5), expected, atol=1e-4, rtol=1e-4)
    assert th.equal(policy._predict(observations, deterministic=True), mean)


@pytest.mark.parametrize("denoising_steps", [1, 5])
def test_gradients_are_those_of_the_whole_ode(denoising_steps: int) -> None:
    model = undirected(policy_kwargs={"denoising_steps": denoising_steps})
    policy, observations = model.policy, observations_of(6)
    with th.no_grad():
        chains, _, _ = policy(observations)
    parameter = policy.actor.denoiser.action_layer.bias  # type: ignore[union-attr]

    def log_likelihood() -> th.Tensor:
        return policy.evaluate_chains(observations, chains).log_prob.sum()

    assert isinstance(parameter, th.Tensor)
    (gradient,) = th.autograd.grad(log_likelihood(), parameter)
    assert float(gradient.abs().max()) > 0.1
    step = 1e-2
    for i in (0, 7, 31):
        with th.no_grad():
            values = []
            for sign in (1, -1):
                parameter[i] += sign * step
                values.append(float(log_likelihood()))
                parameter[i] -= sign * step
        assert float(gradient[i]) == pytest.approx(
            (values[0] - values[1]) / (2 * step), rel=0.1, abs=0.02
        )


@pytest.mark.parametrize("mixing", [1.0, 0.6])
def test_a_fresh_buffer_has_ratio_one(mixing: float) -> None:
    model = undirected(mixing=mixing, beta=0.1, n_epochs=1, batch_size=32, learning_rate=0.0)
    prior = undirected(seed=5).policy
    model.set_prior(prior)
    model.learn(32)
    buffer = model.rollout_buffer
    assert buffer.actions.shape[-1] == 2 * 2 and buffer.log_probs.shape[-1] == 1
    values = model.logger.name_to_value
    assert values["train/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert values["train/ratio_max"] == pytest.approx(1, abs=1e-5)
    # The KL divergence from the prior is the one of two Gaussians.
    observations = observations_of(4)
    with th.no_grad():
        chains, _, _ = model.policy(observations)
        found = model.policy.evaluate_chains(observations, chains).prior_kl
        distance = model.policy._predict(observations, True) - prior._predict(observations, True)
    th.testing.assert_close(found, distance.square().sum(-1) / (2 * 0.3**2), atol=1e-4, rtol=1e-3)


def test_a_usual_prior_is_taken_and_all_is_saved(tmp_path: Path) -> None:
    usual = undirected(policy_kwargs={"exploration": "chain", "sigma_min": 0.1})
    usual.policy.freeze_prior()
    usual.save(tmp_path / "usual")
    model = undirected(prior=tmp_path / "usual")
    assert not differing(usual.policy.actor.state_dict(), model.policy.prior.state_dict())
    model.learn(64)
    assert differing(usual.policy.actor.state_dict(), model.policy.actor.state_dict())
    observations = observations_of(4).numpy()
    expected, _ = model.predict(observations)

    model.save(tmp_path / "model")
    model.save_pretrained(tmp_path / "shared")
    for loaded in (
        DiffusionPPO.load(tmp_path / "model", env=target_env(), device="cpu"),
        DiffusionPPO.from_pretrained(tmp_path / "shared", env=target_env(), device="cpu"),
    ):
        assert isinstance(loaded.policy.process, ActionNoiseProcess)
        assert loaded.policy.exploration == "action"
        np.testing.assert_array_equal(loaded.predict(observations)[0], expected)
        loaded.learn(32)


def test_undirected_learns() -> None:
    model = undirected(
        env=target_env(8), n_steps=32, batch_size=64, n_epochs=5, learning_rate=3e-3, gamma=0.0
    )
    before = evaluate(model, target_env(), 50).returns.mean()
    model.learn(4096)
    assert evaluate(model, target_env(), 50).returns.mean() > before + 1


def test_what_has_no_chain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of \['action', 'chain'\]"):
        undirected(policy_kwargs={"exploration": "greedy"})
    with pytest.raises(ValueError, match="finetuned_steps=2"):
        undirected(policy_kwargs={"finetuned_steps": 2})


def test_undirected_exploration_is_unimodal() -> None:
    """One prior, clean task: the chain takes many ways, noise on the action one per start."""
    hyperparams = avoiding().hyperparams_of("diffppo", "undirected")
    arguments = algorithm_arguments(hyperparams) | {"seed": 0}
    policy_kwargs = arguments.pop("policy_kwargs") | {"net_arch": [128, 128]}
    env = training_env(avoiding(), {"n_envs": 1}, None)
    usual = DiffusionPPO(
        "policy", env, policy_kwargs=policy_kwargs | {"exploration": "chain"}, **arguments
    )
    usual.pretrain(
        avoiding_demonstrations(60, seed=0), gradient_steps=700, warmup_steps=50, batch_size=256
    )
    model = DiffusionPPO("policy", env, policy_kwargs=policy_kwargs, prior=usual, **arguments)
    assert model.policy.exploration == "action"

    def first_rows(of: DiffusionPPO) -> set[bool]:
        """Sides on which the first obstacle is passed, from one start, with exploration."""
        world = AvoidingVectorEnv(100)
        observations, _ = world.reset(seed=0)
        world._position[:] = [0.02, 0.0]
        observations[:, :2] = [0.02, 0.0]
        for _ in range(9):
            with th.no_grad():
                chains, _, _ = of.policy(th.as_tensor(observations))
            observations, *_ = world.step(of.policy.unscale_action(chains.numpy()))
        return set((observations[:, 0] > 0).tolist())

    assert first_rows(usual) == {True, False}
    assert len(first_rows(model)) == 1


# -- entries -----------------------------------------------------------------------------------


def entry_classes() -> dict[str, type[BaseAlgorithm]]:
    from sb3_contrib import TQC

    return {"ppo": PPO, "bc_ppo": ClonedPPO, "sac": SAC, "tqc": TQC}


@pytest.mark.parametrize("name", ["ppo", "bc_ppo", "sac", "tqc"])
def test_entries_build_and_learn(name: str) -> None:
    hyperparams = avoiding().hyperparams_of(name)
    arguments = algorithm_arguments(hyperparams) | {"seed": 0}
    few = {"n_envs": 2}
    if "imitation_warmup_steps" in arguments:
        arguments["imitation_warmup_steps"] = 2
    if "n_steps" in arguments:
        arguments |= {"n_steps": 20, "batch_size": 20}
    else:
        arguments |= {"learning_starts": 40, "train_freq": 20, "gradient_steps": 2}
    env = training_env(avoiding(), hyperparams | few, "scene:0")
    model = entry_classes()[name](hyperparams["policy"], env, **arguments)
    if isinstance(model, ClonedPPO):
        pretrain = {**hyperparams["pretrain"], "gradient_steps": 5}
        model.pretrain(load_demonstrations(hyperparams["demonstrations"]), **pretrain)
    before = weights(model)
    model.learn(160)
    assert model.num_timesteps >= 160
    assert differing(before, weights(model))


@pytest.mark.parametrize("name", ["ppo", "bc_ppo", "sac", "tqc"])
def test_metaworld_entries_are_arguments(name: str) -> None:
    """Of the algorithm: it is built with them in an env with the same spaces."""
    hyperparams = metaworld("assembly").hyperparams_of(name)
    arguments = algorithm_arguments(hyperparams)
    arguments.pop("normalize", None)
    model = entry_classes()[name](hyperparams["policy"], target_env(1), **arguments)
    assert model.policy.action_space == target_env(1).action_space


# -- exploration without RL ---------------------------------------------------------------------


def test_explorers_act_as_they_say() -> None:
    hyperparams = avoiding().hyperparams_of("diffppo")
    env = training_env(avoiding(), {"n_envs": 1}, None)
    arguments = algorithm_arguments(hyperparams) | {"seed": 0}
    observations, _ = AvoidingVectorEnv(3000).reset(seed=0)
    actions_shown = np.tile(np.array([0.3, -0.2], np.float32), (3000, 1))  # far from the bounds
    prior = DiffusionPPO("policy", env, **arguments)
    prior.pretrain(
        Demonstrations.from_arrays(observations, actions_shown, [3000]),
        gradient_steps=150,
        warmup_steps=20,
        batch_size=64,
    )
    observations[:] = observations[0]

    def actions(kind: str, scale: float, start: int = 0) -> np.ndarray:
        model = exploration.explorer(prior, kind, scale, start)
        return model.predict(observations)[0]

    calm = actions("epsilon", 0.0)
    assert (calm == calm[0]).all() and (np.abs(calm) < 0.6).all()
    assert not np.array_equal(calm, actions("epsilon", 0.0, start=1))
    noise = actions("action", 0.1) - calm
    np.testing.assert_allclose(noise.std(axis=0), 0.1, rtol=0.05)
    greedy = actions("epsilon", 0.4)
    random = (greedy != calm).any(axis=1)
    assert random.mean() == pytest.approx(0.4, abs=0.03)
    np.testing.assert_allclose(greedy[random].std(axis=0), 1 / math.sqrt(3), rtol=0.05)
    chain = actions("chain", 0.1)
    assert len(np.unique(chain, axis=0)) == 3000 and chain.std(axis=0).min() > 0.1


def test_exploration_is_summed_up(tmp_path: Path) -> None:
    rows = [
        exploration.Row("chain", 0.1, 0, 0, 100, 50, 4),
        exploration.Row("chain", 0.1, 1, 0, 100, 0, 0),
        exploration.Row("action", 0.2, 0, 0, 100, 10, 1),
        exploration.Row("action", 0.2, 0, 1, 100, 30, 2),
    ]
    write_rows(tmp_path / "rows.csv", rows, exploration.Row)
    assert read_rows(tmp_path / "rows.csv", exploration.Row) == rows
    chain, action = exploration.summarize(rows)
    assert chain == exploration.Summary("chain", 0.1, 0.25, chain.error, 2.0, 0.5)
    assert chain.error == pytest.approx(0.25)  # of 0.5 and 0
    assert action == exploration.Summary("action", 0.2, 0.2, 0.0, 1.5, 1.0)
    assert "| fixed start, Gaussian noise σ | 0.2 | 0.200" in exploration.table(rows)
    exploration.figure(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
