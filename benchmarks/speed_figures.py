"""Figures of the speed benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sb3_diffrl.plots import save_figure

WORKS = ("act", "update", "pretrain", "iteration")


def speed_figure(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """
    Ratios as bars, one panel for each work.

    :param path: of the PNG
    :param records: of the results file
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, work in zip(figure.subplots(2, 2).flat, WORKS, strict=True):
        rows = [r for r in records if r["work"] == work]
        names = [f"{r['size']} {r['batch']:,}, {r['threads']}T, {r['reference']}" for r in rows]
        axes.barh(names, [r["ratio"] for r in rows], color="#1f6feb")
        axes.axvline(1, color="#57606a", linewidth=1)
        axes.invert_yaxis()
        axes.tick_params(labelsize=6)
        axes.set_title(work)
        axes.set_xlabel("time of the reference / ours")
    save_figure(figure, path)


def growth_exponent(points: Sequence[Mapping[str, float]], key: str) -> float:
    """
    :param points: of a curve
    :param key: ``seconds`` or ``mib``
    :return: slope between its last two points on logarithmic axes: 1 is linear growth
    """
    (x0, y0), (x1, y1) = ((p["value"], max(p[key], 1e-9)) for p in points[-2:])
    return float(np.log(y1 / y0) / np.log(x1 / x0))


def growth_figure(path: Path, curves: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """
    Time and memory on logarithmic axes, one panel for each size.

    :param path: of the PNG
    :param curves: of the growth file
    """
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(2, 3).flat, curves.items(), strict=False):
        values = [p["value"] for p in points]
        axes.loglog(values, [p["seconds"] for p in points], "o-", color="#1f6feb", label="time, s")
        linear = points[-1]["seconds"] * np.array(values) / values[-1]
        axes.loglog(values, linear, ":", color="#57606a", label="linear")
        twin = axes.twinx()
        twin.loglog(values, [max(p["mib"], 0.1) for p in points], "s--", color="#d1701f")
        twin.set_ylabel("memory added, MiB", color="#d1701f", fontsize=7)
        axes.set_xlabel(name)
        axes.set_title(f"time ~ n^{growth_exponent(points, 'seconds'):.2f} at the end", fontsize=9)
        axes.legend(fontsize=7)
    save_figure(figure, path)
