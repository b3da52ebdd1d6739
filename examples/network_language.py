"""An instruction, as a vector for each episode, modulates what the network sees (FiLM)."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_diffrl import Demonstrations, DiffusionPPO

# Embeddings of two sentences; use any sentence encoder's, or those that CALVIN comes with.
SENTENCES = {"go there": np.full(8, 1, np.float32), "keep away": np.full(8, -1, np.float32)}

# Leave film_key out to concatenate the vector instead.
VISION = {"network_kwargs": {"channels": [16, 32]}, "film_key": "language"}


class Instructed(gym.Env[Any, np.ndarray]):
    """A bright square and a sentence: go to it, or to the opposite side."""

    observation_space = spaces.Dict(
        camera=spaces.Box(0, 255, (3, 24, 24), np.uint8), language=spaces.Box(-1, 1, (8,))
    )
    action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        """Show another."""
        super().reset(seed=seed)
        place = self.np_random.uniform(-0.8, 0.8, 2).astype(np.float32)
        row, column = (12 + 9 * place).astype(int)
        image = np.zeros((3, 24, 24), np.uint8)
        image[:, row - 2 : row + 3, column - 2 : column + 3] = 255
        sentence = (options or {}).get("sentence") or self.np_random.choice([*SENTENCES])
        self.target = place if sentence == "go there" else -place
        return {"camera": image, "language": SENTENCES[sentence]}, {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Say how near the action was."""
        return self.reset()[0], -float(np.abs(action - self.target).mean()), True, False, {}


th.set_num_threads(1)
env = Instructed()
shown = [(env.reset(seed=i)[0], env.target) for i in range(400)]
observations = {key: np.stack([obs[key] for obs, _ in shown]) for key in env.observation_space}
targets = np.stack([target for _, target in shown])
model = DiffusionPPO(
    "policy",
    env,
    policy_kwargs={"features_extractor_class": "vision", "features_extractor_kwargs": VISION},
    seed=0,
)
demonstrations = Demonstrations.from_arrays(observations, targets, list(range(1, 401)))
model.pretrain(demonstrations, gradient_steps=300, warmup_steps=20, batch_size=64)
for sentence in SENTENCES:
    obs, _ = env.reset(seed=1000, options={"sentence": sentence})
    print(f"{sentence}: wanted {env.target}, predicted {model.predict(obs)[0]}")
