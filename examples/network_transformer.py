"""A Transformer whose tokens are the actions of a chunk."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffrl import Demonstrations, DiffusionPPO

HORIZON = 8


class Waves(gym.Env[np.ndarray, np.ndarray]):
    """Asks for a chunk of eight actions: a sine wave of the frequency and sign it shows."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(-1, 1, (HORIZON, 1))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Show another."""
        super().reset(seed=seed)
        self.shown = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.shown, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Say how near the action was."""
        error = np.abs(action - waves(self.shown[None])[0]).mean()
        return self.reset()[0], 1 - error, True, False, {}


def waves(shown: np.ndarray) -> np.ndarray:
    """The chunks ``(M, 8, 1)`` for observations ``(M, 2)``."""
    phases = np.linspace(0, np.pi, HORIZON) * (2 + shown[:, :1])
    return (np.sign(shown[:, 1:]) * np.sin(phases) * 0.8).astype(np.float32)[..., None]


th.set_num_threads(1)
shown = np.random.default_rng(0).uniform(-1, 1, (2000, 2)).astype(np.float32)
demonstrations = Demonstrations.from_arrays(shown, waves(shown), list(range(10, 2001, 10)))
model = DiffusionPPO(
    "policy",
    Waves(),
    policy_kwargs={
        "denoiser_class": "transformer",
        "denoiser_kwargs": {"horizon": HORIZON},
        "net_arch": {"pi": [64, 64], "vf": [64, 64]},  # two blocks of width 64
        "prediction_type": "v",
    },
    seed=0,
    verbose=1,
)
model.pretrain(
    demonstrations, gradient_steps=300, learning_rate=2e-3, warmup_steps=30, batch_size=64
)
chunk, _ = model.predict(np.array([0.2, 0.7], np.float32))
for found, wanted in zip(chunk[:, 0], waves(np.array([[0.2, 0.7]]))[0, :, 0], strict=True):
    print(f"{found:+.2f} wanted {wanted:+.2f} " + " " * int(20 + 20 * found) + "*")
