"""
What action chunks are worth under a sparse reward: Avoiding with single actions and with chunks, at
equal environment steps.

    python -m benchmarks.chunks --jobs 2
    python -m benchmarks.chunks --method no_context
    python -m benchmarks.chunks --report

Each variant makes priors of its own (demonstrations, pre-training) and fine-tunes them with the
hyperparameters of the task; what counts decisions is divided by the number of actions executed, and
gamma is taken to its power.
"""

import argparse
import dataclasses
import sys
from typing import Any

from benchmarks import variants
from sb3_diffrl.bench.methods import find_method
from sb3_diffrl.bench.runs import Run, plan_run
from sb3_diffrl.bench.tasks import find_tasks

STEPS = 100_000  # environment steps of each run
PRETRAINING_STEPS = 25_000  # gradient steps; fewer are too few for plans of eight actions
CHECKPOINTS = (10_000, 25_000, 50_000)  # environment steps, columns of the summary
# Label, and arguments of ActionChunkWrapper; None for single actions.
CHUNKS: dict[str, tuple[str, dict[str, int] | None]] = {
    "single": ("single actions", None),
    "chunks_4_4": ("4 predicted, 4 executed", {"horizon": 4, "n_executed": 4}),
    "chunks_8_4": ("8 predicted, 4 executed", {"horizon": 8, "n_executed": 4}),
}


def hyperparams_for(base: dict[str, Any], chunk: dict[str, int] | None) -> dict[str, Any]:
    """
    :param base: hyperparameters for single actions
    :param chunk: arguments of the wrapper
    :return: hyperparameters for chunks: as many environment steps between updates, as many
        minibatches in an epoch, the same discount per environment step
    """
    if chunk is None:
        return base
    n = chunk["n_executed"]
    return {
        **base,
        "env_wrapper": {"sb3_diffrl.wrappers.ActionChunkWrapper": chunk},
        "n_steps": max(1, base["n_steps"] // n),
        "batch_size": max(1, base["batch_size"] // n),
        "gamma": base["gamma"] ** n,
    }


def plan(args: argparse.Namespace) -> list[Run]:
    """
    :param args: of the command line
    :return: the runs that are asked for
    """
    (task,) = find_tasks(args.task)
    perturbation = args.perturbation or task.protocol[-1]
    runs = []
    for name in args.variants:
        for seed in args.seeds:
            run = plan_run(
                task,
                find_method(args.method),
                perturbation,
                seed,
                args.steps,
                n_episodes=args.episodes,
            )
            pretrain = {**run.hyperparams["pretrain"], "gradient_steps": args.pretraining_steps}
            hyperparams = hyperparams_for(
                {**run.hyperparams, "pretrain": pretrain}, CHUNKS[name][1]
            )
            method = name if args.method == "diffrl" else f"{name}-{run.method}"
            runs.append(dataclasses.replace(run, method=method, hyperparams=hyperparams))
    return runs


def main() -> int:
    """Run and report."""
    parser = variants.parser(__doc__, [*CHUNKS], "chunks", STEPS)
    parser.add_argument("--method", default="diffrl", help="method or named experiment")
    parser.add_argument("--pretraining-steps", type=int, default=PRETRAINING_STEPS)
    args = parser.parse_args()
    labels = {name: label for name, (label, _) in CHUNKS.items()}
    runs = [] if args.report else plan(args)
    return variants.run(args, runs, "Action chunks under a sparse reward", labels, CHECKPOINTS)


if __name__ == "__main__":
    sys.exit(main())
