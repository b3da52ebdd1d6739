"""Policies of LeRobot and DPPO do here what they do at home; see tests/fixtures/make_*.py."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.chunked_policy import ChunkedPolicy
from sb3_diffrl.importing import load_dppo, load_lerobot
from sb3_diffrl.wrappers import ActionChunkWrapper, ObservationHistoryWrapper, rewrap
from sb3_diffrl.wrappers.records import recorded_wrappers

FIXTURES = Path(__file__).parent / "fixtures"
LEROBOT = sorted((FIXTURES / "lerobot").iterdir())
DPPO = sorted((FIXTURES / "dppo").iterdir())
DDPM_EPSILON = FIXTURES / "lerobot" / "ddpm_epsilon"
FINETUNED = FIXTURES / "dppo" / "finetuned_ddpm"


def dppo(folder: Path, env: Any = None, **kwargs: Any) -> DiffusionPPO:
    given: dict[str, Any] = {
        "config": json.loads((folder / "config.json").read_text()),
        "normalization": folder / "normalization.npz",
        **kwargs,
    }
    return load_dppo(folder / "state.pt", env, **given)


def load(folder: Path, env: Any = None, **kwargs: Any) -> DiffusionPPO:
    return (load_lerobot if folder.parent.name == "lerobot" else dppo)(folder, env, **kwargs)


def act(model: DiffusionPPO, observations: Any, noise: np.ndarray) -> np.ndarray:
    """Whole chunks in the env's units, for the noise of every step."""
    policy = model.policy
    tensors = (
        {key: th.as_tensor(part) for key, part in observations.items()}
        if isinstance(observations, dict)
        else th.as_tensor(observations)
    )
    chain, *_ = policy.sample_chains(
        policy.preprocess(tensors), sampling_std=True, noise=th.as_tensor(noise)
    )
    return policy.unscale_action(chain[:, -1].detach().numpy())


class PointEnv(gym.Env[Any, np.ndarray]):
    """Rewards small actions; observations as the fixtures' policies see them."""

    def __init__(self, n_entries: int, as_dict: bool = False):
        self.action_space = spaces.Box(-5.0, 5.0, (2,))
        box = spaces.Box(-np.inf, np.inf, (n_entries,))
        parts: dict[str, spaces.Space[Any]] = {
            "agent_pos": spaces.Box(-np.inf, np.inf, (2,)),
            "environment_state": spaces.Box(-np.inf, np.inf, (3,)),
        }
        self.observation_space = spaces.Dict(parts) if as_dict else box

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        assert self.action_space.contains(action)
        reward = -float(np.square(action).sum())
        return self.observation_space.sample(), reward, False, self.steps >= 24, {}


def wrapped(folder: Path, as_dict: bool = False) -> gym.Env:
    is_lerobot = folder.parent.name == "lerobot"
    config = json.loads((folder / "config.json").read_text())
    env: gym.Env = PointEnv(5 if is_lerobot else 3, as_dict)
    if is_lerobot:
        n, horizon, n_executed = (
            config[name] for name in ("n_obs_steps", "horizon", "n_action_steps")
        )
        start = n - 1
    else:
        n, horizon, n_executed, start = config["cond_steps"], config["horizon_steps"], 2, 0
    env = ObservationHistoryWrapper(env, n) if n > 1 else env
    return ActionChunkWrapper(env, horizon, n_executed, start=start)


# -- the same actions ----------------------------------------------------------------------------


@pytest.mark.parametrize("folder", LEROBOT, ids=lambda folder: folder.name)
def test_lerobots_actions(folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    chunks = act(load_lerobot(folder), expected["observations"], expected["noise"])
    np.testing.assert_allclose(chunks[:, 1:9], expected["actions"], rtol=1e-5, atol=1e-5)
    other = act(load_lerobot(folder), expected["observations"][::-1].copy(), expected["noise"])
    assert np.abs(other[:, 1:9] - expected["actions"]).max() > 1e-2  # the observations matter


@pytest.mark.parametrize("folder", DPPO, ids=lambda folder: folder.name)
def test_dppos_actions(folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    chunks = act(dppo(folder), expected["observations"], expected["noise"])
    np.testing.assert_allclose(chunks, expected["actions"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("folder", LEROBOT, ids=lambda folder: folder.name)
def test_dict_observations_give_the_same_actions(folder: Path) -> None:
    expected = np.load(folder / "expected.npz")
    observations = expected["observations"]
    parts = {"agent_pos": observations[..., :2], "environment_state": observations[..., 2:]}
    model = load_lerobot(folder, wrapped(folder, as_dict=True))
    assert isinstance(model.observation_space, spaces.Dict)
    chunks = act(model, parts, expected["noise"])
    np.testing.assert_allclose(chunks[:, 1:9], expected["actions"], rtol=1e-5, atol=1e-5)


def test_predict_executes_what_lerobot_executes() -> None:
    """DDIM is a function of the first noise; `predict` draws it."""
    folder = FIXTURES / "lerobot" / "ddim_sample"
    expected = np.load(folder / "expected.npz")
    model = load_lerobot(folder)
    th.manual_seed(0)
    action, _ = model.predict(expected["observations"])
    np.testing.assert_allclose(action[:, 1:9], expected["actions"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("folder", [*LEROBOT, *DPPO], ids=lambda folder: folder.name)
def test_a_policy_without_an_env_acts_step_by_step(folder: Path) -> None:
    model, expected = load(folder), wrapped(folder)
    assert model.env_wrappers[-1] == recorded_wrappers(expected)[-1]
    env = expected.unwrapped
    policy, (observation, _) = ChunkedPolicy(model), env.reset()
    for _ in range(2 * policy.n_executed):
        observation, *_ = env.step(policy.predict(observation))
    assert rewrap(env, model.env_wrappers).observation_space == model.observation_space


# -- which weights -------------------------------------------------------------------------------


def test_which_weights_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    folder = FIXTURES / "dppo" / "pretrained_ddpm"
    with caplog.at_level(logging.INFO):
        averaged, plain = dppo(folder), dppo(folder, weights="model")
        finetuned, base = dppo(FINETUNED), dppo(FINETUNED, weights="pretrained")
    taken = re.findall(r"took the weights '(\w+)'", caplog.text)
    assert taken == ["ema", "model", "finetuned", "pretrained"]

    def weight(module: Any) -> th.Tensor:
        return module.denoiser.action_layer.weight

    assert not th.equal(weight(averaged.policy.actor), weight(plain.policy.actor))
    assert th.equal(weight(finetuned.policy.prior), weight(base.policy.actor))
    assert not th.equal(weight(finetuned.policy.actor), weight(base.policy.actor))
    assert finetuned.policy.finetuned_steps == 4 and base.policy.finetuned_steps == 10
    with pytest.raises(ValueError, match=r"expected one of ema, model, got 'finetuned'"):
        dppo(folder, weights="finetuned")


def test_a_finetuned_checkpoint_does_not_silently_run_the_prior() -> None:
    config = json.loads((FINETUNED / "config.json").read_text())
    with pytest.raises(ValueError, match="ft_denoising_steps is 0, with which DPPO runs the pre-"):
        dppo(FINETUNED, config={**config, "ft_denoising_steps": 0})


def test_two_networks_are_no_prior_of_another_model() -> None:
    env = wrapped(FINETUNED)
    with pytest.raises(ValueError, match="Continue its own training"):
        DiffusionPPO("policy", env, prior=dppo(FINETUNED, env))
    DiffusionPPO("policy", env, prior=dppo(FINETUNED, env, weights="pretrained"))


def test_the_config_a_run_wrote(tmp_path: Path) -> None:
    """Hydra's file, references and all."""
    folder = FIXTURES / "dppo" / "pretrained_ddim"
    config = json.loads((folder / "config.json").read_text())
    steps = config.pop("denoising_steps")
    config["model"]["denoising_steps"] = "${levels}"
    config["levels"] = steps
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    expected = np.load(folder / "expected.npz")
    chunks = act(dppo(folder, config=file), expected["observations"], expected["noise"])
    np.testing.assert_allclose(chunks, expected["actions"], rtol=1e-5, atol=1e-5)


# -- what one can do with them -------------------------------------------------------------------


@pytest.mark.parametrize("folder", [DDPM_EPSILON, FINETUNED], ids=lambda folder: folder.name)
def test_trained_saved_and_shared(folder: Path, tmp_path: Path) -> None:
    env = wrapped(folder)
    model = load(folder, env, n_steps=8, batch_size=8, n_epochs=1, beta=0.1, seed=0)
    prior = {name: tensor.clone() for name, tensor in model.policy.prior.state_dict().items()}
    model.learn(8)
    assert all(th.equal(prior[k], v) for k, v in model.policy.prior.state_dict().items())
    expected = np.load(folder / "expected.npz")
    chunks = act(model, expected["observations"], expected["noise"])
    model.save(tmp_path / "model.zip")
    model.save_pretrained(tmp_path / "shared")
    for loaded in (
        DiffusionPPO.load(tmp_path / "model.zip"),
        DiffusionPPO.from_pretrained(tmp_path / "shared"),
    ):
        again = act(loaded, expected["observations"], expected["noise"])
        np.testing.assert_array_equal(again, chunks)


@pytest.mark.parametrize("folder", [DDPM_EPSILON, DPPO[1]], ids=lambda folder: folder.name)
@pytest.mark.parametrize("with_env", [True, False])
def test_as_the_prior_of_another_model(folder: Path, with_env: bool) -> None:
    """The env's own bounds are wider than the data; the policy's range goes with it."""
    env, expected = wrapped(folder), np.load(folder / "expected.npz")
    source = load(folder, env if with_env else None)
    model = DiffusionPPO("policy", env, prior=source, n_steps=8, batch_size=8)
    assert model.policy.has_prior
    np.testing.assert_array_equal(
        act(model, expected["observations"], expected["noise"]),
        act(source, expected["observations"], expected["noise"]),
    )


def test_actions_of_the_data_and_back() -> None:
    policy = load_lerobot(DDPM_EPSILON, wrapped(DDPM_EPSILON)).policy
    low, high = policy.action_scale.low, policy.action_scale.high
    scaled = policy.scale_action(np.stack([low, high, (low + high) / 2]))
    np.testing.assert_allclose(
        scaled, np.broadcast_to([[[-1]], [[1]], [[0]]], scaled.shape), atol=1e-6
    )
    np.testing.assert_allclose(policy.unscale_action(scaled)[0], low, rtol=1e-6)


@pytest.mark.parametrize("ends", [[[0.0]], [[1.0], [0.0]], [[0.0] * 3, [1.0] * 3], [[0], [np.inf]]])
def test_an_action_range_that_does_not_fit(ends: Any) -> None:
    with pytest.raises(ValueError, match="action_range must be the lowest and the highest action"):
        DiffusionPPO("policy", PointEnv(3), policy_kwargs={"action_range": ends})


# -- what cannot be brought here -----------------------------------------------------------------


def edited(folder: Path, to: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(folder, to)
    file = to / "config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c["input_features"].update(
                {"observation.image": {"type": "VISUAL", "shape": [3, 96, 96]}}
            ),
            "sees 'observation.image'; only policies of observation.state and",
        ),
        (lambda c: c.update(type="act"), "type: expected one of diffusion, got 'act'"),
        (lambda c: c.update(beta_schedule="linear"), "beta_schedule: expected one of squaredcos"),
        (lambda c: c.update(n_groups=4), "n_groups: expected a whole number from 8 to 8, got 4"),
        (lambda c: c.update(horizon=2**40), "horizon: expected a whole number"),
        (lambda c: c.pop("horizon"), "horizon: missing"),
        (lambda c: c.update(down_dims=[8, 24]), "do not fit its configuration"),
        (lambda c: c.pop("input_features"), "input_features: expected a mapping of features"),
    ],
)
def test_a_lerobot_config_that_is_refused(edit: Any, message: str, tmp_path: Path) -> None:
    folder = edited(DDPM_EPSILON, tmp_path / "policy", edit)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_lerobot(folder)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing: expected the folder"):
        load_lerobot(tmp_path)
    folder = tmp_path / "policy"
    shutil.copytree(DDPM_EPSILON, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: not a sound safetensors file"):
        load_lerobot(folder)
    (tmp_path / "state.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"state\.pt: cannot be read as a checkpoint of tensors"):
        load_dppo(tmp_path / "state.pt", config={})
    th.save({"model": {"network.backbone.weight": th.zeros(2)}}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="policies with cameras cannot be brought here"):
        load_dppo(tmp_path / "state.pt", config={})


def test_a_checkpoint_that_would_run_a_program_is_refused(tmp_path: Path) -> None:
    class Program:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    th.save({"model": Program()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_dppo(tmp_path / "state.pt", config={})
    assert not (tmp_path / "ran").exists()


def test_an_env_that_is_not_wrapped_says_how() -> None:
    message = (
        "Wrap it: ActionChunkWrapper(ObservationHistoryWrapper(env, 2), horizon=16, "
        "n_executed=8, start=1)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_lerobot(DDPM_EPSILON, PointEnv(5))


def test_statistics_of_another_size() -> None:
    with pytest.raises(ValueError, match="obs_min: expected 3 finite numbers"):
        dppo(
            DPPO[1],
            normalization={
                n: np.zeros(4) for n in ("obs_min", "obs_max", "action_min", "action_max")
            },
        )
