"""The records of a report, in the order of its tables, and the numbers of single runs."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from sb3_diffrl.bench.records import EVAL_MODES, Key, Record, Successes
from sb3_diffrl.bench.rows import THRESHOLD
from sb3_diffrl.bench.statistics import (
    Curve,
    Estimate,
    Task,
    aggregate,
    area,
    by_task,
    clean_curve,
    horizon,
    natural,
    perturbed_curve,
)

MAIN = "diffrl"  # the method that others are held against
PRIOR = "diffusion"  # pre-training alone
REFERENCES = ("ppo", "sac")  # from scratch: how many times faster a method is
ALL = "all"


@dataclass(frozen=True)
class Study:
    """
    Runs to report on.

    :param records: of the runs, each key once
    :param labels: of methods, by name, in the order of the tables; methods without a label follow
    :param threshold: success rate of "steps to"
    :param form: of the perturbation, what stands before ``:`` in its name; or all
    """

    records: Sequence[Record]
    labels: Mapping[str, str]
    threshold: float = THRESHOLD
    form: str = ALL

    @cached_property
    def methods(self) -> dict[str, list[Record]]:
        """Runs by method."""
        names = {record.method for record in self.records}
        order = [name for name in self.labels if name in names]
        order += sorted(names - set(order))
        return {name: [r for r in self.records if r.method == name] for name in order}

    @cached_property
    def forms(self) -> "dict[str, Study]":
        """
        Runs by form of the perturbation, after all of them where there are several.
        """
        forms: dict[str, list[Record]] = {}
        for record in sorted(self.records, key=lambda record: natural(record.perturbation)):
            forms.setdefault(record.perturbation.partition(":")[0], []).append(record)
        parts = {name: replace(self, records=records, form=name) for name, records in forms.items()}
        return {ALL: self, **parts} if len(parts) > 1 else parts

    @cached_property
    def tasks(self) -> list[Task]:
        """Tasks and perturbations of all the runs."""
        return list(by_task(self.records))

    @cached_property
    def aggregates(self) -> dict[tuple[str, str], Estimate]:
        """By mode and method: perturbed success after training, see :func:`aggregate`."""
        return {
            (mode, method): aggregate(records, outcome(mode, "after"))
            for mode in EVAL_MODES
            for method, records in self.methods.items()
        }

    @cached_property
    def horizons(self) -> dict[Task, int]:
        """For each task the environment steps that the curves of all trained runs reach."""
        return {
            task: horizon(map(perturbed_curve, trained(runs)))
            for task, runs in by_task(self.records).items()
        }

    def label(self, method: str) -> str:
        """:return: how a method is called in tables and figures"""
        return self.labels.get(method, method)

    def area(self, record: Record) -> float:
        """:return: mean of a run's perturbed curve up to the horizon of its task"""
        end = self.horizons[record.task, record.perturbation]
        return area(perturbed_curve(record), end)

    def speed(self, record: Record) -> tuple[float, float, float]:
        """:return: :meth:`steps_or_budget`, :meth:`area` and :func:`largest_fall` of a run"""
        fall = largest_fall(perturbed_curve(record))
        return self.steps_or_budget(record), self.area(record), fall

    def steps_or_budget(self, record: Record) -> float:
        """:return: environment steps to the threshold, or all that were made without reaching it"""
        steps = record.steps_to(self.threshold)
        return float(record.curve[-1].env_steps) if math.isnan(steps) else steps


def trained(records: Iterable[Record]) -> list[Record]:
    """:return: the runs with a learning curve that goes beyond its start"""
    return [record for record in records if record.curve and record.curve[-1].env_steps > 0]


def finetuned(records: Iterable[Record]) -> list[Record]:
    """:return: the trained runs that started from a prior and measured what it had learnt clean"""
    return [
        record for record in trained(records) if len(clean_curve(record)) > 1 and pretrained(record)
    ]


def pretrained(record: Record) -> bool:
    """:return: whether a run knew something before RL, and that was measured"""
    return all(evaluation.before is not None for evaluation in record.evaluations.values())


def outcome(mode: str, part: str) -> Callable[[Record], Successes]:
    """
    :param mode: of the evaluation
    :param part: ``clean``, ``before`` or ``after``
    :return: function of a run that has it
    """
    return lambda record: getattr(record.evaluations[mode], part)


def success(mode: str, part: str) -> Callable[[Record], float]:
    """:return: the rate of :func:`outcome`"""
    return lambda record: outcome(mode, part)(record).rate


def drops(curve: Curve) -> tuple[float, float, float]:
    """
    :param curve: clean success rate over fine-tuning
    :return: its start; how far it fell at its lowest; and at its end
    """
    start, *rest = (rate for _, rate in curve)
    return start, start - min(rest), start - rest[-1]


def largest_fall(curve: Curve) -> float:
    """
    :param curve: success rate over training
    :return: how far it fell at most from a point to a later one; 0 where it never falls
    """
    rates = np.array([rate for _, rate in curve])
    return float((np.maximum.accumulate(rates) - rates).max())


def in_common(
    ours: Sequence[Record], others: Sequence[Record], *, paired: bool = False
) -> tuple[list[Record], list[Record]]:
    """
    :param ours: runs of a method
    :param others: runs of another
    :param paired: whether seeds are to be the same too: then runs start from the same prior, and
        what it can do differs from seed to seed more than what is made of it
    :return: the runs of either method on tasks, or tasks and seeds, that both have
    """

    def cell(record: Record) -> tuple[Task, int | None]:
        return (record.task, record.perturbation), record.seed if paired else None

    both = {*map(cell, ours)} & {*map(cell, others)}
    first, second = ([r for r in records if cell(r) in both] for records in (ours, others))
    return first, second


def check(records: Sequence[Record]) -> None:
    """
    :param records: what a report is to be made of
    :raises ValueError: where there are none, two have the same key, or one lacks something
    """
    if not records:
        raise ValueError("expected records of at least one run, got none")
    seen: set[Key] = set()
    for record in records:
        if record.key in seen:
            raise ValueError(f"two records of the same run: {record.key}. Leave one out.")
        seen.add(record.key)
        missing = [mode for mode in EVAL_MODES if mode not in record.evaluations]
        if missing:
            raise ValueError(f"{record.key}: expected an evaluation {' and '.join(missing)}")
        outcomes = [o for e in record.evaluations.values() for o in e if o is not None]
        outcomes += [o for point in record.curve for o in point[1:] if o is not None]
        if any(not 0 <= o.n_successes <= o.n_episodes or o.n_episodes < 1 for o in outcomes):
            raise ValueError(f"{record.key}: expected 1 episode or more, and no more successes")
        steps = [point.env_steps for point in record.curve]
        if any(b <= a for a, b in zip([-1, *steps], steps, strict=False)):
            raise ValueError(f"{record.key}: expected a curve whose steps rise, got {steps}")
