"""
A policy fine-tuned with DPPO, trained on here: ``python examples/import_dppo.py``.

It takes a small checkpoint with random weights. For your own give the files of the run: the
checkpoint, ``.hydra/config.yaml`` and the data set's ``normalization.npz``.
"""

import json
import logging
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TransformAction, TransformObservation

from sb3_diffrl.importing import load_dppo
from sb3_diffrl.wrappers import ActionChunkWrapper

logging.basicConfig(level=logging.INFO, format="%(message)s")  # says which weights are taken
RUN = Path(__file__).parents[1] / "tests/fixtures/dppo/finetuned_ddpm"

# Pendulum's three observations, and two actions of which it takes the first.
two = gym.spaces.Box(-2.0, 2.0, (2,))
env: gym.Env = TransformAction(gym.make("Pendulum-v1"), lambda action: action[:1], two)
env = TransformObservation(env, np.float32, env.observation_space)
env = ActionChunkWrapper(env, horizon=4, n_executed=2)  # horizon_steps, act_steps

model = load_dppo(
    RUN / "state.pt",
    env,
    config=json.loads((RUN / "config.json").read_text()),
    normalization=RUN / "normalization.npz",
    n_steps=32,
    batch_size=32,
    beta=0.1,
    seed=0,
)
model.learn(64)
action, _ = model.predict(env.reset(seed=0)[0])
print(f"{model.env_steps} environment steps; the next actions:\n{action}")
