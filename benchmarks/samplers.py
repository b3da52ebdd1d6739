"""
How many denoising steps, which sampler, prediction type and noise schedule: one policy for each
prediction type and schedule is pre-trained on Avoiding and sampled in every way, without RL.

    python benchmarks/samplers.py
    python benchmarks/samplers.py --episodes 500 --gradient-steps 10000

Ways that the results file already has are skipped. Beside the rows (``.csv``) there are a summary
(``.md``) and a figure (``.png``) of the same name.
"""

import argparse
import copy
import dataclasses
import itertools
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch as th

from benchmarks.rows import read_rows, write_rows
from sb3_diffrl import DiffusionPPO
from sb3_diffrl.bench.methods import METHODS
from sb3_diffrl.bench.runs import measure, plan_run
from sb3_diffrl.bench.tasks import avoiding
from sb3_diffrl.diffusion import DiffusionProcess
from sb3_diffrl.files import write_text
from sb3_diffrl.plots import save_figure
from sb3_diffrl.zoo import merge

ROOT = Path(__file__).resolve().parent.parent
STEPS = (1, 2, 4, 10, 20)
ETAS = (0.0, 1.0)
# Prediction type and schedule of each policy.
POLICIES = (
    ("epsilon", "cosine"),
    ("sample", "cosine"),
    ("v", "cosine"),
    ("epsilon", "linear"),
    ("epsilon", "squared_cosine_capped"),
    ("v", "squared_cosine_capped"),
)


class Row(NamedTuple):
    """
    One way of sampling.

    :param prediction_type: of the policy
    :param noise_schedule: of the policy
    :param steps: denoising steps ``K`` of 20 levels
    :param eta: 0 for the ODE, 1 for DDPM's noise
    :param n_episodes: of the clean task
    :param success: success rate
    :param low: of its 95 % interval
    :param high: of its 95 % interval
    :param mode_entropy: evenness of the ways used, 0 to 1
    :param ms: median milliseconds of a decision of one env
    """

    prediction_type: str
    noise_schedule: str
    steps: int
    eta: float
    n_episodes: int
    success: float
    low: float
    high: float
    mode_entropy: float
    ms: float

    @property
    def key(self) -> tuple[str, str, int, float]:
        """What tells this row from the others."""
        return self.prediction_type, self.noise_schedule, self.steps, self.eta


def sampled_by(model: DiffusionPPO, steps: int, eta: float) -> DiffusionPPO:
    """:return: a copy of the model that takes so many steps of such a sampler"""
    other = copy.copy(model)
    other.policy = copy.deepcopy(model.policy)
    kwargs = {**model.policy.diffusion_kwargs, "denoising_steps": steps, "eta": eta}
    other.policy.process = DiffusionProcess(**kwargs)
    other.policy.finetuned_steps = steps
    return other


def milliseconds(model: DiffusionPPO, repetitions: int = 200) -> float:
    """:return: median time of ``predict`` for one observation"""
    observation = model.observation_space.sample()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        model.predict(observation)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def table(rows: list[Row]) -> str:
    """:return: the rows as Markdown"""
    lines = [
        "# Samplers on Avoiding, without RL\n",
        "Policies pre-trained on the clean task, sampled with fresh noise. The interval is "
        "Wilson's, 95 %; the time is of one decision of one env on one CPU core.\n",
        "| predicts | schedule | steps | eta | success | mode entropy | ms |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.prediction_type} | {row.noise_schedule} | {row.steps} | {row.eta:g} "
        f"| {row.success:.2f} ({row.low:.2f} to {row.high:.2f}) | {row.mode_entropy:.2f} "
        f"| {row.ms:.2f} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def figure(rows: list[Row], path: Path) -> None:
    """Success rate against steps, a line for each policy, a panel for each eta."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(10, 4), layout="constrained")
    axes: Any = drawing.subplots(1, len(ETAS), sharey=True)
    for ax, eta in zip(axes, ETAS, strict=True):
        for i, policy in enumerate(POLICIES):
            mine = [row for row in rows if (*row.key[:2], row.eta) == (*policy, eta)]
            if not mine:
                continue
            errors = [
                [row.success - row.low for row in mine],
                [row.high - row.success for row in mine],
            ]
            # Beside one another, so that all intervals can be seen.
            x = [row.steps * 1.02**i for row in mine]
            y = [row.success for row in mine]
            ax.errorbar(x, y, errors, marker="o", capsize=2, label=", ".join(policy))
        ax.set(title=f"eta {eta:g}", xlabel="denoising steps", xscale="log", ylim=(-0.02, 1.02))
        ax.set_xticks(STEPS, [str(n) for n in STEPS])
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("success rate")
    axes[1].legend(fontsize="small")
    save_figure(drawing, path)


def main() -> None:
    """Run what the results file lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--episodes", type=int, default=300, help="of each success rate")
    parser.add_argument("--gradient-steps", type=int, default=3000, help="of pre-training")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/samplers.csv")
    parser.add_argument("--priors", type=Path, default=ROOT / "results", help="folder")
    args = parser.parse_args()

    th.set_num_threads(1)
    plain = plan_run(avoiding(), METHODS["diffusion"], "episode", n_episodes=args.episodes)
    pretraining = {"pretrain": {"gradient_steps": args.gradient_steps}}
    rows = read_rows(args.output, Row)
    for prediction_type, noise_schedule in POLICIES:
        ways = itertools.product(STEPS, ETAS)
        done = {row.key for row in rows}
        todo = [way for way in ways if (prediction_type, noise_schedule, *way) not in done]
        if not todo:
            continue
        kind = {"prediction_type": prediction_type, "noise_schedule": noise_schedule}
        hyperparams = merge(plain.hyperparams, {**pretraining, "policy_kwargs": kind})
        run = dataclasses.replace(plain, hyperparams=hyperparams)
        model = run.make_prior(args.priors).load()
        for steps, eta in todo:
            sampler = sampled_by(model, steps, eta)
            successes, entropy = measure(run, sampler, None)
            assert entropy is not None  # Avoiding tells ways apart
            numbers = (successes.rate, *successes.interval, entropy, milliseconds(sampler))
            rounded = [round(number, 4) for number in numbers]
            rows.append(Row(prediction_type, noise_schedule, steps, eta, args.episodes, *rounded))
            write_rows(args.output, rows, Row)
            print(*rows[-1], flush=True)
    rows.sort(key=lambda row: (POLICIES.index(row.key[:2]), row.eta, row.steps))
    write_rows(args.output, rows, Row)
    write_text(args.output.with_suffix(".md"), table(rows))
    figure(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
