"""Minibatches of demonstrations, from tensors in memory or gathered from where the data lie."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.arrays import CHUNK_BYTES, ConvertedArray, Source, is_lazy
from sb3_diffrl.policies import DiffusionActorCriticPolicy

MEMORY_BYTES = 512 * 2**20
CHUNK_ROWS = 8192  # go through a network at once

Batch = tuple[PyTorchObs, th.Tensor]


class Batches(ABC):
    """
    ``M`` decisions: observations ``(M, ...)`` and scaled actions ``(M, D)`` of a policy.

    :param length: ``M``
    :param row_bytes: size of one observation
    :param device: on which the random numbers are drawn, and where minibatches lie
    :param weights: ``(M,)`` how often each decision is drawn, None for all alike
    """

    def __init__(
        self,
        length: int,
        row_bytes: int,
        device: th.device,
        weights: np.ndarray | None = None,
    ):
        self.length, self.device = length, device
        self.chunk = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(1, row_bytes)))
        self.cumulative: th.Tensor | None = None
        if weights is not None:
            if not weights.any():
                raise ValueError("weights: all are 0; give at least one episode a weight above 0")
            self.cumulative = th.as_tensor(np.cumsum(weights / weights.sum()), device=device)

    def __len__(self) -> int:
        return self.length

    @abstractmethod
    def take(self, rows: th.Tensor) -> Batch:
        """
        :param rows: ``(B,)`` indices on the device
        :return: observations ``(B, ...)`` and scaled actions ``(B, D)`` on the device
        """

    def draw(self, batch_size: int) -> Batch:
        """
        :param batch_size: number of decisions ``B``, drawn with replacement
        :return: see :meth:`take`
        """
        if self.cumulative is None:
            return self.take(th.randint(self.length, (batch_size,), device=self.device))
        uniform = th.rand(batch_size, device=self.device, dtype=th.float64)
        rows = th.searchsorted(self.cumulative, uniform, right=True)
        return self.take(rows.clamp(max=self.length - 1))

    def chunks(self) -> Iterator[Batch]:
        """
        :return: all decisions in their order, in pieces whose size depends on an observation's
        """
        for start in range(0, self.length, self.chunk):
            stop = min(start + self.chunk, self.length)
            yield self.take(th.arange(start, stop, device=self.device))


class TensorBatches(Batches):
    """
    From tensors.

    :param observations: ``(M, ...)``, or a dict of such tensors
    :param actions: ``(M, D)`` scaled
    :param weights: see :class:`Batches`
    """

    def __init__(
        self, observations: PyTorchObs, actions: th.Tensor, weights: np.ndarray | None = None
    ):
        self.observations, self.actions = observations, actions
        parts = observations.values() if isinstance(observations, dict) else [observations]
        row_bytes = sum(part[:1].nbytes for part in parts)
        super().__init__(len(actions), row_bytes, actions.device, weights)

    def take(self, rows: th.Tensor) -> Batch:
        """See :meth:`Batches.take`."""
        return index(self.observations, rows), self.actions[rows]


class SourceBatches(Batches):
    """
    From arrays that are read for each minibatch.

    :param policy: gives device and action scale
    :param demonstrations: checked demonstrations
    :param weights: see :class:`Batches`
    """

    def __init__(
        self,
        policy: DiffusionActorCriticPolicy,
        demonstrations: Demonstrations,
        weights: np.ndarray | None = None,
    ):
        self.policy, self.demonstrations = policy, demonstrations
        parts = _parts(demonstrations.observations)
        row_bytes = sum(x.dtype.itemsize * math.prod(x.shape[1:]) for x in parts)
        super().__init__(demonstrations.n_decisions, row_bytes, policy.device, weights)

    def take(self, rows: th.Tensor) -> Batch:
        """See :meth:`Batches.take`; repeats are read once, by rising rows."""
        wanted, back = np.unique(rows.cpu().numpy(), return_inverse=True)

        def read(array: Source) -> np.ndarray:
            return np.asarray(array[wanted])[back]

        observations: Any = self.demonstrations.observations
        if isinstance(observations, dict):
            observations = {key: read(part) for key, part in observations.items()}
        else:
            observations = read(observations)
        return _to_tensors(self.policy, observations, read(self.demonstrations.actions))


def batches(
    policy: DiffusionActorCriticPolicy,
    demonstrations: Demonstrations,
    memory_bytes: int = MEMORY_BYTES,
) -> Batches:
    """
    :param policy: gives device and action scale
    :param demonstrations: checked demonstrations, ``M`` decisions
    :param memory_bytes: lazy arrays up to this size are read into memory once
    :return: the same minibatches for the same random numbers, in memory or not
    """
    weights = None
    if demonstrations.weights is not None:
        weights = np.repeat(demonstrations.weights, demonstrations.lengths)
    if demonstrations.is_lazy and demonstrations.n_bytes > memory_bytes:
        return SourceBatches(policy, demonstrations, weights)
    return TensorBatches(*as_tensors(policy, demonstrations), weights)


def check_demonstrations(demonstrations: Demonstrations, policy: BasePolicy) -> Demonstrations:
    """
    Check against the policy's spaces; images are brought to SB3's channel-first order.

    :param demonstrations: what the user brought
    :param policy: the policy that is to imitate them
    :return: the demonstrations in the policy's layout
    :raises ValueError: naming field, first bad index and expected shape
    """
    if not isinstance(demonstrations, Demonstrations):
        raise ValueError(
            f"demonstrations: expected sb3_diffrl.Demonstrations, got {type(demonstrations)}. "
            "Build them by Demonstrations.from_arrays(observations, actions, episode_ends)."
        )
    space = policy.observation_space
    observations: Any = demonstrations.observations
    if isinstance(observations, dict) and isinstance(space, spaces.Dict):
        observations = {
            key: _channels_first(part, space.spaces.get(key)) for key, part in observations.items()
        }
    elif not isinstance(observations, dict):
        observations = _channels_first(observations, space)
    checked = demonstrations.with_observations(observations)
    checked.validate(space, policy.action_space)
    return checked


def as_tensors(policy: DiffusionActorCriticPolicy, demonstrations: Demonstrations) -> Batch:
    """
    :param policy: gives device and action scale
    :param demonstrations: checked demonstrations, ``M`` decisions
    :return: observations ``(M, ...)`` and scaled actions ``(M, D)``
    """
    observations: Any = demonstrations.observations
    if isinstance(observations, dict):
        observations = {key: np.asarray(part) for key, part in observations.items()}
    return _to_tensors(policy, observations, demonstrations.actions)


def index(observations: PyTorchObs, batch: th.Tensor) -> PyTorchObs:
    """
    :param observations: ``(M, ...)``, or a dict of such tensors
    :param batch: ``(B,)`` indices
    :return: ``(B, ...)``
    """
    if isinstance(observations, dict):
        return {key: part[batch] for key, part in observations.items()}
    return observations[batch]


def _to_tensors(policy: DiffusionActorCriticPolicy, observations: Any, actions: Any) -> Batch:
    seen = observations if isinstance(observations, dict) else np.asarray(observations)
    tensors, _ = policy.obs_to_tensor(seen)
    scaled = policy.scale_action(np.asarray(actions))
    return tensors, th.as_tensor(scaled, device=policy.device).flatten(1)


def _parts(observations: Any) -> list[Any]:
    return list(observations.values()) if isinstance(observations, dict) else [observations]


def _channels_first(images: Any, space: spaces.Space | None) -> Any:
    if space is None or not is_image_space(space):
        return images
    last = (*space.shape[1:], space.shape[0]) if space.shape else ()
    if images.shape[1:] != last:
        return images
    if is_lazy(images):
        return ConvertedArray(images, _moved)
    return np.moveaxis(images, -1, 1)


def _moved(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, -1, 1)
