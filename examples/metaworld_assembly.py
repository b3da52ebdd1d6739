"""
A policy that imitates Meta-World's scripted expert in scenes within ±2 cm, evaluated there and in
perturbed ones. Needs ``pip install 'sb3-diffrl[metaworld]'``.
"""

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.envs.metaworld import metaworld_demonstrations
from sb3_diffrl.evaluation import evaluate
from sb3_diffrl.wrappers import ActionChunkWrapper

TASK = "assembly"
HORIZON = 4  # actions in a chunk
N_DEMONSTRATIONS = 20
PRETRAINING_STEPS = 5_000
N_EPISODES = 50
LEVELS = (None, "positions", "paper", "dynamics", "sensing")


def in_chunks(env: gym.Env) -> gym.Env:
    """A policy that decides on chunks of actions."""
    return ActionChunkWrapper(env, HORIZON)


def make_env(perturbation: str | None = None, n_envs: int = 10) -> VecEnv:
    """``n_envs`` environments of the task."""
    return make_vec_env(
        "sb3_diffrl/MetaWorld-v0",
        n_envs,
        seed=0,
        env_kwargs={"task": TASK, "perturbation": perturbation},
        wrapper_class=in_chunks,
    )


demonstrations = metaworld_demonstrations(TASK, N_DEMONSTRATIONS, progress_bar=True)
print(demonstrations)
model = DiffusionPPO(
    "policy",
    make_env(),
    n_steps=64,
    batch_size=640,
    gamma=0.99**HORIZON,
    policy_kwargs={"net_arch": [256] * 3},
    seed=0,
)
model.pretrain(demonstrations, gradient_steps=PRETRAINING_STEPS, batch_size=256)
for level in LEVELS:
    result = evaluate(model, make_env(level), N_EPISODES)
    low, high = result.interval
    print(f"{level or 'clean'}: success {result.success_rate:.2f} [{low:.2f}, {high:.2f}]")
