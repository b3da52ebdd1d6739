"""
Many runs at a time, on Ray: on this machine or on a cluster.

Each run is a Ray task in a process of its own, each prior another one that the runs wait for. A
run's record is written as soon as it is there, so that what is lost in a crash are the unfinished
runs alone, and those that the files have are not made again.
"""

import pathlib
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch as th
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sb3_diffrl.bench.provenance import command
from sb3_diffrl.bench.records import Record, add_records, read_records
from sb3_diffrl.bench.runs import Run, execute
from sb3_diffrl.bench.training import Prior
from sb3_diffrl.files import Path


def results_file(folder: Path, task: str) -> pathlib.Path:
    """
    :param folder: of the results
    :param task: name of a task
    :return: the file of its records, which the tasks of a family share
    """
    return pathlib.Path(folder, f"{task.partition('/')[0]}.jsonl")


def missing_runs(runs: Iterable[Run], folder: Path) -> list[Run]:
    """
    :param runs: what is wanted
    :param folder: of the results
    :return: those that the results do not have yet
    :raises ValueError: where the results have one of them, made with other settings
    """
    runs = list(runs)
    files = {results_file(folder, run.task.name) for run in runs}
    done = {record.key: record for file in files for record in read_records(file)}
    for run in runs:
        settings = done[run.key].settings if run.key in done else {}
        changed = [
            f"{name}: {settings[name]}, now {value}"
            for name, value in run.settings.items()
            if settings and settings.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{results_file(folder, run.task.name)} has {' '.join(map(str, run.key))} made "
                f"with other settings ({'; '.join(changed)}): choose another --output, or take "
                "that line out of the file to make it anew."
            )
    return [run for run in runs if run.key not in done]


def run_grid(
    runs: Sequence[Run],
    folder: Path,
    priors: Path,
    jobs: int | None = None,
    address: str | None = None,
    console: Console | None = None,
) -> int:
    """
    Execute what the results do not have yet.

    :param runs: what is wanted, in order of urgency
    :param folder: of the results: JSON lines for each family of tasks
    :param priors: folder in which pre-trained models are kept, on each machine
    :param jobs: runs at a time on this machine, one core each; by default as many as it has cores
    :param address: of a Ray cluster, instead of this machine
    :param console: to print on
    :return: number of runs that failed; the others go on
    """
    console = console or Console()
    todo = missing_runs(runs, folder)
    console.print(f"{len(todo)} runs to do, {len(runs) - len(todo)} done before")
    if not todo:
        return 0
    ray = _connect(jobs, address)
    try:
        return _work(ray, todo, folder, pathlib.Path(priors).absolute(), console)
    finally:
        ray.shutdown()


def _connect(jobs: int | None, address: str | None) -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise ImportError("The grid runs on Ray: pip install 'sb3-diffrl[benchmark]'") from error
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": "WARNING"}
    if address is None:
        ray.init("local", num_cpus=jobs, include_dashboard=False, **how)
    else:
        ray.init(address, **how)
    return ray


def _work(
    ray: ModuleType, todo: Sequence[Run], folder: Path, priors: pathlib.Path, console: Console
) -> int:
    # A process for each: its peak memory is its own, and what it leaves behind ends with it.
    alone = ray.remote(num_cpus=1, max_calls=1, max_retries=0)
    make_prior, start = alone(_make_prior), alone(_execute)
    keys = [run.prior_key if run.needs_prior else None for run in todo]
    first = dict(zip(reversed(keys), reversed(todo), strict=True))  # of the runs that share a prior
    made: dict[str | None, Any] = {
        key: make_prior.remote(first[key], priors) for key in dict.fromkeys(keys) if key
    }
    pending = {start.remote(run, made.get(key)): run for run, key in zip(todo, keys, strict=True)}
    failed = 0
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("runs", total=len(todo))
        while pending:
            (done, *_), _ = ray.wait(list(pending), num_returns=1)
            run = pending.pop(done)
            try:
                record: Record = replace(ray.get(done), command=command())  # this process's
            except ray.exceptions.RayError:
                console.print(f"{' '.join(map(str, run.key))}: failed")
                console.print(traceback.format_exc(), markup=False, highlight=False)
                failed += 1
            else:
                add_records(results_file(folder, record.task), [record])
                console.print(line(record), highlight=False)
            progress.advance(bar)
    return failed


def _make_prior(run: Run, folder: pathlib.Path) -> Prior:
    th.set_num_threads(1)
    return run.make_prior(folder)


def _execute(run: Run, prior: Prior | None) -> Record:
    th.set_num_threads(1)
    return execute(run, prior)


def line(record: Record) -> str:
    """
    :param record: a run
    :return: what it gave, in a line
    """
    found = record.evaluations["stochastic"]
    before = "" if found.before is None else f"{found.before.rate:.2f} -> "
    return (
        f"{record.task} {record.method} {record.perturbation} seed {record.seed}: "
        f"{before}{found.after.rate:.2f}, clean {found.clean.rate:.2f}, "
        f"{record.env_steps:,} steps, {record.wall_s:.0f} s"
    )
