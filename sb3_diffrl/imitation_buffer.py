"""What there is to imitate during RL."""

from collections import deque
from collections.abc import Callable, Collection
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_diffrl.batches import Batches, TensorBatches, batches, check_demonstrations
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.joining import map_observations
from sb3_diffrl.demonstrations.transport import carry_over
from sb3_diffrl.policies import DiffusionActorCriticPolicy

Episode = tuple[Any, np.ndarray]


class ImitationBuffer:
    """
    What there is to imitate: demonstrations, the same carried over to the scenes met, and own
    successful episodes as they end.
    """

    def __init__(self) -> None:
        self.demonstrations: Demonstrations | None = None
        self._step_wise: Demonstrations | None = None
        self._episodes: dict[str, deque[Episode]] = {"context": deque(), "successes": deque()}
        self._n_kept = {"context": 0, "successes": 0}  # decisions
        # Per env the parts of the episode under way; None where its start was not seen.
        self._pending: list[list[Episode] | None] = []
        self._batches: dict[str, Batches] = {}

    @property
    def n_successes(self) -> int:
        """Number of own successful decisions kept."""
        return self._n_kept["successes"]

    def set_demonstrations(
        self,
        demonstrations: Demonstrations,
        policy: DiffusionActorCriticPolicy,
        step_wise: Demonstrations | None = None,
    ) -> None:
        """
        :param demonstrations: checked against the policy's spaces
        :param policy: the policy that imitates them
        :param step_wise: the same in environment steps and the env's own units, to carry over
        """
        self.demonstrations = check_demonstrations(demonstrations, policy)
        self._step_wise = step_wise
        self._episodes["context"].clear()
        self._n_kept["context"] = 0
        for term in ("demonstrations", "context"):
            self._batches.pop(term, None)

    def carried_over(
        self, transport: Callable[..., Episode], met: Collection[Any]
    ) -> Demonstrations:
        """
        :param transport: see :class:`Imitation`
        :param met: first observations of ``N`` episodes, each in the env's own units
        :return: for each a demonstration, drawn at random, as it would be there, in environment
            steps
        :raises ValueError: without step-wise demonstrations
        """
        if self._step_wise is None:
            raise ValueError(
                "imitation: transport carries over step-wise demonstrations, and these are none. "
                "Give pretrain or set_demonstrations the steps of the env inside of its wrappers."
            )
        drawn = th.randint(len(self._step_wise), (len(met),)).tolist()
        return carry_over(self._step_wise, transport, met, drawn)

    def add_carried_over(
        self, demonstrations: Demonstrations, policy: DiffusionActorCriticPolicy, capacity: int
    ) -> None:
        """
        :param demonstrations: what :meth:`carried_over` gave, as decisions and as the policy sees
            them
        :param policy: that imitates them
        :param capacity: number of decisions kept, the oldest episodes leaving first
        """
        checked = check_demonstrations(demonstrations, policy)
        actions = policy.scale_action(np.asarray(checked.actions)).reshape(len(checked.actions), -1)
        for begin, end in zip(checked.episode_starts, checked.episode_ends, strict=True):
            part = slice(begin, end)
            seen = map_observations(itemgetter(part), checked.observations)
            self._keep("context", (seen, actions[part]), capacity)

    def _keep(self, term: str, episode: Episode, capacity: int) -> None:
        self._episodes[term].append(episode)
        self._n_kept[term] += len(episode[1])
        while self._n_kept[term] > capacity:
            _, left = self._episodes[term].popleft()
            self._n_kept[term] -= len(left)
        self._batches.pop(term, None)

    def forget_pending(self, n_envs: int) -> None:
        """
        Drop the episodes under way, as when a part of them was not recorded.

        :param n_envs: number of envs ``N`` from now on
        """
        self._pending = [None] * n_envs

    def add_rollout(
        self,
        observations: Any,
        actions: np.ndarray,
        episode_starts: np.ndarray,
        outcomes: np.ndarray,
        capacity: int,
    ) -> None:
        """
        Take the successful episodes out of a rollout; those still under way wait for the next.

        :param observations: ``(n_steps, N, ...)``, or a mapping of such arrays
        :param actions: ``(n_steps, N, D)`` scaled
        :param episode_starts: ``(n_steps, N)`` whether a decision is the first of its episode
        :param outcomes: ``(n_steps, N)``: 0 under way, 1 ended, 2 ended in success
        :param capacity: number of own decisions kept, the oldest episodes leaving first
        """
        n_steps, n_envs = outcomes.shape
        if len(self._pending) != n_envs:
            self.forget_pending(n_envs)
        for env in range(n_envs):
            starts = np.flatnonzero(episode_starts[:, env])
            for start, end in pairwise(sorted({0, *starts.tolist(), n_steps})):
                if episode_starts[start, env]:
                    self._pending[env] = []
                parts = self._pending[env]
                if parts is None:
                    continue
                rows = (slice(start, end), env)
                parts.append((map_observations(itemgetter(rows), observations), actions[rows]))
                if outcomes[end - 1, env] == 2:
                    self._keep("successes", _concatenate(parts), capacity)
                if outcomes[end - 1, env]:
                    self._pending[env] = None

    def batches(self, term: str, policy: DiffusionActorCriticPolicy) -> Batches | None:
        """
        :param term: ``"demonstrations"``, ``"context"`` (those carried over) or ``"successes"``
        :param policy: gives device and action scale
        :return: what to draw from; None where there is none
        """
        if term not in self._batches:
            if term == "demonstrations" and self.demonstrations is not None:
                self._batches[term] = batches(policy, self.demonstrations)
            elif episodes := self._episodes.get(term):
                observations, actions = _concatenate(list(episodes))
                scaled = th.as_tensor(policy.action_scale.clip(actions), device=policy.device)
                self._batches[term] = TensorBatches(
                    obs_as_tensor(observations, policy.device), scaled
                )
        return self._batches.get(term)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": {}}


def _concatenate(parts: list[tuple[Any, np.ndarray]]) -> tuple[Any, np.ndarray]:
    actions = np.concatenate([part[1] for part in parts])
    first = parts[0][0]
    if isinstance(first, dict):
        return {key: np.concatenate([part[0][key] for part in parts]) for key in first}, actions
    return np.concatenate([part[0] for part in parts]), actions
