"""
Statistics over the runs of a benchmark: intervals of aggregates by rliable (Agarwal et al. 2021,
Deep Reinforcement Learning at the Edge of the Statistical Precipice), and learning curves on a
common grid of steps.

Scores of a method are kept as strata: an array ``(runs, ...)`` for each task. Tasks may differ in
their number of runs.
"""

import functools
import importlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sb3_diffrl.bench.records import Record, Successes
from sb3_diffrl.random_state import preserved_random_state

REPETITIONS = 2000  # of the bootstrap
SEED = 0  # of the bootstrap

Strata = Sequence[np.ndarray]
Task = tuple[str, str]
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

    :param function: takes as many arrays ``(N, M, ...)`` as there are samples, see :func:`matrix`,
        and returns ``(n,)``
    :param samples: strata of each method; the same tasks in the same order
    :return: ``n`` values with intervals
    """
    if not samples or not samples[0] or any(len(s) != len(samples[0]) for s in samples):
        raise ValueError("expected at least one method with scores of the same tasks, one or more")
    n_tasks = len(samples[0])
    matrices = [matrix(sample) for sample in samples]
    value = function(*matrices)
    columns = [stratum for sample in samples for stratum in sample]

    if min(map(len, columns)) > 1:
        if all(len(set(map(len, sample))) == 1 for sample in samples):
            low, high = _bootstrap(function, matrices)
            return Estimate(value, low, high)

        def of_columns(*drawn: np.ndarray) -> np.ndarray:
            starts = range(0, len(drawn), n_tasks)
            return function(*(matrix([c[:, 0] for c in drawn[i : i + n_tasks]]) for i in starts))

        low, high = _bootstrap(of_columns, [column[:, None] for column in columns])
        return Estimate(value, low, high)
    if n_tasks > 1:

        def of_tasks(drawn: np.ndarray) -> np.ndarray:
            return function(*(scores[:, drawn[:, 0]] for scores in matrices))

        low, high = _bootstrap(of_tasks, [np.arange(n_tasks)[:, None]])
        return Estimate(value, low, high, over_tasks=True)
    low, high = np.full((2, len(value)), math.nan)
    return Estimate(value, low, high)


def _bootstrap(function: Callable[..., np.ndarray], scores: Sequence[np.ndarray]) -> np.ndarray:
    drawn = scores[0] if len(scores) == 1 else scores
    # rliable draws from NumPy's global generator. A quotient may be infinite in some draws.
    with preserved_random_state(SEED), np.errstate(invalid="ignore"):
        _, intervals = rliable("library").get_interval_estimates(
            {"": drawn}, function, reps=REPETITIONS, method="percentile"
        )
    return intervals[""]


@functools.cache
def rliable(module: str) -> Any:
    """
    :param module: ``library`` or ``metrics``
    :return: that module of rliable
    :raises ImportError: saying how to install it
    """
    try:
        return importlib.import_module(f"rliable.{module}")
    except ImportError as error:
        raise ImportError(
            f"The report's statistics need rliable ({error}): pip install 'sb3-diffrl[benchmark]'"
        ) from error


def matrix(strata: Strata) -> np.ndarray:
    """
    :param strata: ``M`` arrays ``(runs, ...)``
    :return: ``(N, M, ...)``; where numbers of runs differ, ``N`` is their least common multiple and
        runs are repeated, so that tasks weigh the same
    """
    n = math.lcm(*map(len, strata))
    return np.stack([np.repeat(stratum, n // len(stratum), axis=0) for stratum in strata], axis=1)


def average(sample: Strata) -> Estimate:
    """
    Means over tasks. The bootstrap of a few runs of one task is hardly wider than the runs: there
    the interval is Student's t over them; otherwise it is that of :func:`estimate`.

    :param sample: ``M`` arrays ``(runs, n)``
    :return: ``n`` means with intervals
    """
    if len(sample) > 1 or len(sample[0]) == 1:
        return estimate(means, sample)
    from scipy import stats

    (runs,) = sample
    value = runs.mean(axis=0)
    half = stats.t.ppf(0.975, len(runs) - 1) * stats.sem(runs, axis=0)
    return Estimate(value, value - half, value + half)


# -- functions of scores -----------------------------------------------------------------------


def means(scores: np.ndarray) -> np.ndarray:
    """
    :param scores: ``(N, M, n)``
    :return: means over runs and tasks, ``(n,)``
    """
    return scores.mean(axis=(0, 1))


def aggregates(scores: np.ndarray) -> np.ndarray:
    """
    :param scores: success rates, ``(N, M)``
    :return: interquartile mean, mean, optimality gap
    """
    metrics = rliable("metrics")
    return np.array(
        [
            metrics.aggregate_iqm(scores),
            metrics.aggregate_mean(scores),
            metrics.aggregate_optimality_gap(scores),
        ]
    )


def profile(thresholds: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """
    :param thresholds: ``(n,)``
    :return: function of scores ``(N, M)``: fraction of the runs above each threshold, ``(n,)``, as
        ``rliable.library.create_performance_profile`` has it
    """
    return lambda scores: means(scores[..., None] > thresholds)


def improvement(ours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    :param ours: scores of a method, ``(N, M, n)``
    :param others: of another on the same tasks, ``(N', M, n)``
    :return: probability that a run of the first is better than one of the second on a task, ties
        counting half, averaged over tasks (as ``rliable.metrics.probability_of_improvement``);
        then differences of the means; ``(2n,)``
    """
    wins = np.sign(ours[:, None] - others[None]).mean(axis=(0, 1, 2))
    return np.concatenate([(wins + 1) / 2, means(ours) - means(others)])


def quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """
    :param above: numbers of a method, ``(N, M, n)``
    :param below: of another
    :return: quotients of the means, infinite or NaN where the second's is 0; ``(n,)``
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return means(above) / means(below)


# -- success rates -----------------------------------------------------------------------------


def by_task(records: Iterable[Record]) -> dict[Task, list[Record]]:
    """
    :param records: of one method
    :return: the runs on each task and perturbation, sorted, numbers as numbers
    """
    groups: dict[Task, list[Record]] = {}
    for record in sorted(records, key=lambda r: (natural(r.task, r.perturbation), r.key)):
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
    :param value: a number, or a row of numbers, of a run
    :return: for each task the values of its runs, ``(runs, ...)``
    """
    return [np.array([value(r) for r in runs], float) for runs in by_task(records).values()]


def differences(
    ours: Iterable[Record], others: Iterable[Record], value: Callable[[Record], Any]
) -> list[np.ndarray]:
    """
    :param ours: of one method
    :param others: of another, with the same tasks and seeds
    :param value: a number, or a row of numbers, of a run
    :return: for each task the differences between runs of the same seed, ``(runs, ...)``
    """
    both = zip(strata(ours, value), strata(others, value), strict=True)
    return [first - second for first, second in both]


def mean_rates(
    records: Sequence[Record], of: Sequence[Callable[[Record], Successes | None]]
) -> Estimate:
    """
    :param records: of one method
    :param of: ``n`` outcomes of a run; one that some run lacks is NaN
    :return: mean success rates over tasks, ``(n,)``, see :func:`average`; where no task has runs
        that differ, with the interval of :func:`over_episodes`
    """
    found = average(strata(records, lambda record: [_rate(part(record)) for part in of]))
    found = found._replace(low=found.low.clip(0, 1), high=found.high.clip(0, 1))
    for i, part in enumerate(of):
        if not found.high[i] > found.low[i] and not math.isnan(found.value[i]):
            found.low[i], found.high[i] = _over_episodes(records, part)
    return found


def _rate(outcome: Successes | None) -> float:
    return math.nan if outcome is None else outcome.rate


def aggregate(records: Sequence[Record], of: Callable[[Record], Successes]) -> Estimate:
    """
    :param records: of one method
    :param of: outcome of a run
    :return: interquartile mean, mean and optimality gap, the last two with the interval of
        :func:`mean_rates`, and so all three of one task with runs that do not differ
    """
    found = estimate(aggregates, strata(records, lambda record: of(record).rate))
    mean = mean_rates(records, [of])
    low, high = mean.low[0], mean.high[0]
    found.low[1:], found.high[1:] = (low, 1 - high), (high, 1 - low)
    if len(by_task(records)) == 1 and not found.high[0] > found.low[0]:
        found.low[0], found.high[0] = low, high
    return found


def _over_episodes(
    records: Sequence[Record], of: Callable[[Record], Successes | None]
) -> tuple[float, float]:
    first = [of(runs[0]) for runs in by_task(records).values()]
    return over_episodes([outcome for outcome in first if outcome is not None])


def over_episodes(outcomes: Sequence[Successes]) -> tuple[float, float]:
    """
    95 % interval of the mean of independent success rates, from Wilson's of each ("method of
    variance estimates recovery", Zou and Donner 2008); Wilson's itself for a single one.

    :param outcomes: on each task
    :return: lower and upper bound
    """
    rates = np.array([outcome.rate for outcome in outcomes])
    low, high = np.array([outcome.interval for outcome in outcomes]).T
    below, above = (math.sqrt(np.square(bound - rates).sum()) / len(rates) for bound in (low, high))
    return float(rates.mean()) - below, float(rates.mean()) + above


def over_seeds(outcomes: Sequence[Successes]) -> tuple[float, float, float]:
    """
    :param outcomes: of the runs on one task
    :return: mean success rate and its 95 % interval: Student's t over the runs; where they do not
        differ, or there is one, Wilson's over the episodes of one
    """
    rates = np.array([[outcome.rate] for outcome in outcomes])
    if np.ptp(rates) == 0:
        return float(rates[0, 0]), *outcomes[0].interval
    found = average([rates])
    return float(found.value[0]), max(0.0, float(found.low[0])), min(1.0, float(found.high[0]))


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
    return float(np.diff(grid) @ (rates[1:] + rates[:-1]) / (2 * end)) if end else float(rates[0])
