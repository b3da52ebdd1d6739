"""
DiffRL in a few minutes: a diffusion policy learns from demonstrations, fails in a scene whose
obstacles are displaced, and recovers by online RL. PPO from scratch, with the same number of steps,
learns beside it on the second core.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch as th
from rich.console import Console

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.experiments import (
    TASK,
    Run,
    add_rows,
    demonstrations,
    execute,
    in_process,
    make_prior,
    results_table,
)
from sb3_diffrl.plots import quickstart_figure, record_trajectories
from sb3_diffrl.zoo import load_hyperparams

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
    hyperparams = load_hyperparams(ROOT / "hyperparams/diffppo.yml", TASK)
    budget = {"seed": args.seed, "n_episodes": args.episodes}
    scratch_hyperparams = load_hyperparams(ROOT / "hyperparams/ppo.yml", TASK)
    ppo = Run("ppo", scene, scratch_hyperparams, args.steps, **budget)

    with ThreadPoolExecutor() as pool:
        scratch = pool.submit(in_process, execute, ppo)

        data = demonstrations(hyperparams)
        say(f"1. {len(data)} demonstrations, {len(data.actions):,} decisions. Pre-training on them")
        prior = make_prior(args.output, hyperparams, progress_bar=True)

        say(f"2. Evaluating the diffusion policy, clean and perturbed ({scene})")
        diffusion = execute(Run("diffusion", scene, hyperparams, 0, prior=prior, **budget))
        say(results_table(diffusion.rows, width=console.width))

        say(f"3. Fine-tuning in the perturbed scene for {args.steps:,} environment steps")
        diffrl = execute(
            Run(
                "diffrl",
                scene,
                hyperparams,
                args.steps,
                prior=prior,
                save_path=model_path,
                progress_bar=True,
                **budget,
            )
        )
        say("4. Waiting for PPO from scratch")
        outcomes = [diffusion, scratch.result(), diffrl]

    rows = [row for outcome in outcomes for row in outcome.rows]
    add_rows(args.output / "quickstart.csv", rows)
    before, after = DiffusionPPO.load(prior.path), DiffusionPPO.load(model_path)
    was, now = diffusion.rows[0], diffrl.rows[0]
    quickstart_figure(
        args.output / "quickstart.png",
        {
            f"Diffusion only, clean: {was.clean:.0%}": record_trajectories(before, None),
            f"Diffusion only, perturbed: {was.perturbed_after:.0%}": record_trajectories(
                before, scene
            ),
            f"DiffRL, perturbed: {now.perturbed_after:.0%}": record_trajectories(after, scene),
        },
        {"DiffRL": diffrl.curve, "PPO from scratch": outcomes[1].curve},
        ppo.curve_episodes,
        was.perturbed_after,
    )
    say(results_table(rows, width=console.width))
    say(f"Figure and rows: {args.output}/quickstart.png, {args.output}/quickstart.csv")
    say(f"The model, in three lines ({time.perf_counter() - start:.0f} s in all):\n")
    print("from sb3_diffrl import DiffusionPPO")
    print(f'model = DiffusionPPO.load("{model_path}")')
    print("action, _ = model.predict(observation)")


if __name__ == "__main__":
    main()
