"""
Action chunks on the embedded task: the policy plans four actions and executes them before it looks
again. Step-wise demonstrations are cut into such decisions by ``pretrain``.
"""

import gymnasium as gym
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.envs.avoiding import avoiding_demonstrations
from sb3_diffrl.evaluation import Evaluation, evaluate
from sb3_diffrl.wrappers import ActionChunkWrapper

PRETRAINING_STEPS = 3_500
DECISIONS = 2_000  # of up to four environment steps each
N_EPISODES = 100


def show(name: str, result: Evaluation) -> None:
    """Print success and episode lengths."""
    low, high = result.interval
    print(f"{name}: success {result.success_rate:.2f} [{low:.2f}, {high:.2f}]", end=", ")
    print(f"{result.lengths.mean():.0f} environment steps per episode")


def wrap(env: gym.Env) -> gym.Env:
    """Four actions are predicted, and all of them executed."""
    return ActionChunkWrapper(env, horizon=4)


env = make_vec_env("sb3_diffrl/Avoiding-v0", n_envs=20, seed=0, wrapper_class=wrap)
model = DiffusionPPO(
    "policy",
    env,
    n_steps=25,
    batch_size=250,
    n_epochs=3,
    gamma=0.99**4,  # per decision
    beta="adaptive_0.01",
    policy_kwargs={"net_arch": [128] * 3},
    seed=0,
)
demonstrations = avoiding_demonstrations(n_episodes=100, seed=0)
print(f"{demonstrations}: actions {demonstrations.actions.shape}")
model.pretrain(demonstrations, gradient_steps=PRETRAINING_STEPS, batch_size=128)
assert model.imitation_buffer.demonstrations is not None
print(f"as decisions: actions {model.imitation_buffer.demonstrations.actions.shape}")
show("pre-trained", evaluate(model, env, N_EPISODES, deterministic=True))
model.learn(DECISIONS)
print(f"{model.num_timesteps} decisions took {model.env_steps} environment steps")
show("fine-tuned", evaluate(model, env, N_EPISODES, deterministic=True))
print("env of the model:", *model.env_wrappers, sep="\n  ")
