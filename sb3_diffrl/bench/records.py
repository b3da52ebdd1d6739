"""What a run of the benchmark gave: one JSON line, and files of such lines."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from filelock import FileLock

from sb3_diffrl.evaluation import wilson_interval
from sb3_diffrl.files import Path, write_text

EVAL_MODES = {"stochastic": False, "deterministic": True}

Key = tuple[str, str, str, int]  # task, method, perturbation, seed


class Successes(NamedTuple):
    """
    Outcome of evaluation episodes.

    :param n_successes: how many succeeded
    :param n_episodes: of so many
    """

    n_successes: int
    n_episodes: int

    @property
    def rate(self) -> float:
        """Success rate; NaN without episodes."""
        return self.n_successes / self.n_episodes if self.n_episodes else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate."""
        return wilson_interval(self.n_successes, self.n_episodes)


class Point(NamedTuple):
    """
    A point of a learning curve (stochastic policy).

    :param env_steps: environment steps made before
    :param perturbed: in the perturbed environment that is trained in
    :param clean: in the clean one: its fall is what was forgotten; None where it was not measured
    """

    env_steps: int
    perturbed: Successes
    clean: Successes | None = None


class Evaluation(NamedTuple):
    """
    Evaluation of a run in one mode.

    :param clean: in the clean environment, after training
    :param before: in the perturbed one, before training; None from scratch
    :param after: in the perturbed one, after training
    """

    clean: Successes
    before: Successes | None
    after: Successes


@dataclass(frozen=True)
class Record:
    """
    One run.

    :param task: as in ``sb3-diffrl bench``: ``avoiding``, ``metaworld/<task>``, or the name of a
        task of one's own
    :param method: name of the method
    :param perturbation: name of what was trained and measured under
    :param seed: of training
    :param env_steps: environment steps of training
    :param evaluations: by mode, ``stochastic`` and ``deterministic``
    :param curve: of training; empty where nothing is trained
    :param mode_entropy: evenness of the successful ways on the clean task after training, 0 to 1
        (stochastic); None where the task does not tell ways apart
    :param wall_s: seconds of training with its curve; of pre-training where nothing else is trained
    :param peak_rss_mb: largest memory of the process, MB
    :param started: UTC time, ISO 8601
    :param commit: of the code, ``-dirty`` where files were changed; empty outside a checkout
    :param command: what was run
    :param versions: of Python and the packages that matter
    :param settings: of the run, see :attr:`~sb3_diffrl.bench.runs.Run.settings`; empty in records
        from before they were kept
    """

    task: str
    method: str
    perturbation: str
    seed: int
    env_steps: int
    evaluations: dict[str, Evaluation]
    curve: list[Point]
    mode_entropy: float | None
    wall_s: float
    peak_rss_mb: float
    started: str
    commit: str
    command: str
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What tells this run from others: task, method, perturbation, seed."""
        return self.task, self.method, self.perturbation, self.seed

    def steps_to(self, rate: float) -> float:
        """
        :param rate: perturbed success rate to reach
        :return: environment steps at which the curve first had it; NaN where it never did
        """
        reached = (float(p.env_steps) for p in self.curve if p.perturbed.rate >= rate)
        return next(reached, math.nan)

    def to_json(self) -> str:
        """:return: the record as one line"""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """
        :param line: as :meth:`to_json` writes it
        :return: the record
        :raises ValueError: where it is none
        """
        try:
            values: dict[str, Any] = json.loads(line)
            evaluations = {
                mode: Evaluation(*(_successes(counts) for counts in parts))  # type: ignore[arg-type]  # null
                for mode, parts in values["evaluations"].items()
            }
            curve = [
                Point(int(steps), *(_successes(counts) for counts in rates))  # type: ignore[arg-type]  # null
                for steps, *rates in values["curve"]
            ]
            return cls(**{**values, "evaluations": evaluations, "curve": curve})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"expected a record of a run in JSON: {error!r}") from error


def _successes(counts: list[int] | None) -> Successes | None:
    return None if counts is None else Successes(*counts)


def read_records(path: Path) -> list[Record]:
    """
    :param path: a file of JSON lines, which may be missing
    :return: its records
    :raises ValueError: naming file and line, where one is no record
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            records.append(Record.from_json(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return records


def add_records(path: Path, records: Iterable[Record]) -> None:
    """
    Write records into a file, in place of those with the same key.

    :param path: the file, made where it is missing; never left half written
    :param records: what to add
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):  # two grids may write to one file
        merged = {record.key: record for record in [*read_records(path), *records]}
        lines = [merged[key].to_json() + "\n" for key in sorted(merged)]
        write_text(path, "".join(lines))
