"""
What each fine-tuning choice is worth: an ablation, all choices from the same priors.

    python -m benchmarks.finetuning --jobs 2
    python -m benchmarks.finetuning --task metaworld/sweep --episodes 100
    python -m benchmarks.finetuning --variants base last_3_steps --seeds 0
    python -m benchmarks.finetuning --report

In the folder of the output there are, for each family of tasks, the records (``.jsonl``), a summary
(``.md``) and a figure (``.png``). They also show former choices, which were measured at the commit
that their records name, and left out for what was found.
"""

import argparse
import dataclasses
import sys
from typing import Any

from benchmarks import variants
from sb3_diffrl.bench.methods import find_method
from sb3_diffrl.bench.runs import Run, plan_run
from sb3_diffrl.bench.tasks import find_tasks
from sb3_diffrl.zoo import merge

STEPS = 40_000
# By name: what changes in the hyperparameters.
CHOICES: dict[str, dict[str, Any]] = {
    "base": {},
    "last_3_steps": {"policy_kwargs": {"finetuned_steps": 3}},
    "last_2_steps": {"policy_kwargs": {"finetuned_steps": 2}},
}
# By name of former choices: what they were.
LEFT_OUT = {
    "last_2_layers": "last 2 layers (left out)",
    "last_3_layers": "last 3 layers (left out)",
    "clip_per_step": "clip range growing over the steps (left out)",
    "learned_noise": "learned noise, one floor per step (left out)",
    "learned_noise_by_state": "learned noise, floors by state (left out)",
}


def plan(args: argparse.Namespace) -> list[Run]:
    """
    :param args: of the command line
    :return: the runs that are asked for; choices are no part of a prior, so all have the same
    """
    (task,) = find_tasks(args.task)
    perturbation = args.perturbation or task.protocol[-1]
    base = [
        plan_run(
            task, find_method("diffrl"), perturbation, seed, args.steps, n_episodes=args.episodes
        )
        for seed in args.seeds
    ]
    return [
        dataclasses.replace(
            run,
            method=name,
            hyperparams=merge(run.hyperparams, CHOICES[name]),
        )
        for name in args.variants
        for run in base
    ]


def describe(name: str) -> str:
    """:return: name and what the choice changes"""
    changes = {**CHOICES[name], **CHOICES[name].get("policy_kwargs", {})}
    changes.pop("policy_kwargs", None)
    settings = [f"{key}={value}" for key, value in changes.items()]
    return ", ".join(settings) or "all steps"


def labels() -> dict[str, str]:
    """:return: what each choice is, by name, former ones last"""
    return {name: describe(name) for name in CHOICES} | LEFT_OUT


def main() -> int:
    """Run and report."""
    args = variants.parser(__doc__, [*CHOICES], "finetuning", STEPS).parse_args()
    runs = [] if args.report else plan(args)
    return variants.run(args, runs, "Fine-tuning choices", labels())


if __name__ == "__main__":
    sys.exit(main())
