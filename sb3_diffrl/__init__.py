"""Online reinforcement learning for diffusion policies, as a Stable-Baselines3 algorithm."""

from sb3_diffrl import envs
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.fitting import PretrainingResult
from sb3_diffrl.policies import (
    DiffusionActorCriticPolicy,
    DiffusionCnnPolicy,
    DiffusionMlpPolicy,
    DiffusionMultiInputPolicy,
)
from sb3_diffrl.pretraining import pretrain

__version__ = "0.1.0"

__all__ = [
    "Demonstrations",
    "DiffusionActorCriticPolicy",
    "DiffusionCnnPolicy",
    "DiffusionMlpPolicy",
    "DiffusionMultiInputPolicy",
    "DiffusionPPO",
    "PretrainingResult",
    "envs",
    "pretrain",
]
