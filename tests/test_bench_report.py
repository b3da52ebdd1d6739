"""The benchmark's report: its statistics against brute force, and what it writes."""

import argparse
import dataclasses
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import trim_mean

from sb3_diffrl.bench import statistics
from sb3_diffrl.bench.cells import bounds, markdown
from sb3_diffrl.bench.figures import learning_figure, mean_curve, method_styles
from sb3_diffrl.bench.methods import LABELS
from sb3_diffrl.bench.records import EVAL_MODES, Evaluation, Point, Record, Successes, add_records
from sb3_diffrl.bench.report import report, write_report
from sb3_diffrl.bench.rows import COLUMNS, read_rows
from sb3_diffrl.bench.statistics import (
    aggregate,
    aggregates,
    area,
    by_task,
    estimate,
    horizon,
    improvement,
    matrix,
    mean_rates,
    means,
    on_grid,
    over_episodes,
    over_seeds,
    perturbed_curve,
    profile,
    quotient,
)
from sb3_diffrl.bench.study import MAIN, Study, drops, finetuned, largest_fall, outcome
from sb3_diffrl.bench.tables import ablations, comparisons, paper
from sb3_diffrl.bench.training_tables import progress, times
from sb3_diffrl.evaluation import wilson_interval


def record(
    method: str = "diffrl",
    task: str = "avoiding",
    perturbation: str = "scene:0",
    seed: int = 0,
    after: float = 0.8,
    before: float | None = 0.3,
    curve: Sequence[tuple[int, float]] = ((0, 0.3), (100, 0.5), (300, 0.7)),
    clean: Sequence[float | None] | None = None,
    n: int = 100,
) -> Record:
    def of(rate: float) -> Successes:
        return Successes(round(rate * n), n)

    evaluation = Evaluation(of(0.9), None if before is None else of(before), of(after))
    points = [
        Point(steps, of(rate), None if lost is None else of(lost))
        for (steps, rate), lost in zip(curve, clean or [0.9] * len(curve), strict=True)
    ]
    return Record(
        task,
        method,
        perturbation,
        seed,
        points[-1].env_steps if points else 0,
        dict.fromkeys(EVAL_MODES, evaluation),
        points,
        mode_entropy=0.5 if task == "avoiding" else None,
        wall_s=10.0,
        peak_rss_mb=300.0,
        started="2026-11-26T10:00:00Z",
        commit="abc1234",
        command=f"sb3-diffrl bench run --seed {seed}",
        versions={"python": "3.11.9"},
    )


def prior(**arguments: float | str) -> Record:
    return record("diffusion", curve=(), after=0.3, **arguments)  # type: ignore[arg-type]


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "REPETITIONS", 40)


# -- statistics --------------------------------------------------------------------------------


def test_aggregates_by_brute_force() -> None:
    scores = np.random.default_rng(0).random((6, 4))
    middle = np.sort(scores.ravel())[6:-6]
    iqm, mean, gap = aggregates(scores)
    assert iqm == pytest.approx(middle.mean())
    assert iqm == pytest.approx(trim_mean(scores, 0.25, axis=None))
    assert (mean, gap) == pytest.approx((scores.mean(), 1 - scores.mean()))


def test_tasks_weigh_the_same_whatever_their_number_of_runs() -> None:
    strata = [np.array([0.0, 0.2]), np.array([0.9, 0.6, 0.6])]
    scores = matrix(strata)
    assert scores.shape == (6, 2)
    assert aggregates(scores)[1] == pytest.approx((0.1 + 0.7) / 2)
    # Of twelve equal parts, three are left out at either end.
    assert aggregates(scores)[0] == pytest.approx((3 * 0.2 + 3 * 0.6) / 6)
    assert estimate(aggregates, strata).value[1] == pytest.approx(0.4)


@pytest.mark.parametrize("runs", [(3, 3), (2, 3)], ids=["equal", "unequal"])
def test_intervals_are_those_of_all_resamples(runs: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    strata = [rng.random(n) for n in runs]
    resamples = [
        [np.mean([column[i] for i in drawn]) for drawn in itertools.product(range(n), repeat=n)]
        for column, n in zip(strata, runs, strict=True)
    ]
    exact = [(a + b) / 2 for a, b in itertools.product(*resamples)]
    found = estimate(lambda scores: np.atleast_1d(means(scores)), strata)
    low, high = np.quantile(exact, [0.025, 0.975])
    step = np.diff(np.unique(np.round(exact, 9))).max()
    assert found.low[0] == pytest.approx(low, abs=step)
    assert found.high[0] == pytest.approx(high, abs=step)
    assert found.low[0] < found.value[0] < found.high[0] and not found.over_tasks


def test_single_runs_have_tasks_drawn() -> None:
    values = np.array([0.1, 0.5, 0.6, 0.9])
    exact = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]
    strata = [np.array([value]) for value in values]
    found = estimate(lambda scores: np.atleast_1d(means(scores)), strata)
    assert found.over_tasks
    low, high = np.quantile(exact, [0.025, 0.975])
    assert (found.low[0], found.high[0]) == pytest.approx((low, high), abs=0.02)


def test_a_single_run_has_the_interval_of_its_episodes() -> None:
    found = estimate(aggregates, [np.array([0.8])])
    assert np.isnan(found.low).all() and np.isnan(found.high).all()
    low, high = wilson_interval(80, 100)
    found = aggregate([record()], outcome("stochastic", "after"))
    assert found.value == pytest.approx([0.8, 0.8, 0.2])
    assert found.low == pytest.approx([low, low, 1 - high])
    assert found.high == pytest.approx([high, high, 1 - low])


def test_equal_runs_have_the_interval_of_one() -> None:
    runs = [record(seed=seed) for seed in range(3)]
    columns = [outcome("stochastic", part) for part in Evaluation._fields]
    found = mean_rates(runs, columns)
    assert (found.low[1], found.high[1]) == pytest.approx(wilson_interval(30, 100))
    found = mean_rates([record(seed=seed, before=None) for seed in range(3)], columns)
    assert math.isnan(found.value[1]) and math.isnan(found.low[1])
    assert found.value[2] == pytest.approx(0.8)


def test_means_of_one_task_have_students_interval() -> None:
    rng = np.random.default_rng(0)
    runs = rng.normal(0.4, 0.1, (500, 3, 1))
    found = [statistics.average([sample]) for sample in runs]
    held = [each.low[0] < 0.4 < each.high[0] for each in found]
    assert 0.92 < np.mean(held) < 0.98
    rates = [record(seed=seed, after=after) for seed, after in enumerate((0.5, 0.6, 0.9))]
    after = outcome("stochastic", "after")
    low, high = over_seeds(list(map(after, rates)))[1:]
    found_mean, found_all = mean_rates(rates, [after]), aggregate(rates, after)
    assert (found_mean.low[0], found_mean.high[0]) == pytest.approx((low, high)) and high == 1
    assert (found_all.low[1], found_all.high[1]) == pytest.approx((low, high))
    assert (found_all.low[2], found_all.high[2]) == pytest.approx((1 - high, 1 - low))


def test_coverage_of_the_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seeds on four tasks, whose rates vary and are measured over 50 episodes."""
    monkeypatch.setattr(statistics, "REPETITIONS", 200)
    rng = np.random.default_rng(2)
    truth = np.array([0.3, 0.5, 0.6, 0.8])
    n, covered = 150, 0
    for _ in range(n):
        rates = np.clip(rng.normal(truth, 0.08, (10, 4)), 0, 1)
        strata = list((rng.binomial(50, rates) / 50).T)
        found = estimate(lambda scores: np.atleast_1d(means(scores)), strata)
        covered += bool(found.low[0] <= truth.mean() <= found.high[0])
    assert 0.86 < covered / n < 0.99


def test_coverage_over_episodes() -> None:
    rng = np.random.default_rng(3)
    truth = np.array([0.05, 0.4, 0.7, 0.97])
    draws = rng.binomial(60, truth, (1000, 4))
    bounds_ = [over_episodes([Successes(int(k), 60) for k in draw]) for draw in draws]
    covered = [low <= truth.mean() <= high for low, high in bounds_]
    assert 0.93 < np.mean(covered) < 0.98
    assert over_episodes([Successes(7, 9)]) == pytest.approx(wilson_interval(7, 9))


def test_interval_over_seeds() -> None:
    mean, low, high = over_seeds([Successes(k, 10) for k in (4, 5, 6)])
    assert mean == pytest.approx(0.5)
    assert high - mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3))  # t, two degrees of freedom
    assert mean - low == pytest.approx(high - mean)
    assert over_seeds([Successes(10, 10)] * 3) == (1.0, *wilson_interval(10, 10))
    assert over_seeds([Successes(10, 10), Successes(0, 10)])[1:] == (0, 1)


def test_improvement_is_rliables() -> None:
    from rliable import metrics

    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 6, (5, 3)) / 5, rng.integers(0, 6, (4, 3)) / 5  # with ties
    wins = [np.mean([(a > b) + 0.5 * (a == b) for a in x[:, t] for b in y[:, t]]) for t in range(3)]
    found = improvement(x[..., None], y[..., None])
    assert found[0] == pytest.approx(np.mean(wins))
    assert found[0] == pytest.approx(metrics.probability_of_improvement(x, y))
    assert found[1] == pytest.approx(x.mean() - y.mean())


def test_profile_is_rliables() -> None:
    from rliable import library

    scores = np.random.default_rng(5).random((5, 3))
    thresholds = np.linspace(0, 1, 11)
    known = library.score_distributions(scores, thresholds)
    assert profile(thresholds)(scores) == pytest.approx(known)
    np.testing.assert_allclose(
        estimate(profile(thresholds), list(scores.T)).value,
        library.create_performance_profile({"x": scores}, thresholds, reps=2)[0]["x"],
    )


def test_intervals_repeat_and_leave_the_random_state() -> None:
    strata = list(np.random.default_rng(6).random((2, 5)))
    before = np.random.get_state()[1].copy()  # type: ignore[index]
    first, second = (estimate(aggregates, strata) for _ in range(2))
    assert (first.low == second.low).all() and (first.high == second.high).all()
    assert (before == np.random.get_state()[1]).all()  # type: ignore[index]


def test_strata_must_go_together() -> None:
    with pytest.raises(ValueError, match="same tasks"):
        estimate(quotient, [np.ones(2)], [np.ones(2)] * 2)
    with pytest.raises(ValueError, match="same tasks"):
        estimate(means, [])


# -- curves ------------------------------------------------------------------------------------


def test_interpolation_by_hand() -> None:
    curve = [(10, 0.2), (20, 0.4), (50, 0.1)]
    found = on_grid(curve, np.array([0, 10, 15, 20, 30, 50, 51]))
    np.testing.assert_allclose(found, [0.2, 0.2, 0.3, 0.4, 0.3, 0.1, math.nan])


def test_interpolation_and_area_by_brute_force() -> None:
    rng = np.random.default_rng(7)
    steps = np.sort(rng.choice(1000, 8, replace=False))
    curve = [(int(s), float(r)) for s, r in zip(steps, rng.random(8), strict=True)]

    def at(x: float) -> float:
        if x <= curve[0][0]:
            return curve[0][1]
        for (a, low), (b, high) in itertools.pairwise(curve):
            if a <= x <= b:
                return low + (high - low) * (x - a) / (b - a)
        return math.nan

    grid = np.linspace(0, curve[-1][0], 57)
    np.testing.assert_allclose(on_grid(curve, grid), [at(x) for x in grid])
    end = 0.7 * curve[-1][0]
    middles = (np.arange(20_000) + 0.5) * end / 20_000
    assert area(curve, end) == pytest.approx(np.mean([at(x) for x in middles]), abs=1e-6)
    assert area(curve, 0) == curve[0][1]


def test_mean_curve_ends_with_its_shortest_run(few_draws: None) -> None:
    runs = [
        record(seed=0, curve=((0, 0.0), (100, 1.0))),
        record(seed=1, curve=((0, 0.0), (50, 0.0), (200, 0.6))),
        record(seed=0, perturbation="scene:1", curve=((0, 0.4), (100, 0.4))),
    ]
    assert horizon(map(perturbed_curve, runs)) == 100
    grid, mean = mean_curve(runs, perturbed_curve)
    assert (grid[0], grid[-1]) == (0, 100)
    # Scene 0 is the mean of its two runs, and both scenes weigh the same.
    assert mean.value[-1] == pytest.approx(((1.0 + 0.2) / 2 + 0.4) / 2)
    assert mean.value[50] == pytest.approx(((0.5 + 0.0) / 2 + 0.4) / 2)


def test_drops() -> None:
    assert drops([(0, 0.9), (10, 0.6), (20, 0.8)]) == pytest.approx((0.9, 0.3, 0.1))
    assert drops([(0, 0.5), (10, 0.7)]) == pytest.approx((0.5, -0.2, -0.2))
    curve = ((0, 0.3), (100, 0.5), (300, 0.7))
    some = record(curve=curve, clean=[0.9, None, 0.8])
    assert finetuned([some]) == [some]
    assert not finetuned([record(curve=curve, clean=[None] * 3), record(before=None), prior()])


def test_largest_fall() -> None:
    curve = [(0, 0.3), (10, 0.8), (20, 0.5), (30, 0.6), (40, 0.2), (50, 0.9), (60, 0.7)]
    pairs = [a - b for i, (_, a) in enumerate(curve) for _, b in curve[i:]]
    assert largest_fall(curve) == max(pairs) == pytest.approx(0.6)
    assert largest_fall([(0, 0.1), (10, 0.1), (20, 0.4)]) == 0


# -- comparisons of speed ----------------------------------------------------------------------


def speeds(ours: Sequence[float | None], others: Sequence[float | None]) -> str:
    """Runs that reach 0.60 after so many of 1000 steps, or never."""

    def run(method: str, seed: int, steps: float | None) -> Record:
        reached = [] if steps is None else [(int(steps), 0.6)]
        points = {0: 0.0, **dict(reached), 1000: 0.6 if reached else 0.5}
        return record(method, seed=seed, curve=tuple(points.items()))

    runs = [run("diffrl", i, steps) for i, steps in enumerate(ours)]
    runs += [run("ppo", i, steps) for i, steps in enumerate(others)]
    return times(Study(runs, LABELS), "ppo", "diffrl")


def test_times_faster() -> None:
    assert speeds([100, 100], [500, 500]) == "5.0 [5.0, 5.0]"
    assert speeds([100], [500]) == "5.0"
    assert speeds([100, 100], [500, None]).startswith("≥ 7.5 [5.0, 10.0]")
    assert speeds([100, None], [500, 500]).startswith("≤ 0.9")
    assert speeds([None], [None]) == "–"
    assert speeds([0, 0], [500, 500]) == "∞ [∞, ∞]"
    study = Study([record(), record("ppo", perturbation="scene:1")], LABELS)
    assert times(study, "ppo", "diffrl") == "–"  # no task in common


# -- tables ------------------------------------------------------------------------------------


def test_cells() -> None:
    assert bounds(0.5, 0.25, 0.75) == "0.50 [0.25, 0.75]"
    assert bounds(-0.001, -0.004, 0.004, "+.2f") == "+0.00 [+0.00, +0.00]"
    assert bounds(1234.6, math.nan, math.nan, ",.0f") == "1,235"
    assert bounds(math.nan, math.nan, math.nan) == "–"
    assert markdown(["a"], [["b|c\nd"]]) == ["| a |", "| --- |", r"| b\|c d |"]


def test_paper_beside_ours(few_draws: None) -> None:
    records = [record(seed=s) for s in range(2)] + [prior(), record("own", before=None)]
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in paper(Study(records, LABELS))]
    rows = {line[0]: line for line in lines if len(line) > 5 and line[0] != "---"}
    head = rows["method"]
    ours = dict(zip(head[:4], rows["DiffRL"], strict=False))
    assert ours["runs"] == "2" and ours["tasks"] == "1 of 1"
    at = head.index("perturbed, with RL")
    assert rows["DiffRL"][at].startswith("0.80 [0.71,") and rows["DiffRL"][at + 1] == "0.70"
    assert rows["Diffusion only"][at + 1] == "0.35"
    assert rows["own"][at - 2 : at] == ["–", "–"] and rows["own"][at + 1] == "–"
    steps = head.index("steps to 0.60")
    assert rows["DiffRL"][steps] == "300 (2/2)" and rows["Diffusion only"][steps] == "–"
    # Methods in the order of the labels, others after them.
    assert list(rows) == ["method", "Diffusion only", "DiffRL", "own"]


def test_what_each_part_changes(few_draws: None) -> None:
    """
    With the part .5 better in one scene and .1 worse in another, from priors that differ by more
    than that; a run whose seed the other method lacks counts for nothing.
    """
    curve = ((0, 0.0), (1000, 0.5))
    rates = {"paper": (0.5, 0.2), "no_kl": (0.0, 0.3)}
    runs = [
        record(method, perturbation=f"scene:{i}", seed=seed, after=rate + seed / 4, curve=curve)
        for method, scenes in rates.items()
        for i, rate in enumerate(scenes)
        for seed in range(3)
    ]
    runs.append(record("paper", perturbation="scene:1", seed=3, after=1.0, curve=curve))
    runs.append(record("no_imitation", perturbation="scene:5"))  # has nothing to be held against
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in ablations(Study(runs, LABELS))]
    (row,) = (line for line in lines if line[:1] == ["prior KL"])
    assert row[1:6] == ["DiffRL, all parts", "NoKL", "scene", "2 of 3", "6"]
    assert row[6] == "**+0.20 [+0.20, +0.20]**" and row[8] == "+0.00 [+0.00, +0.00]"
    assert not any("imitation during RL" in line for line in lines)
    assert not ablations(Study(runs[:6], LABELS))
    single = [run for run in runs if run.seed == 0 and run.perturbation == "scene:0"]
    assert "| +0.50 |" in ablations(Study(single, LABELS))[-1]


@pytest.mark.parametrize(("before", "difference"), [(0.3, "-0.10"), (None, "+0.20")])
def test_pretrained_methods_are_compared_by_seed(
    before: float | None, difference: str, few_draws: None
) -> None:
    ours = [record(seed=seed, after=after) for seed, after in enumerate((0.4, 0.9, 0.8))]
    others = [record("other", before=before, after=0.5)]
    row = comparisons(Study([*ours, *others], LABELS))[-1]
    assert difference in row


def test_progress_names_what_is_missing() -> None:
    planned = [record(m, perturbation=p, seed=s).key for m in ("ppo", "diffrl")
               for p in ("scene:2", "scene:10") for s in range(3)]  # fmt: skip
    there = [record(perturbation="scene:2", seed=1), record("own")]
    text = "\n".join(progress(Study(there, LABELS), planned))
    assert "1 of 12 planned runs are there, and 1 that were not planned." in text
    assert "- DiffRL, avoiding, scene:2: seeds 0, 2" in text
    assert "| DiffRL | 1 | 6 |" in text and "| PPO from scratch | 0 | 6 |" in text
    assert text.index("scene:2: seeds 0, 2") < text.index("- DiffRL, avoiding, scene:10")
    assert not progress(Study(there, LABELS), None)
    assert "Missing" not in "\n".join(progress(Study(there, LABELS), planned[7:8]))


def test_tasks_are_sorted_by_number() -> None:
    runs = [record(perturbation=p) for p in ("scene:10", "episode", "scene:9", "²")]
    assert [p for _, p in by_task(runs)] == ["episode", "scene:9", "scene:10", "²"]


# -- what is written ---------------------------------------------------------------------------


def grid() -> list[Record]:
    """Several tasks, forms and methods, with runs missing."""
    runs = []
    for task in ("metaworld/push", "metaworld/sweep"):
        for perturbation in ("position", "light"):
            runs.append(prior(task=task, perturbation=perturbation))
            for seed in range(2):
                where = {"task": task, "perturbation": perturbation, "seed": seed}
                runs.append(record(after=0.7 + 0.1 * seed, **where))  # type: ignore[arg-type]
                if task != "metaworld/push" or seed == 0:
                    long = ((0, 0.0), (2000, 0.5 + 0.2 * seed))
                    runs.append(
                        record("ppo", before=None, curve=long, **where)  # type: ignore[arg-type]
                    )
                runs.append(record("Æigen|методика $x$", **where))  # type: ignore[arg-type]
    return runs


def test_report_is_complete_and_repeats(tmp_path: Path, few_draws: None) -> None:
    records = grid()
    text = write_report(records, tmp_path / "a/mw", "Title", LABELS, planned=[record().key])
    shuffled = random.Random(0).sample(records, len(records))
    again = write_report(shuffled, tmp_path / "b/mw", "Title", LABELS, planned=[record().key])
    assert again == text == (tmp_path / "a/mw.md").read_text()
    assert (tmp_path / "a/mw.csv").read_bytes() == (tmp_path / "b/mw.csv").read_bytes()

    sections = [line for line in text.splitlines() if line.startswith("## ")]
    expected = [
        *("The paper's table", "Each task", "Aggregates", "DiffRL against each other method"),
        *("Adaptation speed", "Forgetting", "Progress", "Behind the runs"),
    ]
    assert sections == [f"## {name}" for name in expected]
    assert r"Æigen\|методика $x$" in text
    assert "nan" not in text and "Traceback" not in text
    names = {path.name for path in (tmp_path / "a").iterdir()}
    figures = {f"mw_{name}.png" for name in ("learning", "clean", "profile", "iqm")}
    assert names == {"mw.md", "mw.csv"} | figures
    for name in figures:
        with Image.open(tmp_path / "a" / name) as image:
            assert image.width > 600 and np.ptp(np.asarray(image.convert("L"))) > 100
        assert f"]({name})" in text


def test_csv_has_every_run_and_mode(tmp_path: Path, few_draws: None) -> None:
    records = [*(record(task=task) for task in ("a", "b")), prior(task="a")]
    write_report(records, tmp_path / "x.y", "Title")
    path = tmp_path / "x.y.csv"
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    rows = read_rows(path)
    assert [(row.task, row.method, row.eval_mode) for row in rows] == [
        (task, method, mode)
        for task, method in (("a", "diffrl"), ("a", "diffusion"), ("b", "diffrl"))
        for mode in ("deterministic", "stochastic")
    ]
    assert rows[0].steps_to_060 == 300 and rows[0].perturbed_after == 0.8
    assert math.isnan(rows[2].steps_to_060) and math.isnan(rows[0].mode_entropy)


@pytest.mark.parametrize("only", [record(), prior(), record("own", before=None)])
def test_one_record(only: Record, tmp_path: Path) -> None:
    text = write_report([only], tmp_path / "one", "Title")
    assert "1 runs" not in text and "nan" not in text
    assert ("Adaptation speed" in text) == bool(only.curve)
    assert (tmp_path / "one_learning.png").exists() == bool(only.curve)
    assert (tmp_path / "one_iqm.png").exists()


def test_colours_stay_with_methods() -> None:
    labels = {**LABELS, **{f"m{i}": f"M{i}" for i in range(8)}}
    many = method_styles(Study([record(), record("own")], labels))
    few = method_styles(Study([record("m3")], labels))
    assert few["m3"] == many["m3"] and many["m3"] != many["m4"]
    looks = {(style["color"], str(style["linestyle"])) for style in many.values()}
    assert len(looks) == len(many)
    assert max(many, key=lambda name: many[name]["linewidth"]) == MAIN
    assert max(many, key=lambda name: many[name]["zorder"]) == MAIN


def test_long_budgets_have_a_panel_of_their_own(few_draws: None) -> None:
    long = record("ppo", before=None, curve=((0, 0.0), (9000, 0.5)))
    study = Study([record(), long], LABELS)
    figure = learning_figure(study, method_styles(study))
    assert figure is not None
    assert [ax.get_xlim()[1] for ax in figure.axes] == [300, 9000]
    ends = [float(np.asarray(line.get_xdata())[-1]) for line in figure.axes[1].lines]
    assert ends[:2] == [300, 9000]  # DiffRL's and PPO's


def test_legends_fit_their_figures(few_draws: None) -> None:
    study = Study([record(name) for name in LABELS], LABELS)
    figure = learning_figure(study, method_styles(study))
    assert figure is not None
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) > 8
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1


# -- bad input ---------------------------------------------------------------------------------


def test_what_a_report_cannot_be_made_of(tmp_path: Path) -> None:
    def refuse(records: Sequence[Record], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            write_report(records, tmp_path / "x", "Title")

    good = record()
    refuse([], "at least one run")
    refuse([good, record()], "two records of the same run.*diffrl")
    less = {"stochastic": good.evaluations["stochastic"]}
    refuse([dataclasses.replace(good, evaluations=less)], "evaluation deterministic")
    refuse([record(curve=((0, 0.1), (0, 0.2)))], "steps rise")
    nothing = Evaluation(Successes(0, 0), None, Successes(0, 0))
    refuse([dataclasses.replace(good, evaluations=dict.fromkeys(EVAL_MODES, nothing))], "1 episode")
    with pytest.raises(ValueError, match="threshold"):
        write_report([good], tmp_path / "x", "Title", threshold=60)
    assert not list(tmp_path.iterdir())


def test_rliable_missing_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics.rliable.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "rliable.library", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-diffrl\[benchmark\]'"):
        estimate(means, [np.ones(2)])
    statistics.rliable.cache_clear()


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    report(parser)
    args = parser.parse_args(arguments)
    args.run(args)


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"avoiding\.jsonl.*sb3-diffrl bench"):
        run()
    path = Path("benchmarks/results/avoiding.jsonl")
    add_records(path, [record()])
    run()
    assert path.with_suffix(".md").read_text().startswith("# avoiding\n")
    assert "from 1 run\n" in capsys.readouterr().out
    run(str(path), "--output", "elsewhere", "--threshold", "0.5")
    text = Path("elsewhere/avoiding.md").read_text()
    assert "steps to 0.50" in text and "| 100 (1/1) |" in text
    assert read_rows("elsewhere/avoiding.csv")[0].steps_to_060 == 300


def test_command_says_which_file_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(FileNotFoundError, match=r"x\.jsonl: no such file"):
        run(str(path))
    path.write_text("")
    with pytest.raises(ValueError, match=r"x\.jsonl: expected records"):
        run(str(path))
    for text in ("{", "[1]", '{"task": "a"}', record().to_json()[:-9]):
        path.write_text(record(seed=1).to_json() + "\n" + text + "\n")
        with pytest.raises(ValueError, match=r"x\.jsonl, line 2"):
            run(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"x\.jsonl: "):
        run(str(path))
    add_records(tmp_path / "y/x.jsonl", [record()])
    with pytest.raises(ValueError, match="same name"):
        run(str(path), str(tmp_path / "y/x.jsonl"), "--output", str(tmp_path))


def test_the_interval_of_a_single_run_holds_its_rate() -> None:
    one = record(n=100, before=0.3)
    found = mean_rates([one], [outcome("stochastic", "clean"), outcome("stochastic", "before")])
    for value, low, high in zip(found.value, found.low, found.high, strict=True):
        assert low < value < high
    low, high = one.evaluations["stochastic"].clean.interval
    assert (found.low[0], found.high[0]) == (pytest.approx(low), pytest.approx(high))
