"""Rows of results files, and the table of a terminal."""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import rich.box
from rich.table import Table

from sb3_diffrl.bench.methods import LABELS
from sb3_diffrl.bench.records import Record
from sb3_diffrl.evaluation import wilson_interval
from sb3_diffrl.files import Path, write_text

THRESHOLD = 0.60  # success rate of `steps_to_0.60`


@dataclass
class ResultRow:
    """
    One line of a results file.

    :param task: name of the task
    :param method: ``diffusion`` (the prior itself), ``ppo`` (from scratch), ``diffrl``, or the name
        of an ablation
    :param perturbation: ``scene:<n>`` or ``episode``: what was trained and measured on
    :param seed: of training
    :param eval_mode: ``stochastic`` or ``deterministic``
    :param n_episodes: evaluation episodes of each success rate
    :param env_steps: environment steps of training
    :param clean: success rate on the clean task, after training
    :param perturbed_before: success rate under the perturbation, before training; NaN from scratch
    :param perturbed_after: the same after training
    :param steps_to_060: environment steps until the learning curve reached 0.60; NaN where it never
        did
    :param mode_entropy: on the clean task after training, of the stochastic policy in both modes;
        NaN where the task tells no ways apart
    :param wall_s: seconds of training with its learning curve; of pre-training for ``diffusion``
    :param peak_rss_mb: largest memory of the process so far
    """

    task: str
    method: str
    perturbation: str
    seed: int
    eval_mode: str
    n_episodes: int
    env_steps: int
    clean: float
    perturbed_before: float
    perturbed_after: float
    steps_to_060: float = field(metadata={"column": "steps_to_0.60"})
    mode_entropy: float
    wall_s: float
    peak_rss_mb: float

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What tells this row from the others of a file."""
        return self.task, self.method, self.perturbation, self.seed, self.eval_mode


FIELDS = dataclasses.fields(ResultRow)
COLUMNS = [f.metadata.get("column", f.name) for f in FIELDS]


def read_rows(path: Path) -> list[ResultRow]:
    """
    :param path: a results file, which may be missing
    :return: its rows
    """
    if not pathlib.Path(path).exists():
        return []
    with open(path, newline="") as file:
        return [
            ResultRow(*(_parse(f.type, line[c]) for f, c in zip(FIELDS, COLUMNS, strict=True)))
            for line in csv.DictReader(file)
        ]


def _parse(kind: Any, text: str) -> Any:
    return math.nan if kind is float and not text else kind(text)


def add_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """
    Write rows into a results file, in place of rows with the same key.

    :param path: the file, made where it is missing; never left half written
    :param rows: what to add
    """
    merged = {row.key: row for row in [*read_rows(path), *rows]}
    write_rows(path, sorted(merged.values(), key=lambda row: row.key))


def write_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """
    Write a results file anew.

    :param path: the file; never left half written
    :param rows: its lines, in this order
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(_format(value) for value in dataclasses.astuple(row))
    write_text(path, text.getvalue())


def _format(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else round(value, 4)


def rows_of(record: Record) -> list[ResultRow]:
    """
    :param record: a run
    :return: its rows, one for each evaluation mode
    """
    return [
        ResultRow(
            task=record.task,
            method=record.method,
            perturbation=record.perturbation,
            seed=record.seed,
            eval_mode=mode,
            n_episodes=evaluation.after.n_episodes,
            env_steps=record.env_steps,
            clean=evaluation.clean.rate,
            perturbed_before=math.nan if evaluation.before is None else evaluation.before.rate,
            perturbed_after=evaluation.after.rate,
            steps_to_060=record.steps_to(THRESHOLD),
            mode_entropy=math.nan if record.mode_entropy is None else record.mode_entropy,
            wall_s=record.wall_s,
            peak_rss_mb=record.peak_rss_mb,
        )
        for mode, evaluation in sorted(record.evaluations.items())
    ]


def results_table(
    rows: Iterable[ResultRow], eval_mode: str = "stochastic", width: int = 100
) -> Table:
    """
    One line for each row, success rates with their 95 % intervals.

    :param rows: of one perturbation
    :param eval_mode: which rows
    :param width: of the terminal; where it is narrow, intervals stand below their rates
    :return: a table to print with rich
    """
    rows = [row for row in rows if row.eval_mode == eval_mode]
    gap = " " if width >= 97 else "\n"
    order = [*LABELS, *(row.method for row in rows)]
    title = ", ".join(dict.fromkeys(f"{row.task}, {row.perturbation}" for row in rows))
    table = Table(
        title=title, box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("", no_wrap=True)
    for name in ("clean", "perturbed\nbefore RL", "perturbed\nafter RL"):
        table.add_column(name, justify="center", no_wrap=True)
    for name in ("environment\nsteps", "mode\nentropy"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: order.index(row.method)):
        rates = (row.clean, row.perturbed_before, row.perturbed_after)
        table.add_row(
            LABELS.get(row.method, row.method),
            *(format_rate(rate, row.n_episodes).replace(" [", gap + "[") for rate in rates),
            f"{row.env_steps:,}",
            f"{row.mode_entropy:.2f}",
        )
    return table


def format_rate(rate: float, n_episodes: int) -> str:
    """
    :param rate: success rate
    :param n_episodes: episodes that it is the mean of
    :return: ``0.94 [0.92, 0.96]``, a dash for NaN
    """
    if math.isnan(rate):
        return "–"
    low, high = wilson_interval(round(rate * n_episodes), n_episodes)
    return f"{rate:.2f} [{low:.2f}, {high:.2f}]"
