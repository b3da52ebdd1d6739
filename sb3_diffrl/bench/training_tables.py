"""Sections of a benchmark's report on training: its speed, what it forgets, what was run."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sb3_diffrl.bench.cells import COUNTS, NONE, Lines, counts, interval, markdown, steps_to
from sb3_diffrl.bench.records import EVAL_MODES, Key, Record
from sb3_diffrl.bench.statistics import (
    Estimate,
    clean_curve,
    differences,
    estimate,
    means,
    natural,
    quotient,
    strata,
)
from sb3_diffrl.bench.study import (
    PRIOR,
    REFERENCES,
    Study,
    drops,
    finetuned,
    in_common,
    success,
    trained,
)

SHOWN = 20  # lines of what is missing


def speed(study: Study) -> Lines:
    """:return: steps to the threshold, area under the curve, and how many times faster"""
    references = [name for name in REFERENCES if name in study.methods]
    if not trained(study.records):
        return []
    ends = sorted({end for end in study.horizons.values() if end})
    shown = f"{ends[0]:,}" if len(ends) == 1 else f"{ends[0]:,} to {ends[-1]:,}, by task"
    rows = []
    for part in study.forms.values():
        for method, records in part.methods.items():
            curves = trained(records)
            if curves:
                speeds = strata(curves, part.speed)
                found = estimate(means, speeds)
                worst = np.concatenate(speeds)[:, 2].max()
                rows.append(
                    [
                        *counts(part, method, curves),
                        steps_to(curves, study.threshold),
                        interval(found, 0, ",.0f"),
                        interval(found, 1),
                        *(interval(found, 2), f"{worst:.2f}"),
                        *(times(part, other, method) for other in references),
                    ]
                )
    head = [
        *(*COUNTS, f"steps to {study.threshold:.2f}"),
        *("the same, unreached as all steps", "area under the curve"),
        *("largest fall", "worst run"),
        *(f"times faster than {study.label(other)}" for other in references),
    ]
    return [
        *("", "## Adaptation speed", ""),
        "From the learning curves (stochastic, perturbed); environment steps. In the second count "
        "a run that never reached the rate counts with all its steps, which is less than it "
        "needs. *Times faster* divides the other method's mean of that count by this one's, on "
        "the tasks that both have: ≥ where only the other has runs that never reached the rate, "
        "≤ where only this one has, a dash where both have. The area is the mean of the curve "
        f"(straight between points) up to the steps that all methods have on a task ({shown}). "
        "The largest fall of a run is from a point of its curve to a later one, noise included; "
        "its mean over runs and its largest are shown.",
        "",
        *markdown(head, rows),
    ]


def times(study: Study, other: str, method: str) -> str:
    """
    :param study: runs of both
    :param other: method whose steps are divided
    :param method: by whose steps
    :return: ratio with interval
    """
    if other == method:
        return NONE
    common = in_common(
        trained(study.methods.get(other, [])), trained(study.methods.get(method, []))
    )
    if not common[0]:
        return NONE
    unreached = [any(math.isnan(r.steps_to(study.threshold)) for r in runs) for runs in common]
    if all(unreached):
        return NONE
    sign = "≥ " if unreached[0] else "≤ " if unreached[1] else ""
    other_runs, runs = (strata(runs, lambda r: [study.steps_or_budget(r)]) for runs in common)
    share = estimate(quotient, runs, other_runs)  # finite where this one needs no step
    with np.errstate(divide="ignore"):
        inverse = Estimate(1 / share.value, 1 / share.high, 1 / share.low, share.over_tasks)
    return sign + interval(inverse, 0, ".1f").replace("inf", "∞")


def forgetting(study: Study) -> Lines:
    """:return: how far clean success fell over fine-tuning"""
    clean = [success(mode, "clean") for mode in EVAL_MODES]
    rows = []
    for part in study.forms.values():
        for method, records in part.methods.items():
            tuned = finetuned(records)
            if not tuned:
                continue
            falls = strata(tuned, lambda record: drops(clean_curve(record)))
            found = estimate(means, falls)
            _, lowest, last = np.concatenate(falls).T
            priors, ours = in_common(part.methods.get(PRIOR, []), tuned, paired=True)
            against = [NONE] * len(clean)
            if priors:
                lost = differences(priors, ours, lambda record: [of(record) for of in clean])
                loss = estimate(means, lost)
                against = [interval(loss, i, "+.2f") for i in range(len(clean))]
            rows.append(
                [
                    *counts(part, method, tuned),
                    interval(found, 0),
                    *(interval(found, 1, "+.2f"), f"{max(lowest):+.2f}"),
                    *(interval(found, 2, "+.2f"), f"{max(last):+.2f}"),
                    *against,
                ]
            )
    if not rows:
        return []
    head = [
        *(*COUNTS, "clean at the start"),
        *("largest drop", "worst run", "drop at the end", "worst run"),
        *(f"against the prior, {mode}" for mode in EVAL_MODES),
    ]
    return [
        *("", "## Forgetting", ""),
        "Clean success over fine-tuning (stochastic), of methods that start from a prior; plus is "
        "a loss. The largest drop looks for the lowest of many noisy points and so is above 0 even "
        "where nothing is forgotten. The last columns take the final evaluations, which have more "
        "episodes, against Diffusion only of the same tasks and seeds.",
        "",
        *markdown(head, rows),
    ]


def progress(study: Study, planned: Sequence[Key] | None) -> Lines:
    """
    :param study: runs that are there
    :param planned: keys of the runs that should be
    :return: how many of them are there, and which are not
    """
    if planned is None:
        return []
    there = {record.key for record in study.records}
    wanted = dict.fromkeys(planned)
    missing = [key for key in wanted if key not in there]
    others = len(there - wanted.keys())
    counts = Counter(method for _, method, _, _ in wanted)
    lacking = Counter(method for _, method, _, _ in missing)
    order = [*study.labels, *sorted(counts.keys() - study.labels.keys())]
    rows = [
        [study.label(method), f"{counts[method] - lacking[method]:,}", f"{counts[method]:,}"]
        for method in order
        if method in counts
    ]
    lines = [
        *("", "## Progress", ""),
        f"{len(wanted) - len(missing):,} of {len(wanted):,} planned runs are there"
        + (f", and {others:,} that were not planned." if others else "."),
        "",
        *markdown(["method", "runs", "planned"], rows),
    ]
    if missing:
        groups: dict[tuple[str, str, str], list[int]] = {}
        for task, method, perturbation, seed in missing:
            groups.setdefault((method, task, perturbation), []).append(seed)
        said = [
            f"- {study.label(method)}, {task}, {perturbation}: seeds {', '.join(map(str, seeds))}"
            for (method, task, perturbation), seeds in sorted(
                groups.items(), key=lambda group: (order.index(group[0][0]), natural(*group[0][1:]))
            )
        ]
        lines += ["", "Missing, not yet run or failed:", "", *said[:SHOWN]]
        if len(said) > SHOWN:
            lines.append(f"- and {len(said) - SHOWN:,} more of task, method and perturbation")
    return lines


def provenance(study: Study) -> Lines:
    """:return: time and memory of each method; commits, versions and commands behind the runs"""
    costs = [
        [
            study.label(method),
            str(len(records)),
            f"{statistics.mean(r.wall_s for r in records):,.0f}",
            f"{sum(r.wall_s for r in records) / 3600:,.1f}",
            f"{max(r.peak_rss_mb for r in records):,.0f}",
        ]
        for method, records in study.methods.items()
    ]
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in study.records:
        versions = ", ".join(f"{name} {v}" for name, v in sorted(record.versions.items()))
        groups.setdefault((record.commit, versions), []).append(record)
    origins = [
        [
            f"`{commit}`" if commit else NONE,
            str(len(records)),
            min(r.started for r in records),
            max(r.started for r in records),
            versions or NONE,
        ]
        for (commit, versions), records in sorted(groups.items())
    ]
    dirty = sum(record.commit.endswith("-dirty") for record in study.records)
    commands = Counter(record.command for record in study.records)
    return [
        *("", "## Behind the runs", ""),
        "Seconds of training with its learning curve (of pre-training for Diffusion only).",
        "",
        *markdown(["method", "runs", "mean s", "total h", "largest memory, MB"], costs),
        "",
        *markdown(["commit", "runs", "first started", "last started", "versions"], origins),
        *(["", f"{dirty:,} of the runs come from changed files (`-dirty`)."] if dirty else []),
        *("", "<details><summary>Commands, with the number of their runs</summary>", "", "```"),
        *(f"{count:5d}  {command}" for command, count in sorted(commands.items())),
        *("```", "", "</details>"),
    ]
