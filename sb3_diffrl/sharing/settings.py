"""Hyperparameters and progress of training as plain data."""

import dataclasses
import inspect
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.precision import PRECISIONS
from sb3_diffrl.schedules import BETA, MIXING, Improvement, Knob
from sb3_diffrl.sharing.checks import (
    Check,
    Codec,
    at,
    entries,
    flag,
    list_of,
    one_of,
    optional,
    real,
    whole,
)
from sb3_diffrl.sharing.schedules import (
    decode_imitation,
    decode_rate,
    decode_schedule,
    encode_imitation,
    encode_rate,
    encode_schedule,
)
from sb3_diffrl.wrappers.decisions import WRAPPERS


def _same(check: Check) -> Codec:
    return Codec(check, check)


def _schedule(knob: Knob) -> Codec:
    return Codec(encode_schedule, lambda value: decode_schedule(value, knob))


_RATE = Codec(encode_rate, decode_rate)
_OPTIONAL_RATE = Codec(optional(encode_rate), optional(decode_rate))
_UNIT = _same(real(0, 1))

# By name of the attribute. `device`, `verbose` and `tensorboard_log` belong to the machine.
HYPERPARAMETERS: dict[str, Codec] = {
    "learning_rate": _RATE,
    "n_steps": _same(whole(1, 2**24)),
    "batch_size": _same(whole(1, 2**24)),
    "n_epochs": _same(whole(1, 10**6)),
    "gamma": _UNIT,
    "gae_lambda": _UNIT,
    "clip_range": _RATE,
    "clip_range_vf": _OPTIONAL_RATE,
    "normalize_advantage": _same(flag),
    "ent_coef": _same(real()),
    "vf_coef": _same(real()),
    "max_grad_norm": _same(real(0)),
    "target_kl": _same(optional(real(0))),
    "_stats_window_size": _same(whole(1, 10**6)),
    "seed": _same(optional(whole(0, 2**32 - 1))),
    "n_envs": _same(whole(1, 2**16)),
    "beta": _schedule(BETA),
    "mixing": _schedule(MIXING),
    "imitation": Codec(encode_imitation, decode_imitation),
    "performance_target": _same(optional(real())),
    "gamma_denoise": _UNIT,
    "advantage_floor": _same(real(0)),
    "critic_learning_rate": _OPTIONAL_RATE,
    "critic_warmup": _same(whole(0, 10**9)),
    "micro_batch_size": _same(optional(whole(1, 2**24))),
    "precision": _same(one_of(PRECISIONS)),
}


def _encode_improvement(improvement: Improvement) -> dict[str, Any]:
    check = optional(real())
    return {name: check(value) for name, value in dataclasses.asdict(improvement).items()}


def _decode_improvement(value: Any) -> Improvement:
    names = [field.name for field in dataclasses.fields(Improvement)]
    numbers = [optional(real())(number) for number in entries(value, *names)]
    return Improvement(**dict(zip(names, numbers, strict=True)))


_COUNT = _same(whole(0, 2**53))
_EPISODE = ("r", "l", "t")  # return, length and time, as SB3's Monitor names them


def _encode_episodes(episodes: Any) -> list[Any]:
    return [[real()(episode[name]) for name in _EPISODE] for episode in episodes]


def _decode_episodes(value: Any) -> deque[Any]:
    rows = list_of(list_of(real(), 3), 10**6)(value)
    return deque(dict(zip(_EPISODE, row, strict=True)) for row in rows)


def _number_or_flag(value: Any) -> Any:
    return flag(value) if isinstance(value, bool | np.bool_) else real()(value)


# How far training has come, by name of the attribute.
PROGRESS: dict[str, Codec] = {
    "num_timesteps": _COUNT,
    "_total_timesteps": _COUNT,
    "_num_timesteps_at_start": _COUNT,
    "_episode_num": _COUNT,
    "_n_updates": _COUNT,
    "_current_progress_remaining": _same(real()),
    "n_iterations": _COUNT,
    "env_steps": _COUNT,
    "_actor_moved": _same(flag),
    "_prior_kl": _same(optional(real())),
    "improvement": Codec(_encode_improvement, _decode_improvement),
    "ep_info_buffer": Codec(optional(_encode_episodes), optional(_decode_episodes)),
    "ep_success_buffer": Codec(
        optional(lambda buffer: [_number_or_flag(entry) for entry in buffer]),
        optional(lambda value: deque(list_of(_number_or_flag, 10**6)(value))),
    ),
}


def encode_all(table: Mapping[str, Codec], model: DiffusionPPO) -> dict[str, Any]:
    """
    :param table: codecs by name of the attribute
    :param model: whose attributes to encode
    :return: plain data by name
    """
    encoded = {}
    for name, codec in table.items():
        with at(name):
            encoded[name] = codec.encode(getattr(model, name))
    return encoded


def decode_all(table: Mapping[str, Codec], value: Any) -> dict[str, Any]:
    """
    :param table: codecs by name of the attribute
    :param value: from :func:`encode_all`
    :return: attributes by name
    :raises ValueError: naming the attribute, what was expected and found
    """
    decoded = {}
    for (name, codec), entry in zip(table.items(), entries(value, *table), strict=True):
        with at(name):
            decoded[name] = codec.decode(entry)
    return decoded


def check_env_wrappers(value: Any) -> list[dict[str, Any]]:
    """
    :param value: ``env_wrappers`` of a model, from a file that may come from anyone
    :return: the same, each of a known name and with its arguments
    :raises ValueError: saying what was wrong
    """
    checked = []
    for record in list_of(lambda each: entries(each, "name", "arguments"), len(WRAPPERS))(value):
        name = one_of(WRAPPERS)(record[0])
        names = [*inspect.signature(WRAPPERS[name]).parameters][1:]
        with at(name):
            arguments = dict(zip(names, entries(record[1], *names), strict=True))
            for argument, value in arguments.items():
                with at(argument):
                    check = real(0, 1) if argument == "gamma" else whole(0, 2**20)
                    arguments[argument] = check(value)
        checked.append({"name": name, "arguments": arguments})
    return checked
