"""
Statistics over the runs of a benchmark: intervals of aggregates by rliable (Agarwal et al. 2021,
Deep Reinforcement Learning at the Edge of the Statistical Precipice), and learning curves on a
common grid of steps.

Scores of a method are kept as strata: an array ``(runs, ...)`` for each task. Tasks may differ in
their number of runs.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.integrate import trapezoid

from sb3_diffrl.bench.records import EVAL_MODES, Record, Successes
from sb3_diffrl.evaluation import wilson_interval
from sb3_diffrl.random_state import preserved_random_state

REPETITIONS = 2000  # of the bootstrap
SEED = 0  # of the bootstrap

Strata = Sequence[np.ndarray]
Task = tuple[str, str]
Key = tuple[str, str, str, int]
Curve = list[tuple[int, float]]


class Estimate(NamedTuple):
    """
    Values with their 95 % intervals.

    :param value: of the runs as they are, ``(n,)``
    :param low: lower bounds, NaN where runs tell of none
    :param high: upper bounds
    :param over_tasks: whether tasks were drawn, not runs
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    over_tasks: bool = False


def estimate(function: Callable[..., np.ndarray], *samples: Strata) -> Estimate:
    """
    Percentile bootstrap of a function of one method's scores, or of several methods'.

    Where every task has two runs or more, runs are drawn with replacement within each task
    (stratified bootstrap). A single run says nothing about the spread over seeds: where a task has
    no more, whole tasks are drawn with all their runs, for all methods alike. A single task with a
    single run has no interval.

    :param function: takes as many lists of arrays ``(runs, ...)`` as there are samples, returns
        ``(n,)``
    :param samples: strata of each method; the same tasks in the same order
    :return: ``n`` values with intervals
    """
    if not samples or not samples[0] or any(len(s) != len(samples[0]) for s in samples):
        raise ValueError("expected at least one method with scores of the same tasks, one or more")
    n_tasks = len(samples[0])
    flat = [stratum for sample in samples for stratum in sample]

    def split(strata: Sequence[np.ndarray]) -> np.ndarray:
        parts = [strata[i : i + n_tasks] for i in range(0, len(strata), n_tasks)]
        return function(*parts)

    if min(map(len, flat)) > 1:
        if len(samples) == 1 and len(set(map(len, flat))) == 1:  # rliable's fast way: a matrix
            return _bootstrap(
                lambda scores: split(list(np.moveaxis(scores, 1, 0))), np.stack(flat, axis=1)
            )
        columns = [stratum[:, None] for stratum in flat]
        return _bootstrap(lambda *drawn: split([stratum[:, 0] for stratum in drawn]), columns)
    if n_tasks > 1:

        def of_tasks(drawn: np.ndarray) -> np.ndarray:
            return function(*([sample[i] for i in drawn[:, 0]] for sample in samples))

        return _bootstrap(of_tasks, np.arange(n_tasks)[:, None])._replace(over_tasks=True)
    value = split(flat)
    nothing = np.full(len(value), math.nan)
    return Estimate(value, nothing, nothing)


def _bootstrap(
    function: Callable[..., np.ndarray], scores: np.ndarray | list[np.ndarray]
) -> Estimate:
    library = rliable("library")
    with preserved_random_state(SEED):  # rliable draws from NumPy's global generator
        values, intervals = library.get_interval_estimates(
            {"": scores}, function, reps=REPETITIONS, method="percentile"
        )
    low, high = intervals[""]
    return Estimate(values[""], low, high)


def rliable(module: str) -> Any:
    """
    :param module: ``library`` or ``metrics``
    :return: that module of rliable
    :raises ImportError: saying how to install it
    """
    import importlib

    try:
        return importlib.import_module(f"rliable.{module}")
    except ImportError as error:
        raise ImportError(
            f"The report's statistics need rliable ({error}): pip install 'sb3-diffrl[benchmark]'"
        ) from error


# -- functions of strata -----------------------------------------------------------------------


def matrix(strata: Strata) -> np.ndarray:
    """
    :param strata: ``M`` arrays ``(runs, ...)``
    :return: ``(N, M, ...)``; where numbers of runs differ, ``N`` is their least common multiple and
        runs are repeated, so that tasks weigh the same
    """
    n = math.lcm(*map(len, strata))
    return np.stack([np.repeat(stratum, n // len(stratum), axis=0) for stratum in strata], axis=1)


def means(strata: Strata) -> np.ndarray:
    """
    :param strata: arrays ``(runs, ...)``
    :return: mean over tasks of the means over their runs, ``(...)``
    """
    return np.mean([stratum.mean(axis=0) for stratum in strata], axis=0)


def aggregates(strata: Strata) -> np.ndarray:
    """
    :param strata: success rates, arrays ``(runs,)``
    :return: interquartile mean, mean, optimality gap
    """
    metrics, scores = rliable("metrics"), matrix(strata)
    names = ("aggregate_iqm", "aggregate_mean", "aggregate_optimality_gap")
    return np.array([getattr(metrics, name)(scores) for name in names])


def profile(thresholds: np.ndarray) -> Callable[[Strata], np.ndarray]:
    """
    :param thresholds: ``(n,)``
    :return: function of strata: fraction of the runs above each threshold, ``(n,)``, as
        ``rliable.library.create_performance_profile`` has it
    """
    return lambda strata: means([stratum[:, None] > thresholds for stratum in strata])


def improvement(ours: Strata, others: Strata) -> np.ndarray:
    """
    :param ours: scores of a method, arrays ``(runs,)``
    :param others: of another on the same tasks
    :return: probability that a run of the first is better than one of the second, ties counting
        half (as ``rliable.metrics.probability_of_improvement``), and difference of the means
    """
    wins = [
        (np.sign(x[:, None] - y[None]).mean() + 1) / 2 for x, y in zip(ours, others, strict=True)
    ]
    return np.array([np.mean(wins), means(ours) - means(others)])


def ratio(above: Strata, below: Strata) -> np.ndarray:
    """
    :param above: numbers of a method, arrays ``(runs,)``
    :param below: of another
    :return: ratio of the means, infinite or NaN where the second's is 0; ``(1,)``
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.atleast_1d(np.divide(means(above), means(below)))


# -- success rates -----------------------------------------------------------------------------


def by_task(records: Iterable[Record]) -> dict[Task, list[Record]]:
    """
    :param records: of one method
    :return: the runs on each task and perturbation, sorted, numbers as numbers
    """
    groups: dict[Task, list[Record]] = {}
    for record in sorted(records, key=lambda record: (natural(*record.key[:3]), record.seed)):
        groups.setdefault((record.task, record.perturbation), []).append(record)
    return groups


def natural(*texts: str) -> list[list[Any]]:
    """:return: a sort key by which ``scene:10`` follows ``scene:9``"""
    return [
        [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts]
        for parts in (re.findall(r"[0-9]+|[^0-9]+", text) for text in texts)
    ]


def strata(records: Iterable[Record], value: Callable[[Record], Any]) -> list[np.ndarray]:
    """
    :param records: of one method
    :param value: a number, or an array, of a run
    :return: for each task the values of its runs, ``(runs, ...)``
    """
    return [np.array([value(r) for r in runs], float) for runs in by_task(records).values()]


def aggregate(records: Sequence[Record], of: Callable[[Record], Successes]) -> Estimate:
    """
    :param records: of one method
    :param of: outcome of a run
    :return: interquartile mean, mean and optimality gap; of a single run with Wilson's interval
    """
    found = estimate(aggregates, strata(records, lambda record: of(record).rate))
    return found if len(records) > 1 else _of_one(found, of(records[0]))


def _of_one(found: Estimate, outcome: Successes) -> Estimate:
    low, high = outcome.interval
    return Estimate(found.value, np.array([low, low, 1 - high]), np.array([high, high, 1 - low]))


def over_seeds(outcomes: Sequence[Successes]) -> tuple[float, float, float]:
    """
    :param outcomes: of the runs on one task
    :return: mean success rate and its 95 % interval: Student's t over the runs; where they do not
        differ, Wilson's over all their episodes
    """
    rates = np.array([outcome.rate for outcome in outcomes])
    mean = float(rates.mean())
    if np.ptp(rates) == 0:
        n = sum(outcome.n_episodes for outcome in outcomes)
        return mean, *wilson_interval(sum(outcome.n_successes for outcome in outcomes), n)
    half = stats.t.ppf(0.975, len(rates) - 1) * stats.sem(rates)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


# -- learning curves ---------------------------------------------------------------------------


def perturbed_curve(record: Record) -> Curve:
    """:return: environment steps and success rate in the perturbed environment"""
    return [(point.env_steps, point.perturbed.rate) for point in record.curve]


def clean_curve(record: Record) -> Curve:
    """:return: environment steps and success rate in the clean environment, where measured"""
    return [
        (point.env_steps, point.clean.rate) for point in record.curve if point.clean is not None
    ]


def horizon(curves: Iterable[Curve]) -> int:
    """:return: environment steps that all the curves reach; 0 without any"""
    return min((curve[-1][0] for curve in curves if curve), default=0)


def on_grid(curve: Curve, grid: np.ndarray) -> np.ndarray:
    """
    Straight lines between the points of a curve; before the first it is held, after the last it
    is not known.

    :param curve: one point or more
    :param grid: environment steps, ``(n,)``
    :return: ``(n,)``, NaN after the last point
    """
    steps, rates = np.array(curve, float).T
    return np.interp(grid, steps, rates, right=math.nan)


def area(curve: Curve, end: float) -> float:
    """
    :param curve: one point or more
    :param end: environment steps, no more than the curve's
    :return: mean of the curve (see :func:`on_grid`) from 0 to ``end``
    """
    grid = np.unique([0, end, *(steps for steps, _ in curve if steps < end)])
    rates = on_grid(curve, grid)
    return float(trapezoid(rates, grid) / end) if end else float(rates[0])


# -- records -----------------------------------------------------------------------------------


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
