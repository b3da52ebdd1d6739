"""The policy: how it is chosen, built, sampled, mixed with its prior, and saved."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_diffrl import (
    DiffusionActorCriticPolicy,
    DiffusionCnnPolicy,
    DiffusionMlpPolicy,
    DiffusionMultiInputPolicy,
    DiffusionPPO,
)
from sb3_diffrl.diffusion import Denoiser, MlpDenoiser, make_alpha_bar
from tests.envs import ASYMMETRIC, MATRIX, UNIT, TargetEnv, observation_space, several
from tests.models import (
    POLICY_KWARGS,
    always,
    assert_same_predictions,
    make_model,
    perturb,
    state_of,
)

KINDS = ("vector", "discrete", "image", "dict")
# Extractors of images are slow at their default size.
SMALL: dict[str, dict[str, Any]] = {
    "image": {"features_extractor_kwargs": {"features_dim": 16}},
    "dict": {"features_extractor_kwargs": {"cnn_output_dim": 16}},
}


def stored_space(kind: str) -> spaces.Space[Any]:
    """The observation space as SB3 hands it to policies: images channel first."""
    space = observation_space(kind)
    first = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({**space.spaces, "camera": first})
    return first if kind == "image" else space


def make_policy(
    kind: str = "vector", action_space: spaces.Box = UNIT, **kwargs: Any
) -> DiffusionActorCriticPolicy:
    arguments = {"net_arch": [32, 32], "denoising_steps": 3, **SMALL.get(kind, {}), **kwargs}
    policy = DiffusionActorCriticPolicy(
        stored_space(kind), action_space, lambda _: 1e-3, **arguments
    )
    policy.set_training_mode(False)
    return policy


def observations(policy: DiffusionActorCriticPolicy, n: int) -> Any:
    """``n`` random observations, as tensors."""
    policy.observation_space.seed(0)
    samples = [policy.observation_space.sample() for _ in range(n)]
    if isinstance(samples[0], dict):
        return {k: th.as_tensor(np.stack([s[k] for s in samples])) for k in samples[0]}
    return th.as_tensor(np.stack(samples))


def arrays(tensors: Any) -> Any:
    """Tensors as ``predict`` wants them."""
    if isinstance(tensors, dict):
        return {key: tensor.numpy() for key, tensor in tensors.items()}
    return tensors.numpy()


class KnowingDenoiser(Denoiser):
    """Knows the clean action, ``tanh(W features)``, and so the noise exactly."""

    alpha_bar: th.Tensor

    def __init__(self, features_dim: int, action_dim: int, noise_levels: int, **kwargs: Any):
        super().__init__(features_dim, action_dim, noise_levels)
        self.layer = nn.Linear(features_dim, action_dim)
        alpha_bar = make_alpha_bar("cosine", noise_levels).float()
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)

    def condition(self, features: th.Tensor) -> th.Tensor:
        clean: th.Tensor = self.layer(features).tanh()
        return clean

    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        kept = self.alpha_bar[levels].unsqueeze(-1)
        return (noisy - kept.sqrt() * condition) / (1 - kept).sqrt()


def assert_same_state(a: dict[str, th.Tensor], b: dict[str, th.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert th.equal(a[key], b[key]), key


# -- aliases -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "policy_class", "extractor"),
    [
        ("policy", "vector", DiffusionActorCriticPolicy, FlattenExtractor),
        ("policy", "discrete", DiffusionActorCriticPolicy, FlattenExtractor),
        ("policy", "image", DiffusionActorCriticPolicy, NatureCNN),
        ("policy", "dict", DiffusionActorCriticPolicy, CombinedExtractor),
        ("MlpPolicy", "vector", DiffusionMlpPolicy, FlattenExtractor),
        ("MlpPolicy", "image", DiffusionMlpPolicy, FlattenExtractor),
        ("CnnPolicy", "image", DiffusionCnnPolicy, NatureCNN),
        ("MultiInputPolicy", "dict", DiffusionMultiInputPolicy, CombinedExtractor),
        (DiffusionMlpPolicy, "vector", DiffusionMlpPolicy, FlattenExtractor),
        (DiffusionActorCriticPolicy, "dict", DiffusionActorCriticPolicy, CombinedExtractor),
    ],
)
def test_policies_by_name_and_class(
    name: Any, kind: str, policy_class: type, extractor: type[BaseFeaturesExtractor]
) -> None:
    kwargs = SMALL.get(kind, {}) if name != "MlpPolicy" else {}
    model = DiffusionPPO(
        name,
        TargetEnv(kind),
        n_steps=8,
        batch_size=8,
        n_epochs=1,
        policy_kwargs=dict(net_arch=[32, 32], **kwargs),
    )
    assert type(model.policy) is policy_class
    assert type(model.policy.actor.features_extractor) is extractor
    assert type(model.policy.vf_features_extractor) is extractor
    before = state_of(model.policy.actor)
    model.learn(8)
    changed = [k for k, v in model.policy.actor.state_dict().items() if not th.equal(v, before[k])]
    assert any(key.startswith("denoiser.") for key in changed)
    if extractor is not FlattenExtractor:
        assert any(key.startswith("features_extractor.") for key in changed)
    action, state = model.predict(TargetEnv(kind).reset(seed=0)[0])
    assert action.shape == (2,) and state is None


@pytest.mark.parametrize("name", ["MlpPolicy", "CnnPolicy"])
def test_dict_observations_need_a_policy_for_them(name: str) -> None:
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        DiffusionPPO(name, TargetEnv("dict"))


def test_cnn_policy_insists_on_images() -> None:
    with pytest.raises(AssertionError, match="NatureCNN"):
        DiffusionPPO("CnnPolicy", TargetEnv("vector"))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="Policy NoPolicy unknown"):
        DiffusionPPO("NoPolicy", TargetEnv())


class TinyExtractor(BaseFeaturesExtractor):
    """Two features, with dropout, which only evaluation mode switches off."""

    def __init__(self, observation_space: spaces.Box, width: int = 2):
        super().__init__(observation_space, width)
        self.layers = nn.Sequential(nn.Linear(observation_space.shape[0], width), nn.Dropout(0.5))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        features: th.Tensor = self.layers(observations)
        return features


class NamedDenoiser(MlpDenoiser):
    """A denoiser of the user's own."""

    def __init__(self, *args: Any, name: str = "", **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.name = name


def test_own_parts() -> None:
    policy = make_policy(
        features_extractor_class=TinyExtractor,
        features_extractor_kwargs={"width": 5},
        denoiser_class=NamedDenoiser,
        denoiser_kwargs={"name": "mine"},
        activation_fn=nn.Tanh,
        optimizer_class=th.optim.SGD,
        optimizer_kwargs={"momentum": 0.5},
        net_arch={"pi": [8], "vf": [16, 4]},
        noise_levels=7,
        denoising_steps=4,
        eta=0.5,
        sigma_min=0.2,
        noise_schedule="linear",
    )
    denoiser = policy.actor.denoiser
    assert isinstance(denoiser, NamedDenoiser) and denoiser.name == "mine"
    assert isinstance(denoiser.activation, nn.Tanh)
    assert denoiser.features_dim == 5 and denoiser.noise_levels == 7
    assert denoiser.action_layer.out_features == 8
    layers = [m for m in policy.value_net.modules() if isinstance(m, nn.Linear)]
    assert [layer.out_features for layer in layers] == [16, 4, 1]
    for optimizer in (policy.optimizer, policy.critic_optimizer):
        assert isinstance(optimizer, th.optim.SGD)
        assert optimizer.param_groups[0]["momentum"] == 0.5
    assert len(policy.process.std) == 4 and float(policy.process.std.min()) == pytest.approx(0.2)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "advice"),
    [
        (spaces.Discrete(3), "Use SB3's PPO"),
        (spaces.MultiDiscrete([2, 3]), "Use SB3's PPO"),
        (spaces.MultiBinary(4), "Use SB3's PPO"),
        (spaces.Box(-np.inf, np.inf, (2,)), "finite action bounds.*RescaleAction"),
        (spaces.Box(np.array([-1, -np.inf], np.float32), 1.0), "finite action bounds"),
        (spaces.Box(np.array([-1, 1], np.float32), 1.0), "low < high.*wrapper"),
        (spaces.Dict({"a": UNIT}), "needs a Box"),
    ],
)
def test_other_action_spaces_are_refused_with_advice(space: spaces.Space[Any], advice: str) -> None:
    env = TargetEnv(action_space=space)
    with pytest.raises(ValueError, match=f"DiffusionPPO.*{advice}"):
        DiffusionPPO("policy", env)
    with pytest.raises(ValueError, match=advice):
        DiffusionActorCriticPolicy(env.observation_space, space, lambda _: 1e-3)  # type: ignore[arg-type]


def test_action_spaces_of_vec_envs_are_refused_too() -> None:
    with pytest.raises(ValueError, match="Use SB3's PPO"):
        DiffusionPPO("policy", DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    with pytest.raises(ValueError, match="Use SB3's PPO"):
        DiffusionPPO("policy", "CartPole-v1")


def test_sde_is_refused() -> None:
    with pytest.raises(ValueError, match=r"use_sde=True is not supported.*sigma_min"):
        DiffusionPPO("policy", TargetEnv(), use_sde=True)


def test_there_is_no_distribution() -> None:
    policy = make_policy()
    with pytest.raises(NotImplementedError, match=r"no closed form.*evaluate_actions"):
        policy.get_distribution(observations(policy, 2))


# -- chains ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("space", [UNIT, MATRIX])
@pytest.mark.parametrize("steps", [1, 3])
def test_shapes_of_forward_and_evaluation(kind: str, space: spaces.Box, steps: int) -> None:
    policy = make_policy(kind, space, denoising_steps=steps)
    obs, d = observations(policy, 5), int(np.prod(space.shape))
    with th.no_grad():
        chains, values, log_prob = policy(obs)
        evaluated_values, evaluated, entropy = policy.evaluate_actions(obs, chains)
    assert chains.shape == (5, (steps + 1) * d)
    assert values.shape == (5, 1)
    assert log_prob.shape == (5, steps)
    assert entropy is None
    th.testing.assert_close(evaluated, log_prob, rtol=0, atol=1e-4)
    th.testing.assert_close(evaluated_values, values)
    th.testing.assert_close(policy.predict_values(obs), values)


def test_likelihood_by_hand() -> None:
    """Each step is a Gaussian around the mean that the denoiser's noise prediction gives."""
    policy = make_policy(denoising_steps=4, eta=0.7)
    obs, process = observations(policy, 6), policy.process
    with th.no_grad():
        chains, _, log_prob = policy(obs)
        chain = chains.view(6, 5, 2)
        for i in range(4):
            condition = policy.actor.condition(obs)
            epsilon = policy.actor.denoiser(chain[:, i], process.levels[i], condition)
            mean = process.transition_mean(chain[:, i], epsilon, i)
            by_hand = th.distributions.Normal(mean, process.std[i]).log_prob(chain[:, i + 1])
            th.testing.assert_close(log_prob[:, i], by_hand.sum(dim=1), rtol=0, atol=1e-4)


def test_exploration_floor_in_rollouts_and_none_in_predict() -> None:
    policy = make_policy(sigma_min=0.3)
    always(policy.actor.denoiser, 1)
    obs = observations(policy, 1).expand(4000, -1)
    with th.no_grad():
        last = policy(obs)[0][:, -2:]
        predicted = policy._predict(obs)
    assert float(last.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(last.std()) == pytest.approx(0.3, rel=0.05)
    assert float((predicted - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("share", [False, True])
def test_actor_and_critic_are_trained_apart(share: bool) -> None:
    policy = make_policy("image", share_features_extractor=share)
    assert (policy.vf_features_extractor is policy.pi_features_extractor) == share
    actor, critic = (
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (policy.optimizer, policy.critic_optimizer)
    )
    assert actor == {id(p) for p in policy.actor.parameters()}
    assert not actor & critic
    assert actor | critic == {id(p) for p in policy.parameters() if p.requires_grad}

    obs = observations(policy, 3)
    values, log_prob, _ = policy.evaluate_actions(obs, policy(obs)[0].detach())
    values.square().sum().backward()
    assert all(p.grad is None for p in policy.actor.parameters())
    assert all(p.grad is not None for p in policy.critic_parameters())
    assert len(critic) > len(list(policy.value_net.parameters())) or share
    policy.zero_grad(set_to_none=True)
    log_prob.sum().backward()
    assert all(p.grad is not None for p in policy.actor.parameters())
    assert all(p.grad is None for p in policy.critic_parameters())


# -- actions of the env ------------------------------------------------------------------------


SPACES = [
    ASYMMETRIC,
    MATRIX,
    spaces.Box(np.array([-2.0, 1.0]), np.array([0.1, 5.0]), dtype=np.float64),
    spaces.Box(np.array([0, -3]), np.array([10, 4]), dtype=np.int64),
    spaces.Box(0, 255, (2, 2), np.uint8),
    spaces.Box(-100, 100, (2,), np.int8),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_actions_leave_in_the_envs_units(space: spaces.Box) -> None:
    policy = make_policy(action_space=space)
    d = int(np.prod(space.shape))
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    rng = np.random.default_rng(0)
    scaled = rng.uniform(-1, 1, (50, *space.shape)).astype(np.float32)
    expected = low + (scaled + 1) / 2 * (high - low)
    whole = np.issubdtype(space.dtype, np.integer)

    actions = policy.unscale_action(scaled)
    assert actions.shape == (50, *space.shape) and actions.dtype == space.dtype
    assert all(space.contains(action) for action in actions)
    np.testing.assert_allclose(
        actions.astype(np.float64), expected, atol=0.5 + 1e-4 if whole else 1e-5
    )

    # A chain is any number of entries before the action.
    chains = np.concatenate([rng.normal(size=(50, 3 * d)), scaled.reshape(50, d)], axis=1)
    np.testing.assert_array_equal(policy.unscale_action(chains.astype(np.float32)), actions)

    # What lies outside is clipped, to the bounds exactly.
    np.testing.assert_array_equal(
        policy.unscale_action(scaled * 0 + 7), space.high[None] + actions * 0
    )
    np.testing.assert_array_equal(
        policy.unscale_action(scaled * 0 - 7), space.low[None] + actions * 0
    )


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_scaling_is_the_inverse(space: spaces.Box) -> None:
    policy = make_policy(action_space=space)
    space.seed(0)
    actions = np.stack([space.low, space.high, *(space.sample() for _ in range(20))])
    scaled = policy.scale_action(actions)
    assert scaled.dtype == np.float32 and scaled.shape == actions.shape
    np.testing.assert_allclose(scaled[0], -1, atol=1e-6)
    np.testing.assert_allclose(scaled[1], 1, atol=1e-6)
    assert np.abs(scaled).max() <= 1 + 1e-6
    np.testing.assert_allclose(
        policy.unscale_action(scaled).astype(np.float64), actions.astype(np.float64), atol=1e-5
    )


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_predicted_actions_belong_to_the_space(space: spaces.Box) -> None:
    policy = make_policy(action_space=space)
    perturb(policy.actor, 1.0)
    obs = arrays(observations(policy, 8))
    for deterministic in (False, True):
        actions, _ = policy.predict(obs, deterministic=deterministic)
        assert actions.shape == (8, *space.shape) and actions.dtype == space.dtype
        single, _ = policy.predict(obs[0], deterministic=deterministic)
        assert single.shape == space.shape
        assert all(space.contains(action) for action in [single, *actions])


@pytest.mark.parametrize("space", [ASYMMETRIC, MATRIX])
def test_rollouts_act_with_the_last_entry_of_the_chain(space: spaces.Box) -> None:
    env = TargetEnv(action_space=space)
    model = DiffusionPPO(
        "policy", env, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs={"net_arch": [8]}
    )
    d = int(np.prod(space.shape))
    model.learn(16)
    scaled = model.rollout_buffer.actions[:, -d:].clip(-1, 1).reshape(16, *space.shape)
    expected = space.low + (scaled + 1) / 2 * (space.high - space.low)
    np.testing.assert_allclose(np.stack(env.received), expected, atol=1e-5)


# -- predict -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mixing", [1.0, 0.8, 0.2])
def test_deterministic_is_a_function_of_the_observation_alone(kind: str, mixing: float) -> None:
    policy = make_policy(kind, denoiser_class=KnowingDenoiser)
    perturb(policy.actor.denoiser, 0.3)
    policy.freeze_prior()
    perturb(policy.actor.denoiser, 0.3)
    policy.set_mixing(mixing)
    tensors = observations(policy, 16)
    obs = arrays(tensors)
    together, _ = policy.predict(obs, deterministic=True)
    th.manual_seed(1)
    again, _ = policy.predict(obs, deterministic=True)
    np.testing.assert_array_equal(together, again)
    if isinstance(obs, dict):
        one_by_one = [{key: part[i] for key, part in obs.items()} for i in range(16)]
    else:
        one_by_one = list(obs)
    alone = [policy.predict(one, deterministic=True)[0] for one in one_by_one]
    np.testing.assert_allclose(np.stack(alone), together, atol=1e-5)

    with th.no_grad():
        component = policy.actor if mixing > 0.5 else policy.prior
        clean = component.condition(policy.preprocess(tensors))
    np.testing.assert_allclose(together, clean, atol=1e-4)
    assert np.ptp(together, axis=0).max() > 5e-3


def test_deterministic_takes_the_component_of_larger_weight() -> None:
    policy = make_policy()
    obs = arrays(observations(policy, 8))
    by_prior, _ = policy.predict(obs, deterministic=True)
    policy.freeze_prior()
    perturb(policy.actor, 0.3)
    by_policy, _ = policy.predict(obs, deterministic=True)
    assert np.abs(by_policy - by_prior).max() > 0.01
    for mixing, expected in (
        (0.9, by_policy),
        (0.51, by_policy),
        (0.49, by_prior),
        (0.1, by_prior),
    ):
        policy.set_mixing(mixing)
        np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], expected)


def test_stochastic_predict_repeats_by_seed() -> None:
    policy = make_policy()
    policy.freeze_prior()
    perturb(policy.actor, 0.3)
    policy.set_mixing(0.5)
    obs = arrays(observations(policy, 8))

    def draw(seed: int) -> np.ndarray:
        th.manual_seed(seed)
        return policy.predict(obs)[0]

    np.testing.assert_array_equal(draw(3), draw(3))
    assert not np.array_equal(draw(3), draw(4))


@pytest.mark.parametrize("mixing", [0.2, 0.7])
@pytest.mark.parametrize("rollout", [False, True])
def test_one_component_is_drawn_per_decision(mixing: float, rollout: bool) -> None:
    policy = make_policy(denoising_steps=5)
    always(policy.actor.denoiser, 1)
    policy.freeze_prior()
    always(policy.actor.denoiser, -1)
    policy.set_mixing(mixing)
    obs, d = observations(policy, 1).expand(5000, -1), 2
    with th.no_grad():
        chain = policy(obs)[0].view(5000, -1, d) if rollout else policy._predict(obs).view(-1, 1, d)
    by_policy = chain[:, -1] < 0
    assert bool((by_policy[:, 0] == by_policy[:, 1]).all())
    assert float(by_policy.float().mean()) == pytest.approx(mixing, abs=0.03)
    if rollout:  # late steps lie on the same side, hence were drawn from the same component
        late = chain[:, -2] < 0
        assert float((late[:, 0] == by_policy[:, 0]).float().mean()) > 0.95


# -- the prior ---------------------------------------------------------------------------------


def test_freeze_prior_copies_the_whole_actor() -> None:
    policy = make_policy("dict")
    assert not policy.has_prior
    perturb(policy.actor, 0.3)
    policy.actor.normalizer.fit({"state": np.random.default_rng(0).normal(3, 2, (50, 3))})
    policy.freeze_prior()
    assert policy.has_prior
    kept = state_of(policy.prior)
    assert any("features_extractor" in key for key in kept)
    assert any("standardizers" in key for key in kept)
    assert_same_state(kept, state_of(policy.actor))
    perturb(policy.actor, 0.3)
    assert_same_state(kept, state_of(policy.prior))
    pointers = {p.data_ptr() for p in policy.actor.parameters()}
    assert not pointers & {p.data_ptr() for p in policy.prior.parameters()}


def test_prior_never_trains() -> None:
    model = DiffusionPPO(
        "policy",
        TargetEnv(),
        n_steps=16,
        batch_size=8,
        beta=0.1,
        policy_kwargs={"net_arch": [16], "features_extractor_class": TinyExtractor},
    )
    policy = model.policy
    policy.freeze_prior()
    kept = state_of(policy.prior)
    model.learn(32)
    assert_same_state(kept, state_of(policy.prior))
    assert not all(th.equal(v, kept[k]) for k, v in policy.actor.state_dict().items())
    assert not any(p.requires_grad for p in policy.prior.parameters())
    assert all(p.grad is None for p in policy.prior.parameters())
    policy.set_training_mode(True)
    assert policy.actor.features_extractor.training
    assert not any(module.training for module in policy.prior.modules())


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
def test_mixing_out_of_range(value: float) -> None:
    policy = make_policy()
    policy.freeze_prior()
    with pytest.raises(ValueError, match=r"mixing must lie in \(0, 1\]"):
        policy.set_mixing(value)
    assert float(policy.mixing) == 1.0


def test_mixing_needs_a_prior() -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match=r"mixing=0.5 needs a prior.*pretrain"):
        policy.set_mixing(0.5)
    policy.set_mixing(1.0)
    policy.freeze_prior()
    policy.set_mixing(0.5)
    assert float(policy.mixing) == 0.5


# -- saving ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_policy_alone_is_saved_whole(kind: str, tmp_path: Path) -> None:
    policy = make_policy(
        kind,
        ASYMMETRIC,
        denoising_steps=4,
        noise_levels=9,
        eta=0.5,
        sigma_min=0.2,
        noise_schedule="linear",
        share_features_extractor=True,
        optimizer_class=th.optim.AdamW,
        optimizer_kwargs={"weight_decay": 0.1},
        activation_fn=nn.ReLU,
    )
    perturb(policy.actor, 0.3)
    policy.freeze_prior()
    perturb(policy.actor, 0.3)
    policy.set_mixing(0.3)
    path = str(tmp_path / "policy.zip")
    policy.save(path)
    th.manual_seed(5)  # what a new policy draws must not matter
    loaded = DiffusionActorCriticPolicy.load(path)
    loaded.set_training_mode(False)

    assert type(loaded) is type(policy)
    assert_same_state(state_of(loaded), state_of(policy))
    assert loaded.diffusion_kwargs == policy.diffusion_kwargs
    for table, other in zip(policy.process.buffers(), loaded.process.buffers(), strict=True):
        assert th.equal(table, other)
    assert isinstance(loaded.optimizer, th.optim.AdamW)
    assert loaded.optimizer.param_groups[0]["weight_decay"] == 0.1
    obs = arrays(observations(policy, 4))
    assert_same_predictions(policy, loaded, obs)


@pytest.mark.parametrize(
    ("shared", "frozen", "acting", "evaluating"),
    [(False, False, 2, 3), (True, False, 1, 2), (False, True, 2, 2), (True, True, 1, 1)],
)
def test_encoders_run_no_more_often_than_there_are(
    shared: bool, frozen: bool, acting: int, evaluating: int
) -> None:
    """Actor's, critic's and prior's, where they are not the same."""
    kwargs = {"share_features_extractor": shared, "freeze_encoder": frozen}
    model = make_model(several(3), policy_kwargs={**POLICY_KWARGS, **kwargs})
    policy = model.policy
    policy.freeze_prior()
    calls: list[nn.Module] = []
    encoders = (each.features_extractor for each in (policy.actor, policy.prior))
    for encoder in {policy.vf_features_extractor, *encoders}:
        encoder.register_forward_hook(lambda module, *_: calls.append(module))
    assert model.env is not None
    obs = th.as_tensor(np.asarray(model.env.reset()))
    with th.no_grad():
        chains, values, _ = policy(obs)
        assert len(calls) == acting
        evaluation = policy.evaluate_chains(obs, chains)
        assert len(calls) == acting + evaluating
        th.testing.assert_close(evaluation.values, values)
        again = policy.evaluate_chains(obs, chains, evaluation.prior_means)
    assert len(calls) == acting + evaluating + (1 if shared else 2)
    th.testing.assert_close(again.prior_kl, th.zeros(3), atol=1e-6, rtol=0)
