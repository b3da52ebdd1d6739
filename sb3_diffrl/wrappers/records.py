"""The wrappers of decisions that an env has, as plain data."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

WrapperRecord = Mapping[str, Any]


class RecordedWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that can be built again: an attribute has the value of each of its arguments."""

    @property
    def env_wrappers(self) -> list[WrapperRecord]:
        """The wrappers of this kind from the innermost on, each as ``{name, arguments}``."""
        arguments = {name: getattr(self, name) for name in _parameters(type(self))}
        return [*recorded_wrappers(self.env), self.record(**arguments)]

    @classmethod
    def record(cls, **arguments: Any) -> WrapperRecord:
        """
        :param arguments: of the wrapper, without those that have their default value
        :return: ``{name, arguments}``, as one around an env has it in :attr:`env_wrappers`
        """
        defaults = {name: parameter.default for name, parameter in _parameters(cls).items()}
        return {"name": cls.__name__, "arguments": {**defaults, **arguments}}


def _parameters(wrapper: type[RecordedWrapper]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(wrapper.__init__).parameters
    return dict([*parameters.items()][2:])  # without self and env


def recorded_wrappers(env: gym.Env | VecEnv | None) -> list[WrapperRecord]:
    """
    :param env: any environment, whose envs are all wrapped alike
    :return: its :attr:`RecordedWrapper.env_wrappers`; empty where it has none
    """
    if isinstance(env, VecEnv):  # asked first, for a worker process dies of a missing attribute
        return env.get_attr("env_wrappers", [0])[0] if env.has_attr("env_wrappers") else []
    if env is None or not env.has_wrapper_attr("env_wrappers"):
        return []
    return env.get_wrapper_attr("env_wrappers")


def find(records: Sequence[WrapperRecord], name: str) -> Mapping[str, Any] | None:
    """
    :param records: of wrappers
    :param name: of a class
    :return: the arguments of the first one of this name, None without any
    """
    return next((each["arguments"] for each in records if each["name"] == name), None)
