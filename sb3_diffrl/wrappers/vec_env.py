"""A vectorised gymnasium environment as SB3's."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn


class GymVecEnv(VecEnv):
    """
    A vectorised gymnasium environment as SB3's ``VecEnv``: ``N`` envs stepped by one call of NumPy
    code.

    :param env: with autoreset mode ``SAME_STEP``, which is SB3's convention
    :raises ValueError: for another autoreset mode
    """

    def __init__(self, env: VectorEnv):
        mode = env.metadata.get("autoreset_mode")
        if mode is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"GymVecEnv needs an env that resets within the step that ends an episode, "
                f"got autoreset_mode={mode}. Build it with AutoresetMode.SAME_STEP."
            )
        self.venv = env
        self.render_mode = env.render_mode
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """:return: first observations ``(N, ...)``"""
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        observations, infos = self.venv.reset(seed=seeds, options=self._options[0] or None)  # type: ignore[arg-type]  # SB3's
        self.reset_infos = self._split(infos)
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """:param actions: ``(N, *action_shape)``"""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """:return: observations, rewards, dones and infos of the step"""
        observations, rewards, terminated, truncated, infos = self.venv.step(self._actions)
        dones = terminated | truncated
        final_obs, final_info = infos.pop("final_obs", None), infos.pop("final_info", {})
        split = self._split(infos)
        if dones.any():
            finals = self._split(final_info)
            for i in np.flatnonzero(dones):
                self.reset_infos[i] = split[i]
                split[i] = finals[i]
                split[i]["terminal_observation"] = final_obs[i]
                split[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        return observations, rewards.astype(np.float32), dones, split

    def _split(self, infos: dict[str, Any]) -> list[dict[str, Any]]:
        """Turn gymnasium's dictionary of arrays, nested or not, into one dictionary per env."""
        split: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for key, values in infos.items():
            if not key.startswith("_"):
                present = infos.get(f"_{key}", np.ones(self.num_envs, bool))
                entries = self._split(values) if isinstance(values, dict) else values
                for i in np.flatnonzero(present):
                    split[i][key] = entries[i]
        return split

    def close(self) -> None:
        """Release the envs."""
        self.venv.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """:return: one frame per env"""
        frames = self.venv.render()
        return [None] * self.num_envs if frames is None else [np.asarray(f) for f in frames]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: name of an attribute of the vectorised env
        :param indices: which envs
        :return: its value, once per env
        """
        value = getattr(self.venv, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: name of an attribute of the vectorised env
        :param value: set for all envs at once
        :param indices: all of them
        """
        setattr(self.venv, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """
        :param method_name: name of a method of the vectorised env, called once
        :param args: its arguments
        :param indices: which envs
        :param kwargs: its arguments
        :return: its result, once per env
        """
        result = getattr(self.venv, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: a wrapper of single envs, which a vectorised env has none of
        :param indices: which envs
        :return: False for each
        """
        return [False for _ in self._get_indices(indices)]
