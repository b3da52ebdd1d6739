"""The command ``sb3-diffrl bench``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from sb3_diffrl.bench.methods import METHODS, find_method
from sb3_diffrl.bench.runs import Run, plan_run
from sb3_diffrl.bench.tasks import Task, find_tasks

RESULTS = Path("benchmarks/results")


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
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of prior and training")
    add("--steps", type=int, help="environment steps; by default those of the hyperparameters")
    add("--episodes", type=int, default=500, help="of each evaluation after training")
    add("--curve-episodes", type=int, default=100, help="of each point of the learning curves")
    add("--jobs", type=int, help="runs at a time, one core each; by default one for each core")
    add("--address", help="of a Ray cluster, instead of this machine")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    add("--priors", type=Path, default=Path("results"), help="folder of pre-trained models")
    add("--models", type=Path, help="folder in which to save the trained models")
    parser.set_defaults(run=run_bench)


def plan(args: argparse.Namespace) -> list[Run]:
    """
    :param args: of :func:`bench`
    :return: the runs that are asked for: all tasks and methods with one seed before the next
    """

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
                    curve_episodes=args.curve_episodes,
                    save_path=args.models and args.models / name.replace("/", "-").replace(":", ""),
                )

    tasks = [task for name in args.tasks for task in find_tasks(name)]
    return [run for seed in args.seeds for task in tasks for run in of(task, seed)]


def run_bench(args: argparse.Namespace) -> None:
    """
    :param args: of :func:`bench`
    :raises ValueError: where runs failed
    """
    from sb3_diffrl.bench.grid import run_grid

    runs = plan(args)
    failed = run_grid(runs, args.output, args.priors, args.jobs, args.address)
    if failed:
        raise ValueError(f"{failed} of {len(runs)} runs failed; the same command makes them again")
