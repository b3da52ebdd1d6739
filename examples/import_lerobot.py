"""
A policy trained with LeRobot, fine-tuned here: ``python examples/import_lerobot.py [folder]``.

Without a folder it takes a small one with random weights, so the return says nothing; the env is a
point that is to be moved to a target.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.importing import load_lerobot
from sb3_diffrl.wrappers import ActionChunkWrapper, ObservationHistoryWrapper

SMALL = Path(__file__).parents[1] / "tests/fixtures/lerobot/ddpm_epsilon"


class ReachEnv(gym.Env[Any, np.ndarray]):
    """What LeRobot calls ``observation.state`` and ``observation.environment_state``."""

    def __init__(self) -> None:
        parts = {"agent_pos": (2,), "environment_state": (3,)}
        self.observation_space = gym.spaces.Dict(
            {key: gym.spaces.Box(-10.0, 10.0, shape) for key, shape in parts.items()}
        )
        self.action_space = gym.spaces.Box(-3.0, 3.0, (2,))

    def _observation(self) -> dict[str, np.ndarray]:
        parts = {"agent_pos": self.position, "environment_state": self.target}
        return {key: part.astype(np.float32) for key, part in parts.items()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Draw a point and a target."""
        super().reset(seed=seed)
        self.position, self.target = self.np_random.normal(size=2), self.np_random.normal(size=3)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> Any:
        """Move the point."""
        self.position = (self.position + 0.1 * action).clip(-10, 10)
        reward = -float(np.linalg.norm(self.position - self.target[:2]))
        return self._observation(), reward, False, False, {}


env: gym.Env = gym.wrappers.TimeLimit(ReachEnv(), 32)
env = ObservationHistoryWrapper(env, 2)  # n_obs_steps
env = ActionChunkWrapper(env, horizon=16, n_executed=8, start=1)  # n_action_steps, n_obs_steps - 1

policy = load_lerobot(sys.argv[1] if len(sys.argv) > 1 else SMALL, env)
model = DiffusionPPO("policy", env, prior=policy, n_steps=32, batch_size=16, beta=0.1, seed=0)
model.learn(32)
action, _ = model.predict(env.reset(seed=0)[0])
print(f"{model.env_steps} environment steps; the next actions:\n{action[1:9]}")
