"""Plain arrays, one for each episode: pre-train on the successful ones, kept in a mapped folder."""

import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np

from sb3_diffrl import Demonstrations, DiffusionMlpPolicy, DiffusionPPO


def main() -> None:
    """Make episodes of a hand-written controller, filter, save, load, pre-train."""
    env = gym.make("Pendulum-v1", max_episode_steps=100)
    episodes: tuple[list, list, list] = ([], [], [])
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        episode: tuple[list, list, list] = ([], [], [])
        done = False
        while not done:
            action = np.clip([-2 * obs[2] - 4 * obs[1]], -2, 2).astype(np.float32)
            episode[0].append(obs)
            episode[1].append(action)
            obs, reward, terminated, truncated, _ = env.step(action)
            episode[2].append(reward)
            done = terminated or truncated
        for parts, part in zip(episodes, episode, strict=True):
            parts.append(np.array(part))
    observations, actions, rewards = episodes
    demonstrations = Demonstrations.from_arrays(observations, actions, rewards=rewards)
    best = demonstrations.top_returns(0.5)
    print(f"{demonstrations}, mean return {demonstrations.returns.mean():.0f}")
    print(f"{best}, mean return {best.returns.mean():.0f}")

    with tempfile.TemporaryDirectory() as folder:
        mapped = Demonstrations.load(best.save(Path(folder, "best.demos")))
        model = DiffusionPPO(DiffusionMlpPolicy, env, policy_kwargs={"net_arch": [64, 64]}, seed=0)
        result = model.pretrain(mapped, gradient_steps=200, normalization="min_max")
    print(
        f"Loss on held-out episodes after {result.gradient_steps} steps: "
        f"{result.validation_loss:.3f}"
    )


if __name__ == "__main__":
    main()
