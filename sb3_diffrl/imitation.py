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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffrl.batches import index
from sb3_diffrl.demonstrations.transport import as_transport
from sb3_diffrl.imitation_buffer import Episode, ImitationBuffer
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from sb3_diffrl.schedules import IMITATION, Constant, Schedule, ScheduleSpec, Signals

ImitationSpec = ScheduleSpec | Mapping[str, Any]


@dataclass
class Imitation:
    """
    The weights of the three terms, as :meth:`parse` makes them of numbers, strings and mappings.

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


def _first(observations: PyTorchObs) -> th.Tensor:
    return next(iter(observations.values())) if isinstance(observations, dict) else observations
