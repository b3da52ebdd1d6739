"""Observation statistics that ``VecNormalize`` and a pre-trained policy share."""

from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffrl.demonstrations.arrays import ConvertedArray, Source, is_lazy
from sb3_diffrl.normalization import ObservationNormalizer, Standardizer


def hand_over_statistics(normalizer: ObservationNormalizer, env: VecNormalize) -> None:
    """
    Let the env normalise observations by the policy's statistics, and hold them.

    :param normalizer: fitted to the demonstrations; becomes the identity where the env takes over
    :param env: wrapper whose ``obs_rms`` is replaced
    :raises ValueError: where the env's observations are changed after it normalised them
    """

    def frozen(standardizer: Standardizer, moving: RunningMeanStd) -> FrozenMeanStd:
        if standardizer.mean.shape != moving.mean.shape:
            raise ValueError(
                f"VecNormalize normalises observations of shape {moving.mean.shape}, and the "
                f"policy sees {tuple(standardizer.mean.shape)}: put VecNormalize around the other "
                "wrappers, VecNormalize(VecFrameStack(env, 4)), or use norm_obs=False."
            )
        return FrozenMeanStd.of(*standardizer.hand_over())

    if isinstance(env.observation_space, spaces.Dict):
        assert isinstance(env.obs_rms, dict)
        env.obs_rms = {
            key: frozen(normalizer.standardizer(key), moving) for key, moving in env.obs_rms.items()
        }
    else:
        moving: Any = env.obs_rms
        env.obs_rms = frozen(normalizer.standardizer(), moving)  # type: ignore[assignment]  # Dict alone


def hold_statistics(env: VecNormalize) -> bool:
    """
    Hold the observation statistics that an env has.

    :param env: wrapper whose ``obs_rms`` is replaced where it moves
    :return: whether it had seen no observations yet
    """
    found: Any = env.obs_rms
    parts = found if isinstance(found, dict) else {"": found}
    moving = {key: part for key, part in parts.items() if not isinstance(part, FrozenMeanStd)}
    held: Any = parts | {
        key: FrozenMeanStd.of(part.mean.copy(), part.var.copy(), part.count)
        for key, part in moving.items()
    }
    env.obs_rms = held if isinstance(found, dict) else held[""]
    return any(part.count < 1 for part in moving.values())


def normalized_by(env: VecNormalize, observations: Any) -> Any:
    """
    Normalise as an env does at present; lazy arrays when they are read.

    :param env: wrapper with ``norm_obs``
    :param observations: ``(M, ...)``, or a dictionary of such arrays
    :return: the same, normalised
    """
    if isinstance(observations, dict):
        normalized = set(env.norm_obs_keys or ())
        assert isinstance(env.obs_rms, dict)
        return {
            key: _normalized(env, env.obs_rms[key], part) if key in normalized else part
            for key, part in observations.items()
        }
    return _normalized(env, env.obs_rms, observations)


def _normalized(env: VecNormalize, statistics: Any, observations: Source) -> Source:
    std = np.sqrt(statistics.var + env.epsilon)
    function = partial(_standardized, mean=statistics.mean.copy(), std=std, limit=env.clip_obs)
    return (
        ConvertedArray(observations, function) if is_lazy(observations) else function(observations)
    )


def _standardized(rows: Any, mean: np.ndarray, std: np.ndarray, limit: float) -> np.ndarray:
    return np.clip((rows - mean) / std, -limit, limit).astype(np.float32)


class FrozenMeanStd(RunningMeanStd):
    """Statistics of observations that no longer move."""

    @classmethod
    def of(cls, mean: np.ndarray, var: np.ndarray, count: float = 1e-4) -> "FrozenMeanStd":
        """
        :param mean: ``(*shape)``
        :param var: ``(*shape)``
        :param count: of the observations that they are of
        :return: these
        """
        statistics = cls(count)
        statistics.mean, statistics.var = mean, var
        return statistics

    def update(self, arr: np.ndarray) -> None:
        """Ignore new data."""
