"""
Demonstrations for the control tasks of hyperparams/diffppo.yml: experts of medium quality, trained
by RL Zoo, and their episodes.

    python benchmarks/zoo_experts.py                     # all that are not there yet
    python benchmarks/zoo_experts.py --envs Hopper-v5

writes ``demonstrations/<env>.npz``, where the hyperparameters look for them.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sb3_diffrl import Demonstrations
from sb3_diffrl.bench.zoo_commands import zoo_hyperparams, zoo_load, zoo_train
from sb3_diffrl.files import write_text

# SB3's own PPO in many environments with large minibatches, which takes a tenth of the time of the
# Zoo's entries on one core.
FAST: dict[str, Any] = {
    "policy": "MlpPolicy",
    "n_timesteps": 500_000,
    "normalize": True,
    "n_envs": 8,
    "n_steps": 256,
    "batch_size": 256,
}
# Environment steps of training, recorded episodes, hyperparameters (None: the Zoo's). They stop
# well before their best, which leaves something to gain.
EXPERTS: dict[str, tuple[int, int, dict[str, Any] | None]] = {
    "MountainCarContinuous-v0": (4_000, 50, None),
    "Hopper-v5": (500_000, 50, FAST),
    "Walker2d-v5": (500_000, 50, FAST),
    "HalfCheetah-v5": (500_000, 20, FAST),
    "BipedalWalker-v3": (500_000, 20, FAST),
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
    default_steps, default_episodes, hyperparams = EXPERTS[env_id]
    folder = output / "experts" / env_id
    config = folder / "ppo.yml"
    write_text(config, yaml.safe_dump({env_id: hyperparams or zoo_hyperparams("ppo", env_id)}))
    budget = ["-n", str(steps or default_steps), "--seed", str(seed), "--eval-freq", "-1"]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        run = zoo_train(
            "ppo", env_id, temporary, "-conf", str(config), "--log-interval", "50", *budget
        )
        kept = folder / "run"
        if kept.exists():
            kept.rename(Path(temporary, "old"))
        run.rename(kept)
    model, env = zoo_load("ppo", env_id, kept, seed)
    # Sampled, as it was trained: the mean action alone may stand still where the noise is needed.
    demonstrations = Demonstrations.from_rollouts(
        model, env, episodes or default_episodes, deterministic=False
    )
    path = demonstrations.save(output / f"{env_id}.npz")
    assert demonstrations.rewards is not None
    returns = np.add.reduceat(demonstrations.rewards, demonstrations.episode_starts)
    print(
        f"{path}: {demonstrations}, return {returns.mean():.1f} ± {returns.std():.1f}, "
        f"expert: ppo, {steps or default_steps:,} steps",
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
