"""Two cameras and the state: one small ResNet, random crops, the encoder frozen in RL."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffrl import Demonstrations, DiffusionPPO

# One small ResNet for both cameras; crops are random in imitation, the centre otherwise.
VISION = {"network_kwargs": {"channels": [16, 32]}, "shared": True, "crop": 0.9}


class Reach(gym.Env[Any, np.ndarray]):
    """A bright square in the images says where to go."""

    image = spaces.Box(0, 255, (3, 32, 32), np.uint8)
    observation_space = spaces.Dict(front=image, wrist=image, state=spaces.Box(-1, 1, (2,)))
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Show another."""
        super().reset(seed=seed)
        self.target = self.np_random.uniform(-0.8, 0.8, 2).astype(np.float32)
        row, column = (16 + 12 * self.target).astype(int)
        image = np.zeros((3, 32, 32), np.uint8)
        image[:, row - 2 : row + 3, column - 2 : column + 3] = 255
        return {"front": image, "wrist": image[::-1], "state": np.zeros(2, np.float32)}, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Say how near the action was."""
        return self.reset()[0], -float(np.abs(action - self.target).mean()), True, False, {}


th.set_num_threads(1)
env = Reach()
shown = [(env.reset(seed=i)[0], env.target) for i in range(400)]
observations = {key: np.stack([obs[key] for obs, _ in shown]) for key in env.observation_space}
targets = np.stack([target for _, target in shown])
model = DiffusionPPO(
    "policy",
    env,
    n_steps=128,
    beta=0.1,
    policy_kwargs={
        "features_extractor_class": "vision",
        "features_extractor_kwargs": VISION,
        "freeze_encoder": True,
    },
    seed=0,
)
demonstrations = Demonstrations.from_arrays(observations, targets, list(range(1, 401)))
model.pretrain(demonstrations, gradient_steps=150, warmup_steps=20, batch_size=64)
model.learn(128)
obs, _ = env.reset(seed=1000)
print("wanted", env.target, "predicted", model.predict(obs)[0])
