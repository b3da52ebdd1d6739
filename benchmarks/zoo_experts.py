"""
Demonstrations for the control tasks of hyperparams/diffppo.yml: experts of medium quality, trained
by RL Zoo with its own hyperparameters, and their episodes.

    python benchmarks/zoo_experts.py                     # all that are not there yet
    python benchmarks/zoo_experts.py --envs Hopper-v5

writes ``demonstrations/<env>.npz``, where the hyperparameters look for them.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import yaml

from sb3_diffrl import Demonstrations
from sb3_diffrl.experiments import write_text, zoo_hyperparams, zoo_load, zoo_train

# Algorithm, environment steps, recorded episodes. They stop well before their best, which leaves
# something to gain.
EXPERTS = {
    "MountainCarContinuous-v0": ("ppo", 20_000, 50),
    "Hopper-v5": ("ppo", 400_000, 50),
    "Walker2d-v5": ("ppo", 600_000, 50),
    "HalfCheetah-v5": ("ppo", 600_000, 20),
    "BipedalWalker-v3": ("ppo", 1_000_000, 20),
}


def make(env_id: str, steps: int | None, episodes: int | None, output: Path, seed: int) -> Path:
    """
    :param env_id: environment, one of ``EXPERTS``
    :param steps: environment steps of training, by default the table's
    :param episodes: number of episodes, by default the table's
    :param output: folder of the demonstrations; the expert is kept in its ``experts``
    :param seed: of training and recording
    :return: the file of the demonstrations
    """
    algo, default_steps, default_episodes = EXPERTS[env_id]
    folder = output / "experts" / env_id
    config = folder / f"{algo}.yml"
    write_text(config, yaml.safe_dump({env_id: zoo_hyperparams(algo, env_id)}))
    budget = ["-n", str(steps or default_steps), "--seed", str(seed), "--eval-freq", "-1"]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        run = zoo_train(
            algo, env_id, temporary, "-conf", str(config), "--log-interval", "50", *budget
        )
        kept = folder / "run"
        if kept.exists():
            kept.rename(Path(temporary, "old"))
        run.rename(kept)
    model, env = zoo_load(algo, env_id, kept, seed)
    demonstrations = Demonstrations.from_rollouts(model, env, episodes or default_episodes)
    path = demonstrations.save(output / f"{env_id}.npz")
    assert demonstrations.rewards is not None
    returns = np.add.reduceat(demonstrations.rewards, demonstrations.episode_starts)
    print(
        f"{path}: {demonstrations}, return {returns.mean():.1f} ± {returns.std():.1f}, "
        f"expert: {algo}, {steps or default_steps:,} steps",
        flush=True,
    )
    return path


def main() -> None:
    """Make the demonstrations that are missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--envs", nargs="+", choices=[*EXPERTS], default=[*EXPERTS])
    parser.add_argument("--steps", type=int, help="environment steps of training")
    parser.add_argument("--episodes", type=int, help="recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demonstrations"), help="folder")
    parser.add_argument("--force", action="store_true", help="also what is there")
    args = parser.parse_args()
    for env_id in args.envs:
        if args.force or not (args.output / f"{env_id}.npz").exists():
            make(env_id, args.steps, args.episodes, args.output, args.seed)


if __name__ == "__main__":
    main()
