"""Rollout buffers whose actions are whole denoising chains."""

from functools import cache
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import VecNormalize


class ChainBufferMixin:
    """
    Widens a rollout buffer of SB3's, of ``n_steps`` by ``N`` envs.

    ``actions`` hold flattened chains ``(n_steps, N, (K + 1) D)``, ``log_probs`` one entry per
    denoising step ``(n_steps, N, K)``.
    """

    chain_dim: int | None = None
    denoising_steps: int = 1

    def set_chain_shape(self, chain_dim: int, denoising_steps: int) -> None:
        """
        Set the sizes and empty the buffer.

        :param chain_dim: entries of a flattened chain, ``(K + 1) D``
        :param denoising_steps: ``K``
        """
        self.chain_dim, self.denoising_steps = chain_dim, denoising_steps
        self.reset()

    def reset(self) -> None:
        """Empty the buffer."""
        if self.chain_dim is not None:
            self.action_dim = self.chain_dim
        super().reset()  # type: ignore[misc]
        shape = self.rewards.shape  # type: ignore[attr-defined]
        self.actions = np.zeros((*shape, self.action_dim), dtype=np.float32)
        self.log_probs = np.zeros((*shape, self.denoising_steps), dtype=np.float32)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        samples = super()._get_samples(batch_inds, env)  # type: ignore[misc]
        # SB3 flattens the log-likelihoods; they are (B, K) here.
        old_log_prob = self.to_torch(self.log_probs[batch_inds])  # type: ignore[attr-defined]
        return samples._replace(old_log_prob=old_log_prob)


@cache
def chain_buffer_class(base: type[RolloutBuffer]) -> type[RolloutBuffer]:
    """
    :param base: a rollout buffer class, SB3's or the user's own
    :return: the same with denoising chains as actions
    """
    return type(f"Chain{base.__name__}", (ChainBufferMixin, base), {})
