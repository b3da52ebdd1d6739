"""
What exploration finds before any RL: one prior, pre-trained on the clean task, acts in displaced
scenes of Avoiding with three kinds of noise.

    python benchmarks/exploration.py
    python benchmarks/exploration.py --scenes 10 --episodes 200 --starts 3

- ``chain``: the diffusion policy's own, fresh initial noise and a floor under that of every step;
- ``action``: the chain without noise from a fixed start, Gaussian noise on its action;
- ``epsilon``: the same, and with some probability an action drawn uniformly in its place.

Counted are the successful episodes and the different ways, of 24, which they take. What the results
file already has is skipped. Beside the rows (``.csv``) there are a summary (``.md``) and a figure
(``.png``) of the same name.
"""

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th

from benchmarks.rows import read_rows, write_rows
from sb3_diffrl import DiffusionPPO
from sb3_diffrl.bench.methods import METHODS
from sb3_diffrl.bench.runs import EVALUATION_SEED, plan_run
from sb3_diffrl.bench.tasks import avoiding
from sb3_diffrl.envs.avoiding import AvoidingVectorEnv
from sb3_diffrl.evaluation import evaluate
from sb3_diffrl.files import write_text
from sb3_diffrl.plots import save_figure
from sb3_diffrl.wrappers import GymVecEnv

ROOT = Path(__file__).resolve().parent.parent
# Of each exploration the standard deviations, or for epsilon the probabilities.
SCALES = {
    "chain": (0.05, 0.1, 0.2, 0.3),
    "action": (0.05, 0.1, 0.2, 0.3, 0.5, 0.8),
    "epsilon": (0.05, 0.1, 0.2, 0.3, 0.5),
}
LABELS = {
    "chain": "chain sampling, floor σ",
    "action": "fixed start, Gaussian noise σ",
    "epsilon": "fixed start, ε-greedy",
}


class Row(NamedTuple):
    """
    Episodes of one exploration in one scene.

    :param exploration: a key of ``SCALES``
    :param scale: standard deviation or probability
    :param scene: number of the displaced scene
    :param start: number of the fixed initial noise; chain sampling draws a fresh one per action
    :param n_episodes: number of episodes
    :param n_successes: how many succeeded
    :param n_ways: different ways among them
    """

    exploration: str
    scale: float
    scene: int
    start: int
    n_episodes: int
    n_successes: int
    n_ways: int

    @property
    def key(self) -> tuple[str, float, int, int]:
        """What tells this row from the others."""
        return self[:4]


class Explorer(DiffusionPPO):
    """
    A model whose ``predict`` is what it does in rollouts; or given ``epsilon``, its deterministic
    action with so many uniform ones in between.
    """

    epsilon: float | None = None

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """
        :param observation: ``(N, ...)``
        :param state: unused
        :param episode_start: unused
        :param deterministic: unused
        :return: ``(N, D)`` actions and None
        """
        with th.no_grad():
            seen, _ = self.policy.obs_to_tensor(observation)
            chains, _, _ = self.policy(seen, deterministic=self.epsilon is not None)
        actions = self.policy.unscale_action(chains.cpu().numpy())
        if self.epsilon is None:
            return actions, state
        random = th.rand(len(actions)).numpy() < self.epsilon
        scale = self.policy.action_scale
        uniform = scale.low + (scale.high - scale.low) * th.rand(actions.shape).numpy()
        return np.where(random[:, None], uniform, actions).astype(np.float32), state


def explorer(prior: DiffusionPPO, exploration: str, scale: float, start: int) -> Explorer:
    """:return: the prior's actor, exploring in one of the ways from a fixed initial noise"""
    hyperparams = avoiding().hyperparams_of("diffppo")
    own = {
        "exploration": "chain" if exploration == "chain" else "action",
        "sigma_min": 0.1 if exploration == "epsilon" else scale,
    }
    model = Explorer(
        hyperparams["policy"],
        avoiding().make_env(None, 1),
        prior=prior,
        policy_kwargs=hyperparams["policy_kwargs"] | own,
        device="cpu",
    )
    if start:  # number 0 is the policy's own
        noise = th.randn(model.policy.action_dim, generator=th.Generator().manual_seed(start))
        model.policy.initial_noise.copy_(noise / noise.norm() * len(noise) ** 0.5)
    model.epsilon = scale if exploration == "epsilon" else None
    return model


def explore(model: Explorer, scene: int, n_episodes: int) -> tuple[int, int]:
    """:return: successes in a displaced scene, and different ways among them"""
    env = GymVecEnv(AvoidingVectorEnv(min(n_episodes, 200), perturbation=f"scene:{scene}"))
    found = evaluate(model, env, n_episodes, seed=EVALUATION_SEED)
    ways = {info["way"] for info in found.infos} - {-1}
    return int(found.successes.sum()), len(ways)


class Summary(NamedTuple):
    """
    All rows of one exploration.

    :param exploration: a key of ``SCALES``
    :param scale: standard deviation or probability
    :param success: share of successful episodes, mean over scenes and starts
    :param error: its standard error over scenes
    :param ways: different successful ways of a scene's episodes, mean over scenes and starts
    :param reached: share of scenes and starts with any success
    """

    exploration: str
    scale: float
    success: float
    error: float
    ways: float
    reached: float


def summarize(rows: list[Row]) -> list[Summary]:
    """:return: one entry for each exploration and scale that rows has"""
    summaries = []
    for exploration, scales in SCALES.items():
        for scale in scales:
            mine = [row for row in rows if (row.exploration, row.scale) == (exploration, scale)]
            if not mine:
                continue
            by_scene: dict[int, list[float]] = {}
            for row in mine:
                by_scene.setdefault(row.scene, []).append(row.n_successes / row.n_episodes)
            scenes = [statistics.mean(rates) for rates in by_scene.values()]
            error = statistics.stdev(scenes) / len(scenes) ** 0.5 if len(scenes) > 1 else 0.0
            summaries.append(
                Summary(
                    *(exploration, scale, statistics.mean(scenes), error),
                    statistics.mean(row.n_ways for row in mine),
                    statistics.mean(row.n_successes > 0 for row in mine),
                )
            )
    return summaries


def table(rows: list[Row]) -> str:
    """:return: the summary as Markdown"""
    n_scenes, n_starts = (len({row[i] for row in rows}) for i in (2, 3))
    episodes = " or ".join(str(n) for n in sorted({row.n_episodes for row in rows}))
    lines = [
        "# Exploration on Avoiding, without RL\n",
        "Made by `python benchmarks/exploration.py` from `exploration.csv`. One prior, pre-trained "
        f"on the clean task, acts in {n_scenes} displaced scenes, {episodes} episodes each; where "
        f"the start of the chain is fixed, from {n_starts} starts each. Success is the mean share "
        "of successful episodes with its standard error over scenes; ways are the different "
        "successful ones among a scene's episodes, of 24; reached is the share of scenes and "
        "starts in which any episode succeeded.\n",
        "| exploration | σ or ε | success | ways | reached |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {LABELS[each.exploration]} | {each.scale:g} | {each.success:.3f} ± {each.error:.3f} "
        f"| {each.ways:.1f} | {each.reached:.2f} |"
        for each in summarize(rows)
    ]
    return "\n".join([*lines, ""])


def figure(rows: list[Row], path: Path) -> None:
    """Ways found against the share of successful episodes, a line for each exploration."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4.5), layout="constrained")
    ax: Any = drawing.subplots()
    summaries = summarize(rows)
    for exploration, label in LABELS.items():
        mine = [each for each in summaries if each.exploration == exploration]
        x, y = [each.success for each in mine], [each.ways for each in mine]
        ax.errorbar(x, y, xerr=[each.error for each in mine], marker="o", capsize=2, label=label)
        for each in mine:
            ax.annotate(
                f"{each.scale:g}",
                (each.success, each.ways),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize="small",
            )
    ax.set(
        xlabel="share of successful episodes",
        ylabel="successful ways found per scene",
        title="Exploration in displaced scenes, before RL",
    )
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.25)
    ax.legend(fontsize="small")
    save_figure(drawing, path)


def main() -> None:
    """Run what the results file lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=int, default=10, help="number of displaced scenes")
    parser.add_argument("--episodes", type=int, default=200, help="of each scene and start")
    parser.add_argument("--starts", type=int, default=3, help="number of fixed initial noises")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/exploration.csv")
    parser.add_argument("--priors", type=Path, default=ROOT / "results", help="folder")
    args = parser.parse_args()

    th.set_num_threads(1)
    prior = plan_run(avoiding(), METHODS["diffusion"], "scene:0").make_prior(args.priors).load()
    rows = read_rows(args.output, Row)
    done = {row.key for row in rows}
    for exploration, scales in SCALES.items():
        starts = 1 if exploration == "chain" else args.starts
        for scale, start in itertools.product(scales, range(starts)):
            keys = [(exploration, scale, scene, start) for scene in range(args.scenes)]
            todo = [key for key in keys if key not in done]
            if todo:
                model = explorer(prior, exploration, scale, start)
                for key in todo:
                    found = explore(model, key[2], args.episodes)
                    rows.append(Row(*key, args.episodes, *found))
                write_rows(args.output, rows, Row)
        write_text(args.output.with_suffix(".md"), table(rows))
        figure(rows, args.output.with_suffix(".png"))
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
