"""The command ``sb3-diffrl bench``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from sb3_diffrl.bench.methods import METHODS, find_method
from sb3_diffrl.bench.multimodality import multimodality
from sb3_diffrl.bench.records import Key, read_records
from sb3_diffrl.bench.report import report, write_report
from sb3_diffrl.bench.runs import Run, plan_run
from sb3_diffrl.bench.tasks import Task, find_tasks

RESULTS = Path("benchmarks/results")
SEEDS = (0, 1, 2)
FAMILIES = ("avoiding", "metaworld")  # of tasks that ship with the package


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
    """
    curve = {} if args.curve_episodes is None else {"curve_episodes": args.curve_episodes}

    def of(task: Task, seed: int) -> Iterator[Run]:
        for perturbation in args.perturbations or task.protocol:
            for method in map(find_method, args.methods):
                name = f"{task.name}-{method.name}-{perturbation}-{seed}.zip"
                yield plan_run(
                    task,
                    method,
                    perturbation,
                    seed,
                    args.steps,
                    n_episodes=args.episodes,
                    **curve,
                    save_path=args.models and args.models / name.replace("/", "-").replace(":", ""),
                )

    tasks = [task for name in args.tasks for task in find_tasks(name)]
    return [run for seed in args.seeds for task in tasks for run in of(task, seed)]


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
