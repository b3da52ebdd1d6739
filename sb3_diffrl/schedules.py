"""
Schedules of the method's knobs: the KL weight ``beta``, the mixing weight ``p``, the imitation
weight.

A schedule is a picklable object called once per iteration with the :class:`Signals` of training.
Each is set by a number (constant), a string such as ``"adaptive_0.1"`` (kind, then its arguments in
order), a mapping such as ``{"kind": "linear", "initial": 0.1, "final": 0.01}``, or a schedule
object of the user's own.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar


@dataclass(frozen=True)
class Signals:
    """
    What a schedule may look at.

    :param progress: fraction of the training done, 0 to 1
    :param improvement: performance gained on the prior, 0 (none) to 1 (target reached)
    :param prior_kl: KL divergence from the prior in nats per decision, measured in the last update;
        None before the first
    """

    progress: float = 0.0
    improvement: float = 0.0
    prior_kl: float | None = None


Schedule = Callable[[Signals], float]
Limits = Mapping[str, tuple[float, float]]  # smallest and largest value of an argument
ScheduleSpec = float | str | Mapping[str, Any] | Schedule


@dataclass
class Constant:
    """:param value: the value at all times"""

    value: float

    def __call__(self, signals: Signals) -> float:
        """:return: the value at these signals"""
        return self.value


@dataclass
class Linear:
    """
    Straight line over training.

    :param initial: value at the start
    :param final: value at the end
    :param until: fraction of the training at which the end is reached, 0 to 1
    """

    initial: float
    final: float = 0.0
    until: float = 1.0
    limits: ClassVar[Limits] = {"until": (1e-9, 1.0)}

    def __call__(self, signals: Signals) -> float:
        """:return: the value at these signals"""
        return self.initial + (self.final - self.initial) * min(signals.progress / self.until, 1.0)


@dataclass
class Cosine(Linear):
    """Half a cosine over training, flat at both ends; parameters as for :class:`Linear`."""

    def __call__(self, signals: Signals) -> float:
        """:return: the value at these signals"""
        weight = (1 + math.cos(math.pi * min(signals.progress / self.until, 1.0))) / 2
        return self.final + (self.initial - self.final) * weight


@dataclass
class Adaptive:
    """
    ``initial * max(floor, 1 - improvement)`` (paper, section 2.4).

    :param initial: value while nothing has been gained, ``beta_init``
    :param floor: smallest fraction of it that is kept, 0 to 1
    """

    initial: float
    floor: float = 0.1
    limits: ClassVar[Limits] = {"floor": (0.0, 1.0)}

    def __call__(self, signals: Signals) -> float:
        """:return: the value at these signals"""
        return self.initial * max(self.floor, 1 - signals.improvement)


@dataclass
class Gated:
    """
    Rises with the measured improvement, not with time.

    What is measured is the mixture: where the prior's share of the decisions spoils every episode,
    nothing improves and the policy never gets to act alone. Against such priors let it rise with
    time.

    :param initial: value while nothing has been gained
    :param final: value when the performance target is reached
    """

    initial: float
    final: float = 1.0

    def __call__(self, signals: Signals) -> float:
        """:return: the value at these signals"""
        return self.initial + (self.final - self.initial) * signals.improvement


@dataclass
class KlController:
    """
    Multiplies the weight up or down to hold the prior KL at a target (Ziegler et al. 2019, section
    2.2).

    :param initial: weight at the start, above 0
    :param target: KL divergence to hold, nats per decision, above 0
    :param gain: largest relative change per iteration is 0.2 times this; above 0, at most 1

    ``value`` is the current weight, ``initial`` at the start.
    """

    initial: float
    target: float
    gain: float = 0.5
    value: float = field(init=False)
    limits: ClassVar[Limits] = {
        "initial": (1e-12, math.inf),
        "target": (1e-12, math.inf),
        "gain": (1e-12, 1.0),
    }

    def __post_init__(self) -> None:
        self.value = self.initial

    def __call__(self, signals: Signals) -> float:
        """:return: the value at these signals"""
        if signals.prior_kl is not None:
            error = min(max(signals.prior_kl / self.target - 1, -0.2), 0.2)
            self.value *= 1 + self.gain * error
        return self.value


KINDS: dict[str, type] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "adaptive": Adaptive,
    "gated": Gated,
    "kl_controller": KlController,
}


@dataclass(frozen=True)
class Knob:
    """
    One argument of the algorithm that takes a schedule.

    :param name: name of the argument
    :param kinds: kinds of schedule that make sense for it
    :param final: where linear and cosine schedules end unless they say
    :param maximum: largest value allowed
    :param minimum: smallest value allowed
    """

    name: str
    kinds: tuple[str, ...]
    final: float
    minimum: float = 0.0
    maximum: float = math.inf

    def schedule(self, spec: ScheduleSpec) -> Schedule:
        """
        Build the schedule that a user named.

        :param spec: number, string, mapping or schedule
        :return: the schedule
        :raises ValueError: saying what was wrong and what is expected
        """
        number: object = spec  # of Python's or NumPy's
        if not isinstance(number, bool) and isinstance(number, Real):
            return self._build(spec, "constant", [float(number)], {})
        if isinstance(spec, str):
            return self._parse(spec)
        if isinstance(spec, Mapping):
            arguments = dict(spec)
            kind = arguments.pop("kind", None)
            if kind not in self.kinds:
                raise self._error(spec, f"kind {kind!r} is unknown")
            return self._build(spec, kind, [], arguments)
        if callable(spec):
            try:
                float(copy.deepcopy(spec)(Signals()))
            except Exception as error:
                raise self._error(
                    spec,
                    f"called with {Signals()} it raised {error!r}; it is handed Signals, whose "
                    "progress rises from 0 to 1, and returns a number",
                ) from error
            return spec
        raise self._error(spec, f"a {type(spec).__name__} is no schedule")

    def _parse(self, spec: str) -> Schedule:
        for kind in self.kinds:
            if spec == kind or spec.startswith(kind + "_"):
                words = [word for word in spec[len(kind) :].split("_") if word]
                break
        else:
            kind, words = "constant", [spec]
        try:
            if any("_" in word for word in words):  # Python would read 0_1 as 1
                raise ValueError
            values = [float(word) for word in words]
        except ValueError as error:
            raise self._error(spec, "it is neither a known kind nor a number") from error
        return self._build(spec, kind, values, {})

    def _build(
        self, spec: ScheduleSpec, kind: str, values: list[float], arguments: dict[str, Any]
    ) -> Schedule:
        names = [f.name for f in fields(KINDS[kind]) if f.init]
        if kind in ("linear", "cosine") and len(values) < 2:
            arguments.setdefault("final", self.final)
        try:
            schedule: Schedule = KINDS[kind](*values, **arguments)
        except TypeError as error:
            raise self._error(spec, f"{kind} takes {', '.join(names)}") from error
        for name in names:
            self._check(spec, name, getattr(schedule, name), kind)
        return schedule

    def _check(self, spec: ScheduleSpec, name: str, value: Any, kind: str) -> None:
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise self._error(spec, f"{name} must be a finite number, got {value!r}")
        limits: Limits = getattr(KINDS[kind], "limits", {})
        low, high = limits.get(name, (self.minimum, self.maximum))
        if not low <= float(value) <= high:
            raise self._error(spec, f"{name} must lie between {low:g} and {high:g}, got {value}")

    def _error(self, spec: object, reason: str) -> ValueError:
        return ValueError(
            f"{self.name}={spec!r}: {reason}. Expected a number, a string such as "
            f"'linear_0.5_{self.final:g}', or a mapping with 'kind' and its arguments; "
            f"kinds for {self.name}: {', '.join(self.kinds)}."
        )


BETA = Knob("beta", ("constant", "linear", "cosine", "adaptive", "kl_controller"), final=0.0)
MIXING = Knob(
    "mixing", ("constant", "linear", "cosine", "gated"), final=1.0, minimum=0.01, maximum=1.0
)
IMITATION = Knob("imitation", ("constant", "linear", "cosine", "adaptive"), final=0.0)


@dataclass
class Improvement:
    """
    Performance gained on the prior, as a fraction of what there is to gain.

    ``clip((performance - prior) / (target - prior), 0, 1)``, 0 where the prior already meets the
    target. Performance is the mean over a window of episodes (SB3's ``stats_window_size``), which
    smooths it.

    :param target: performance at which the improvement is 1
    :param prior: performance of the prior, measured over the episodes before the first policy
        update
    :param value: improvement at the last call of ``update``
    """

    target: float | None = None
    prior: float | None = None
    value: float = 0.0

    def update(self, performance: float | None, acted_by_prior: bool) -> float:
        """
        :param performance: mean over the window of episodes, None before the first episode has
            ended
        :param acted_by_prior: whether the window holds episodes of the prior alone
        :return: the improvement
        """
        if performance is None or self.target is None:
            return self.value
        if acted_by_prior or self.prior is None:
            self.prior = performance
        gap = self.target - self.prior
        gain = performance - self.prior
        self.value = min(max(gain / gap, 0.0), 1.0) if gap > 0 else 0.0
        return self.value
