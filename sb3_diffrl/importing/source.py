"""A policy trained elsewhere, and the model made of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import GymEnv

from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.wrappers import ActionChunkWrapper, ObservationHistoryWrapper
from sb3_diffrl.wrappers.records import WrapperRecord

# An entry that varies less than this part of its size is constant: single precision tells its
# values from one another hardly, if at all.
CONSTANT = 1e-6
# Width of the range of actions that have none.
NARROWEST = 1e-8
# Where actions have no bounds, the model without an env gets some: this many half ranges.
UNBOUNDED = 10.0


@dataclass(frozen=True)
class Statistics:
    """
    Normalisation ``(x - mean) / scale`` of ``d`` entries.

    :param mean: ``(d,)``, like all of them
    :param scale: above 0
    :param constant: which entries were constant in the data
    :param low: what normalised -1 stands for
    :param high: what normalised 1 stands for
    """

    mean: np.ndarray
    scale: np.ndarray
    constant: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of_range(cls, low: np.ndarray, high: np.ndarray, slack: float = 0.0) -> "Statistics":
        """
        Takes ``low`` to -1 and ``high`` to 1. A constant entry becomes -1, and what is ever so
        little beside it is not blown up.

        :param low: ``(d,)``
        :param high: ``(d,)``
        :param slack: added to the width of the range where observations are divided by it
        :return: the statistics
        """
        constant = high - low <= CONSTANT * np.maximum(np.abs(low), np.abs(high))
        scale = np.where(constant, 1.0, (high - low + slack) / 2)
        return cls(low + scale, scale, constant, low, np.maximum(high, low + NARROWEST))

    @classmethod
    def of_moments(cls, mean: np.ndarray, std: np.ndarray, slack: float = 0.0) -> "Statistics":
        """
        Takes ``mean`` to 0 and ``std`` to 1.

        :param mean: ``(d,)``
        :param std: ``(d,)``
        :param slack: added to the standard deviation where observations are divided by it
        :return: the statistics
        """
        constant = std <= CONSTANT * np.abs(mean)
        half = np.maximum(std, NARROWEST)
        return cls(mean, np.where(constant, 1.0, std + slack), constant, mean - half, mean + half)

    @classmethod
    def identity(cls, size: int) -> "Statistics":
        """:return: the statistics of ``size`` entries that are left as they are"""
        zeros, ones = np.zeros(size), np.ones(size)
        return cls(zeros, ones, np.zeros(size, bool), -ones, ones)


@dataclass(frozen=True)
class SourcePolicy:
    """
    What was read of a policy.

    :param origin: what it was read from, for messages
    :param observations: by name the statistics of the parts of one observation, in their order
    :param n_observations: number ``n`` of observations that it sees, the oldest first
    :param horizon: number ``H`` of actions that it predicts
    :param start: index of the first of them that is executed
    :param n_executed: number of them that are executed
    :param actions: statistics of an action, whose ends are what -1 and 1 stand for
    :param policy_kwargs: architecture and diffusion process
    :param denoiser: weights by their names in our denoiser
    :param of_features: name of those whose columns are the observation features
    :param prior_denoiser: weights for the first denoising steps where they are others
    """

    origin: str
    observations: dict[str, Statistics]
    n_observations: int
    horizon: int
    start: int
    n_executed: int
    actions: Statistics
    policy_kwargs: dict[str, Any]
    denoiser: dict[str, th.Tensor]
    of_features: str
    prior_denoiser: dict[str, th.Tensor] | None = field(default=None)

    @property
    def n_entries(self) -> int:
        """Number ``d`` of entries of one observation."""
        return sum(len(part.mean) for part in self.observations.values())

    def env_wrappers(self) -> list[WrapperRecord]:
        """:return: of an env with the spaces of the model without one, innermost first"""
        return [
            ObservationHistoryWrapper.record(n_observations=self.n_observations),
            ActionChunkWrapper.record(
                horizon=self.horizon, n_executed=self.n_executed, start=self.start
            ),
        ]

    def observation_space(self) -> spaces.Box:
        """:return: of the model without an env: all parts side by side, ``(n, d)``"""
        return spaces.Box(-np.inf, np.inf, (self.n_observations, self.n_entries))

    def action_space(self) -> spaces.Box:
        """:return: of the model without an env: what the policy can want, ``(H, A)``"""
        clip_sample = self.policy_kwargs["clip_sample"]
        reach = UNBOUNDED if clip_sample is None else clip_sample
        low, high = self.actions.low, self.actions.high
        middle, half = (low + high) / 2, (high - low) / 2 * reach
        lowest, highest = (
            np.tile(end, (self.horizon, 1)).astype(np.float32)
            for end in (middle - half, middle + half)
        )
        # A constant action's bounds must differ in single precision, too.
        return spaces.Box(lowest, np.maximum(highest, np.nextafter(lowest, np.float32(np.inf))))


def build(
    source: SourcePolicy,
    env: GymEnv | str | None,
    keys: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> DiffusionPPO:
    """
    :param source: the policy
    :param env: to train in; None for a model that only acts and serves as a prior
    :param keys: by name of the observation's part its key in a Dict observation
    :param kwargs: of :class:`~sb3_diffrl.DiffusionPPO`
    :return: the model, whose actor and frozen prior are the policy
    :raises ValueError: where the env's spaces do not fit, saying how to wrap it
    """
    policy_kwargs = {
        **source.policy_kwargs,
        "action_range": [source.actions.low.tolist(), source.actions.high.tolist()],
        **kwargs.pop("policy_kwargs", {}),
    }
    if env is None:
        model = DiffusionPPO(
            "policy",
            None,  # type: ignore[arg-type]  # without an env
            policy_kwargs=policy_kwargs,
            _init_setup_model=False,
            **kwargs,
        )
        model.observation_space = source.observation_space()
        model.action_space = source.action_space()
        model.env_wrappers = source.env_wrappers()
        model.n_envs = 1
        model._setup_model()
    else:
        env = gym.make(env) if isinstance(env, str) else env
        _check_env(source, env.observation_space, env.action_space, keys or {})
        model = DiffusionPPO("policy", env, policy_kwargs=policy_kwargs, **kwargs)
    _fill(model, source, keys or {})
    return model


def _check_env(
    source: SourcePolicy,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    keys: Mapping[str, str],
) -> None:
    n, n_actions = source.n_observations, len(source.actions.mean)

    def fits(space: spaces.Space, count: int, size: int) -> bool:
        shapes = {(count, size), (count * size,)}
        return isinstance(space, spaces.Box) and space.shape in shapes

    sizes = {keys.get(name, name): len(part.mean) for name, part in source.observations.items()}
    if isinstance(observation_space, spaces.Dict):
        parts = observation_space.spaces
        seen = parts.keys() == sizes.keys() and all(
            fits(parts[key], n, size) for key, size in sizes.items()
        )
    else:
        seen = fits(observation_space, n, source.n_entries)
    if not (seen and fits(action_space, source.horizon, n_actions)):
        inner = f"ObservationHistoryWrapper(env, {n})" if n > 1 else "env"
        raise ValueError(
            f"The env does not fit {source.origin}: expected observations of shape "
            f"{(n, source.n_entries)} (the last {n}, oldest first), or a Dict of {sizes}, and "
            f"actions of shape {(source.horizon, n_actions)}; the env has {observation_space} and "
            f"{action_space}. Wrap it: ActionChunkWrapper({inner}, horizon={source.horizon}, "
            f"n_executed={source.n_executed}, start={source.start})."
        )


def _fill(model: DiffusionPPO, source: SourcePolicy, keys: Mapping[str, str]) -> None:
    """Give the model's actor the weights and statistics, and its prior the same or others."""
    policy, space = model.policy, model.observation_space
    names = {keys.get(name, name): name for name in source.observations}
    # Where each feature of ours is among theirs, which are all parts of one observation after
    # those of the one before.
    shape = source.n_observations, source.n_entries
    columns = np.arange(math.prod(shape)).reshape(shape)
    ends = np.cumsum([len(part.mean) for part in source.observations.values()])
    of_part = dict(zip(source.observations, np.split(columns, ends[:-1], axis=1), strict=True))
    groups = (
        {key: [names[key]] for key in space.spaces}
        if isinstance(space, spaces.Dict)
        else {"": list(source.observations)}
    )
    order = []
    for key, parts in groups.items():
        block = np.concatenate([of_part[part] for part in parts], axis=1)
        order.append(block.ravel())
        standardizer = policy.actor.normalizer.standardizer(key)
        mean, scale, constant = (
            np.tile(
                np.concatenate([getattr(source.observations[part], name) for part in parts]),
                source.n_observations,
            ).reshape(standardizer.mean.shape)
            for name in ("mean", "scale", "constant")
        )
        standardizer.set_statistics(mean, scale, constant)
    permutation = th.as_tensor(np.concatenate(order))
    _load(policy.actor.denoiser, source, source.prior_denoiser or source.denoiser, permutation)
    policy.freeze_prior()
    if source.prior_denoiser is not None:
        _load(policy.actor.denoiser, source, source.denoiser, permutation)


def _load(
    denoiser: th.nn.Module,
    source: SourcePolicy,
    weights: Mapping[str, th.Tensor],
    permutation: th.Tensor,
) -> None:
    mine = {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"The weights of {source.origin} do not fit its configuration: {name} is "
                f"{theirs.get(name)}, expected {mine.get(name)}."
            )
    of_features = weights[source.of_features][:, permutation]
    denoiser.load_state_dict({**weights, source.of_features: of_features})
