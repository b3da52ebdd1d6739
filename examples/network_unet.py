"""
The temporal U-Net on chunks of actions: imitates a reference path, and draws what it has learnt.

``python examples/network_unet.py [picture.png]``
"""

import sys

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np

from sb3_diffrl import Demonstrations, DiffusionPPO

HORIZON = 8


class ChunkEnv(gym.Env[np.ndarray, np.ndarray]):
    """One decision: a phase is shown, and a wave of eight points with this phase is to be drawn."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (HORIZON, 2))


def wave(observations: np.ndarray) -> np.ndarray:
    """The path ``(M, H, 2)`` for phases given as cosine and sine ``(M, 2)``."""
    phase = np.arctan2(observations[:, 1], observations[:, 0])[:, None]
    time = np.linspace(0, 1, HORIZON)
    height = 0.8 * np.sin(2 * np.pi * time + phase)
    return np.stack([np.broadcast_to(2 * time - 1, height.shape), height], axis=-1)


rng = np.random.default_rng(0)
angles = rng.uniform(-np.pi, np.pi, 2_000)
observations = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
actions = wave(observations).astype(np.float32)
demonstrations = Demonstrations(observations, actions, np.arange(1, len(actions) + 1))

model = DiffusionPPO(
    "policy",
    ChunkEnv(),
    policy_kwargs={
        "denoiser_class": "unet",
        "denoiser_kwargs": {"horizon": HORIZON, "down_dims": [16, 16], "level_embed_dim": 16},
    },
    seed=0,
)
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 500
model.pretrain(demonstrations, gradient_steps=steps, batch_size=64, learning_rate=2e-3)
shown = observations[:6]
drawn, _ = model.predict(shown)
print(f"mean distance to the wave: {np.abs(drawn - wave(shown)).mean():.3f}")

for path, target in zip(drawn, wave(shown), strict=True):
    (line,) = plt.plot(*path.T, "o-")
    plt.plot(*target.T, ":", color=line.get_color())
plt.savefig(sys.argv[1] if len(sys.argv) > 1 else "waves.png")
