"""The statistics of VecNormalize as plain data and arrays."""

from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_diffrl.env_statistics import FrozenMeanStd
from sb3_diffrl.sharing.checks import (
    Check,
    at,
    entries,
    flag,
    list_of,
    one_of,
    optional,
    real,
    text,
)
from sb3_diffrl.sharing.tensors import Spec

_SWITCHES: dict[str, Check] = {
    "training": flag,
    "norm_obs": flag,
    "norm_reward": flag,
    "clip_obs": real(0),
    "clip_reward": real(0),
    "gamma": real(0, 1),
    "epsilon": real(0),
    "norm_obs_keys": optional(list_of(text, 256)),
}


def encode_vec_normalize(
    env: VecNormalize, observation_space: spaces.Space
) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """
    :param env: the wrapper
    :param observation_space: of the model
    :return: its settings as plain data, and its statistics by name
    """
    encoded = {name: check(getattr(env, name)) for name, check in _SWITCHES.items()}
    statistics: dict[str, RunningMeanStd] = {"ret_rms": env.ret_rms}
    for name, _ in _normalized_parts(observation_space, encoded):
        statistics[name] = _statistics_of(env, name)
    encoded["frozen"] = sorted(
        name for name, each in statistics.items() if isinstance(each, FrozenMeanStd)
    )
    arrays = {
        f"{name}.{part}": th.tensor(getattr(each, part), dtype=th.float64)
        for name, each in statistics.items()
        for part in ("mean", "var", "count")
    }
    return encoded, arrays


def decode_vec_normalize(value: Any, observation_space: spaces.Space) -> dict[str, Any]:
    """
    :param value: settings from :func:`encode_vec_normalize`
    :param observation_space: of the model
    :return: the settings
    :raises ValueError: saying what was wrong
    """
    given = dict(zip((*_SWITCHES, "frozen"), entries(value, *_SWITCHES, "frozen"), strict=True))
    decoded: dict[str, Any] = {}
    for name, check in _SWITCHES.items():
        with at(name):
            decoded[name] = check(given[name])
    is_dict = isinstance(observation_space, spaces.Dict)
    known = list(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else []
    if decoded["norm_obs"] and is_dict != (decoded["norm_obs_keys"] is not None):
        raise ValueError("norm_obs_keys: expected keys of a Dict observation, or null for others")
    for key in decoded["norm_obs_keys"] or []:
        with at("norm_obs_keys"):
            one_of(known)(key)
    parts = dict(_normalized_parts(observation_space, decoded))
    for name, space in parts.items():
        if not isinstance(space, spaces.Box):
            raise ValueError(f"{name}: expected a Box to normalise, got {space}")
    with at("frozen"):
        decoded["frozen"] = list_of(one_of({"ret_rms", *parts}), 257)(given["frozen"])
    return decoded


def statistics_specs(
    observation_space: spaces.Space, settings: Mapping[str, Any]
) -> dict[str, Spec]:
    """
    :param observation_space: of the model
    :param settings: from :func:`decode_vec_normalize`
    :return: shapes and dtypes of the statistics by name
    """
    shapes: dict[str, tuple[int, ...]] = {"ret_rms": ()}
    for name, space in _normalized_parts(observation_space, settings):
        shapes[name] = space.shape or ()
    return {
        f"{name}.{part}": (() if part == "count" else shape, th.float64)
        for name, shape in shapes.items()
        for part in ("mean", "var", "count")
    }


def _normalized_parts(
    observation_space: spaces.Space, settings: Mapping[str, Any]
) -> list[tuple[str, spaces.Space]]:
    """Names of the statistics of observations, with the spaces they belong to."""
    if not settings["norm_obs"]:
        return []
    if isinstance(observation_space, spaces.Dict):
        keys = settings["norm_obs_keys"]
        return [(f"obs_rms.{key}", observation_space[key]) for key in keys]
    return [("obs_rms", observation_space)]


def _statistics_of(env: VecNormalize, name: str) -> RunningMeanStd:
    statistics: Any = env.obs_rms
    return statistics[name.removeprefix("obs_rms.")] if "." in name else statistics


def restore_vec_normalize(
    env: VecEnv,
    settings: Mapping[str, Any],
    observation_space: spaces.Space,
    tensors: Mapping[str, th.Tensor],
) -> VecNormalize:
    """
    :param env: envs to wrap, or wrapped in VecNormalize already; then its own switches stay
    :param settings: from :func:`decode_vec_normalize`
    :param observation_space: of the model
    :param tensors: the statistics
    :return: the wrapper with the statistics
    """
    arguments = dict(settings)
    frozen = arguments.pop("frozen")
    if not isinstance(env, VecNormalize):
        if not arguments["norm_obs"]:
            arguments["norm_obs_keys"] = None
        env = VecNormalize(env, **arguments)

    def statistics(name: str) -> RunningMeanStd:
        made = FrozenMeanStd() if name in frozen else RunningMeanStd()
        made.mean, made.var = (tensors[f"{name}.{part}"].numpy().copy() for part in ("mean", "var"))
        made.count = float(tensors[f"{name}.count"])
        return made

    env.ret_rms = statistics("ret_rms")
    parts = _normalized_parts(observation_space, arguments)
    if env.norm_obs and parts:
        found: Any = {name.removeprefix("obs_rms."): statistics(name) for name, _ in parts}
        is_dict = isinstance(observation_space, spaces.Dict)
        env.obs_rms = found if is_dict else found["obs_rms"]
    return env
