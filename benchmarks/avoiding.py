"""
The full figures on the Avoiding task: every run is trained and measured in a process of its own and
written to the results file when it is done; runs that the file already has are skipped.

    python benchmarks/avoiding.py --jobs 2
    python benchmarks/avoiding.py --config zoo_configs/no_context.yml --scenes 0 1 2
    python benchmarks/avoiding.py --report

Beside the rows there are the learning curves (``_curves.json``), a summary (``.md``) and a figure
(``.png``) of the same name.
"""

import argparse
import dataclasses
import json
import math
import statistics
import sys
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch as th

from sb3_diffrl.evaluation import wilson_interval
from sb3_diffrl.experiments import (
    EVAL_MODES,
    LABELS,
    TASK,
    Curve,
    Outcome,
    ResultRow,
    Run,
    add_rows,
    execute,
    in_process,
    make_prior,
    read_rows,
    write_text,
)
from sb3_diffrl.plots import benchmark_figure
from sb3_diffrl.zoo import load_hyperparams

ROOT = Path(__file__).resolve().parent.parent
HYPERPARAMS = ROOT / "hyperparams/diffppo.yml"
SCENES = [f"scene:{n}" for n in range(10)]
EPISODE_STEPS = 200_000  # the form redrawn at every reset is the harder one
EARLY = 40_000  # environment steps at which the summary also looks
# Student's t, 97.5 %, by degrees of freedom from 1; the last also stands for more.
T_QUANTILES = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)

Key = tuple[str, str, int]  # method, perturbation, seed

# -- running -----------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> list[Run]:
    """
    :param args: of the command line
    :return: the runs that are asked for, without their prior
    """
    diffrl = load_hyperparams(args.config or HYPERPARAMS, TASK)
    ppo = load_hyperparams(HYPERPARAMS.with_name("ppo.yml"), TASK)
    runs = []
    for method in args.methods or (["diffrl"] if args.config else [*LABELS]):
        hyperparams = ppo if method == "ppo" else diffrl
        name = args.config.stem if args.config and method == "diffrl" else method
        perturbations = SCENES[:3] if method == "ppo" else [*SCENES, "episode"]
        for perturbation in args.scenes or perturbations:
            several = perturbation == "episode" and method != "diffusion"
            seeds = [0] if method == "diffusion" else args.seeds or ([0, 1, 2] if several else [0])
            steps = args.steps or hyperparams["n_timesteps"]
            if several and method != "ppo" and not args.steps:
                steps = EPISODE_STEPS
            steps = 0 if method == "diffusion" else int(steps)
            runs += [
                Run(
                    name,
                    perturbation,
                    hyperparams,
                    steps,
                    seed,
                    n_episodes=args.episodes,
                    curve_interval=max(5_000, steps // 40),
                    save_path=args.models / f"{name}-{perturbation.replace(':', '')}-{seed}.zip",
                )
                for seed in seeds
            ]
    return runs


def run_all(runs: Iterable[Run], output: Path, jobs: int) -> int:
    """
    Execute what the results file does not have yet.

    :param runs: what to do
    :param output: the results file
    :param jobs: how many at a time
    :return: number of runs that failed
    """
    done = {row.key for row in read_rows(output)}
    todo = [run for run in runs if not done.issuperset(run.keys)]
    print(f"{len(todo)} runs to do, {jobs} at a time", flush=True)
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(in_process, execute, run): run for run in todo}
        for i, future in enumerate(as_completed(futures), 1):
            run = futures[future]
            name = f"{i}/{len(todo)} {run.method} {run.perturbation} seed {run.seed}"
            try:
                outcome: Outcome = future.result()
            except Exception:  # the others go on
                traceback.print_exc()
                print(f"{name}: failed", flush=True)
                failed += 1
                continue
            add_curve(curves_path(output), run, outcome.curve)
            add_rows(output, outcome.rows)
            row = outcome.rows[0]
            print(
                f"{name}: {row.perturbed_before:.2f} -> {row.perturbed_after:.2f}, "
                f"clean {row.clean:.2f}, mode entropy {row.mode_entropy:.2f}, {row.wall_s:.0f} s",
                flush=True,
            )
    return failed


def curves_path(output: Path) -> Path:
    """
    :param output: the results file
    :return: the file of its learning curves
    """
    return output.with_name(f"{output.stem}_curves.json")


def read_curves(path: Path) -> dict[Key, Curve]:
    """
    :param path: a file of learning curves, which may be missing
    :return: its curves
    """
    entries = json.loads(path.read_text()) if path.exists() else []
    return {
        (entry["method"], entry["perturbation"], entry["seed"]): entry["curve"] for entry in entries
    }


def add_curve(path: Path, run: Run, curve: Curve) -> None:
    """
    :param path: file of learning curves
    :param run: what the curve belongs to
    :param curve: environment steps and success rates
    """
    curves = read_curves(path)
    if curve:
        curves[run.method, run.perturbation, run.seed] = curve
    lines = [
        json.dumps({"method": method, "perturbation": perturbation, "seed": seed, "curve": points})
        for (method, perturbation, seed), points in sorted(curves.items())
    ]
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


# -- reporting ---------------------------------------------------------------------------------


def report(output: Path) -> str:
    """
    Write the summary and the figure that belong to a results file.

    :param output: the results file
    :return: the summary, in Markdown
    """
    rows, curves = read_rows(output), read_curves(curves_path(output))
    text = "\n".join(
        [
            "# Avoiding: results",
            "",
            f"Made by `python benchmarks/avoiding.py` from `{output.name}`. Success rates are "
            "means over the runs, with 95 % intervals: Student's t over the runs, which holds the "
            "spread over scenes and training seeds; of a single value, Wilson's over its episodes. "
            "A drop is the largest of any run against the prior in the same evaluation mode.",
            *(line for mode in EVAL_MODES for line in summary(rows, curves, mode)),
            *(line for mode in EVAL_MODES for line in single_runs(rows, mode)),
        ]
    )
    write_text(output.with_suffix(".md"), text + "\n")
    figure(output.with_suffix(".png"), curves)
    return text


def summary(rows: list[ResultRow], curves: dict[Key, Curve], mode: str) -> list[str]:
    """
    :param rows: of the results file
    :param curves: learning curves
    :param mode: evaluation mode
    :return: lines of a Markdown table, one row for each method and form of the perturbation
    """
    rows = [row for row in rows if row.eval_mode == mode]
    prior = {row.perturbation: row for row in rows if row.method == "diffusion"}
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    for row in sorted(rows, key=order):
        groups.setdefault((form(row.perturbation), row.method), []).append(row)
    lines = []
    for (perturbation, method), runs in groups.items():
        known = [(row, prior[row.perturbation]) for row in runs if row.perturbation in prior]
        reached = [row.steps_to_060 for row in runs if not math.isnan(row.steps_to_060)]
        early = [
            max((point for point in curve if point[0] <= EARLY), default=(0, math.nan))[1]
            for row in runs
            if (curve := curves.get(row.key[:3]))
        ]
        lines.append(
            [
                LABELS.get(method, method),
                perturbation,
                f"{len(runs)} × {runs[0].n_episodes}",
                f"{statistics.mean(row.env_steps for row in runs):,.0f}",
                with_interval(runs, lambda row: row.clean),
                with_interval(runs, lambda row: row.perturbed_before),
                f"{statistics.mean(early):.2f}" if early and mode == "stochastic" else "–",
                with_interval(runs, lambda row: row.perturbed_after),
                f"{statistics.mean(reached):,.0f} ({len(reached)}/{len(runs)})" if reached else "–",
                f"{statistics.mean(row.mode_entropy for row in runs):.2f}",
                largest(row_prior.clean - row.clean for row, row_prior in known),
                largest(row_prior.mode_entropy - row.mode_entropy for row, row_prior in known),
                f"{statistics.mean(row.wall_s for row in runs):.0f}",
            ]
        )
    head = (
        "method, perturbation, runs × episodes, environment steps, clean, perturbed before RL, "
        f"at {EARLY:,} steps, perturbed after RL, steps to 0.60 (runs), "
        "mode entropy, drop of clean, drop of entropy, wall s"
    )
    return ["", f"## {mode.capitalize()}", "", *markdown(head.split(", "), lines)]


def single_runs(rows: list[ResultRow], mode: str) -> list[str]:
    """
    :param rows: of the results file
    :param mode: evaluation mode
    :return: lines of a Markdown table, one row for each run that was trained
    """
    lines = [
        [
            LABELS.get(row.method, row.method),
            row.perturbation,
            str(row.seed),
            f"{row.clean:.2f}",
            "–" if math.isnan(row.perturbed_before) else f"{row.perturbed_before:.2f}",
            f"{row.perturbed_after:.2f}",
            "–" if math.isnan(row.steps_to_060) else f"{row.steps_to_060:,.0f}",
            f"{row.mode_entropy:.2f}",
        ]
        for row in sorted(rows, key=order)
        if row.eval_mode == mode and row.method != "diffusion"
    ]
    head = "method, perturbation, seed, clean, before RL, after RL, steps to 0.60, mode entropy"
    return ["", f"## Each run, {mode}", "", *markdown(head.split(", "), lines)]


def markdown(head: list[str], lines: list[list[str]]) -> list[str]:
    """
    :param head: names of the columns
    :param lines: cells
    :return: lines of a Markdown table
    """
    return [f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *lines]]


def order(row: ResultRow) -> tuple[Any, ...]:
    """:return: a sort key: scenes by number, then the episode form; methods as in the tables"""
    methods = [*LABELS, row.method]
    name, _, number = row.perturbation.partition(":")
    return name == "episode", methods.index(row.method), row.method, int(number or 0), row.seed


def form(perturbation: str) -> str:
    """:return: ``scene`` or ``episode``"""
    return perturbation.partition(":")[0]


def with_interval(runs: list[ResultRow], value: Callable[[ResultRow], float]) -> str:
    """
    :param runs: rows of one method
    :param value: success rate of a row
    :return: mean with its 95 % interval, a dash where there is none
    """
    values = [value(row) for row in runs]
    mean = statistics.mean(values)
    if math.isnan(mean):
        return "–"
    if len(set(values)) == 1:  # one run, or one measurement repeated
        n = runs[0].n_episodes
        low, high = wilson_interval(round(mean * n), n)
    else:
        quantile = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1]
        half = quantile * statistics.stdev(values) / math.sqrt(len(values))
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def largest(values: Iterable[float]) -> str:
    """:return: the largest value, with its sign"""
    worst = max(values, default=math.nan)
    return "–" if math.isnan(worst) else f"{worst:+.2f}"


def figure(path: Path, curves: dict[Key, Curve]) -> None:
    """
    Save the learning curves: one panel for each form of the perturbation, in which PPO's are cut
    where the others end, and one of PPO's in full.

    :param path: a PNG file
    :param curves: learning curves
    """
    panels: dict[str, dict[str, list[Curve]]] = {}
    full: list[Curve] = []
    titles = {"scene": "One displaced scene", "episode": "Displaced anew in every episode"}
    for kind, title in titles.items():
        ours = [c for (m, p, _), c in curves.items() if form(p) == kind and m != "ppo"]
        end = max((curve[-1][0] for curve in ours), default=math.inf)
        for (method, perturbation, _), curve in curves.items():
            label = LABELS.get(method, method)
            if form(perturbation) == kind:
                cut = [point for point in curve if point[0] <= end]
                panels.setdefault(title, {}).setdefault(label, []).append(cut)
                full += [curve] if cut != curve else []
    if full:
        panels["To the end"] = {LABELS["ppo"]: full}
    if panels:
        benchmark_figure(path, panels, {titles["scene"]: 0.95, titles["episode"]: 0.70})


# -- command line ------------------------------------------------------------------------------


def perturbation_argument(text: str) -> str:
    """
    :param text: the number of a scene, or ``episode``
    :return: the environment's argument
    """
    return text if text == "episode" else f"scene:{int(text)}"


def parser() -> argparse.ArgumentParser:
    """:return: the command line"""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--methods", nargs="+", choices=[*LABELS], help="default: all, with --config diffrl")
    add(
        "--scenes",
        nargs="+",
        type=perturbation_argument,
        help="numbers and 'episode'; default: all",
    )
    add("--seeds", nargs="+", type=int, help="of training; default: 0, in the episode form 0 1 2")
    add("--steps", type=int, help="environment steps; default: the hyperparameters' n_timesteps")
    add("--episodes", type=int, default=500, help="of each evaluation")
    add("--config", type=Path, help="named experiment, whose file name becomes diffrl's name")
    add("--jobs", type=int, default=2, help="runs at a time, one core each")
    add("--output", type=Path, default=ROOT / "benchmarks/results/avoiding.csv")
    add("--priors", type=Path, default=ROOT / "results", help="folder of pre-trained models")
    add("--models", type=Path, default=ROOT / "results/models", help="folder of trained models")
    add("--report", action="store_true", help="only write the summary and the figure")
    return result


def main() -> int:
    """Run and report."""
    args = parser().parse_args()
    failed = 0
    if not args.report:
        th.set_num_threads(1)
        args.models.mkdir(parents=True, exist_ok=True)
        runs = plan(args)
        if any(run.method != "ppo" for run in runs):
            hyperparams = load_hyperparams(args.config or HYPERPARAMS, TASK)
            prior = make_prior(args.priors, hyperparams, progress_bar=True)
            runs = [dataclasses.replace(run, prior=prior) for run in runs]
        failed = run_all(runs, args.output, args.jobs)
    print(report(args.output))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
