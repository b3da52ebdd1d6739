"""Cells and tables of Markdown."""

import math
import statistics
from collections.abc import Iterable, Sequence

from sb3_diffrl.bench.records import Record
from sb3_diffrl.bench.statistics import Estimate, by_task
from sb3_diffrl.bench.study import Study, trained

NONE = "–"
COUNTS = ("method", "perturbation", "tasks", "runs")  # heads of the cells of `counts`

Lines = list[str]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    """
    :param head: names of the columns
    :param rows: cells
    :return: lines of a Markdown table
    """

    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(map(_escaped, line))} |" for line in lines]


def _escaped(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def counts(study: Study, method: str, records: Sequence[Record]) -> list[str]:
    """
    :param study: runs of one form of the perturbation, or all
    :param method: name of the method
    :param records: its runs that a row is made of
    :return: the first cells of a row: its label, the form, how many tasks of all, and runs
    """
    n_tasks = f"{len(by_task(records))} of {len(study.tasks)}"
    return [study.label(method), study.form, n_tasks, str(len(records))]


def interval(found: Estimate, i: int, how: str = ".2f") -> str:
    """
    :param found: values with intervals
    :param i: which of them
    :param how: format of a number
    :return: ``0.94 [0.92, 0.96]``, † after it where tasks were drawn
    """
    text = bounds(float(found.value[i]), float(found.low[i]), float(found.high[i]), how)
    return text + " †" * (found.over_tasks and text != NONE)


def bounds(value: float, low: float, high: float, how: str = ".2f") -> str:
    """:return: ``0.94 [0.92, 0.96]``; without bounds where they are NaN; a dash for NaN"""
    if math.isnan(value):
        return NONE
    digits = int(how[-2])
    texts = [f"{round(number, digits) + 0.0:{how}}" for number in (value, low, high)]  # no -0.00
    return texts[0] if math.isnan(low) else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def plural(n: int, noun: str) -> str:
    """:return: ``1 run``, ``2,000 runs``"""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def steps_to(records: Sequence[Record], rate: float) -> str:
    """
    :param records: of one method
    :param rate: success rate to reach
    :return: mean environment steps of the runs that did, and how many did; a dash without curves
    """
    steps = [record.steps_to(rate) for record in trained(records)]
    reached = [number for number in steps if not math.isnan(number)]
    if not steps:
        return NONE
    return (
        f"{statistics.mean(reached):,.0f} ({len(reached)}/{len(steps)})"
        if reached
        else (f"{NONE} (0/{len(steps)})")
    )
