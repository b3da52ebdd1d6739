"""
A saved model of chunks acts step by step, without env wrappers: in receding horizon, with temporal
ensembling, and while the next chunk is still being computed.
"""

import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.chunked_policy import ChunkedPolicy
from sb3_diffrl.envs.avoiding import avoiding_demonstrations
from sb3_diffrl.wrappers import ActionChunkWrapper, rewrap

PRETRAINING_STEPS = 3_500
N_EPISODES = 15


def roll_out(policy: ChunkedPolicy) -> tuple[float, float]:
    """Success rate, and how much actions differ from those before."""
    robot = gym.make("sb3_diffrl/Avoiding-v0")
    successes, jumps = [], []
    for seed in range(N_EPISODES):
        observation, _ = robot.reset(seed=seed)
        policy.reset()
        actions, over = [], False
        while not over:
            actions.append(policy.predict(observation))
            observation, _, terminated, truncated, info = robot.step(actions[-1])
            over = terminated or truncated
        successes.append(info["is_success"])
        jumps.append(np.abs(np.diff(actions, axis=0)).mean())
    return float(np.mean(successes)), float(np.mean(jumps))


env = ActionChunkWrapper(gym.make("sb3_diffrl/Avoiding-v0"), horizon=4, n_executed=3)
model = DiffusionPPO("policy", env, policy_kwargs={"net_arch": [128] * 3}, seed=0)
demonstrations = avoiding_demonstrations(n_episodes=100, seed=0)
model.pretrain(demonstrations, gradient_steps=PRETRAINING_STEPS, batch_size=128)

with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder, "model"))
    model = DiffusionPPO.load(Path(folder, "model"), device="cpu")
print("env to train on:", rewrap(gym.make("sb3_diffrl/Avoiding-v0"), model.env_wrappers))
# Short pre-training is enough for the deterministic mode, not yet for sampling.
policies = {
    "receding horizon, 3 of 4 actions": ChunkedPolicy(model, deterministic=True),
    "a new chunk at every step": ChunkedPolicy(model, n_executed=1, deterministic=True),
    "temporal ensembling": ChunkedPolicy(model, ensemble=0.01, deterministic=True),
    "1 step of delay": ChunkedPolicy(model, delay=1, deterministic=True),
}
for name, policy in policies.items():
    success, jump = roll_out(policy)
    print(f"{name:34} success {success:.2f}, mean change of the action {jump:.3f}")
