"""The figure of :mod:`sb3_diffrl.bench.multimodality`: t-SNE of plans, and curves."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sb3_diffrl.bench.multimodality import LAYOUTS, PLAN_BLUR, PLAN_STEPS, History, Plans
from sb3_diffrl.envs.avoiding_world import N_WAYS, Floats
from sb3_diffrl.multimodality import RESOLUTION
from sb3_diffrl.plots import METHOD_COLOURS, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY, FAILED = "#57606a", "#b1b8c0"
STYLES = dict(zip(LAYOUTS, ("-", "--"), strict=True))
TITLES = {
    "entropy": "action entropy (nats)",
    "modes": "modes of an action",
    "ways": "evenness H of the ways",
}


def multimodality_figure(
    path: str | pathlib.Path, histories: Sequence[History], embedded: Sequence[Floats]
) -> None:
    """
    Save a row of t-SNE panels for each history, and curves of all below.

    :param path: a PNG file
    :param histories: each method in each layout
    :param embedded: ``(n, 2)`` for each panel of each history, in turn
    """
    from matplotlib.figure import Figure

    n_columns = len(histories[0].panels())
    figure = Figure(figsize=(2.3 * n_columns + 0.6, 1.95 * len(histories) + 3.1))
    figure.set_layout_engine("constrained", h_pad=0.04, w_pad=0.04)
    heights = (1.95 * len(histories) + 0.5, 2.6)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]

    axes = upper.subplots(len(histories), n_columns, squeeze=False)
    points = np.concatenate(embedded)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.06 * (high - low)
    remaining = iter(embedded)
    for row, history in zip(axes, histories, strict=True):
        for ax, plans in zip(row, history.panels(), strict=True):
            draw_panel(ax, plans, next(remaining))
            ax.set(xlim=(low[0] - margin[0], high[0] + margin[0]))
            ax.set(ylim=(low[1] - margin[1], high[1] + margin[1]))
        label = f"{history.method}\n{history.layout}"
        row[0].set_ylabel(label, color=METHOD_COLOURS.get(history.method))
    caption = (
        f"t-SNE of plans, one dot each: the actions of the first {PLAN_STEPS} steps from the same "
        f"start, blurred by {PLAN_BLUR};\nall panels share one embedding. Each colour is one of "
        f"the {N_WAYS} ways to the finish line, grey is a failure.\n"
        "H is the evenness of the successful ways, 0 to 1."
    )
    upper.supxlabel(caption, fontsize="small", color=GREY)
    for ax, measure in zip(lower.subplots(1, 3), ("entropy", "modes", "ways"), strict=True):
        draw_curves(ax, histories, measure)
    lower.legend(
        *lower.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize="small",
    )
    save_figure(figure, path)


def draw_curves(ax: Axes, histories: Sequence[History], measure: str) -> None:
    """
    One measure over the environment steps of training.

    :param ax: where
    :param histories: each method in each layout
    :param measure: ``"entropy"``, ``"modes"``, or ``"ways"``: evenness of the successful ways
    """
    from matplotlib.ticker import EngFormatter

    last = max(history.plans[-1].env_steps for history in histories)
    for history in histories:
        if measure == "ways":
            values = [plans.mode_entropy for plans in history.plans]
        else:
            values = [getattr(point, measure) for point in history.curve]
        ax.plot(
            [plans.env_steps for plans in history.plans],
            values,
            STYLES[history.layout],
            color=METHOD_COLOURS.get(history.method),
            marker="o",
            markersize=3,
            linewidth=1.5,
            label=f"{history.method}, {history.layout}",
        )
    if measure == "entropy":
        floor = 2 * math.log(RESOLUTION * math.sqrt(2 * math.pi * math.e))
        ax.axhline(floor, color=GREY, linewidth=0.8, linestyle=":")
        ax.annotate(
            "deterministic",
            (0.02, floor),
            (0, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize="x-small",
            color=GREY,
        )
    ax.set_title(TITLES[measure], fontsize="medium")
    ax.set_xscale("symlog", linthresh=10_000, linscale=0.7)
    ax.set_xlim(0, last)
    ax.set_xticks([tick for tick in (0, 10_000, 100_000, 1_000_000) if tick <= last])
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_ylim(bottom={"entropy": None, "modes": 0.9, "ways": -0.02}[measure])
    ax.set_xlabel("environment steps", fontsize="small")
    ax.tick_params(labelsize="small")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def draw_panel(ax: Axes, plans: Plans, embedded: Floats) -> None:
    """
    One set of plans, each success in its way's colour.

    :param ax: where
    :param plans: ``n`` of them
    :param embedded: ``(n, 2)``
    """
    from matplotlib import colormaps

    colours = colormaps["turbo"](np.linspace(0.04, 0.96, N_WAYS))
    failed = plans.ways < 0
    for chosen, colour in ((failed, FAILED), (~failed, colours[plans.ways[~failed]])):
        x, y = embedded[chosen].T
        ax.scatter(x, y, s=4, color=colour, linewidths=0)
    when = f"after {plans.env_steps / 1000:,.0f}k steps" if plans.env_steps else "before RL"
    ax.set_title(when, fontsize="small", pad=3)
    n_ways = len(np.unique(plans.ways[~failed]))
    ways = "1 way" if n_ways == 1 else f"{n_ways} ways"
    ax.text(
        0.03,
        0.03,
        f"success {plans.success_rate:.0%}\n{ways}, H {plans.mode_entropy:.2f}",
        transform=ax.transAxes,
        fontsize="x-small",
        linespacing=1.2,
    )
    ax.set(xticks=[], yticks=[])
