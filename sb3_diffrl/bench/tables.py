"""Sections of a benchmark's report on what the methods reach, in Markdown."""

import math
import statistics

from sb3_diffrl.bench.cells import (
    COUNTS,
    NONE,
    Lines,
    bounds,
    counts,
    interval,
    markdown,
    plural,
    steps_to,
)
from sb3_diffrl.bench.methods import ABLATIONS
from sb3_diffrl.bench.records import EVAL_MODES, Evaluation, Record
from sb3_diffrl.bench.statistics import (
    REPETITIONS,
    average,
    by_task,
    differences,
    estimate,
    improvement,
    mean_rates,
    over_seeds,
    strata,
)
from sb3_diffrl.bench.study import (
    MAIN,
    PRIOR,
    REFERENCES,
    Study,
    in_common,
    outcome,
    pretrained,
    success,
    trained,
)

# Expected results of the paper (section 3.2): clean, perturbed without RL and with it, steps of RL.
SCRATCH = (0.20, 0.20, 0.60, 1_000_000)
PAPER: dict[str, tuple[float, float, float, int]] = {
    PRIOR: (0.75, 0.35, 0.35, 0),
    **dict.fromkeys(REFERENCES, SCRATCH),
    MAIN: (0.75, 0.35, 0.70, 200_000),
}


def introduction(study: Study) -> Lines:
    """:return: what the report is about and how its intervals come about"""
    return [
        f"{plural(len(study.records), 'run')} on {plural(len(study.tasks), 'task')}; a task here "
        "is a task under one perturbation, scenes counted apart.",
        "",
        "Intervals are 95 % percentile bootstraps by rliable "
        f"({REPETITIONS:,} draws): runs are drawn within each task, so the tasks are taken as "
        "given. † marks those where some task has a single run, which tells nothing of the spread "
        "over seeds: there whole tasks are drawn with their runs. Where the runs of no task "
        "differ, or there is one run in all, the interval is that of the evaluation episodes "
        "(Wilson's; of several tasks, that of the mean of their rates). Bootstrap intervals of "
        "few runs are too narrow: simulated on five tasks, they held the truth in 84 % of the "
        "cases with three runs per task, 89 % with five and 90 % with ten. On a single task they "
        "would in 77 % with three runs: there means have Student's t over the runs, and the other "
        "figures intervals that say little. "
        "Tasks weigh the same whatever their number of runs. A method is aggregated over the tasks "
        "that it has runs of, as the column *tasks* says; only comparisons of two methods are "
        "made on the tasks that both have. Runs that are missing are not made up for.",
    ]


def paper(study: Study) -> Lines:
    """:return: the paper's table beside ours, in both evaluation modes"""
    lines = [
        *("", "## The paper's table", ""),
        "*Paper*: the results that the paper expects on CALVIN and RLBench (section 3.2), other "
        "tasks than these. Means over tasks; clean is measured after training; environment steps "
        f"are those of the interaction; steps to {study.threshold:.2f} are those at which the "
        "learning curve (stochastic) first had that rate, averaged over the runs that reached it "
        "(their number of all in parentheses).",
    ]
    rows: dict[str, list[list[str]]] = {mode: [] for mode in EVAL_MODES}
    columns = [(mode, part) for mode in EVAL_MODES for part in Evaluation._fields]
    for part in study.forms.values():
        for method, records in part.methods.items():
            found = mean_rates(records, [outcome(*column) for column in columns])
            expected = PAPER.get(method)
            ways = [r.mode_entropy for r in records if r.mode_entropy is not None]
            for i, mode in enumerate(EVAL_MODES):
                rates = [interval(found, 3 * i + k) for k in range(3)]
                said = [f"{rate:.2f}" for rate in expected[:3]] if expected else [NONE] * 3
                rows[mode].append(
                    [
                        *counts(part, method, records),
                        *(cell for pair in zip(rates, said, strict=True) for cell in pair),
                        f"{statistics.mean(r.env_steps for r in records):,.0f}",
                        f"{expected[3]:,}" if expected else NONE,
                        steps_to(records, study.threshold),
                        f"{statistics.mean(ways):.2f}" if ways else NONE,
                    ]
                )
    head = [
        *(*COUNTS, "clean", "paper", "perturbed, no RL", "paper", "perturbed, with RL", "paper"),
        *("environment steps", "paper", f"steps to {study.threshold:.2f}", "mode entropy"),
    ]
    for mode in EVAL_MODES:
        lines += ["", f"### {mode.capitalize()}", "", *markdown(head, rows[mode])]
    return lines


def tasks(study: Study) -> Lines:
    """:return: success rates on each task, one column per method, in both evaluation modes"""
    lines = [
        *("", "## Each task", ""),
        "Perturbed success after training, in parentheses the number of runs. Intervals are "
        "Student's t over the runs; where they do not differ, or there is one, Wilson's over its "
        "episodes.",
    ]
    runs = {method: by_task(records) for method, records in study.methods.items()}
    several = len({perturbation for _, perturbation in study.tasks}) > 1
    for mode in EVAL_MODES:
        rows = []
        for task, perturbation in study.tasks:
            cells = [task, perturbation]
            for found in runs.values():
                records = found.get((task, perturbation), [])
                outcomes = list(map(outcome(mode, "after"), records))
                cells.append(
                    f"{bounds(*over_seeds(outcomes))} ({len(outcomes)})" if outcomes else NONE
                )
            rows.append(cells if several else [task, *cells[2:]])
        head = ["task", *(["perturbation"] if several else []), *map(study.label, runs)]
        lines += ["", f"### Each task, {mode}", "", *markdown(head, rows)]
    return lines


def aggregated(study: Study) -> Lines:
    """:return: interquartile mean, mean and optimality gap of perturbed success after training"""
    lines = [
        *("", "## Aggregates", ""),
        "Perturbed success after training over tasks and runs: interquartile mean (the quarters at "
        "both ends left out), mean, and optimality gap (how far short of 1; less is better).",
    ]
    for mode in EVAL_MODES:
        rows = [
            [*counts(part, method, records), *(interval(found, i) for i in range(3))]
            for part in study.forms.values()
            for method, records in part.methods.items()
            for found in [part.aggregates[mode, method]]
        ]
        head = [*COUNTS, "IQM", "mean", "optimality gap"]
        lines += ["", f"### Aggregates, {mode}", "", *markdown(head, rows)]
    return lines


def comparisons(study: Study) -> Lines:
    """:return: probability of improvement of the main method over each other"""
    rates = [success(mode, "after") for mode in EVAL_MODES]
    rows = []
    for part in study.forms.values():
        for method, records in part.methods.items():
            paired = all(map(pretrained, records))
            ours, others = in_common(part.methods.get(MAIN, []), records, paired=paired)
            if method == MAIN or not ours:
                continue
            scores = (strata(runs, lambda r: [of(r) for of in rates]) for runs in (ours, others))
            found = estimate(improvement, *scores)
            cells = [interval(found, i, "+.2f" if i > 1 else ".2f") for i in (0, 2, 1, 3)]
            rows.append([*counts(part, method, others), *cells])
    if not rows:
        return []
    main = study.label(MAIN)
    head = ["against", *COUNTS[1:]]
    for mode in EVAL_MODES:
        head += [f"probability of improvement, {mode}", f"difference of means, {mode}"]
    return [
        *("", f"## {main} against each other method", ""),
        "Perturbed success after training, on the tasks that both have, and where the other is "
        f"pre-trained, too, with the seeds that both have. Probability that a run of {main} is "
        "better than one of the other on a task, ties counting half, averaged over tasks; and the "
        "difference of the mean success rates.",
        "",
        *markdown(head, rows),
    ]


def ablations(study: Study) -> Lines:
    """:return: what each part of the method changes: runs that have it against those that do not"""
    rows = []
    for form in study.forms.values():
        for without, whole, part in ABLATIONS:
            runs = (trained(form.methods.get(method, [])) for method in (whole, without))
            ours, others = in_common(*runs, paired=True)
            if not ours:
                continue

            def scores(record: Record, study: Study = form) -> list[float]:
                entropy = math.nan if record.mode_entropy is None else record.mode_entropy
                perturbed = [success(mode, "after")(record) for mode in EVAL_MODES]
                clean = success("stochastic", "clean")(record)
                return [*perturbed, study.area(record), clean, entropy]

            found = average(differences(ours, others, scores))
            cells = [
                f"**{cell}**" if not found.over_tasks and low * high > 0 else cell
                for i, (low, high) in enumerate(zip(found.low, found.high, strict=True))
                for cell in [interval(found, i, "+.2f")]
            ]
            names = [part, *map(study.label, (whole, without))]
            rows.append([*names, *counts(form, without, others)[1:], *cells])
    if not rows:
        return []
    head = [
        *("part", "with it", "without", *COUNTS[1:]),
        *(f"perturbed, {mode}" for mode in EVAL_MODES),
        *("area under the curve", "clean, stochastic", "mode entropy, clean"),
    ]
    return [
        *("", "## What each part changes", ""),
        "Runs that have a part less runs of the same task and seed, and so of the same prior, that "
        "do not, after training: means of the differences. The area is that under the perturbed "
        "learning curve, as in *adaptation speed*. Bold: the interval over runs leaves out 0.",
        "",
        *markdown(head, rows),
    ]
