"""
DiffRL in a few minutes: a diffusion policy learns from demonstrations, fails in a scene whose
obstacles are displaced, and recovers by online RL. PPO from scratch, with the same number of steps,
learns beside it on the second core.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch as th
from rich.console import Console

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.bench.methods import METHODS
from sb3_diffrl.bench.rows import add_rows, results_table, rows_of
from sb3_diffrl.bench.runs import Run, execute, in_process, plan_run
from sb3_diffrl.bench.tasks import avoiding
from sb3_diffrl.plots import quickstart_figure, record_trajectories
from sb3_diffrl.zoo import load_demonstrations

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run the quickstart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", type=int, default=0, help="number of the displaced scene")
    parser.add_argument("--steps", type=int, default=40_000, help="environment steps of RL")
    parser.add_argument("--episodes", type=int, default=300, help="episodes of each evaluation")
    parser.add_argument("--seed", type=int, default=0, help="seed of training")
    parser.add_argument("--output", type=Path, default=ROOT / "results", help="folder")
    args = parser.parse_args()

    th.set_num_threads(1)  # the networks are small: the cores do more as one process each
    console = Console()
    say = console.print
    start = time.perf_counter()
    scene, model_path = f"scene:{args.scene}", args.output / "quickstart_model.zip"

    def run(method: str, **arguments: Any) -> Run:
        how = {"n_episodes": args.episodes, "curve_interval": 5_000, **arguments}
        return plan_run(avoiding(), METHODS[method], scene, args.seed, args.steps, **how)

    with ThreadPoolExecutor() as pool:
        scratch = pool.submit(in_process, execute, run("ppo"))

        diffusion = run("diffusion")
        data = load_demonstrations(diffusion.hyperparams["demonstrations"])
        say(f"1. {len(data)} demonstrations, {len(data.actions):,} decisions. Pre-training on them")
        prior = diffusion.make_prior(args.output, progress_bar=True)

        say(f"2. Evaluating the diffusion policy, clean and perturbed ({scene})")
        was = execute(diffusion, prior)
        say(results_table(rows_of(was), width=console.width))

        say(f"3. Fine-tuning in the perturbed scene for {args.steps:,} environment steps")
        now = execute(run("diffrl", save_path=model_path, progress_bar=True), prior)
        say("4. Waiting for PPO from scratch")
        ppo = scratch.result()

    rows = [row for record in (was, ppo, now) for row in rows_of(record)]
    add_rows(args.output / "quickstart.csv", rows)
    before, after = prior.load(), DiffusionPPO.load(model_path)
    found, gained = was.evaluations["stochastic"], now.evaluations["stochastic"]
    quickstart_figure(
        args.output / "quickstart.png",
        {
            f"Diffusion only, clean: {found.clean.rate:.0%}": record_trajectories(before, None),
            f"Diffusion only, perturbed: {found.after.rate:.0%}": record_trajectories(
                before, scene
            ),
            f"DiffRL, perturbed: {gained.after.rate:.0%}": record_trajectories(after, scene),
        },
        {
            label: [(point.env_steps, point.perturbed.rate) for point in record.curve]
            for label, record in (("DiffRL", now), ("PPO from scratch", ppo))
        },
        now.curve[0].perturbed.n_episodes,
        found.after.rate,
    )
    say(results_table(rows, width=console.width))
    say(f"Figure and rows: {args.output}/quickstart.png, {args.output}/quickstart.csv")
    say(f"The model, in three lines ({time.perf_counter() - start:.0f} s in all):\n")
    print("from sb3_diffrl import DiffusionPPO")
    print(f'model = DiffusionPPO.load("{model_path}")')
    print("action, _ = model.predict(observation)")


if __name__ == "__main__":
    main()
