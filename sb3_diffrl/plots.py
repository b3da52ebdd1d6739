"""Figures of the Avoiding task: trajectories coloured by way, and learning curves."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.arrays import chunks
from sb3_diffrl.demonstrations.statistics import Statistics
from sb3_diffrl.envs.avoiding import AvoidingVectorEnv
from sb3_diffrl.envs.avoiding_world import FINISH_Y, HIGH, LOW, N_WAYS, RADIUS, START_X
from sb3_diffrl.evaluation import wilson_interval
from sb3_diffrl.files import write_bytes
from sb3_diffrl.random_state import preserved_random_state
from sb3_diffrl.wrappers import GymVecEnv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METHOD_COLOURS = {
    "DiffRL": "#1f6feb",
    "PPO from scratch": "#d1701f",
    "PPO": "#d1701f",
    "Diffusion only": "#57606a",
}

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Trajectory:
    """
    One episode on the Avoiding task, ``T`` decisions long.

    :param positions: of the effector, ``(T + 1, 2)``
    :param obstacles: ``(6, 2)``
    :param way: the way taken, -1 where the episode failed
    """

    positions: np.ndarray
    obstacles: np.ndarray
    way: int


def record_trajectories(
    model: BaseAlgorithm,
    perturbation: str | None,
    n_episodes: int = 100,
    deterministic: bool = False,
    seed: int = 1000,
) -> list[Trajectory]:
    """
    Let a model act for one episode in each of so many envs.

    :param model: what acts
    :param perturbation: of the task
    :param n_episodes: number of episodes
    :param deterministic: how the model predicts
    :param seed: of the envs and the policy's noise
    :return: the episodes
    """
    env = GymVecEnv(AvoidingVectorEnv(n_episodes, perturbation=perturbation))
    trajectories: dict[int, Trajectory] = {}
    with preserved_random_state(seed):
        env.seed(seed)
        observations = np.asarray(env.reset())
        obstacles = observations[:, 2:].reshape(-1, 6, 2)
        steps = [observations[:, :2]]
        while len(trajectories) < n_episodes:
            actions, _ = model.predict(observations, deterministic=deterministic)
            observations, _, dones, infos = env.step(actions)  # type: ignore[assignment]  # an array
            steps.append(observations[:, :2].copy())
            for i in map(int, np.flatnonzero(dones)):
                if i not in trajectories:
                    positions = np.array([step[i] for step in steps])
                    positions[-1] = infos[i]["terminal_observation"][:2]
                    trajectories[i] = Trajectory(positions, obstacles[i], int(infos[i]["way"]))
    return [trajectories[i] for i in range(n_episodes)]


def draw_trajectories(ax: Axes, trajectories: Iterable[Trajectory]) -> None:
    """
    Draw the episodes over the obstacles: each success in its way's colour, failures grey with a
    cross where they ended.

    :param ax: where
    :param trajectories: of one layout
    """
    from matplotlib import colormaps
    from matplotlib.patches import Circle

    colours = colormaps["turbo"](np.linspace(0.04, 0.96, N_WAYS))
    trajectories = list(trajectories)
    ax.axhline(FINISH_Y, color="#2da44e", linewidth=3, zorder=1)
    ax.plot([-START_X, START_X], [0, 0], color="#24292f", linewidth=3, zorder=4)
    for centre in trajectories[0].obstacles:
        ax.add_patch(Circle(centre, RADIUS, facecolor="#d0d7de", edgecolor="#57606a", zorder=3))
    for t in trajectories:
        if t.way >= 0:
            ax.plot(*t.positions.T, color=colours[t.way], linewidth=0.9, alpha=0.7, zorder=2)
        else:
            ax.plot(*t.positions.T, color="#8c959f", linewidth=0.7, alpha=0.5, zorder=2)
            ax.plot(*t.positions[-1], "x", color="#cf222e", markersize=4, alpha=0.7, zorder=5)
    ax.set(xlim=(LOW[0], HIGH[0]), ylim=(LOW[1] + 0.04, HIGH[1]), aspect="equal")
    ax.set(xticks=[], yticks=[])


def draw_curve(
    ax: Axes, curve: Curve, n_episodes: int, label: str, colour: str | None = None
) -> None:
    """
    Draw a learning curve with 95 % intervals of its points.

    :param ax: where
    :param curve: environment steps and success rates
    :param n_episodes: episodes of each point
    :param label: for the legend
    :param colour: of the line
    """
    steps, rates = np.array(curve, float).T
    bounds = [wilson_interval(round(rate * n_episodes), n_episodes) for rate in rates]
    colour = colour or METHOD_COLOURS.get(label)
    (line,) = ax.plot(steps, rates, "-o", color=colour, markersize=3.5, label=label)
    ax.fill_between(steps, *np.array(bounds).T, color=line.get_color(), alpha=0.15, linewidth=0)


def quickstart_figure(
    path: str | pathlib.Path,
    panels: Mapping[str, Sequence[Trajectory]],
    curves: Mapping[str, Curve],
    n_episodes: int,
    prior_success: float,
) -> None:
    """
    Save three panels of trajectories and one of learning curves.

    :param path: a PNG file
    :param panels: episodes by title
    :param curves: learning curves by label
    :param n_episodes: episodes of each point of the curves
    :param prior_success: success rate of the prior under the perturbation, drawn as a line
    """
    figure = new_figure(11, 6.6)
    axes = figure.subplots(2, 2).ravel()
    for ax, (title, trajectories) in zip(axes[:3], panels.items(), strict=True):
        draw_trajectories(ax, trajectories)
        ax.set_title(title)
    ax = axes[3]
    for label, curve in curves.items():
        draw_curve(ax, curve, n_episodes, label)
    colour = METHOD_COLOURS["Diffusion only"]
    ax.axhline(prior_success, color=colour, linestyle="--", label="Diffusion only")
    finish_curves(ax)
    ax.set_title("Learning on the perturbed scene")
    ax.legend(loc="best", frameon=False)
    caption = "Each colour is one of the 24 ways to the finish line; a red cross is a failure."
    figure.supxlabel(caption, fontsize="medium", color=colour)
    save_figure(figure, path)


def benchmark_figure(
    path: str | pathlib.Path,
    groups: Mapping[str, Mapping[str, Sequence[Curve]]],
    goals: Mapping[str, float],
    ylabel: str = "success rate",
) -> None:
    """
    Save one panel for each task: the curve of every run, and their mean.

    :param path: a PNG file
    :param groups: by title of the panel and label of the method, one curve per run
    :param goals: by title, the value to reach, drawn as a line
    :param ylabel: what the curves show; success rates are drawn from 0 to 1
    """
    figure = new_figure(5.5 * len(groups), 4)
    axes = figure.subplots(1, len(groups), squeeze=False).ravel()
    for ax, (title, methods) in zip(axes, groups.items(), strict=True):
        for label, runs in methods.items():
            steps = np.array(max(runs, key=lambda curve: curve[-1][0]), float)[:, 0]
            common = steps[steps <= min(curve[-1][0] for curve in runs)]
            rates = [np.interp(common, *np.array(curve, float).T) for curve in runs]
            (mean,) = ax.plot(
                common,
                np.mean(rates, axis=0),
                color=METHOD_COLOURS.get(label),
                linewidth=2.5,
                label=f"{label}, mean of {len(runs)}" if len(runs) > 1 else label,
                zorder=3,
            )
            for curve in runs:
                ax.plot(*np.array(curve).T, color=mean.get_color(), linewidth=0.8, alpha=0.4)
        if title in goals:
            ax.axhline(goals[title], color="#24292f", linestyle=":", linewidth=1)
            ax.annotate(
                f"{goals[title]:.2f}",
                (1, goals[title]),
                (3, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
            )
        finish_curves(ax, ylabel)
        ax.set_title(title)
        ax.legend(loc="best", frameon=False)
    save_figure(figure, path)


def band_figure(
    path: str | pathlib.Path, panels: Mapping[str, Mapping[str, Sequence[np.ndarray]]]
) -> None:
    """
    Save one panel for each task: success rates with their intervals over environment steps.

    :param path: a PNG file
    :param panels: by title of the panel and label of the curve: environment steps, lower bound,
        mean and upper bound, each ``(P,)``
    """
    figure = new_figure(6.5 * len(panels), 4.2)
    axes = figure.subplots(1, len(panels), squeeze=False).ravel()
    for ax, (title, curves) in zip(axes, panels.items(), strict=True):
        for label, (steps, low, mean, high) in curves.items():
            colour = METHOD_COLOURS.get(label)
            (line,) = ax.plot(steps, mean, linewidth=2, color=colour, label=label)
            ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        finish_curves(ax)
        ax.set_title(title)
        ax.legend(loc="best", frameon=False, fontsize="small")
    save_figure(figure, path)


def learning_curve_figure(path: str | pathlib.Path, curve: Curve, n_episodes: int | None) -> None:
    """
    Save one learning curve.

    :param path: a PNG file
    :param curve: environment steps and success rates, or returns
    :param n_episodes: episodes of each success rate, for its interval; None for returns
    """
    figure = new_figure(6, 3.6)
    ax = figure.subplots()
    if n_episodes is None:
        ax.plot(*np.array(curve, float).T, "-o", markersize=3.5, color=METHOD_COLOURS["DiffRL"])
        finish_curves(ax)
        ax.set(ylim=(None, None), ylabel="return")
        ax.autoscale(axis="y")
    else:
        draw_curve(ax, curve, n_episodes, "DiffRL")
        finish_curves(ax)
    save_figure(figure, path)


def action_figure(path: str | pathlib.Path, demonstrations: Demonstrations) -> None:
    """
    Histograms of the actions, one for each of their entries.

    :param path: of the picture
    :param demonstrations: whose actions are read in chunks
    """
    found = Statistics.of(demonstrations.actions)
    low, high = found.minimum.reshape(-1), found.maximum.reshape(-1)
    edges = [np.linspace(a, b if b > a else a + 1, 51) for a, b in zip(low, high, strict=True)]
    counts = np.zeros((len(edges), 50))
    for _, chunk in chunks(demonstrations.actions):
        for i, column in enumerate(chunk.reshape(len(chunk), -1).T):
            counts[i] += np.histogram(column, edges[i])[0]
    columns = min(len(edges), 4)
    rows = -(-len(edges) // columns)
    figure = new_figure(2.6 * columns, 2.0 * rows)
    for i, (bins, count) in enumerate(zip(edges, counts, strict=True)):
        ax = figure.add_subplot(rows, columns, i + 1)
        ax.stairs(count / count.sum(), bins, fill=True)
        ax.set_title(f"action {i}", fontsize="small")
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """
    :param width: inches
    :param height: inches
    :return: an empty figure that lays itself out
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    return figure


def finish_curves(ax: Axes, ylabel: str = "success rate") -> None:
    """
    Axes of learning curves: labels, limits, grid.

    :param ax: where
    :param ylabel: what the curves show; success rates are drawn from 0 to 1
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    ax.set(xlabel="environment steps", ylabel=ylabel)
    if ylabel == "success rate":
        ax.set_ylim(-0.02, 1.02)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | pathlib.Path, **kwargs: Any) -> None:
    """
    Write a figure under a temporary name, then put it in its place.

    :param figure: what
    :param path: of the PNG; its folder is made
    :param kwargs: of matplotlib's ``savefig``
    """
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png", **kwargs)
    write_bytes(path, image.getvalue())
