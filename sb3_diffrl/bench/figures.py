"""Figures of a benchmark's report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sb3_diffrl.bench.records import EVAL_MODES, Record
from sb3_diffrl.bench.statistics import (
    Curve,
    Estimate,
    by_task,
    clean_curve,
    estimate,
    horizon,
    matrix,
    means,
    on_grid,
    perturbed_curve,
    profile,
    strata,
)
from sb3_diffrl.bench.study import (
    ALL,
    MAIN,
    PRIOR,
    Study,
    finetuned,
    success,
    trained,
)
from sb3_diffrl.plots import METHOD_COLOURS, finish_curves, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beside the colours that methods have in all figures; told apart with a colour-vision deficiency
# (Okabe and Ito 2008; Tol's muted scheme), and by their dashes.
PALETTE = ("#009e73", "#cc79a7", "#56b4e9", "#882255", "#999933", "#332288", "#ddaa33", "#44aa99")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
TO_THE_END = ", to the end"
COLUMN = 2.2  # inches that a name takes in a legend
GRID = 101  # points of a mean curve
AHEAD = 1.5  # others' budgets from so many times the main method's get a panel of their own

Style = dict[str, Any]


def draw(study: Study, output: Path) -> dict[Path, str]:
    """
    Save the figures of a report.

    :param study: what to report on
    :param output: beginning of their paths
    :return: captions by path, of those that there was something to draw for
    """
    styles = method_styles(study)
    figures = {
        "learning": (
            learning_figure(study, styles),
            "Perturbed success (stochastic) over training: mean over tasks of the mean over runs, "
            "curves joined by straight lines, as far as all the runs of a method go; bands are "
            "95 % intervals as in the tables, at each step. Dashed: the prior.",
        ),
        "clean": (
            clean_figure(study, styles),
            "Clean success (stochastic) over fine-tuning in the perturbed environment; drawn as "
            "the curves above.",
        ),
        "profile": (
            profile_figure(study, styles),
            "Performance profiles: fraction of the runs whose perturbed success after training is "
            "above τ, with 95 % intervals.",
        ),
        "iqm": (
            iqm_figure(study, styles),
            "Interquartile mean of perturbed success after training, with 95 % intervals.",
        ),
    }
    captions = {}
    for name, (figure, caption) in figures.items():
        if figure is not None:
            path = output.with_name(f"{output.name}_{name}.png")
            save_figure(figure, path)
            captions[path] = caption
    return captions


def method_styles(study: Study) -> dict[str, Style]:
    """
    :param study: its labels and methods
    :return: how the lines of each method are drawn; the same for all reports with these labels
    """
    order = [*study.labels, *(name for name in study.methods if name not in study.labels)]
    styles: dict[str, Style] = {}
    others = 0
    for name in order:
        colour = METHOD_COLOURS.get(study.label(name))
        style: Style = {"color": colour, "linestyle": "-", "linewidth": 1.6, "zorder": 3}
        if name == PRIOR:
            style["linestyle"] = "--"
        if colour is None:
            style["color"] = PALETTE[others % len(PALETTE)]
            style["linestyle"] = DASHES[(others // 2 + others // len(PALETTE)) % len(DASHES)]
            others += 1
        if name == MAIN:
            style |= {"linewidth": 3.0, "zorder": 5}
        styles[name] = style
    return styles


# -- curves ------------------------------------------------------------------------------------


def mean_curve(
    records: Sequence[Record], curve: Callable[[Record], Curve]
) -> tuple[np.ndarray, Estimate]:
    """
    :param records: of one method, each with a curve
    :param curve: of a run
    :return: environment steps up to which all the runs go, ``(n,)``, and the mean there
    """
    grid = np.linspace(0, horizon(map(curve, records)), GRID)
    return grid, estimate(means, strata(records, lambda record: on_grid(curve(record), grid)))


def learning_figure(study: Study, styles: dict[str, Style]) -> Figure | None:
    """
    One panel for each form of the perturbation; where other methods train much longer than the main
    one, a second that goes on to their end.

    :param study: runs
    :param styles: of the methods
    :return: the figure; None without curves
    """
    panels = _panels(study, trained, perturbed_curve)
    return _curves(study, styles, panels, perturbed_curve, study.threshold)


def clean_figure(study: Study, styles: dict[str, Style]) -> Figure | None:
    """
    Panels as in :func:`learning_figure`, of the methods that start from a prior.

    :param study: runs
    :param styles: of the methods
    :return: the figure; None without curves
    """
    panels = _panels(study, finetuned, clean_curve)
    return _curves(study, styles, panels, clean_curve)


class _Panel(NamedTuple):
    title: str
    means: dict[str, tuple[np.ndarray, Estimate]]  # by method
    prior: list[Record]
    end: float


def _panels(
    study: Study,
    choose: Callable[[Iterable[Record]], list[Record]],
    curve: Callable[[Record], Curve],
) -> list[_Panel]:
    panels = []
    for name, part in study.forms.items():
        chosen = {method: choose(runs) for method, runs in part.methods.items()}
        found = {method: mean_curve(runs, curve) for method, runs in chosen.items() if runs}
        if name == ALL or not found:
            continue
        ends = {method: grid[-1] for method, (grid, _) in found.items()}
        whole = _Panel(name, found, part.methods.get(PRIOR, []), max(ends.values()))
        if MAIN in ends and whole.end > AHEAD * ends[MAIN]:
            panels.append(whole._replace(end=ends[MAIN]))
            whole = whole._replace(title=name + TO_THE_END)
        panels.append(whole)
    return panels


def _curves(
    study: Study,
    styles: dict[str, Style],
    panels: Sequence[_Panel],
    curve: Callable[[Record], Curve],
    goal: float | None = None,
) -> Figure | None:
    if not panels:
        return None
    pairs = any(panel.title.endswith(TO_THE_END) for panel in panels)
    figure, axes = _figure(len(panels), columns=2 if pairs else 3)
    for ax, panel in zip(axes, panels, strict=True):
        for method, (grid, mean) in panel.means.items():
            style = styles[method]
            ax.plot(grid, mean.value, **style)
            band = {"color": style["color"], "zorder": style["zorder"] - 1}
            ax.fill_between(grid, mean.low, mean.high, alpha=0.13, linewidth=0, **band)
        if panel.prior:
            ax.axhline(_constant(panel.prior, curve), **styles[PRIOR])
        if goal is not None:
            ax.axhline(goal, color="#24292f", linestyle=":", linewidth=1, zorder=1)
        finish_curves(ax)
        ax.set_xlim(0, panel.end)
        ax.set_title(panel.title)
    drawn = {method for panel in panels for method in panel.means}
    _legend(figure, study, styles, drawn | {PRIOR} if any(p.prior for p in panels) else drawn)
    return figure


def _constant(prior: Sequence[Record], curve: Callable[[Record], Curve]) -> float:
    rate = success("stochastic", "clean" if curve is clean_curve else "after")
    return float(means(matrix(strata(prior, rate))))


# -- what is reached ---------------------------------------------------------------------------


def profile_figure(study: Study, styles: dict[str, Style]) -> Figure:
    """
    One panel for each evaluation mode.

    :param study: runs
    :param styles: of the methods
    :return: the figure
    """
    thresholds = np.linspace(0, 1, GRID)
    figure, axes = _figure(len(EVAL_MODES))
    for ax, mode in zip(axes, EVAL_MODES, strict=True):
        for method, records in study.methods.items():
            rates = strata(records, success(mode, "after"))
            found = estimate(profile(thresholds), rates)
            style = styles[method]
            ax.plot(thresholds, found.value, drawstyle="steps-post", **style)
            band = {"color": style["color"], "zorder": style["zorder"] - 1, "step": "post"}
            ax.fill_between(thresholds, found.low, found.high, alpha=0.13, linewidth=0, **band)
        ax.set(xlabel="success rate τ", ylabel="fraction of runs above τ", title=mode)
        ax.set(xlim=(0, 1), ylim=(-0.02, 1.02))
        _plain(ax)
    _legend(figure, study, styles, set(study.methods))
    return figure


def iqm_figure(study: Study, styles: dict[str, Style]) -> Figure:
    """
    One panel for each evaluation mode, one bar for each method.

    :param study: runs
    :param styles: of the methods
    :return: the figure
    """
    methods = list(study.methods)
    figure, axes = _figure(len(EVAL_MODES), height=1.2 + 0.36 * len(methods), sharey=True)
    for ax, mode in zip(axes, EVAL_MODES, strict=True):
        for i, method in enumerate(methods):
            found = study.aggregates[mode, method]
            value, low, high = found.value[0], found.low[0], found.high[0]
            colour = styles[method]["color"]
            main = method == MAIN
            ax.barh(i, value, 0.66, color=colour, alpha=1.0 if main else 0.6, zorder=2)
            ax.plot([low, high], [i, i], color="#24292f", linewidth=1.6, zorder=3)
            end = max(value, np.nan_to_num(high, nan=value))
            ax.annotate(
                f"{value:.2f}",
                (end, i),
                (5, 0),
                textcoords="offset points",
                va="center",
                weight="bold" if main else "normal",
            )
        ax.set(xlabel="interquartile mean of success", title=mode, xlim=(0, 1.12))
        ax.set_yticks(range(len(methods)), [_with_tasks(study, m) for m in methods])
        ax.set_xticks(np.linspace(0, 1, 6))
        _plain(ax)
    axes[0].invert_yaxis()
    return figure


def _with_tasks(study: Study, method: str) -> str:
    n, of = len(by_task(study.methods[method])), len(study.tasks)
    return _text(study.label(method)) + (f" ({n} of {of} tasks)" if n < of else "")


def _figure(
    n: int, height: float = 3.9, columns: int = 3, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    columns = min(n, columns)
    lines = -(-n // columns)
    figure = new_figure(4.8 * columns, height * lines)
    axes = [figure.add_subplot(lines, columns, i + 1) for i in range(n)]
    if sharey:
        for ax in axes[1:]:
            ax.sharey(axes[0])
            ax.tick_params(labelleft=False)
    return figure, axes


def _plain(ax: Axes) -> None:
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, study: Study, styles: dict[str, Style], drawn: set[str]) -> None:
    from matplotlib.lines import Line2D

    methods = [name for name in styles if name in drawn]
    lines = [Line2D([], [], **styles[name]) for name in methods]
    names = [_text(study.label(name)) for name in methods]
    columns = max(1, min(len(names), int(figure.get_figwidth() // COLUMN)))
    figure.legend(lines, names, loc="outside lower center", ncols=columns, frameon=False)


def _text(label: str) -> str:
    return label.replace("$", r"\$")  # no mathematics of matplotlib's
