"""Small models for the tests of the algorithm, and what is done to them."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.diffusion import MlpDenoiser
from tests.envs import TargetEnv

POLICY_KWARGS: dict[str, Any] = {"net_arch": [32, 32], "denoising_steps": 3}
SMALL_IMAGES = {"features_extractor_kwargs": {"features_dim": 16}}
SMALL_DICTS = {"features_extractor_kwargs": {"cnn_output_dim": 16}}


class Log(KVWriter):
    """Keeps what the algorithm logs."""

    def __init__(self, model: DiffusionPPO):
        self.rows: list[dict[str, Any]] = []
        self.logger = Logger(None, [self])
        model.set_logger(self.logger)

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        """Nothing to close."""

    def __getitem__(self, key: str) -> list[float]:
        rows = [*self.rows, self.logger.name_to_value]  # the last update is logged after the dump
        return [float(row[key]) for row in rows if key in row]

    def names(self) -> set[str]:
        return set().union(*self.rows, self.logger.name_to_value)


def make_model(
    env: gym.Env[Any, Any] | VecEnv | None = None, policy: Any = "policy", **kwargs: Any
) -> DiffusionPPO:
    arguments: dict[str, Any] = {
        "n_steps": 16,
        "batch_size": 16,
        "n_epochs": 2,
        "policy_kwargs": POLICY_KWARGS,
        "seed": 0,
        "device": "cpu",
        **kwargs,
    }
    return DiffusionPPO(policy, env if env is not None else TargetEnv(), **arguments)


def perturb(module: nn.Module, scale: float = 0.1) -> None:
    with th.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * th.randn_like(parameter))


def with_prior(model: DiffusionPPO, scale: float = 0.1) -> DiffusionPPO:
    """Freeze the prior and move the policy away from it."""
    model.policy.freeze_prior()
    perturb(model.policy.actor, scale)
    return model


def always(denoiser: nn.Module, action: float) -> None:
    """Make a denoiser predict such noise that the clean action is clipped to 1 or -1."""
    assert isinstance(denoiser, MlpDenoiser) and abs(action) == 1
    with th.no_grad():
        assert isinstance(denoiser.output_layer, nn.Linear)
        denoiser.output_layer.weight.zero_()
        denoiser.output_layer.bias.fill_(-100 * action)


def state_of(module: nn.Module) -> dict[str, th.Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def same_state(a: dict[str, th.Tensor], b: dict[str, th.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(th.equal(a[key], b[key]) for key in a)


def assert_same_predictions(model: Any, loaded: Any, observations: Any) -> None:
    """In both modes, of the same draws."""
    for deterministic in (True, False):
        th.manual_seed(1)
        expected, _ = model.predict(observations, deterministic=deterministic)
        th.manual_seed(1)
        found, _ = loaded.predict(observations, deterministic=deterministic)
        np.testing.assert_array_equal(found, expected)


def collect(model: DiffusionPPO) -> None:
    """Fill the rollout buffer once, without an update."""
    _, callback = model._setup_learn(model.n_steps * model.n_envs)
    assert model.env is not None
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def actor_after(n_steps: int, model: DiffusionPPO) -> dict[str, th.Tensor]:
    model.learn(n_steps)
    return state_of(model.policy.actor)
