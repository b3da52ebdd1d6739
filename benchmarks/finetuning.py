"""
What each fine-tuning choice is worth: an ablation on Avoiding displaced anew in every episode, all
runs from one prior. Runs that the results file already has are skipped.

    python -m benchmarks.finetuning --jobs 2
    python -m benchmarks.finetuning --choices base last_3_steps --seeds 0
    python -m benchmarks.finetuning --report

Beside the rows (``.csv``) there are the learning curves (``_curves.json``), a summary (``.md``) and
a figure (``.png``) of the same name.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.avoiding import curves_path, markdown, read_curves, run_all, with_interval
from sb3_diffrl.experiments import TASK, Run, make_prior, read_rows, write_text
from sb3_diffrl.plots import benchmark_figure
from sb3_diffrl.zoo import load_hyperparams

ROOT = Path(__file__).resolve().parent.parent
PERTURBATION = "episode"
# By name: what changes in policy_kwargs, and in the algorithm's arguments.
CHOICES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "base": ({}, {}),
    "last_3_steps": ({"finetuned_steps": 3}, {}),
    "last_2_steps": ({"finetuned_steps": 2}, {}),
    "last_2_layers": ({"finetuned_layers": 2}, {}),
    "last_3_layers": ({"finetuned_layers": 3}, {}),
    "learned_noise": ({"sigma_min": 0.05, "sigma_max": 0.2}, {}),
    "learned_noise_by_state": ({"sigma_min": 0.05, "sigma_max": 0.2, "sigma_arch": [64]}, {}),
    "clip_per_step": ({}, {"clip_range_base": 0.02}),
}


def plan(args: argparse.Namespace) -> list[Run]:
    """:return: the runs that are asked for, all from the prior of the plain hyperparameters"""
    plain = load_hyperparams(ROOT / "hyperparams/diffppo.yml", TASK)
    prior = make_prior(args.priors, plain, progress_bar=True)
    runs = []
    for name in args.choices:
        policy_kwargs, arguments = CHOICES[name]
        kwargs = {**plain["policy_kwargs"], **policy_kwargs}
        hyperparams = {**plain, "policy_kwargs": kwargs, **arguments}
        runs += [
            Run(name, PERTURBATION, hyperparams, args.steps, seed, prior, args.episodes)
            for seed in args.seeds
        ]
    return runs


def report(output: Path) -> str:
    """
    Write the summary and the figure that belong to a results file.

    :param output: the results file
    :return: the summary, in Markdown
    """
    rows = [row for row in read_rows(output) if row.eval_mode == "stochastic"]
    groups = {name: [row for row in rows if row.method == name] for name in CHOICES}
    lines = [
        [
            name,
            f"{len(runs)} × {runs[0].n_episodes}",
            f"{statistics.mean(row.env_steps for row in runs):,.0f}",
            with_interval(runs, lambda row: row.perturbed_before),
            with_interval(runs, lambda row: row.perturbed_after),
            with_interval(runs, lambda row: row.clean),
            f"{statistics.mean(row.mode_entropy for row in runs):.2f}",
            f"{statistics.mean(row.wall_s for row in runs):.0f}",
        ]
        for name, runs in groups.items()
        if runs
    ]
    head = [
        *("choice", "runs × episodes", "environment steps", "perturbed before RL"),
        *("perturbed after RL", "clean after RL", "mode entropy", "wall s"),
    ]
    text = "\n".join(
        [
            "# Fine-tuning choices on Avoiding, displaced anew in every episode",
            "",
            f"Made by `python -m benchmarks.finetuning` from `{output.name}`; sampled with fresh "
            "noise, means over seeds with 95 % intervals (Student's t; Wilson's of a single run).",
            "",
            *markdown(head, lines),
            "",
            *(f"- `{name}`: {describe(name)}" for name, runs in groups.items() if runs),
        ]
    )
    write_text(output.with_suffix(".md"), text + "\n")
    curves = read_curves(curves_path(output))
    panel = {
        name: [curve for (method, _, _), curve in curves.items() if method == name]
        for name in CHOICES
    }
    drawn = {name: runs for name, runs in panel.items() if runs}
    if drawn:
        benchmark_figure(output.with_suffix(".png"), {"Displaced in every episode": drawn}, {})
    return text


def describe(name: str) -> str:
    """:return: what the choice changes"""
    policy_kwargs, arguments = CHOICES[name]
    settings = [f"{key}={value}" for key, value in {**policy_kwargs, **arguments}.items()]
    return ", ".join(settings) or "all steps and layers, fixed noise, one clip range"


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--choices", nargs="+", choices=[*CHOICES], default=[*CHOICES])
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    add("--steps", type=int, default=40_000, help="environment steps of RL")
    add("--episodes", type=int, default=500, help="of each evaluation")
    add("--jobs", type=int, default=2, help="runs at a time, one core each")
    add("--output", type=Path, default=ROOT / "benchmarks/results/finetuning.csv")
    add("--priors", type=Path, default=ROOT / "results", help="folder of pre-trained models")
    add("--report", action="store_true", help="only write the summary and the figure")
    args = parser.parse_args()
    failed = 0
    if not args.report:
        th.set_num_threads(1)
        failed = run_all(plan(args), args.output, args.jobs)
    print(report(args.output))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
