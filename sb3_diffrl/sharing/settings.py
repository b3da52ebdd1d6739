"""Hyperparameters, progress of training and the policy's architecture as plain data."""

import dataclasses
import inspect
from collections import deque
from collections.abc import Mapping
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from sb3_diffrl import diffusion
from sb3_diffrl.demonstrations.transport import Transport
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.encoders import ENCODERS
from sb3_diffrl.imitation import Imitation
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from sb3_diffrl.precision import PRECISIONS
from sb3_diffrl.schedules import BETA, KINDS, MIXING, Improvement, Knob
from sb3_diffrl.sharing.checks import (
    MAX_LAYERS,
    MAX_WIDTH,
    Check,
    Codec,
    arguments,
    at,
    entries,
    flag,
    list_of,
    one_of,
    optional,
    plain,
    real,
    short,
    whole,
)
from sb3_diffrl.wrappers.decisions import WRAPPERS

T = TypeVar("T")


def _named(*classes: type[T]) -> dict[str, type[T]]:
    return {each.__name__: each for each in classes}


POLICIES: dict[str, Any] = dict(DiffusionPPO.policy_aliases)
CLASSES: dict[str, dict[str, Any]] = {
    "activation_fn": _named(
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU),
        *(nn.ReLU6, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh),
    ),
    "denoiser_class": _named(
        *(
            each
            for each in vars(diffusion).values()
            if isinstance(each, type)
            and issubclass(each, diffusion.Denoiser)
            and each is not diffusion.Denoiser
        )
    ),
    "features_extractor_class": _named(*ENCODERS.values()),
    "optimizer_class": _named(
        *(th.optim.Adam, th.optim.AdamW, th.optim.NAdam, th.optim.RAdam),
        *(th.optim.RMSprop, th.optim.SGD),
    ),
}

# -- schedules ----------------------------------------------------------------------------------


def encode_rate(value: Any) -> dict[str, Any]:
    """
    :param value: a learning rate or clip range: a number, a schedule of SB3's or the Zoo's
    :return: ``{type, value}``, or type and arguments
    :raises ValueError: for functions of the user's own
    """
    while isinstance(value, FloatSchedule):
        value = value.value_schedule
    if isinstance(value, ConstantSchedule):
        value = value.val
    if isinstance(value, Real):
        return {"type": "constant", "value": real()(value)}
    if type(value) is LinearSchedule:
        return {"type": "linear", **{name: real()(number) for name, number in vars(value).items()}}
    if f"{type(value).__module__}.{type(value).__name__}" == "rl_zoo3.utils.SimpleLinearSchedule":
        return {"type": "zoo_linear", "value": real()(value.initial_value)}
    raise ValueError(
        f"{short(value)} cannot be shared safely: expected a number, or Stable-Baselines3's "
        "ConstantSchedule or LinearSchedule instead of a function of your own"
    )


def decode_rate(value: Any) -> Any:
    """
    :param value: what :func:`encode_rate` made
    :return: number or schedule
    :raises ValueError: saying what was wrong
    """
    names = {
        "constant": ("value",),
        "linear": ("start", "end", "end_fraction"),
        "zoo_linear": ("value",),
    }
    kind = one_of(names)(value.get("type") if isinstance(value, Mapping) else value)
    _, *given = entries(value, "type", *names[kind])
    numbers = [real(0, 1e6)(number) for number in given]
    if kind == "constant":
        return numbers[0]
    if kind == "linear":
        real(1e-9, 1)(numbers[2])
        return LinearSchedule(*numbers)
    from rl_zoo3.utils import SimpleLinearSchedule

    return SimpleLinearSchedule(numbers[0])


def encode_schedule(schedule: Any) -> dict[str, Any]:
    """
    :param schedule: of beta, mixing or imitation
    :return: ``{kind, ...}`` with arguments and state
    :raises ValueError: for objects of the user's own
    """
    for kind, schedule_class in KINDS.items():
        if type(schedule) is schedule_class:
            values = {
                field.name: real()(getattr(schedule, field.name))
                for field in dataclasses.fields(schedule_class)
            }
            return {"kind": kind, **values}
    raise ValueError(
        f"the schedule {short(schedule)} cannot be shared safely: expected one of the kinds "
        f"{', '.join(KINDS)} instead of an object of your own"
    )


def decode_schedule(value: Any, knob: Knob) -> Any:
    """
    :param value: what :func:`encode_schedule` made
    :param knob: what it is a schedule of
    :return: the schedule
    :raises ValueError: saying what was wrong
    """
    kind = one_of(knob.kinds)(value.get("kind") if isinstance(value, Mapping) else value)
    fields = dataclasses.fields(KINDS[kind])
    numbers = [real()(n) for n in entries(value, "kind", *(field.name for field in fields))[1:]]
    given = {field.name: number for field, number in zip(fields, numbers, strict=True)}
    schedule = knob.schedule({"kind": kind, **{f.name: given[f.name] for f in fields if f.init}})
    for field in fields:
        if not field.init:
            setattr(schedule, field.name, given[field.name])
    return schedule


def _encode_imitation(imitation: Imitation) -> dict[str, Any]:
    encoded = {}
    for field in dataclasses.fields(imitation):
        with at(field.name):
            value = getattr(imitation, field.name)
            if field.name == "transport":
                encoded[field.name] = optional(_encode_transport)(value)
            else:
                is_term = field.name in imitation.terms
                encoded[field.name] = encode_schedule(value) if is_term else real()(value)
    return encoded


def _encode_transport(transport: Any) -> dict[str, Any]:
    if type(transport) is not Transport:
        raise ValueError(
            f"{short(transport)} cannot be shared safely: expected a Transport instead of a "
            "function of your own"
        )
    return {**dataclasses.asdict(transport), "objects": list(transport.objects)}


def _decode_transport(value: Any) -> dict[str, Any]:
    checks: dict[str, Check] = {
        "hand": whole(0, 2**24),
        "objects": list_of(whole(0, 2**24), MAX_LAYERS),
        "goal": optional(whole(0, 2**24)),
        "previous": whole(0, 2**24),
        "step": real(0),
        "moved": real(0),
        "lifted": real(0),
    }
    found = {}
    for (name, check), given in zip(checks.items(), entries(value, *checks), strict=True):
        with at(name):
            found[name] = check(given)
    return found


def _decode_imitation(value: Any) -> Imitation:
    names = [field.name for field in dataclasses.fields(Imitation)]
    decoded = dict(zip(names, entries(value, *names), strict=True))
    for name in Imitation.terms:
        with at(name):
            # The names of the arguments are checked here, their ranges by `parse`.
            kind = decoded[name].get("kind") if isinstance(decoded[name], Mapping) else None
            fields = [f.name for f in dataclasses.fields(KINDS[one_of(KINDS)(kind)])]
            entries(decoded[name], "kind", *fields)
    for name in set(names) - set(Imitation.terms) - {"transport"}:
        with at(name):
            real(0, 2**24)(decoded[name])
    with at("transport"):
        decoded["transport"] = optional(_decode_transport)(decoded["transport"])
    return Imitation.parse(decoded)


# -- hyperparameters ---------------------------------------------------------------------------


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
    "imitation": Codec(_encode_imitation, _decode_imitation),
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


# -- policy ------------------------------------------------------------------------------------


def _net_arch(value: Any) -> Any:
    layers = list_of(whole(1, MAX_WIDTH), MAX_LAYERS)
    if isinstance(value, Mapping):
        return {one_of(("pi", "vf"))(name): layers(widths) for name, widths in value.items()}
    return layers(value)


_numbers = list_of(real(), 2**14)

POLICY_KWARGS: dict[str, Check] = {
    "net_arch": _net_arch,
    "noise_schedule": one_of(diffusion.NOISE_SCHEDULES),
    "noise_levels": whole(1, 10_000),
    "denoising_steps": whole(1, 1_000),
    "eta": real(0, 1),
    "sigma_min": real(0, 1e3),
    "exploration": one_of(diffusion.EXPLORATIONS),
    "freeze_encoder": flag,
    "prediction_type": one_of(diffusion.PREDICTION_TYPES),
    "clip_sample": optional(real(0, 1e6)),
    "timestep_spacing": one_of(diffusion.TIMESTEP_SPACINGS),
    "use_clipped_model_output": flag,
    "action_range": optional(list_of(_numbers, 2)),
    "share_features_extractor": flag,
    "normalize_images": flag,
    "denoiser_kwargs": arguments,
    "features_extractor_kwargs": arguments,
    "optimizer_kwargs": arguments,
}


# Not in files of the first version, where they had their defaults.
ADDED_POLICY_KWARGS = {
    "prediction_type",
    "clip_sample",
    "timestep_spacing",
    "use_clipped_model_output",
    "action_range",
    "freeze_encoder",
    "exploration",
}


def encode_policy(policy: DiffusionActorCriticPolicy) -> dict[str, Any]:
    """
    :param policy: of a class and with parts that the registries know
    :return: its class and all its ``policy_kwargs`` as plain data
    :raises ValueError: naming what cannot be shared, and what can
    """
    with at("policy"):
        encoded: dict[str, Any] = {"class": _name_of(type(policy), POLICIES)}
    encoded["kwargs"] = {}
    for name, value in policy.architecture().items():
        with at(f"policy_kwargs[{name!r}]"):
            if name in CLASSES:
                encoded["kwargs"][name] = _name_of(value, CLASSES[name])
            else:
                encoded["kwargs"][name] = POLICY_KWARGS.get(name, plain)(value)
    return encoded


def decode_policy(value: Any) -> tuple[type[DiffusionActorCriticPolicy], dict[str, Any]]:
    """
    :param value: what :func:`encode_policy` made
    :return: class and ``policy_kwargs``
    :raises ValueError: saying what was wrong
    """
    name_of_class, kwargs = entries(value, "class", "kwargs")
    no_kwargs = ("self", "observation_space", "action_space", "lr_schedule", "use_sde")
    parameters = inspect.signature(DiffusionActorCriticPolicy.__init__).parameters
    names = [name for name in parameters if name not in no_kwargs]
    with at("class"):
        policy_class = POLICIES[one_of(POLICIES)(name_of_class)]
    decoded: dict[str, Any] = {}
    with at("kwargs"):
        if isinstance(kwargs, Mapping):
            added = {name: parameters[name].default for name in ADDED_POLICY_KWARGS}
            kwargs = {**added, **kwargs}
        for name, argument in zip(names, entries(kwargs, *names), strict=True):
            with at(name):
                if name in CLASSES:
                    decoded[name] = CLASSES[name][one_of(CLASSES[name])(argument)]
                else:
                    decoded[name] = POLICY_KWARGS.get(name, plain)(argument)
    decoded["optimizer_kwargs"] = {
        name: tuple(entry) if isinstance(entry, list) else entry
        for name, entry in decoded["optimizer_kwargs"].items()
    }
    return policy_class, decoded


def _name_of(value: Any, registry: Mapping[str, Any]) -> str:
    for name, known in registry.items():
        if value is known:
            return name
    raise ValueError(
        f"{short(value)} cannot be shared safely, for a file can only name what this package "
        f"knows: {', '.join(registry)}. Use one of them, or share the model by model.save()."
    )


def unique_tensors(policy: DiffusionActorCriticPolicy) -> dict[str, th.Tensor]:
    """
    :param policy: whose parts may share tensors
    :return: each tensor of its state dict once, by the first of its names
    """
    tensors: dict[str, th.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in policy.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def optimizers(policy: DiffusionActorCriticPolicy) -> dict[str, th.optim.Optimizer]:
    """:return: the optimizers by name of the attribute"""
    return {"optimizer": policy.optimizer, "critic_optimizer": policy.critic_optimizer}


def parameters(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """:return: what it optimizes, in order"""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
