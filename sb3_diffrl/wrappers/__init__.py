"""
Wrappers of environments: action chunks, observation histories, perturbed sensing, and vectorised
gymnasium environments for SB3.
"""

from sb3_diffrl.wrappers.action_chunks import ActionChunkWrapper
from sb3_diffrl.wrappers.decisions import rewrap
from sb3_diffrl.wrappers.observation_history import ObservationHistoryWrapper
from sb3_diffrl.wrappers.perturbation import PerturbationWrapper
from sb3_diffrl.wrappers.vec_env import GymVecEnv

__all__ = [
    "ActionChunkWrapper",
    "GymVecEnv",
    "ObservationHistoryWrapper",
    "PerturbationWrapper",
    "rewrap",
]
