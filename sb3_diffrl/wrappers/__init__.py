"""Wrappers of environments: action chunks, and vectorised gymnasium environments for SB3."""

from sb3_diffrl.wrappers.action_chunks import ActionChunkWrapper
from sb3_diffrl.wrappers.vec_env import GymVecEnv

__all__ = ["ActionChunkWrapper", "GymVecEnv"]
