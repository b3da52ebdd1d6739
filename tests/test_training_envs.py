"""What the algorithm makes of its environments: VecNormalize, other envs, parameters."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from sb3_diffrl import Demonstrations, DiffusionPPO
from sb3_diffrl.normalization import ObservationNormalizer
from tests.envs import ASYMMETRIC, TargetEnv, counting, demonstrations, several
from tests.models import POLICY_KWARGS, SMALL_DICTS, make_model, same_state, state_of, with_prior


def statistics(env: VecNormalize) -> Any:
    """Of the observations; SB3 types them as those of a Dict space, too."""
    return env.obs_rms


@pytest.mark.parametrize(("obs", "reward"), [(True, False), (False, True), (True, True)])
def test_vec_normalize(obs: bool, reward: bool, tmp_path: Path) -> None:
    def env() -> VecEnv:
        return several(2, reward_scale=50.0)

    normalized = VecNormalize(env(), norm_obs=obs, norm_reward=reward)
    model = make_model(normalized)
    model.learn(64)
    assert model.get_vec_normalize_env() is normalized
    if obs:
        assert abs(statistics(normalized).mean[2] - 0.5) < 1e-2
    assert (np.abs(model.rollout_buffer.rewards).max() < 15) == reward
    assert (np.abs(model.rollout_buffer.observations[:, 2]).max() < 0.4) == obs
    model.save(tmp_path / "model.zip")
    normalized.save(str(tmp_path / "env.pkl"))
    again = VecNormalize.load(str(tmp_path / "env.pkl"), env())
    loaded = DiffusionPPO.load(tmp_path / "model.zip", env=again)
    raw = np.array([[0.3, 0.1, 0.5]], np.float32)
    for one, other in ((model, normalized), (loaded, again)):
        action = one.predict(other.normalize_obs(raw), deterministic=True)[0]
        np.testing.assert_array_equal(
            action, model.predict(normalized.normalize_obs(raw), deterministic=True)[0]
        )
    loaded.learn(32)


def test_pretraining_sets_and_holds_the_observation_statistics(tmp_path: Path) -> None:
    data = demonstrations()
    env = VecNormalize(several(2), norm_reward=False)
    model = make_model(env, beta=0.1, imitation=0.1)
    model.pretrain(data, gradient_steps=20)
    assert isinstance(data.observations, np.ndarray)
    mean, var = data.observations.mean(axis=0), data.observations.var(axis=0)
    var = np.maximum(var, 0.02**2)  # the floor of the near-constant third entry
    prior = state_of(model.policy.prior)
    model.learn(64)
    env.save(str(tmp_path / "env.pkl"))
    again = VecNormalize.load(str(tmp_path / "env.pkl"), several(2))
    model.set_env(again)
    model.learn(32)
    for normalized in (env, again):
        np.testing.assert_allclose(statistics(normalized).mean, mean, rtol=1e-5)
        np.testing.assert_allclose(statistics(normalized).var, var, rtol=1e-4, atol=1e-9)
    assert same_state(prior, state_of(model.policy.prior))


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_vec_normalize_does_not_change_what_is_learned(kind: str) -> None:
    """The same prior as without it, which sees raw observations."""
    extra = SMALL_DICTS if kind == "dict" else {}
    data = demonstrations(TargetEnv(kind), n_episodes=4)
    kwargs: dict[str, Any] = {"beta": 0.1, "policy_kwargs": {**POLICY_KWARGS, **extra}}
    keys = ["state"] if kind == "dict" else None
    env = VecNormalize(several(2, kind), norm_reward=False, norm_obs_keys=keys)
    models = make_model(several(2, kind), **kwargs), make_model(env, **kwargs)
    for model in models:
        th.manual_seed(3)
        model.pretrain(data, gradient_steps=20, warmup_steps=2, validation_fraction=0)
    raw: Any = TargetEnv(kind).reset(seed=5)[0]
    noises = []
    for model, seen in zip(models, (raw, env.normalize_obs(raw)), strict=True):
        policy = model.policy
        with th.no_grad():
            condition = policy.prior.condition(policy.preprocess(policy.obs_to_tensor(seen)[0]))
            noises.append(policy.prior.denoiser(th.zeros(1, 2), th.tensor([1]), condition))
    assert float(noises[0].abs().min()) > 0.01
    th.testing.assert_close(noises[0], noises[1], rtol=0, atol=1e-4)
    models[1].learn(32)


def test_demonstrations_are_seen_as_the_env_shows_them() -> None:
    data = demonstrations()
    env = VecNormalize(several(2), norm_reward=False)
    model = make_model(env, beta=0.1)
    model.pretrain(data, gradient_steps=5)
    kept = model.imitation_buffer.demonstrations
    assert kept is not None
    assert isinstance(data.observations, np.ndarray) and isinstance(kept.observations, np.ndarray)
    seen = env.normalize_obs(data.observations)
    assert isinstance(seen, np.ndarray)
    np.testing.assert_allclose(kept.observations, seen)
    assert np.abs(kept.observations - data.observations).max() > 0.1
    model.set_demonstrations(data)
    again = model.imitation_buffer.demonstrations
    assert again is not None and isinstance(again.observations, np.ndarray)
    np.testing.assert_allclose(again.observations, kept.observations)
    assert kept is not again


def test_set_env_and_get_env() -> None:
    model = make_model(several(2))
    model.learn(32)
    other = several(2, reward_scale=0.0)
    model.set_env(other)
    assert model.get_env() is other
    model.learn(32)
    assert model.num_timesteps == 32
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(several(2, action_space=ASYMMETRIC))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(several(2, "dict"))


def test_load_with_another_number_of_envs(tmp_path: Path) -> None:
    model = make_model(counting(1), imitation={"successes": 0.1})
    model.learn(16)
    model.save(tmp_path / "model.zip")
    loaded = DiffusionPPO.load(tmp_path / "model.zip", env=counting(3))
    loaded.learn(48)
    assert loaded.n_envs == 3 and loaded.num_timesteps == 48


def test_parameters_are_got_and_set() -> None:
    model = with_prior(make_model(beta=0.1))
    model.learn(16)
    before: Any = copy.deepcopy(model.get_parameters())
    assert set(before) == {"policy", "policy.optimizer", "policy.critic_optimizer"}
    kept = state_of(model.policy)
    model.learn(32)
    assert not same_state(kept, state_of(model.policy))
    other = make_model(beta=0.1, seed=1)
    for each in (model, other):
        each.set_parameters(before)
        assert same_state(kept, state_of(each.policy))
    assert other.policy.has_prior
    part: Any = {"policy": before["policy"]}
    unknown: Any = {"no": {}}
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters(part)
    model.set_parameters(part, exact_match=False)
    with pytest.raises(ValueError, match="invalid object name"):
        model.set_parameters(unknown, exact_match=False)


def test_frames_that_are_stacked_after_normalising_are_refused() -> None:
    model = make_model(VecFrameStack(VecNormalize(several(2)), 2))
    with pytest.raises(ValueError, match=r"put VecNormalize around the other wrappers"):
        model.pretrain(model_demonstrations(model), gradient_steps=2)


def model_demonstrations(model: DiffusionPPO) -> Demonstrations:
    """As many as pre-training wants, of the model's spaces."""
    rng = np.random.default_rng(0)
    assert model.observation_space.shape is not None
    observations = rng.uniform(-1, 1, (40, *model.observation_space.shape)).astype(np.float32)
    actions = rng.uniform(-1, 1, (40, 2)).astype(np.float32)
    return Demonstrations.from_arrays(observations, actions, episode_ends=[20, 40])


def test_keys_of_observations_may_have_dots() -> None:
    part = spaces.Box(-1, 1, (3,))
    normalizer = ObservationNormalizer(spaces.Dict({"observation.state": part, "keys": part}))
    seen = {key: np.full((4, 3), 2.0, np.float32) for key in ("observation.state", "keys")}
    normalizer.fit(seen)
    normalized = normalizer({key: th.as_tensor(array) for key, array in seen.items()})
    assert isinstance(normalized, dict)
    assert all(not part.any() for part in normalized.values())


def test_load_takes_no_prior(tmp_path: Path) -> None:
    make_model().save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"load\(\) takes no prior"):
        DiffusionPPO.load(tmp_path / "model.zip", prior="other.zip")
