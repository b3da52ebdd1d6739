"""
Whether RL keeps the modes of a policy: the figure of ``sb3-diffrl bench multimodality`` (paper,
section 3.4).

DiffRL from its prior and PPO from scratch are trained in one displaced scene of Avoiding. As they
train, both are asked in the clean scene, which the demonstrations show, and in the one they train
in: for actions where several ways are open, and for whole plans from the start.
"""

import argparse
import csv
import io
import pathlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList

from sb3_diffrl.bench.methods import METHODS as ALL_METHODS
from sb3_diffrl.bench.runs import Run, in_process, plan_run
from sb3_diffrl.bench.tasks import avoiding
from sb3_diffrl.bench.training import builder
from sb3_diffrl.callbacks import Multimodality, MultimodalityCallback, PeriodicCallback
from sb3_diffrl.envs.avoiding_planner import gap_centres, scene_layout
from sb3_diffrl.envs.avoiding_world import (
    MAX_EPISODE_STEPS,
    N_WAYS,
    OBSTACLES,
    ROW_STARTS,
    Floats,
    advance,
    mode_entropy,
    observe,
    ways_taken,
)
from sb3_diffrl.evaluation import fresh_exploration
from sb3_diffrl.files import write_bytes, write_text
from sb3_diffrl.random_state import preserved_random_state

DISPLACEMENT = 0.10  # of the scene, as in AvoidingEnv
N_POINTS = 16  # of the curves
FRACTIONS = (0, 0.25, 0.5, 1)  # of training, at which plans are drawn
PLAN_STEPS = 40  # of a plan's actions that are embedded; an episode takes about 50
PLAN_BLUR = 0.1  # of them, where actions are in [-1, 1]
METHODS = ("DiffRL", "PPO from scratch")
NAMES = ("diffrl", "ppo")  # in the benchmark
LAYOUTS = ("clean scene", "training scene")


def multimodality(parser: argparse.ArgumentParser) -> None:
    """Draw whether DiffRL and PPO from scratch keep several ways of acting, on Avoiding."""
    parser.add_argument(
        "--steps", type=int, default=60_000, help="of DiffRL (default: %(default)s)"
    )
    parser.add_argument(
        "--ppo-steps", type=int, default=400_000, help="of PPO from scratch (default: %(default)s)"
    )
    parser.add_argument("--scene", type=int, default=0, help="to train in (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of training (default: %(default)s)")
    parser.add_argument(
        "--samples",
        type=int,
        default=400,
        help="actions at each decision point, plans in each panel (default: %(default)s)",
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path("results/multimodality.png"),
        metavar="FILE.png",
        help="the figure; .csv and .npz of its numbers beside it (default: %(default)s)",
    )
    parser.add_argument(
        "--priors",
        type=pathlib.Path,
        default=pathlib.Path("results"),
        metavar="FOLDER",
        help="where the prior is kept, or made (default: %(default)s)",
    )
    parser.set_defaults(run=run_multimodality)


class Plans(NamedTuple):
    """
    Episodes from one start in one layout: ``n`` of them.

    :param env_steps: environment steps of training made before
    :param actions: ``(n, T, 2)``, 0 after an episode's end
    :param ways: ``(n,)`` the ways taken, -1 for failures
    """

    env_steps: int
    actions: Floats
    ways: np.ndarray

    @property
    def success_rate(self) -> float:
        """Fraction of the episodes that succeeded."""
        return float((self.ways >= 0).mean())

    @property
    def mode_entropy(self) -> float:
        """Evenness of the successful ways, 0 to 1."""
        return mode_entropy(self.ways)


@dataclass(frozen=True)
class History:
    """
    What one method did in one layout as it trained, ``P`` points.

    :param method: one of :data:`METHODS`
    :param layout: one of :data:`LAYOUTS`
    :param curve: ``P`` measurements at the decision points
    :param plans: ``P`` sets of plans, at the same points
    """

    method: str
    layout: str
    curve: list[Multimodality]
    plans: list[Plans]

    def panels(self) -> list[Plans]:
        """:return: the plans at :data:`FRACTIONS` of training"""
        steps = np.array([plans.env_steps for plans in self.plans])
        return [self.plans[int(np.abs(steps - f * steps[-1]).argmin())] for f in FRACTIONS]


def decision_points(obstacles: Floats) -> Floats:
    """
    Positions where several ways are open and the demonstrations choose one: the start, and above
    each gap of the first two rows, a quarter of the way to the next row, where they turn to it.

    :param obstacles: ``(6, 2)``
    :return: ``(6, 2)``
    """
    centres = gap_centres(np.repeat(obstacles[None], N_WAYS, axis=0), np.arange(N_WAYS))
    top = np.maximum.reduceat(obstacles[:, 1], ROW_STARTS)
    bottom = np.minimum.reduceat(obstacles[:, 1], ROW_STARTS)
    points = [(0.0, 0.0)]
    for row in (0, 1):
        y = 0.75 * top[row] + 0.25 * bottom[row + 1]
        points += [(float(x), float(y)) for x in np.unique(centres[:, row])]
    return np.array(points)


def make_plans(model: BaseAlgorithm, obstacles: Floats, n: int, seed: int = 0) -> Plans:
    """
    Let a model act for ``n`` episodes from the middle of the start, at (0, 0).

    gSDE draws its noise as in training: for each episode, and anew after ``sde_sample_freq`` steps.

    :param model: what acts
    :param obstacles: ``(6, 2)``
    :param n: number of episodes
    :param seed: of the model's draws
    :return: the plans
    """
    layout = np.repeat(obstacles[None], n, axis=0)
    position: Floats = np.zeros((n, 2))
    right, alive = np.zeros((n, 6), bool), np.ones(n, bool)
    ways = np.full(n, -1)
    actions = np.zeros((n, MAX_EPISODE_STEPS, 2), np.float32)
    with preserved_random_state(seed), fresh_exploration(model, n) as redraw:
        for t in range(MAX_EPISODE_STEPS):
            if not alive.any():
                break
            action = model.predict(observe(position, layout))[0]
            actions[alive, t] = action[alive].clip(-1, 1)
            position, right, collision, finish = advance(position, layout, right, actions[:, t])
            ways = np.where(alive & finish, ways_taken(right), ways)
            alive &= ~(collision | finish)
            redraw(np.full(n, t + 1))
    return Plans(0, actions, ways)


class PlanCallback(PeriodicCallback):
    """
    Keeps plans as training goes on, see :class:`~sb3_diffrl.callbacks.PeriodicCallback`.

    :param obstacles: of the layout, ``(6, 2)``
    :param eval_freq_env_steps: environment steps between two points
    :param n: number of plans at each
    """

    def __init__(self, obstacles: Floats, eval_freq_env_steps: int, n: int):
        super().__init__(eval_freq_env_steps)
        self.obstacles, self.n = obstacles, n
        self.plans: list[Plans] = []

    def measure(self, env_steps: int) -> None:
        """
        :param env_steps: environment steps so far
        """
        plans = make_plans(self.model, self.obstacles, self.n)
        self.plans.append(plans._replace(env_steps=env_steps))


def train(method: str, run: Run, scene: int, samples: int, priors: pathlib.Path) -> list[History]:
    """
    :param method: one of :data:`METHODS`
    :param run: of the method
    :param scene: number of the scene that it trains in
    :param samples: actions at each decision point, and plans
    :param priors: folder of the prior, which is made where it is missing
    :return: a history in each of :data:`LAYOUTS`
    """
    layouts = dict(zip(LAYOUTS, (OBSTACLES, scene_layout(scene, DISPLACEMENT)), strict=True))
    every = max(1, run.env_steps // N_POINTS)
    measures, plans = {}, {}
    for name, obstacles in layouts.items():
        points = decision_points(obstacles)
        observations = observe(points, np.repeat(obstacles[None], len(points), axis=0))
        measures[name] = MultimodalityCallback(observations, every, samples, name=name)
        plans[name] = PlanCallback(obstacles, every, samples)
    callback = CallbackList([*measures.values(), *plans.values()])
    model = builder(run.algo)(run, run.make_prior(priors) if run.needs_prior else None)
    model.learn(run.env_steps, callback)
    return [History(method, name, measures[name].curve, plans[name].plans) for name in layouts]


def curves_csv(histories: Iterable[History]) -> str:
    """
    :param histories: of the figure
    :return: one line for each point of the curves
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "layout", *Multimodality._fields, "success_rate", "mode_entropy"])
    for history in histories:
        for point, plans in zip(history.curve, history.plans, strict=True):
            numbers = (*point[1:], plans.success_rate, plans.mode_entropy)
            shown = (f"{number:.4f}" for number in numbers)
            writer.writerow([history.method, history.layout, point.env_steps, *shown])
    return text.getvalue()


def embed(panels: Iterable[Plans], seed: int = 0) -> list[Floats]:
    """
    t-SNE (van der Maaten & Hinton 2008) of all panels' plans together, so that one place means the
    same in every panel. A plan is the actions of its first :data:`PLAN_STEPS` steps in a row, each
    blurred by noise of standard deviation :data:`PLAN_BLUR`: t-SNE spreads what is dense, and would
    else tear apart plans that hardly differ.

    :param panels: sets of ``n`` plans
    :param seed: of the blur and the embedding
    :return: ``(n, 2)`` for each panel
    """
    from sklearn.manifold import TSNE

    panels = list(panels)
    rows = np.concatenate([plans.actions[:, :PLAN_STEPS] for plans in panels])
    rows = rows + PLAN_BLUR * np.random.default_rng(seed).standard_normal(rows.shape)
    tsne = TSNE(perplexity=min(50, (len(rows) - 1) / 3), init="pca", random_state=seed)
    embedded = tsne.fit_transform(rows.reshape(len(rows), -1).astype(np.float32))
    return np.split(embedded, np.cumsum([len(plans.ways) for plans in panels])[:-1])


def save_embedding(
    path: pathlib.Path, histories: Sequence[History], embedded: Sequence[Floats]
) -> None:
    """
    Write what the panels show, one row for each plan: ``method``, ``layout``, ``env_steps``,
    ``way``, ``x``, ``y``.

    :param path: an ``.npz`` file; its folder is made
    :param histories: of the figure
    :param embedded: of :func:`embed`
    """
    shown = [(history, plans) for history in histories for plans in history.panels()]
    sizes = [len(plans.ways) for _, plans in shown]
    x, y = np.concatenate(embedded).T
    content = io.BytesIO()
    np.savez_compressed(
        content,
        method=np.repeat([history.method for history, _ in shown], sizes),
        layout=np.repeat([history.layout for history, _ in shown], sizes),
        env_steps=np.repeat([plans.env_steps for _, plans in shown], sizes),
        way=np.concatenate([plans.ways for _, plans in shown]).astype(np.int8),
        x=x.astype(np.float32),
        y=y.astype(np.float32),
    )
    write_bytes(path, content.getvalue())


def run_multimodality(args: argparse.Namespace) -> None:
    """
    :param args: of :func:`multimodality`
    """
    from sb3_diffrl.bench.multimodality_figure import multimodality_figure

    if args.output.suffix != ".png":
        raise ValueError(f"--output {args.output}: expected a name that ends in .png")
    steps = (args.steps, args.ppo_steps)
    with ThreadPoolExecutor(len(METHODS)) as pool:
        futures = []
        for method, name, env_steps in zip(METHODS, NAMES, steps, strict=True):
            scene = f"scene:{args.scene}"
            run = plan_run(avoiding(), ALL_METHODS[name], scene, args.seed, env_steps)
            how = (run, args.scene, args.samples, args.priors)
            futures.append(pool.submit(in_process, train, method, *how))
        histories = [history for future in futures for history in future.result()]
    write_text(args.output.with_suffix(".csv"), curves_csv(histories))
    embedded = embed(plans for history in histories for plans in history.panels())
    save_embedding(args.output.with_suffix(".npz"), histories, embedded)
    multimodality_figure(args.output, histories, embedded)
    print(f"Wrote {args.output}, and its numbers as .csv and .npz")
