"""Demonstrations to Minari and back; needs pip install 'sb3-diffrl[minari]'."""

import os
import tempfile

import gymnasium as gym

from sb3_diffrl import Demonstrations
from sb3_diffrl.envs.avoiding import avoiding_demonstrations


def main() -> None:
    """Write the planner's demonstrations as a Minari dataset and read it by its id."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        made = avoiding_demonstrations(20)
        env = gym.make("sb3_diffrl/Avoiding-v0")
        made.to_minari("avoiding/planner-v0", env, progress_bar=True)

        demonstrations = Demonstrations.from_minari("avoiding/planner-v0")
        print(f"read {demonstrations}, {demonstrations.n_bytes / 1e3:.0f} kB, not yet loaded")
        demonstrations.validate(env.observation_space, env.action_space)
        for name, found in demonstrations.statistics().items():
            print(f"{name}: from {found.minimum.min():.3g} to {found.maximum.max():.3g}")


if __name__ == "__main__":
    main()
