"""The command ``sb3-diffrl bench``."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sb3_diffrl.bench.methods import METHODS, find_method
from sb3_diffrl.bench.multimodality import multimodality
from sb3_diffrl.bench.records import Key, read_records
from sb3_diffrl.bench.report import report, write_report
from sb3_diffrl.bench.runs import EVALUATION_SEED, Run, plan_run
from sb3_diffrl.bench.tasks import FAMILIES, Task, find_tasks

RESULTS = Path("benchmarks/results")
SEEDS = (0, 1, 2)
MAX_SEED = EVALUATION_SEED - 100  # training envs have seeds from theirs on


def bench(parser: argparse.ArgumentParser) -> None:
    """Run the benchmark and report: which tasks, methods, perturbations and seeds."""
    add = parser.add_argument
    add(
        "--tasks",
        nargs="+",
        default=["avoiding"],
        help="avoiding, metaworld, metaworld/<task>, a YAML file",
    )
    add("--methods", nargs="+", default=list(METHODS), help="names, named experiments, functions")
    add("--perturbations", nargs="+", help="by default the task's protocol")
    add("--seeds", nargs="+", type=int, default=SEEDS, help="of prior and training")
    add("--steps", type=int, help="environment steps; by default those of the hyperparameters")
    add("--episodes", type=int, default=500, help="of each evaluation after training")
    add("--curve-episodes", type=int, help="of each point of the learning curves")
    add("--jobs", type=int, help="runs at a time, one core each; by default one for each core")
    add("--address", help="of a Ray cluster, instead of this machine")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    add("--priors", type=Path, default=Path("results"), help="folder of pre-trained models")
    add("--models", type=Path, help="folder in which to save the trained models")
    parser.set_defaults(run=run_bench)
    commands = parser.add_subparsers(metavar="command")
    for name, command in {"report": _report, "multimodality": multimodality}.items():
        text = (command.__doc__ or "").strip()
        command(commands.add_parser(name, help=text, description=text))


def _report(parser: argparse.ArgumentParser) -> None:
    """Make tables and figures from records of runs."""
    report(parser, plan=planned)


def planned(path: Path) -> list[Key] | None:
    """
    :param path: a file of records
    :return: keys of all runs of the protocol, where the file is that of a family of tasks
    """
    if path.stem not in FAMILIES:
        return None
    return [
        (task.name, method, perturbation, seed)
        for task in find_tasks(path.stem)
        for method in METHODS
        for perturbation in task.protocol
        for seed in SEEDS
    ]


def plan(args: argparse.Namespace) -> list[Run]:
    """
    :param args: of :func:`bench`
    :return: the runs that are asked for: all tasks and methods with one seed before the next
    :raises ValueError: for numbers that make no sense, and runs that would have the same record
    """
    for name in ("steps", "episodes", "curve_episodes", "jobs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected 1 or more, got {value}.")
    if not all(0 <= seed < MAX_SEED for seed in args.seeds):
        raise ValueError(f"--seeds: expected 0 to {MAX_SEED - 1}, got {args.seeds}.")
    curve = {} if args.curve_episodes is None else {"curve_episodes": args.curve_episodes}

    def of(task: Task, seed: int) -> Iterator[Run]:
        for perturbation in args.perturbations or task.protocol:
            for method in map(find_method, args.methods):
                name = "-".join([task.name, method.name, perturbation, str(seed)])
                yield plan_run(
                    task,
                    method,
                    perturbation,
                    seed,
                    args.steps,
                    n_episodes=args.episodes,
                    **curve,
                    save_path=args.models and args.models / f"{re.sub(r'[/:]+', '-', name)}.zip",
                )

    tasks = [task for name in args.tasks for task in find_tasks(name)]
    runs = [run for seed in args.seeds for task in tasks for run in of(task, seed)]
    twice = [key for key, number in Counter(run.key for run in runs).items() if number > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} runs are asked for twice, such as {' '.join(map(str, twice[0]))}: name "
            "each task, method, perturbation and seed once; files that describe tasks, and not by "
            "the same name."
        )
    return runs


def run_bench(args: argparse.Namespace) -> None:
    """
    :param args: of :func:`bench`
    :raises ValueError: where runs failed
    """
    from sb3_diffrl.bench.grid import results_file, run_grid

    runs = plan(args)
    failed = run_grid(runs, args.output, args.priors, args.jobs, args.address)
    for file in sorted({results_file(args.output, run.task.name) for run in runs}):
        if file.exists():
            records = read_records(file)
            print(write_report(records, file.with_suffix(""), file.stem, planned=planned(file)))
    if failed:
        raise ValueError(f"{failed} of {len(runs)} runs failed; the same command makes them again")
