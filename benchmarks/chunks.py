"""
What action chunks are worth under a sparse reward: Avoiding, displaced anew in every episode (or
one displaced scene), with single actions and with chunks, at equal environment steps.

    python -m benchmarks.chunks --jobs 2
    python -m benchmarks.chunks --config zoo_configs/no_context.yml --name no_context
    python -m benchmarks.chunks --report

Each run makes its own prior (demonstrations, pre-training) and fine-tunes it with the
hyperparameters of the task; what counts decisions is divided by the number of actions executed, and
gamma is taken to its power. Every run is a process of its own whose rows are written when it is
done; runs that the results file already has are skipped. Beside the rows there are the learning
curves (``_curves.json``), a summary (``.md``) and a figure (``.png``).
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch as th

from benchmarks.avoiding import (
    HYPERPARAMS,
    ROOT,
    T_QUANTILES,
    curves_path,
    markdown,
    perturbation_argument,
    read_curves,
    run_all,
    with_interval,
)
from sb3_diffrl.evaluation import wilson_interval
from sb3_diffrl.experiments import TASK, Curve, Run, in_process, make_prior, read_rows, write_text
from sb3_diffrl.zoo import load_hyperparams

STEPS = 200_000  # environment steps of each run
CURVE_EPISODES = 100
CHECKPOINTS = (0.05, 0.1, 0.25, 0.5, 1.0)  # of the environment steps, columns of the summary
# Label, and arguments of ActionChunkWrapper; None for single actions.
METHODS: dict[str, tuple[str, dict[str, int] | None]] = {
    "single": ("single actions", None),
    "chunks_4_4": ("4 predicted, 4 executed", {"horizon": 4, "n_executed": 4}),
    "chunks_8_4": ("8 predicted, 4 executed", {"horizon": 8, "n_executed": 4}),
}

# -- running -----------------------------------------------------------------------------------


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
    :return: the runs that are asked for, without their priors
    """
    base = load_hyperparams(args.config or HYPERPARAMS, TASK)
    runs = []
    for name in args.methods:
        _, chunk = METHODS[name]
        decisions = args.steps // (1 if chunk is None else chunk["n_executed"])
        runs += [
            Run(
                name if args.name is None else f"{name}-{args.name}",
                perturbation,
                hyperparams_for(base, chunk),
                decisions,
                seed,
                n_episodes=args.episodes,
                curve_interval=max(2_000, args.steps // 40),
                curve_episodes=CURVE_EPISODES,
            )
            for perturbation in args.scenes
            for seed in args.seeds
        ]
    return runs


def with_priors(runs: Sequence[Run], folder: Path, jobs: int) -> list[Run]:
    """
    :param runs: without priors
    :param folder: where priors are kept
    :param jobs: how many are made at a time
    :return: the runs, each with a prior of its own seed
    """

    def with_prior(run: Run) -> Run:
        prior = in_process(make_prior, folder, run.hyperparams, run.seed + 1)
        print(f"prior of {run.method}, seed {run.seed}: {prior.wall_s:.0f} s", flush=True)
        return dataclasses.replace(run, prior=prior)

    first = {(run.method, run.seed): run for run in runs}  # perturbations share them
    with ThreadPoolExecutor(jobs) as pool:
        made = dict(zip(first, pool.map(with_prior, first.values()), strict=True))
    return [dataclasses.replace(run, prior=made[run.method, run.seed].prior) for run in runs]


# -- reporting ---------------------------------------------------------------------------------


def report(output: Path) -> str:
    """
    Write the summary and the figure that belong to a results file.

    :param output: the results file
    :return: the summary, in Markdown
    """
    rows = [row for row in read_rows(output) if row.eval_mode == "stochastic"]
    curves = grouped(read_curves(curves_path(output)))
    lines = []
    for perturbation, method in curves:
        runs = [row for row in rows if (row.perturbation, row.method) == (perturbation, method)]
        if not runs:
            continue
        steps, low, mean, high = band(curves[perturbation, method])
        at = [int(np.argmin(np.abs(steps - part * steps[-1]))) for part in CHECKPOINTS[:-1]]
        lines.append(
            [
                perturbation,
                label(method),
                str(len(runs)),
                f"{statistics.mean(row.env_steps for row in runs):,.0f}",
                with_interval(runs, lambda row: row.perturbed_before),
                *(f"{mean[i]:.2f} [{low[i]:.2f}, {high[i]:.2f}] at {steps[i]:,.0f}" for i in at),
                with_interval(runs, lambda row: row.perturbed_after),
                with_interval(runs, lambda row: row.clean),
                f"{statistics.mean(row.mode_entropy for row in runs):.2f}",
                f"{statistics.mean(row.wall_s for row in runs):.0f}",
            ]
        )
    head = ["perturbation", "decisions", "seeds", "environment steps", "before RL"]
    head += ["on the way"] * (len(CHECKPOINTS) - 1)
    head += ["after RL", "clean, after RL", "mode entropy", "wall s"]
    text = "\n".join(
        [
            "# Action chunks on Avoiding",
            "",
            f"Made by `python -m benchmarks.chunks` from `{output.name}`. Success rates under the "
            "perturbation, sampled actions, with 95 % intervals: Student's t over the seeds (each "
            "with a prior of its own), of a single run Wilson's over its episodes. On the way: "
            f"{CURVE_EPISODES} episodes of each seed.",
            "",
            *markdown(head, lines),
        ]
    )
    write_text(output.with_suffix(".md"), text + "\n")
    figure(output.with_suffix(".png"), curves)
    return text


def label(method: str) -> str:
    """:return: what a method is, for people"""
    name, dash, variant = method.partition("-")
    return METHODS[name][0] + (f", {variant}" if dash else "")


def grouped(
    curves: dict[tuple[str, str, int], Curve],
) -> dict[tuple[str, str], list[Curve]]:
    """
    :param curves: by method, perturbation and seed
    :return: by perturbation and method, in the order of ``METHODS``, the curves of all seeds
    """
    groups: dict[tuple[str, str], list[Curve]] = {}
    order = [*METHODS]
    for method, perturbation, seed in sorted(
        curves, key=lambda key: (key[1], order.index(key[0].partition("-")[0]), key)
    ):
        groups.setdefault((perturbation, method), []).append(curves[method, perturbation, seed])
    return groups


def band(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    :param curves: environment steps and success rates of each seed
    :return: environment steps, lower bound, mean and upper bound of the success rate
    """
    steps = np.array(max(curves, key=lambda curve: curve[-1][0]), float)[:, 0]
    steps = np.unique(steps.clip(max=min(curve[-1][0] for curve in curves)))
    rates = np.array([np.interp(steps, *np.array(curve, float).T) for curve in curves])
    mean = rates.mean(axis=0)
    if len(curves) == 1:
        bounds = [wilson_interval(round(rate * CURVE_EPISODES), CURVE_EPISODES) for rate in mean]
        low, high = np.array(bounds).T
        return steps, low, mean, high
    quantile = T_QUANTILES[min(len(curves) - 1, len(T_QUANTILES)) - 1]
    half = quantile * rates.std(axis=0, ddof=1) / np.sqrt(len(curves))
    return steps, (mean - half).clip(0, 1), mean, (mean + half).clip(0, 1)


def figure(path: Path, curves: dict[tuple[str, str], list[Curve]]) -> None:
    """
    Save one panel for each perturbation: means with their intervals.

    :param path: a PNG file
    :param curves: see :func:`grouped`
    """
    from matplotlib.figure import Figure

    from sb3_diffrl.plots import save_figure

    perturbations = list(dict.fromkeys(perturbation for perturbation, _ in curves))
    if not perturbations:
        return
    picture = Figure(figsize=(6 * len(perturbations), 4), layout="constrained")
    axes = picture.subplots(1, len(perturbations), squeeze=False).ravel()
    for ax, perturbation in zip(axes, perturbations, strict=True):
        for (which, method), runs in curves.items():
            if which == perturbation:
                steps, low, mean, high = band(runs)
                (line,) = ax.plot(steps, mean, linewidth=2, label=label(method))
                ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        ax.set(title=perturbation, xlabel="environment steps", ylabel="success rate")
        ax.set(ylim=(-0.02, 1.02), xlim=(0, None))
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, title="decisions")
    save_figure(picture, path)


# -- command line ------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """:return: the command line"""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--methods", nargs="+", choices=[*METHODS], default=[*METHODS])
    add(
        "--scenes",
        nargs="+",
        type=perturbation_argument,
        default=["episode"],
        help="'episode' or numbers of scenes",
    )
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of pre-training and training")
    add("--steps", type=int, default=STEPS, help="environment steps")
    add("--episodes", type=int, default=500, help="of each evaluation before and after")
    add("--config", type=Path, help="named experiment instead of the task's hyperparameters")
    add("--name", help="what tells its rows from the others")
    add("--jobs", type=int, default=2, help="runs at a time, one core each")
    add("--output", type=Path, default=ROOT / "benchmarks/results/chunks.csv")
    add("--priors", type=Path, default=ROOT / "results", help="folder of pre-trained models")
    add("--report", action="store_true", help="only write the summary and the figure")
    return result


def main() -> int:
    """Run and report."""
    args = parser().parse_args()
    failed = 0
    if not args.report:
        th.set_num_threads(1)
        done = {row.key for row in read_rows(args.output)}
        runs = [run for run in plan(args) if not done.issuperset(run.keys)]
        failed = run_all(with_priors(runs, args.priors, args.jobs), args.output, args.jobs)
    print(report(args.output))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
