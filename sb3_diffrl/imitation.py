"""
Imitation during RL: the denoising loss continued on demonstrations and on the agent's own
successes.

Policy gradients see only the states that the policy visits; elsewhere, and on the clean task
foremost, nothing holds it. Three terms do, each weighted by itself:

- *demonstrations*: on demonstrated states the policy keeps the prior's prediction;
- *context*: demonstrations carried over to the scenes met online, also where the prior never
  succeeds and no reward is seen. Without ``transport`` the behaviour is kept, and the entries of
  the observation that hardly vary in the demonstrations (where obstacles stand) take the values
  met. With it the behaviour follows what it handles: demonstrations are moved to where things are;
- *successes*: imitation of the agent's own successful episodes.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.utils import obs_as_tensor

from sb3_diffrl.batches import Batches, TensorBatches, batches, check_demonstrations, index
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.transport import as_transport, carry_over
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from sb3_diffrl.schedules import IMITATION, Constant, Schedule, ScheduleSpec, Signals

ImitationSpec = ScheduleSpec | Mapping[str, Any]
Episode = tuple[Any, np.ndarray]


@dataclass
class Imitation:
    """
    The weights of the three terms; each a number, string, mapping or schedule.

    :param demonstrations: weight of the loss on demonstrations
    :param context: weight of the loss on demonstrations in contexts met online
    :param successes: weight of the loss on own successful decisions
    :param batch_size: samples of each term per minibatch
    :param transport: carries demonstrations over to the scenes met, see
        :class:`~sb3_diffrl.demonstrations.transport.Transport`, the mapping of its parameters, or a
        function of the same arguments; None replaces what hardly varies
    :param capacity: number of own successful decisions kept, and of carried-over ones, the oldest
        episodes leaving first
    :param warmup_steps: gradient steps by imitation alone, in each iteration of critic_warmup
    :param warmup_learning_rate: their learning rate, which falls linearly to a third in each
        iteration
    """

    demonstrations: Schedule = field(default_factory=lambda: Constant(0.0))
    context: Schedule = field(default_factory=lambda: Constant(0.0))
    successes: Schedule = field(default_factory=lambda: Constant(0.0))
    transport: Callable[..., Episode] | None = None
    batch_size: int = 256
    capacity: int = 100_000
    warmup_steps: int = 0
    warmup_learning_rate: float = 1e-3
    terms: ClassVar[tuple[str, ...]] = ("demonstrations", "context", "successes")

    @classmethod
    def parse(cls, spec: "ImitationSpec | Imitation") -> "Imitation":
        """
        :param spec: weight of the demonstrations as a number, string or schedule, or a mapping with
            any of the parameters
        :return: the weights
        :raises ValueError: saying what was wrong and what is expected
        """
        if isinstance(spec, Imitation):
            return spec
        if not isinstance(spec, Mapping) or "kind" in spec:
            return cls(demonstrations=IMITATION.schedule(spec))
        # Type and smallest value of those that are no schedules.
        numbers: dict[str, tuple[Any, float]] = {
            "batch_size": (Integral, 1),
            "capacity": (Integral, 1),
            "warmup_steps": (Integral, 0),
            "warmup_learning_rate": (Real, 1e-12),
        }
        unknown = set(spec) - {*cls.terms, *numbers, "transport"}
        if unknown:
            raise ValueError(
                f"imitation={dict(spec)!r}: unknown {sorted(unknown)}. "
                f"Expected any of {', '.join((*cls.terms, *numbers, 'transport'))}."
            )
        for name, (kind, least) in numbers.items():
            if name not in spec:
                continue
            value: Any = spec[name]
            is_number = isinstance(value, kind) and not isinstance(value, bool)
            if not (is_number and least <= value < math.inf):
                raise ValueError(
                    f"imitation={dict(spec)!r}: {name} must be a {kind.__name__.lower()} number "
                    f"of at least {least:g}, got {value!r}."
                )
        arguments: dict[str, Any] = {name: spec[name] for name in numbers if name in spec}
        arguments["transport"] = as_transport(spec.get("transport"))
        arguments |= {
            name: replace(IMITATION, name=f"imitation {name}").schedule(spec[name])
            for name in cls.terms
            if name in spec
        }
        return cls(**arguments)

    def weights(self, signals: Signals) -> dict[str, float]:
        """
        :param signals: what the schedules look at
        :return: current weight of each term
        """
        return {term: getattr(self, term)(signals) for term in self.terms}


class ImitationBuffer:
    """
    What there is to imitate: demonstrations, the same carried over to the scenes met, and own
    successful episodes as they end.
    """

    def __init__(self) -> None:
        self.demonstrations: Demonstrations | None = None
        self._step_wise: Demonstrations | None = None
        self._episodes: dict[str, deque[Episode]] = {"context": deque(), "successes": deque()}
        # Per env the parts of the episode under way; None where its start was not seen.
        self._pending: list[list[Episode] | None] = []
        self._batches: dict[str, Batches] = {}

    @property
    def n_successes(self) -> int:
        """Number of own successful decisions kept."""
        return self._n_kept("successes")

    def _n_kept(self, term: str) -> int:
        return sum(len(actions) for _, actions in self._episodes[term])

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
        for term in ("demonstrations", "context"):
            self._batches.pop(term, None)

    def carried_over(self, transport: Callable[..., Episode], met: np.ndarray) -> Demonstrations:
        """
        :param transport: see :class:`Imitation`
        :param met: first observations of ``N`` episodes, ``(N, F)`` in the env's own units
        :return: for each a demonstration, drawn at random, as it would be there, in environment
            steps
        :raises ValueError: without step-wise demonstrations
        """
        if self._step_wise is None:
            raise ValueError(
                "imitation: transport carries over step-wise demonstrations, and these are none. "
                "Give pretrain or set_demonstrations the steps of the env inside of its wrappers."
            )
        return carry_over(self._step_wise, transport, met)

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
        for begin, end in pairwise([0, *checked.episode_ends.tolist()]):
            part = slice(begin, end)
            seen = _map(lambda x, p=part: np.asarray(x[p]), checked.observations)
            self._keep("context", (seen, actions[part]), capacity)

    def _keep(self, term: str, episode: Episode, capacity: int) -> None:
        episodes = self._episodes[term]
        episodes.append(episode)
        while episodes and self._n_kept(term) > capacity:
            episodes.popleft()
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
                part = slice(start, end)
                parts.append(
                    (_map(lambda x, p=part, e=env: x[p, e], observations), actions[part, env])
                )
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
                scaled = th.as_tensor(actions.clip(-1, 1), device=policy.device)
                self._batches[term] = TensorBatches(
                    obs_as_tensor(observations, policy.device), scaled
                )
        return self._batches.get(term)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": {}}


def imitation_losses(
    policy: DiffusionActorCriticPolicy,
    buffer: ImitationBuffer,
    visited: PyTorchObs | None,
    weights: Mapping[str, float],
    batch_size: int,
) -> dict[str, th.Tensor]:
    """
    One draw of each term whose weight is not zero and that has data.

    Demonstrations are imitated through the prior, whose prediction is what they taught without the
    noise of single draws; without a prior, and for what is not demonstrated, the target is that of
    the draw.

    :param policy: whose actor is trained
    :param buffer: what there is to imitate
    :param visited: ``(B, ...)`` observations of the current rollout, whose near-constant entries
        are the contexts; None where demonstrations are carried over instead
    :param weights: by name of the term
    :param batch_size: samples of each term
    :return: scalar losses by name of the term
    """
    losses = {}
    demonstrations = buffer.batches("demonstrations", policy)
    contexts = visited if weights["context"] else None
    if demonstrations is not None and (weights["demonstrations"] or contexts is not None):
        obs, actions = demonstrations.draw(batch_size)
        obs = policy.preprocess(obs)
        levels, target, noisy = _diffuse(policy, actions)
        if policy.has_prior:
            with th.no_grad():
                target = policy.prior.denoiser(noisy, levels, policy.prior.condition(obs))
        if weights["demonstrations"]:
            losses["demonstrations"] = _error(policy, obs, noisy, levels, target)
        if contexts is not None:
            met = th.randint(len(_first(contexts)), (batch_size,), device=policy.device)
            context = policy.preprocess(index(contexts, met))
            obs = policy.actor.normalizer.replace_context(obs, context)
            losses["context"] = _error(policy, obs, noisy, levels, target)
    for term in ("context", "successes"):  # carried over, and own
        kept = buffer.batches(term, policy)
        if kept is not None and weights[term]:
            obs, actions = kept.draw(batch_size)
            levels, target, noisy = _diffuse(policy, actions)
            losses[term] = _error(policy, policy.preprocess(obs), noisy, levels, target)
    return losses


def _diffuse(
    policy: DiffusionActorCriticPolicy, actions: th.Tensor
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Levels of the fine-tuned steps, what to predict there, and the actions noised to them."""
    visited = policy.process.levels[-policy.finetuned_steps :]
    levels = visited[th.randint(len(visited), (len(actions),), device=actions.device)]
    noise = th.randn_like(actions)
    process = policy.process
    return levels, process.target(actions, levels, noise), process.diffuse(actions, levels, noise)


def _error(
    policy: DiffusionActorCriticPolicy,
    obs: PyTorchObs,
    noisy: th.Tensor,
    levels: th.Tensor,
    target: th.Tensor,
) -> th.Tensor:
    """
    Squared error in units of the velocity, whatever the network predicts: at high noise, where
    modes are chosen, that of the predicted noise vanishes with the signal (Salimans and Ho 2022,
    section 4).
    """
    condition = policy.actor.condition(policy.actor.augment(obs))
    predicted = policy.actor.denoiser(noisy, levels, condition)
    squared = (predicted - target).square().mean(dim=-1)
    return (squared / policy.process.velocity_scale[levels]).mean()


def _map(function: Any, observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: function(part) for key, part in observations.items()}
    return function(observations)


def _first(observations: PyTorchObs) -> th.Tensor:
    return next(iter(observations.values())) if isinstance(observations, dict) else observations


def _concatenate(parts: list[tuple[Any, np.ndarray]]) -> tuple[Any, np.ndarray]:
    actions = np.concatenate([part[1] for part in parts])
    first = parts[0][0]
    if isinstance(first, dict):
        return {key: np.concatenate([part[0][key] for part in parts]) for key in first}, actions
    return np.concatenate([part[0] for part in parts]), actions
