"""Observations that hold the last few."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation

from sb3_diffrl.demonstrations.windows import lay_out_history
from sb3_diffrl.wrappers.action_chunks import ActionChunkWrapper
from sb3_diffrl.wrappers.records import RecordedWrapper, find, recorded_wrappers


class ObservationHistoryWrapper(RecordedWrapper, gym.ObservationWrapper[Any, Any, Any]):
    """
    The last ``n`` observations, oldest first; the first one of an episode stands in for those that
    would come before it.

    An observation ``(*shape)`` becomes ``(n, *shape)``, in a Dict each of them; policies flatten
    vectors. Images become images of ``n`` times the channels. Belongs inside of
    :class:`~sb3_diffrl.wrappers.ActionChunkWrapper`, where it also sees the observations between
    two decisions.

    :param env: environment
    :param n_observations: number ``n`` of observations, the current one included
    :raises ValueError: for fewer than one, and outside of action chunks
    """

    def __init__(self, env: gym.Env, n_observations: int):
        if n_observations < 1:
            raise ValueError(f"n_observations must be at least 1, got {n_observations}.")
        if find(recorded_wrappers(env), ActionChunkWrapper.__name__) is not None:
            raise ValueError(
                "ObservationHistoryWrapper would miss the observations within a chunk. Put it "
                "inside: ActionChunkWrapper(ObservationHistoryWrapper(env, n), horizon)."
            )
        super().__init__(FrameStackObservation(env, n_observations))
        self.n_observations = n_observations
        space = self.env.observation_space
        if isinstance(space, spaces.Dict):
            parts = {key: _lay_out(part) for key, part in space.spaces.items()}
            self.observation_space = spaces.Dict(parts)
        else:
            self.observation_space = _lay_out(space)

    def observation(self, observation: Any) -> Any:
        """
        :param observation: ``(n, *shape)``, or a dictionary of such arrays
        :return: the same, images as one image each
        """
        return map_parts(lay_out_history, observation)


def map_parts(function: Callable[[np.ndarray], np.ndarray], observation: Any) -> Any:
    """
    :param function: of an array
    :param observation: an array or a dictionary of arrays
    :return: what the function makes of it, of each where it is a dictionary
    """
    if isinstance(observation, dict):
        return {key: function(part) for key, part in observation.items()}
    return function(observation)


def newest(history: np.ndarray, n_observations: int) -> np.ndarray:
    """
    :param history: ``(n, *shape)``, images as one image
    :param n_observations: number ``n`` of observations in it
    :return: ``(*shape)`` the last of them
    """
    if history.ndim != 3 or history.dtype != np.uint8:
        return history[-1]
    channels = int(np.argmin(history.shape))  # as Stable-Baselines3 tells which end they are
    return np.split(history, n_observations, axis=channels)[-1]


def _lay_out(space: spaces.Space) -> spaces.Space:
    if not isinstance(space, spaces.Box):
        return space
    low, high = lay_out_history(space.low), lay_out_history(space.high)
    return spaces.Box(low, high, dtype=space.dtype.type)
