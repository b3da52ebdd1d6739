"""Sharing models: the safe format, its refusals, and the Hub, spoken to over HTTP."""

import inspect
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch as th
from gymnasium import spaces
from huggingface_hub import ModelCard, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn

from sb3_diffrl import DiffusionActorCriticPolicy, DiffusionPPO
from sb3_diffrl.evaluation import Evaluation
from sb3_diffrl.sharing.checks import parse_json
from sb3_diffrl.sharing.model import CONFIG, TRAINING_STATE, VEC_NORMALIZE, WEIGHTS
from sb3_diffrl.sharing.policy import CLASSES
from sb3_diffrl.sharing.settings import HYPERPARAMETERS, PROGRESS
from sb3_diffrl.sharing.spaces import decode_space, encode_space
from tests.envs import TargetEnv, demonstrations, several
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[1]
OBSERVATIONS = np.random.default_rng(0).uniform(-1, 1, (20, 3)).astype(np.float32)


class RepeatingEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Every episode shows the same eight observations: to be made anew is to have been reset, so that
    training can go on in another process as if it had never stopped.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None):
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return OBSERVATIONS[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        over = self.steps == 8
        info = {"is_success": bool(action[0] > 0)} if over else {}
        return OBSERVATIONS[self.steps], float(action[0] - action[1] ** 2), over, False, info

    def render(self) -> np.ndarray:
        return np.full((400, 640, 3), 30 * self.steps, np.uint8)


def repeating(n_envs: int = 2) -> VecEnv:
    return DummyVecEnv([RepeatingEnv for _ in range(n_envs)])


def make_model(env: Any = None, **kwargs: Any) -> DiffusionPPO:
    arguments: dict[str, Any] = {
        "n_steps": 16,
        "batch_size": 8,
        "n_epochs": 2,
        "seed": 0,
        "device": "cpu",
        "policy_kwargs": {"net_arch": [16, 16], "denoising_steps": 3},
        **kwargs,
    }
    return DiffusionPPO("policy", repeating() if env is None else env, **arguments)


def make_trained() -> DiffusionPPO:
    """Every kind of state there is, half of the training done."""
    model = make_model(
        learning_rate=LinearSchedule(1e-3, 1e-4, 0.5),
        clip_range_vf=0.3,
        critic_learning_rate=2e-3,
        beta={"kind": "kl_controller", "initial": 0.1, "target": 0.05},
        mixing="gated_0.5",
        imitation={"demonstrations": 0.1, "batch_size": 16},
    )
    model.pretrain(demonstrations(), gradient_steps=20, warmup_steps=2)
    model.imitation = make_model().imitation  # demonstrations are not shared
    return model.learn(64)


@pytest.fixture(scope="module")
def trained() -> DiffusionPPO:
    return make_trained()


@pytest.fixture(scope="module")
def saved(trained: DiffusionPPO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    trained.save_pretrained(folder, include_optimizer=True)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def hub_at(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """The client of this process speaks to the server as alice, with a cache of its own."""
    files = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    server.requests.clear()
    yield server
    server.repositories.clear()


def predictions(model: DiffusionPPO, observations: Any = OBSERVATIONS) -> np.ndarray:
    """Actions in both modes."""
    th.manual_seed(3)
    return np.stack([model.predict(observations, deterministic=d)[0] for d in (True, False)])


def assert_same(a: DiffusionPPO, b: DiffusionPPO) -> None:
    one, other = a.policy.state_dict(), b.policy.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert th.equal(one[name], other[name]), name
        assert one[name].dtype == other[name].dtype
    for name in ("beta", "mixing", "imitation", "improvement", *HYPERPARAMETERS, *PROGRESS):
        found, expected = getattr(b, name), getattr(a, name)
        assert repr(found) == repr(expected), name


# -- saving and loading ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vector", "discrete", "image", "dict"])
def test_a_saved_model_loads_the_same(kind: str, tmp_path: Path) -> None:
    model = make_model(several(2, kind)).learn(32)
    model.save_pretrained(tmp_path / "model")
    loaded = DiffusionPPO.from_pretrained(tmp_path / "model")
    assert_same(model, loaded)
    assert loaded.observation_space == model.observation_space
    observation, _ = TargetEnv(kind).reset(seed=0)
    np.testing.assert_array_equal(predictions(model, observation), predictions(loaded, observation))
    DiffusionPPO.from_pretrained(str(tmp_path / "model"), TargetEnv(kind)).learn(16)


@pytest.mark.parametrize("alias", ["MlpPolicy", "MultiInputPolicy"])
def test_the_class_of_the_policy_is_kept(alias: str, tmp_path: Path) -> None:
    kind = "dict" if alias == "MultiInputPolicy" else "vector"
    model = DiffusionPPO(alias, several(1, kind), n_steps=8, device="cpu")
    model.save_pretrained(tmp_path)
    loaded = DiffusionPPO.from_pretrained(tmp_path)
    assert type(loaded.policy) is DiffusionPPO.policy_aliases[alias]
    assert_same(model, loaded)


def test_shared_weights_are_written_once(tmp_path: Path) -> None:
    kwargs = {"net_arch": [16], "share_features_extractor": True}
    model = make_model(several(1, "image"), policy_kwargs=kwargs)
    model.save_pretrained(tmp_path)
    assert_same(model, DiffusionPPO.from_pretrained(tmp_path))
    parameters = {id(p): p.nbytes for p in model.policy.parameters()}
    assert (tmp_path / WEIGHTS).stat().st_size < sum(parameters.values()) + 10_000


def test_training_goes_on_as_if_it_had_never_stopped(saved: Path) -> None:
    whole = make_trained().learn(64, reset_num_timesteps=False)
    np.random.seed(None)
    th.seed()
    resumed = DiffusionPPO.from_pretrained(saved, repeating())
    resumed.learn(64, reset_num_timesteps=False)
    assert_same(whole, resumed)
    for name in ("optimizer", "critic_optimizer"):
        one, other = (getattr(m.policy, name).state_dict()["state"] for m in (whole, resumed))
        assert all(th.equal(one[i][part], other[i][part]) for i in one for part in one[i])


def test_without_the_optimizer_no_training_state_is_written(
    trained: DiffusionPPO, tmp_path: Path
) -> None:
    trained.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS, "README.md"}
    loaded = DiffusionPPO.from_pretrained(tmp_path, repeating())
    assert not loaded.policy.optimizer.state_dict()["state"]
    loaded.learn(32)


@pytest.mark.parametrize("name", CLASSES["optimizer_class"])
def test_the_state_of_every_optimizer_is_kept(name: str, tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {
        "net_arch": [8],
        "optimizer_class": CLASSES["optimizer_class"][name],
        "optimizer_kwargs": {"SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}}.get(name, {}),
    }
    model = make_model(policy_kwargs=kwargs).learn(32)
    model.save_pretrained(tmp_path, include_optimizer=True)
    loaded = DiffusionPPO.from_pretrained(tmp_path)
    one, other = (m.policy.optimizer.state_dict()["state"] for m in (model, loaded))
    assert one.keys() == other.keys() != set()
    for index in one:
        for part, entry in one[index].items():
            assert th.equal(entry, other[index][part]), part


def test_attributes_can_be_changed_when_loading(saved: Path) -> None:
    loaded = DiffusionPPO.from_pretrained(
        saved, repeating(3), beta="linear_0.4", learning_rate=1e-5, n_steps=8
    )
    assert loaded.n_envs == 3
    loaded.learn(24)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    assert repr(loaded.beta).startswith("Linear(initial=0.4")


def test_every_attribute_has_its_place(trained: DiffusionPPO) -> None:
    """A new argument or attribute is shared, or said here not to be."""
    described = {"observation_space", "action_space", "policy_class", "policy_kwargs", "policy"}
    described |= {"env_wrappers"}
    of_the_machine = {"device", "verbose", "tensorboard_log", "_logger", "start_time", "env"}
    rebuilt = {
        *("rollout_buffer", "rollout_buffer_class", "rollout_buffer_kwargs", "_outcomes"),
        *("lr_schedule", "critic_lr_schedule", "_vec_normalize_env", "_random_state"),
        "_scenes",
        "_told",
    }
    of_the_moment = {"_last_obs", "_last_original_obs", "_last_episode_starts"}
    not_shared = {"imitation_buffer", "_custom_logger"}
    unused = {"use_sde", "sde_sample_freq", "action_noise"}
    known = {*HYPERPARAMETERS, *PROGRESS, *described, *of_the_machine, *rebuilt}
    known |= of_the_moment | not_shared | unused
    assert set(vars(trained)) <= known

    arguments = {
        *inspect.signature(PPO.__init__).parameters,
        *inspect.signature(DiffusionPPO.__init__).parameters,
    }
    others = {"self", "args", "kwargs", "policy", "prior", "stats_window_size"}
    assert arguments - others - {"_init_setup_model"} <= known


def test_saving_again_replaces_the_model_and_leaves_other_files(
    trained: DiffusionPPO, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    trained.save_pretrained(folder, include_optimizer=True, curve=[(0, 0.1), (10, 0.5)])
    other = make_model()
    other.save_pretrained(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {CONFIG, WEIGHTS, "README.md", "notes.txt"}
    assert_same(other, DiffusionPPO.from_pretrained(folder))
    assert list(tmp_path.iterdir()) == [folder]


def test_files_can_be_read_by_others(saved: Path) -> None:
    modes = {(saved / name).stat().st_mode & 0o777 for name in (CONFIG, WEIGHTS, TRAINING_STATE)}
    probe = saved.parent / "probe"
    probe.write_text("")
    assert modes == {probe.stat().st_mode & 0o777}


# -- what cannot be shared ---------------------------------------------------------------------


class OwnPolicy(DiffusionActorCriticPolicy):
    pass


class OwnBuffer(RolloutBuffer):
    pass


class OwnActivation(nn.SiLU):
    pass


def own_schedule(signals: Any) -> float:
    return 0.1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"learning_rate": lambda progress: 1e-3}, "learning_rate: .*function of your own"),
        ({"beta": own_schedule}, "beta: the schedule .*own_schedule.*expected one of the kinds"),
        ({"rollout_buffer_class": OwnBuffer}, "rollout_buffer_class: .*OwnBuffer"),
        ({"policy_kwargs": {"activation_fn": OwnActivation}}, "activation_fn.*OwnActivation.*SiLU"),
    ],
)
def test_what_cannot_be_shared_is_named_and_nothing_is_written(
    kwargs: dict[str, Any], message: str, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_policy_of_ones_own_cannot_be_shared(tmp_path: Path) -> None:
    model = DiffusionPPO(OwnPolicy, repeating(), n_steps=8, device="cpu")
    with pytest.raises(ValueError, match=r"policy: .*OwnPolicy.*model\.save\(\)"):
        model.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# -- spaces ------------------------------------------------------------------------------------

RNG = np.random.default_rng(1)
SPACES: list[spaces.Space[Any]] = [
    spaces.Box(-1.0, 1.0, (3,), np.float32),
    spaces.Box(RNG.normal(size=(2, 3)) - 5, RNG.normal(size=(2, 3)) + 5, dtype=np.float64),
    spaces.Box(
        np.array([-np.inf, 0.1, -0.0], np.float32), np.array([np.inf, np.inf, 3e38], np.float32)
    ),
    spaces.Box(0, 255, (3, 36, 36), np.uint8),
    spaces.Box(-(2**63), 2**63 - 1, (2,), np.int64),
    spaces.Box(-1.0, 1.0, (), np.float16),
    spaces.Discrete(4, start=-1),
    spaces.MultiDiscrete([3, 4], start=[1, 0]),
    spaces.MultiDiscrete(np.array([[3, 4], [5, 6]]), dtype=np.int32),
    spaces.MultiBinary(5),
    spaces.MultiBinary((2, 3)),
    spaces.Dict({"b": spaces.Discrete(3), "a": spaces.Box(0, 1, (2,))}),
    spaces.Dict([("b", spaces.Discrete(3)), ("a", spaces.MultiBinary(2))]),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_are_kept_to_the_last_bit(space: spaces.Space[Any]) -> None:
    written = json.dumps(encode_space(space), allow_nan=False)
    found = decode_space(parse_json(written.encode()))
    assert found == space and repr(found) == repr(space)
    if isinstance(space, spaces.Box) and isinstance(found, spaces.Box):
        assert found.low.tobytes() == space.low.tobytes()
        assert found.high.tobytes() == space.high.tobytes()
        assert found.dtype == space.dtype
    if isinstance(space, spaces.Dict) and isinstance(found, spaces.Dict):
        assert list(found.spaces) == list(space.spaces)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}),
    ],
    ids=str,
)
def test_spaces_that_sb3_does_not_support_are_refused(space: spaces.Space[Any]) -> None:
    with pytest.raises(ValueError, match=r"cannot be shared|expected one of Box"):
        decode_space(encode_space(space))


# -- tampering ---------------------------------------------------------------------------------

Tamper = Callable[[Path], Any]


def config_with(*place: str | int, value: Any) -> Tamper:
    """:return: what replaces one entry of the configuration"""

    def tamper(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        entry = config
        for name in place[:-1]:
            entry = entry[name]
        entry[place[-1]] = value
        (folder / CONFIG).write_text(json.dumps(config))

    return tamper


def config_text(old: str, new: str) -> Tamper:
    def tamper(folder: Path) -> None:
        content = (folder / CONFIG).read_text()
        assert old in content
        (folder / CONFIG).write_text(content.replace(old, new, 1))

    return tamper


def tensors_with(change: Callable[[dict[str, th.Tensor]], Any], file: str = WEIGHTS) -> Tamper:
    def tamper(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / file)
        change(tensors)
        safetensors.torch.save_file(tensors, folder / file)

    return tamper


def raw(change: Callable[[bytes], bytes], file: str = WEIGHTS) -> Tamper:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def both(one: Tamper, other: Tamper) -> Tamper:
    return lambda folder: (one(folder), other(folder))


def extra(name: str, content: bytes = b"") -> Tamper:
    return lambda folder: (folder / name).write_bytes(content)


BIAS = "actor.denoiser.output_layer.bias"
KWARGS = ("policy", "kwargs")
HYPER = "hyperparameters"
TAMPERED: dict[str, tuple[Tamper, str]] = {
    "wrong shape": (
        tensors_with(lambda t: t.update({BIAS: th.zeros(3)})),
        r"model.safetensors: the tensor 'actor.denoiser.output_layer.bias' is F32 of shape \(3,\), "
        r"expected F32 of shape \(2,\)",
    ),
    "wrong dtype": (
        tensors_with(lambda t: t.update({BIAS: th.zeros(2, dtype=th.int32)})),
        "is I32 .*expected F32",
    ),
    "missing tensor": (tensors_with(lambda t: t.pop(BIAS)), f"'{BIAS}' is missing"),
    "extra tensor": (
        tensors_with(lambda t: t.update({"../../etc/x": th.zeros(1)})),
        "'../../etc/x' does not belong",
    ),
    "missing optimizer state": (
        tensors_with(lambda t: t.pop("optimizer.0.exp_avg"), TRAINING_STATE),
        "training_state.safetensors: the tensor 'optimizer.0.exp_avg' is missing",
    ),
    "optimizer state of no parameter": (
        config_with("training", "optimizer", "optimizer", value=[999]),
        "there is no number 999",
    ),
    "not safetensors": (raw(lambda b: b"PK" + b), "model.safetensors: a header of"),
    "huge header": (
        raw(lambda b: struct.pack("<Q", 2**40) + b[8:]),
        "a header of 1099511627776 bytes, at most",
    ),
    "cut short": (raw(lambda b: b[:-4]), "not a sound safetensors file"),
    "header is no JSON": (raw(lambda b: b[:8] + b"x" + b[9:]), "not a sound safetensors file"),
    "empty": (raw(lambda b: b""), "not a sound safetensors file"),
    "pickle": (extra("policy.pkl", pickle.dumps(print)), "'policy.pkl' does not belong"),
    "pickle as weights": (raw(lambda b: pickle.dumps({"a": 1})), "a header of"),
    "torch file": (extra("optimizer.pth"), "'optimizer.pth' does not belong"),
    "program": (extra("modeling.py"), "'modeling.py' does not belong"),
    "zip": (extra("model.zip"), "'model.zip' does not belong"),
    "statistics nobody speaks of": (extra(VEC_NORMALIZE), "does not speak of it"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "model.safetensors is missing"),
    "unknown policy": (
        config_with("policy", "class", value="os.system"),
        "config.json: policy: class: expected one of CnnPolicy, .*got 'os.system'",
    ),
    "unknown denoiser": (
        config_with(*KWARGS, "denoiser_class", value="builtins.eval"),
        "policy: kwargs: denoiser_class: expected one of DppoMlpDenoiser, ",
    ),
    "class as a list": (config_with("policy", "class", value=["MlpPolicy"]), "expected one of"),
    "unknown argument of the policy": (
        config_with(*KWARGS, "lr_schedule", value=1),
        r"policy: kwargs: .*unknown \['lr_schedule'\]",
    ),
    "unknown argument of a network": (
        config_with(*KWARGS, "denoiser_kwargs", value={"path": "/etc/passwd"}),
        "policy: cannot be built from these arguments.*path",
    ),
    "optimizer that cannot step": (
        config_with(*KWARGS, "optimizer_kwargs", value={"capturable": True, "fused": False}),
        "cannot step with these arguments",
    ),
    "unknown algorithm": (config_with("algorithm", value="PPO"), "algorithm: expected one of"),
    "newer format": (config_with("format", value=2), "expected format 1 of sb3-diffrl, got 2"),
    "SB3's own file": (
        raw(lambda b: b'{"policy_class": {":type:": "abc", ":serialized:": "gAWV"}}', CONFIG),
        "expected format 1.*DiffusionPPO.load",
    ),
    "unknown entry": (config_with("auto_map", value={}), r"unknown \['auto_map'\]"),
    "unknown hyperparameter": (config_with(HYPER, "_logger", value=1), r"unknown \['_logger'\]"),
    "wide layer": (
        config_with(*KWARGS, "net_arch", value=[10**9]),
        "net_arch: expected a whole number from 1 to 8192",
    ),
    "many layers": (config_with(*KWARGS, "net_arch", value=[8] * 10**4), "at most 64 entries"),
    "many parameters": (config_with(*KWARGS, "net_arch", value=[8192] * 64), "parameters, at most"),
    "other layers": (config_with(*KWARGS, "net_arch", value=[16, 17]), "is missing|expected F32"),
    "many noise levels": (config_with(*KWARGS, "noise_levels", value=10**9), "noise_levels: exp"),
    "long rollout": (
        both(*(config_with(HYPER, name, value=2**16) for name in ("n_steps", "n_envs"))),
        "would take .* GiB",
    ),
    "longer rollout": (config_with(HYPER, "n_steps", value=10**30), "n_steps: expected a whole"),
    "many envs": (config_with(HYPER, "n_envs", value=10**9), "n_envs: expected a whole number"),
    "large observation": (
        config_with("observation_space", "shape", value=[10**6, 10**6]),
        "observation_space: shape: ",
    ),
    "long window": (config_with(HYPER, "_stats_window_size", value=10**12), "_stats_window_size"),
    "text for a number": (config_with(HYPER, "gamma", value="0.9"), "gamma: expected a finite"),
    "flag for a number": (config_with(HYPER, "n_epochs", value=True), "n_epochs: expected a whole"),
    "NaN": (config_text('"gamma": 0.99', '"gamma": NaN'), "config.json: NaN is not a number"),
    "infinity": (config_text('"gamma": 0.99', '"gamma": -Infinity'), "-Infinity is not a number"),
    "overflow": (config_text('"gamma": 0.99', '"gamma": 1e999'), "gamma: expected a finite"),
    "a name twice": (config_text('"gamma"', '"gamma": 1, "gamma"'), "the same name twice"),
    "deep JSON": (config_with("versions", value=json.loads("[" * 50 + "]" * 50)), "nested deeper"),
    "deeper JSON": (raw(lambda b: b"[" * 10**6, CONFIG), "nested deeper"),
    "not JSON": (raw(lambda b: b[:-10], CONFIG), "config.json: "),
    "not UTF-8": (raw(lambda b: b"\xff" + b, CONFIG), "config.json: "),
    "large JSON": (raw(lambda b: b + b" " * 2**24, CONFIG), "'config.json' has .* bytes, at most"),
    "list": (raw(lambda b: b"[]", CONFIG), "expected format 1"),
    "dtype of objects": (config_with("action_space", "dtype", value="object"), "dtype: expected"),
    "infinite action": (config_with("action_space", "high", value="inf"), "finite action bounds"),
    "crossed bounds": (config_with("action_space", "high", value=-3.0), "expected low <= high"),
    "bounds of another size": (config_with("action_space", "low", value=[0.0] * 3), "expected 2 "),
    "discrete action": (
        config_with("action_space", value={"type": "Discrete", "n": 3, "start": 0}),
        "needs a Box action space",
    ),
    "unknown schedule": (
        config_with(HYPER, "beta", value={"kind": "exec"}),
        "beta: expected one of .*got 'exec'",
    ),
    "schedule out of range": (
        config_with(HYPER, "beta", "target", value=-1.0),
        "hyperparameters: beta: .*target must lie",
    ),
    "rate of unknown type": (
        config_with(HYPER, "learning_rate", value={"type": "python", "value": "1"}),
        "learning_rate: expected one of constant, linear",
    ),
    "random state": (
        tensors_with(lambda t: t["random.python"].fill_(-1), TRAINING_STATE),
        "random.python: expected words of 32 bits",
    ),
    "random position": (
        config_with("training", "random", "numpy_position", value=10**6),
        "numpy_position: expected a whole number from 0 to 624|random: expected a whole",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_tampered_file_is_refused_before_anything_is_built(
    name: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tamper, message = TAMPERED[name]
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    DiffusionPPO.from_pretrained(folder)
    tamper(folder)
    before = th.get_rng_state()

    def build(*args: Any, **kwargs: Any) -> None:
        pytest.fail("something was built")

    monkeypatch.setattr(DiffusionPPO, "_setup_model", build)
    with pytest.raises(ValueError, match=message):
        DiffusionPPO.from_pretrained(folder, repeating())
    assert th.equal(before, th.get_rng_state())


def test_loading_unpickles_nothing(saved: Path) -> None:
    found: list[str] = []
    active = True

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if active and event == "pickle.find_class":
            found.append(str(args))

    sys.addaudithook(hook)
    DiffusionPPO.from_pretrained(saved, repeating()).learn(32)
    assert not found
    pickle.loads(pickle.dumps(spaces.Discrete(2)))
    active = False
    assert found, "the hook notices nothing"


@pytest.mark.parametrize("subfolder", ["..", "/etc", "a/../..", "a\\b", "a//b", "./a"])
def test_a_subfolder_must_lie_inside(subfolder: str, saved: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder inside"):
        DiffusionPPO.from_pretrained(saved, subfolder=subfolder)
    with pytest.raises(ValueError, match="expected a folder inside"):
        make_model().push_to_hub("alice/model", subfolder=subfolder)


def test_spaces_of_the_env_must_fit(saved: Path) -> None:
    with pytest.raises(ValueError, match="Action spaces do not match"):
        DiffusionPPO.from_pretrained(saved, TargetEnv())


# -- VecNormalize ------------------------------------------------------------------------------


def normalized(kind: str = "vector", **kwargs: Any) -> VecNormalize:
    keys = ["state"] if kind == "dict" else None
    return VecNormalize(several(2, kind), norm_obs_keys=keys, clip_obs=3.0, **kwargs)


@pytest.mark.parametrize("kind", ["vector", "dict"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_statistics_of_vec_normalize_are_kept(kind: str, wrapped: bool, tmp_path: Path) -> None:
    model = make_model(normalized(kind)).learn(64)
    model.save_pretrained(tmp_path)
    env = normalized(kind, training=False) if wrapped else several(2, kind)
    loaded = DiffusionPPO.from_pretrained(tmp_path, env)
    before, after = model.get_vec_normalize_env(), loaded.get_vec_normalize_env()
    assert before is not None and after is not None
    assert after.training is not wrapped  # a wrapper of the user's keeps its switches
    assert after.clip_obs == 3.0
    assert after.ret_rms.var == before.ret_rms.var and after.ret_rms.count == before.ret_rms.count
    observation, _ = TargetEnv(kind).reset(seed=0)
    batch: Any = observation
    expected: Any = before.normalize_obs(batch)
    found: Any = after.normalize_obs(batch)
    for key in expected if kind == "dict" else [...]:
        np.testing.assert_array_equal(expected[key], found[key])
    loaded.learn(32)


def test_statistics_that_stand_still_go_on_doing_so(tmp_path: Path) -> None:
    model = make_model(normalized())
    model.pretrain(demonstrations(), gradient_steps=5, warmup_steps=1)
    model.save_pretrained(tmp_path)
    loaded = DiffusionPPO.from_pretrained(tmp_path, several(2))
    before, after = model.get_vec_normalize_env(), loaded.get_vec_normalize_env()
    assert before is not None and after is not None
    loaded.learn(32)
    means: list[Any] = [before.obs_rms, after.obs_rms]
    np.testing.assert_array_equal(means[0].mean, means[1].mean)


def test_a_model_that_needs_normalised_observations_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_model(normalized()).save_pretrained(tmp_path)
    DiffusionPPO.from_pretrained(tmp_path)
    assert "trained under VecNormalize: pass env=" in caplog.text


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            tensors_with(lambda t: t.pop("obs_rms.mean"), VEC_NORMALIZE),
            "vec_normalize.safetensors: the tensor 'obs_rms.mean' is missing",
        ),
        (config_with("vec_normalize", "norm_obs_keys", value=["x"]), "norm_obs_keys"),
        (config_with("vec_normalize", "clip_obs", value="all"), "clip_obs: expected a finite"),
        (config_with("vec_normalize", "frozen", value=["venv"]), "frozen: expected one of"),
        (config_with("vec_normalize", value=None), "vec_normalize.safetensors is not expected"),
    ],
)
def test_tampered_statistics_are_refused(tamper: Tamper, message: str, tmp_path: Path) -> None:
    make_model(normalized()).save_pretrained(tmp_path)
    tamper(tmp_path)
    with pytest.raises(ValueError, match=message):
        DiffusionPPO.from_pretrained(tmp_path)


# -- the card ----------------------------------------------------------------------------------


def test_the_card_shows_and_declares_the_results(
    trained: DiffusionPPO, hub_at: HubServer, tmp_path: Path
) -> None:
    infos = [{"is_success": True}] * 4
    clean = Evaluation(np.ones(4, bool), np.arange(4.0), np.ones(4, int), infos)
    returns = Evaluation(np.zeros(4, bool), np.arange(4.0), np.ones(4, int), [{}] * 4)
    trained.save_pretrained(
        tmp_path,
        env_id="Task-v0",
        evaluations={"clean": clean, "far": returns},
        eval_env=RepeatingEnv("rgb_array"),
        curve=[(0, 0.1), (100, 0.5), (200, 0.9)],
        curve_episodes=20,
        license="mit",
    )
    card = ModelCard.load(tmp_path / "README.md")
    card.validate()
    assert card.data.library_name == "sb3-diffrl" and card.data.license == "mit"
    assert {"Task-v0", "reinforcement-learning", "stable-baselines3"} <= set(card.data.tags)
    results = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert results == {
        ("clean", "success_rate"): 1.0,
        ("clean", "mean_reward"): "1.50 +/- 1.27",
        ("far", "mean_reward"): "1.50 +/- 1.27",
    }
    assert "| clean | 1.000 [0.510, 1.000] | 1.50 ± 1.27 | 4 |" in card.text
    assert "| far | not reported | 1.50 ± 1.27 | 4 |" in card.text
    assert "KlController(initial=0.1, target=0.05" in card.text
    assert "Task-v0" in card.text and "frozen diffusion policy" in card.text
    for name in ("training_curve.png", "replay.gif"):
        assert f"]({name})" in card.text
    with Image.open(tmp_path / "training_curve.png") as curve:
        assert curve.width > 400
    with Image.open(tmp_path / "replay.gif") as replay:
        assert replay.size == (320, 200) and replay.n_frames == 16
        assert replay.info["duration"] == 100


def test_an_env_for_evaluation_is_evaluated_in(tmp_path: Path) -> None:
    model = make_model(VecNormalize(repeating())).learn(32)
    env = RepeatingEnv("rgb_array")
    before = th.get_rng_state()
    model.save_pretrained(tmp_path, eval_env=env, n_eval_episodes=3)
    assert th.equal(before, th.get_rng_state())
    card = ModelCard.load(tmp_path / "README.md")
    assert "| evaluation |" in card.text and "replay.gif" in card.text
    assert "model.get_env()" in card.text


def test_the_server_refuses_a_wrong_card(hub_at: HubServer) -> None:
    card = ModelCard("---\nlicense: 3\n---\n")
    with pytest.raises(ValueError, match=r"license.* must be a str"):
        card.validate()


# -- the Hub -----------------------------------------------------------------------------------

FRESH_PROCESS = """
import sys
import numpy as np
import torch as th
from sb3_diffrl import DiffusionPPO
assert "huggingface_hub" not in sys.modules
from tests.test_hub import predictions, repeating

out, *rest = sys.argv[1:]
model = DiffusionPPO.from_pretrained("alice/model", env=repeating(), device="cpu")
actions = predictions(model)
result = {"actions": actions}
if rest:
    model = DiffusionPPO.from_pretrained("alice/model", env=repeating(), device="cpu")
    model.learn(64, reset_num_timesteps=False)
    result |= {name: tensor.numpy() for name, tensor in model.policy.state_dict().items()}
np.savez(out, **result)
"""


def test_the_whole_round_trip(hub_at: HubServer, tmp_path: Path) -> None:
    model = make_model(beta=0.1)
    first = model.push_to_hub("alice/model")
    model.pretrain(demonstrations(), gradient_steps=10, warmup_steps=2)
    model.learn(64)
    second = model.push_to_hub("alice/model", include_optimizer=True)
    assert first.oid != second.oid
    assert model.push_to_hub("alice/model", include_optimizer=True).oid == second.oid  # unchanged
    actions = predictions(model)

    def fresh_process(name: str, *rest: str, **env: str) -> Any:
        """The user's way: another process, told by the environment alone."""
        result = subprocess.run(
            [sys.executable, "-c", FRESH_PROCESS, str(tmp_path / name), *rest],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
                "HF_HOME": str(tmp_path / "home"),
                "OMP_NUM_THREADS": "1",
                **env,
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return np.load(tmp_path / name)

    resumed = fresh_process("online.npz", "resume", HF_ENDPOINT=hub_at.endpoint)
    np.testing.assert_array_equal(resumed["actions"], actions)
    # A dead address: whatever is asked of it fails.
    offline = fresh_process("offline.npz", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    np.testing.assert_array_equal(offline["actions"], actions)

    whole = make_model(beta=0.1)
    whole.pretrain(demonstrations(), gradient_steps=10, warmup_steps=2)
    whole.learn(64)
    whole.learn(64, reset_num_timesteps=False)
    for name, tensor in whole.policy.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), resumed[name], err_msg=name)


def test_revisions(hub_at: HubServer) -> None:
    old, new, branched = (make_model(seed=seed) for seed in range(3))
    first = old.push_to_hub("alice/model")
    huggingface_hub.HfApi(endpoint=hub_at.endpoint).create_tag("alice/model", tag="v1")
    new.push_to_hub("alice/model")
    branched.push_to_hub("alice/model", revision="wide")
    for revision, expected in {first.oid: old, "v1": old, None: new, "wide": branched}.items():
        assert_same(expected, DiffusionPPO.from_pretrained("alice/model", revision=revision))
    with pytest.raises(RevisionNotFoundError):
        DiffusionPPO.from_pretrained("alice/model", revision="v2")


def test_subfolders(hub_at: HubServer) -> None:
    one, two = (make_model(seed=seed) for seed in range(2))
    one.push_to_hub("alice/models", subfolder="seed_1")
    two.push_to_hub("alice/models", subfolder="deep/seed_2")
    assert_same(one, DiffusionPPO.from_pretrained("alice/models", subfolder="seed_1"))
    assert_same(two, DiffusionPPO.from_pretrained("alice/models", subfolder="deep/seed_2/"))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        DiffusionPPO.from_pretrained("alice/models")
    files = hub_at.repositories["alice/models"].files()
    assert {f"{folder}/{WEIGHTS}" for folder in ("seed_1", "deep/seed_2")} <= set(files)
    assert 'subfolder="seed_1"' in files["seed_1/README.md"].decode()


def test_pushing_again_removes_what_no_longer_belongs(
    hub_at: HubServer, trained: DiffusionPPO
) -> None:
    trained.push_to_hub("model", include_optimizer=True, curve=[(0, 1.0)])
    files = hub_at.repositories["alice/model"].files()
    assert {TRAINING_STATE, "training_curve.png"} <= set(files)
    assert 'from_pretrained("alice/model")' in files["README.md"].decode()
    trained.push_to_hub("model")
    files = hub_at.repositories["alice/model"].files()
    assert set(files) == {CONFIG, WEIGHTS, "README.md", ".gitattributes"}
    assert_same(trained, DiffusionPPO.from_pretrained("alice/model"))


def test_private_models_need_the_token(
    hub_at: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = make_model()
    model.push_to_hub("alice/secret", private=True, token="hf_alice")
    assert hub_at.repositories["alice/secret"].private
    assert_same(model, DiffusionPPO.from_pretrained("alice/secret"))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for token in (None, "hf_bob"):
        with pytest.raises(RepositoryNotFoundError):
            DiffusionPPO.from_pretrained("alice/secret", token=token, cache_dir=tmp_path / "other")
    other = DiffusionPPO.from_pretrained(
        "alice/secret", token="hf_alice", cache_dir=tmp_path / "other"
    )
    assert_same(model, other)
    (tmp_path / "token").write_text("hf_alice")  # what the command line's login leaves
    assert_same(model, DiffusionPPO.from_pretrained("alice/secret", cache_dir=tmp_path / "third"))


def test_nothing_private_goes_to_a_public_repository(hub_at: HubServer) -> None:
    model = make_model()
    model.push_to_hub("open")
    repository = hub_at.repositories["alice/open"]
    n_commits = len(repository.commits)
    with pytest.raises(ValueError, match="the repository alice/open is there and public"):
        model.push_to_hub("open", private=True, revision="secret")
    assert len(repository.commits) == n_commits and "secret" not in repository.refs
    repository.private = True
    model.push_to_hub("open", private=True, subfolder="mine")
    assert len(repository.commits) == n_commits + 1


def test_what_cannot_be_shared_makes_no_repository(hub_at: HubServer) -> None:
    model = make_model(learning_rate=lambda progress: 1e-3)
    with pytest.raises(ValueError, match="learning_rate"):
        model.push_to_hub("alice/model")
    assert not hub_at.repositories and not hub_at.requests


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"policy.pkl": b"x"}, "'policy.pkl' does not belong"),
        ({"../../.bashrc": b"x"}, "leads out"),
        ({CONFIG: b" " * (2**24 + 1)}, "'config.json' has 16777217 bytes"),
    ],
)
def test_a_listing_is_checked_before_anything_is_downloaded(
    files: dict[str, bytes], message: str, hub_at: HubServer, tmp_path: Path
) -> None:
    make_model().push_to_hub("alice/model")
    hub_at.requests.clear()
    with hub_at.changed("alice/model", files), pytest.raises(ValueError, match=message):
        DiffusionPPO.from_pretrained("alice/model")
    assert not [request for request in hub_at.requests if "/resolve/" in request]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    DiffusionPPO.from_pretrained("alice/model")


def test_what_was_downloaded_serves_without_the_hub(
    hub_at: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    model.push_to_hub("alice/model")
    with pytest.raises(LocalEntryNotFoundError):
        DiffusionPPO.from_pretrained("alice/model", local_files_only=True)
    DiffusionPPO.from_pretrained("alice/model")
    hub_at.requests.clear()
    assert_same(model, DiffusionPPO.from_pretrained("alice/model", local_files_only=True))
    assert not hub_at.requests
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert_same(model, DiffusionPPO.from_pretrained("alice/model"))


def test_what_is_nowhere_is_said_to_be(hub_at: HubServer, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        DiffusionPPO.from_pretrained("alice/nothing")
    with pytest.raises(ValueError, match="neither a folder"):
        DiffusionPPO.from_pretrained(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        DiffusionPPO.from_pretrained(tmp_path)


def test_the_programs_of_the_page_run(
    hub_at: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With fewer steps."""
    page = (ROOT / "docs/hub.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    hub_at.tokens["hf_you"] = "your-name"
    monkeypatch.setenv("HF_TOKEN", "hf_you")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for program in programs:
        for much, little in (
            *(("50_000", "32"), ("10_000", "4"), ("(200)", "(24)"), ("=5_000", "=16")),
            *(("=200", "=3"), ("=100", "=3"), ("seed=0)", "seed=0, n_steps=32, batch_size=16)")),
        ):
            if "env.reset(" not in program:
                program = program.replace(much, little)
        exec(program, names)
    assert len(programs) == 6
    files = set(hub_at.repositories["your-name/avoiding-scene-3"].files())
    listed = set(re.findall(r"`([a-z_A-Z]+\.[a-z]+)`", page.split("one commit:")[1][:1500]))
    assert files == (listed | {".gitattributes"}) - {VEC_NORMALIZE}
    card = hub_at.repositories["your-name/avoiding-scene-3"].files()["README.md"].decode()
    (usage,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(usage, names)
    assert names["env"].action_space.contains(names["action"])
    assert names["env"].spec.kwargs == {"perturbation": "scene:3"}


def test_the_command_in_the_readme_runs(
    hub_at: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: DiffusionPPO
) -> None:
    trained.save(tmp_path / "finetuned")
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"python -c '(.*)'", (ROOT / "README.md").read_text())
    exec(program, {})
    assert "Pendulum-v1" in hub_at.repositories["alice/pendulum"].files()["README.md"].decode()
    assert_same(trained, DiffusionPPO.from_pretrained("alice/pendulum"))


def test_the_server_serves_other_clients_of_the_hub(hub_at: HubServer, tmp_path: Path) -> None:
    """What RL Zoo's scripts ask of it."""
    api = huggingface_hub.HfApi(endpoint=hub_at.endpoint)
    assert api.whoami()["name"] == "alice"
    api.create_repo("alice/zoo", exist_ok=True)
    api.create_repo("alice/zoo", exist_ok=True)
    (tmp_path / "model.zip").write_bytes(b"content")
    (tmp_path / "README.md").write_text("---\ntags: [a]\n---\n")
    api.upload_folder(repo_id="alice/zoo", folder_path=tmp_path)
    path = huggingface_hub.hf_hub_download("alice/zoo", "model.zip")
    assert Path(path).read_bytes() == b"content"
    with pytest.raises(EntryNotFoundError):
        huggingface_hub.hf_hub_download("alice/zoo", "vec_normalize.pkl")
    assert set(api.list_repo_files("alice/zoo")) == {".gitattributes", "README.md", "model.zip"}
    api.upload_file(
        repo_id="alice/zoo", path_or_fileobj=b"new", path_in_repo="a/model.zip", revision="main"
    )
    api.delete_folder("a", "alice/zoo")
    assert "a/model.zip" not in api.list_repo_files("alice/zoo")
