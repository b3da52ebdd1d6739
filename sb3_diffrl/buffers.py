"""Rollout buffers whose actions are whole denoising chains."""

from collections.abc import Callable, Generator
from functools import cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize


class ChainSamples(NamedTuple):
    """
    A minibatch of decisions: SB3's, with chains.

    :param observations: ``(B, ...)``
    :param actions: ``(B, (k + 1) D)`` flattened chains
    :param old_values: ``(B,)``
    :param old_log_prob: ``(B, k)``
    :param advantages: ``(B,)``
    :param returns: ``(B,)``
    :param prior_means: ``(B, k D)``; empty, ``(B, 0)``, without a prior
    """

    observations: PyTorchObs
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    prior_means: th.Tensor

    def map(self, function: Callable[[Any], Any]) -> "ChainSamples":
        """
        :param function: of one field, or of one entry of Dict observations
        :return: what it makes of all of them
        """
        observations, *others = self
        if isinstance(observations, dict):
            mapped: Any = {key: function(entry) for key, entry in observations.items()}
        else:
            mapped = function(observations)
        return ChainSamples(mapped, *map(function, others))

    def split(self, size: int) -> "Generator[ChainSamples, None, None]":
        """
        :param size: largest number of decisions
        :return: the parts in order
        """
        for start in range(0, len(self.actions), size):
            yield self.map(itemgetter(slice(start, start + size)))


class ChainBufferMixin(RolloutBuffer):
    """
    Widens a rollout buffer of SB3's, of ``n_steps`` by ``N`` envs.

    ``actions`` hold flattened chains ``(n_steps, N, (k + 1) D)``, ``log_probs`` one entry per
    fine-tuned denoising step ``(n_steps, N, k)``, ``prior_means`` what the frozen prior makes of
    the chains, ``(n_steps, N, k D)``; no entries without a prior.
    """

    chain_dim: int | None = None
    finetuned_steps: int = 1

    def set_chain_shape(self, chain_dim: int, finetuned_steps: int) -> None:
        """
        Set the sizes and empty the buffer.

        :param chain_dim: entries of a flattened chain, ``(k + 1) D``
        :param finetuned_steps: ``k``
        """
        self.chain_dim, self.finetuned_steps = chain_dim, finetuned_steps
        self.reset()

    def reset(self) -> None:
        """Empty the buffer."""
        if self.chain_dim is not None:
            self.action_dim = self.chain_dim
        super().reset()
        shape = self.rewards.shape
        self.actions = np.zeros((*shape, self.action_dim), dtype=np.float32)
        self.log_probs = np.zeros((*shape, self.finetuned_steps), dtype=np.float32)
        self.prior_means = np.zeros((*shape, 0), dtype=np.float32)

    def evaluated(self, log_probs: th.Tensor, prior_means: th.Tensor | None) -> None:
        """
        Set what the policy says of the whole rollout.

        :param log_probs: ``(n_steps N, k)``
        :param prior_means: ``(n_steps N, k D)``, None without a prior
        """
        shape = self.rewards.shape
        self.log_probs[:] = log_probs.cpu().numpy().reshape(self.log_probs.shape)
        if prior_means is not None:
            self.prior_means = prior_means.cpu().numpy().reshape(*shape, -1)

    def in_order(self, batch_size: int) -> Generator[ChainSamples, None, None]:
        """
        The rollout before :meth:`get`, in the order of its steps.

        :param batch_size: decisions per batch
        :return: the batches
        """
        n = self.rewards.size
        arrays: Any = (
            self.observations,
            self.actions,
            self.values,
            self.log_probs,
            self.advantages,
            self.returns,
            self.prior_means,
        )
        rollout = ChainSamples(*arrays)
        rows = rollout.map(lambda array: array.reshape(n, *array.shape[2:]))
        for part in rows.split(batch_size):
            yield part.map(self.to_torch)

    def get(  # type: ignore[override]  # SB3's samples with one field more
        self, batch_size: int | None = None
    ) -> Generator[ChainSamples, None, None]:
        """
        :param batch_size: decisions per minibatch, by default all
        :return: minibatches in random order
        """
        if not self.generator_ready:
            self.prior_means = self.swap_and_flatten(self.prior_means)
        yield from super().get(batch_size)  # type: ignore[misc]  # of these samples, see below

    def to_torch(self, array: np.ndarray, copy: bool = True) -> th.Tensor:
        """
        As SB3's, but a CUDA device is sent pinned memory, for which the host need not wait.

        :param array: host array
        :param copy: whether to copy on the CPU
        :return: tensor on the buffer's device
        """
        if th.device(self.device).type != "cuda":
            return super().to_torch(array, copy)
        pinned = th.from_numpy(np.ascontiguousarray(array)).pin_memory()
        return pinned.to(self.device, non_blocking=True)

    def _get_samples(  # type: ignore[override]  # as above
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> ChainSamples:
        samples = super()._get_samples(batch_inds, env)
        # SB3 flattens the log-likelihoods; they are (B, k) here.
        return ChainSamples(
            samples.observations,
            samples.actions,
            samples.old_values,
            self.to_torch(self.log_probs[batch_inds]),
            samples.advantages,
            samples.returns,
            self.to_torch(self.prior_means[batch_inds]),
        )


@cache
def chain_buffer_class(base: type[RolloutBuffer]) -> type[RolloutBuffer]:
    """
    :param base: a rollout buffer class, SB3's or the user's own
    :return: the same with denoising chains as actions
    """
    return type(f"Chain{base.__name__}", (ChainBufferMixin, base), {})
