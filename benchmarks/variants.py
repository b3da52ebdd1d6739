"""
Variants of the recipe side by side on one task: what the benchmarks of single choices share.

Runs go through the grid of ``sb3-diffrl bench``: those that the results have are not made again.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffrl.bench.cells import bounds, markdown
from sb3_diffrl.bench.grid import run_grid
from sb3_diffrl.bench.records import Point, Record, Successes, read_records
from sb3_diffrl.bench.runs import Run
from sb3_diffrl.bench.statistics import over_seeds
from sb3_diffrl.files import write_text
from sb3_diffrl.plots import band_figure

ROOT = Path(__file__).resolve().parent.parent


def parser(
    doc: str | None, variants: Sequence[str], output: str, steps: int
) -> argparse.ArgumentParser:
    """
    :param doc: of the benchmark
    :param variants: names
    :param output: name of the results file
    :param steps: default number of environment steps
    :return: the command line
    """
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    add("--variants", nargs="+", choices=variants, default=variants)
    add("--task", default="avoiding", help="as in `sb3-diffrl bench`")
    add("--perturbation", help="by default the last of the task's protocol")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of prior and training")
    add("--steps", type=int, default=steps, help="environment steps of RL")
    add("--episodes", type=int, default=500, help="of each evaluation before and after")
    add("--jobs", type=int, default=2, help="runs at a time, one core each")
    add("--output", type=Path, default=ROOT / "benchmarks/results" / output, help="folder")
    add("--priors", type=Path, default=ROOT / "results", help="folder of pre-trained models")
    add("--report", action="store_true", help="only write the summaries and figures")
    return result


def run(
    args: argparse.Namespace,
    runs: Sequence[Run],
    title: str,
    labels: Mapping[str, str],
    checkpoints: Sequence[int] = (),
) -> int:
    """
    Make the runs, unless only the report is wanted, and write the report.

    :param args: of :func:`parser`
    :param runs: what is wanted
    :param title: of the report
    :param labels: what the variants are, by name in their order
    :param checkpoints: environment steps that the report looks at on the way
    :return: exit code
    """
    failed = 0 if args.report else run_grid(runs, args.output, args.priors, args.jobs)
    for file in sorted(args.output.glob("*.jsonl")):
        print(report(file, title, labels, checkpoints))
    return 1 if failed else 0


def report(
    file: Path, title: str, labels: Mapping[str, str], checkpoints: Sequence[int] = ()
) -> str:
    """
    Write a summary (``.md``) and a figure (``.png``) beside a file of records.

    :param file: records
    :param title: of the summary
    :param labels: what the variants are, in their order
    :param checkpoints: environment steps of further columns
    :return: the summary, in Markdown
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    order = list(labels)
    for record in sorted(read_records(file), key=lambda r: (r.key[:1], r.perturbation)):
        groups.setdefault((record.task, record.perturbation, record.method), []).append(record)
    keys = sorted(groups, key=lambda key: (*key[:2], order.index(key[2].partition("-")[0]), key))
    lines = [_line(_label(labels, key[2]), groups[key], checkpoints) for key in keys]
    head = ["task", "perturbation", "variant", "seeds × episodes", "environment steps"]
    head += ["perturbed before RL", *(f"at {at:,} steps" for at in checkpoints)]
    head += ["perturbed after RL", "clean after RL", "mode entropy", "wall s"]
    text = "\n".join(
        [
            f"# {title}",
            "",
            f"From `{file.name}`, which holds command, commit and versions of each run. Sampled "
            "actions; means over seeds, each with a prior of its own, with 95 % intervals: "
            "Student's t over the seeds; where these do not differ, or for one, Wilson's over its "
            "episodes.",
            "",
            *markdown(head, lines),
        ]
    )
    write_text(file.with_suffix(".md"), text + "\n")
    panels: dict[str, dict[str, Any]] = {}
    for task, perturbation, method in keys:
        curves = [record.curve for record in groups[task, perturbation, method]]
        if all(curves):
            panel = panels.setdefault(f"{task}, {perturbation}", {})
            panel[_label(labels, method)] = band(curves)
    if panels:
        band_figure(file.with_suffix(".png"), panels)
    return text


def _label(labels: Mapping[str, str], method: str) -> str:
    """What a variant is; ``chunks-no_context`` is another method's form of ``chunks``."""
    name, dash, other = method.partition("-")
    return labels[name] + (f", {other}" if dash else "")


def _line(label: str, runs: Sequence[Record], checkpoints: Sequence[int]) -> list[str]:
    found = [record.evaluations["stochastic"] for record in runs]
    entropies = [record.mode_entropy for record in runs if record.mode_entropy is not None]
    curves = [record.curve for record in runs]
    on_the_way = [
        interval([at_steps(curve, at) for curve in curves])
        if all(curve and curve[-1].env_steps >= at for curve in curves)
        else "–"
        for at in checkpoints
    ]
    return [
        runs[0].task,
        runs[0].perturbation,
        label,
        f"{len(runs)} × {found[0].after.n_episodes}",
        f"{statistics.mean(record.env_steps for record in runs):,.0f}",
        interval([each.before for each in found]),
        *on_the_way,
        interval([each.after for each in found]),
        interval([each.clean for each in found]),
        f"{statistics.mean(entropies):.2f}" if entropies else "–",
        f"{statistics.mean(record.wall_s for record in runs):.0f}",
    ]


def at_steps(curve: Sequence[Point], env_steps: float) -> Successes:
    """
    :param curve: points of a run
    :param env_steps: where, between the points linearly
    :return: perturbed successes there
    """
    steps, rates = np.array([(p.env_steps, p.perturbed.rate) for p in curve], float).T
    n = curve[0].perturbed.n_episodes
    return Successes(round(float(np.interp(env_steps, steps, rates)) * n), n)


def interval(values: Sequence[Successes | None]) -> str:
    """
    :param values: of each seed
    :return: mean with its 95 % interval, a dash where there is none
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "–"
    return bounds(*over_seeds(known))


def band(curves: Sequence[Sequence[Point]]) -> tuple[np.ndarray, ...]:
    """
    :param curves: of each seed
    :return: environment steps, lower bound, mean and upper bound of the perturbed success rate
    """
    longest = max(curves, key=lambda curve: curve[-1].env_steps)
    end = min(curve[-1].env_steps for curve in curves)
    steps = np.unique([min(point.env_steps, end) for point in longest])
    rows = [over_seeds([at_steps(curve, at) for curve in curves]) for at in steps]
    mean, low, high = np.array(rows).T
    return steps, low, mean, high
