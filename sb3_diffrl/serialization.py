"""
A model as plain data: JSON and named tensors, from which it is rebuilt without running anything
that a file says.

``config.json`` names classes by what the registries below call them, and every entry is checked
against its type and bounds. What tensors there must be follows from it, so that their names, shapes
and dtypes are compared with the headers of the safetensors files before any is allocated.
"""

import dataclasses
import inspect
import json
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common import torch_layers
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import nn

from sb3_diffrl import diffusion
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.imitation import Imitation
from sb3_diffrl.policies import DiffusionActorCriticPolicy, check_action_space
from sb3_diffrl.pretraining import FrozenMeanStd
from sb3_diffrl.random_state import get_random_state, preserved_random_state, set_random_state
from sb3_diffrl.schedules import BETA, KINDS, MIXING, Improvement, Knob

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TRAINING_STATE = "training_state.safetensors"
VEC_NORMALIZE = "vec_normalize.safetensors"
FILES = (CONFIG, WEIGHTS, TRAINING_STATE, VEC_NORMALIZE)

MAX_CONFIG_BYTES = 2**24
MAX_CONFIG_DEPTH = 16
MAX_HEADER_BYTES = 2**20
MAX_ENTRIES = 2**24  # of an observation
MAX_ACTION_ENTRIES = 2**14
MAX_WIDTH = 2**13  # of a layer, and of whatever other size an argument of a network is
MAX_LAYERS = 64
MAX_PARAMETERS = 2**32
MAX_BUFFER_BYTES = 2**34

Check = Callable[[Any], Any]
Spec = tuple[tuple[int, ...], th.dtype]  # shape and dtype of a tensor
T = TypeVar("T")
Model = TypeVar("Model", bound=DiffusionPPO)


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
    "features_extractor_class": _named(
        torch_layers.FlattenExtractor, torch_layers.NatureCNN, torch_layers.CombinedExtractor
    ),
    "optimizer_class": _named(
        *(th.optim.Adam, th.optim.AdamW, th.optim.NAdam, th.optim.RAdam),
        *(th.optim.RMSprop, th.optim.SGD, RMSpropTFLike),
    ),
}
DTYPES = tuple(
    np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
    )
)
SAFETENSORS_DTYPES = {
    th.float64: "F64",
    th.float32: "F32",
    th.float16: "F16",
    th.bfloat16: "BF16",
    th.int64: "I64",
    th.int32: "I32",
    th.int16: "I16",
    th.int8: "I8",
    th.uint8: "U8",
    th.bool: "BOOL",
}

# -- checks ------------------------------------------------------------------------------------


@contextmanager
def at(place: str) -> Iterator[None]:
    """
    Errors inside say where they belong.

    :param place: name of a file or of an entry
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def whole(low: int, high: int) -> Check:
    """
    :param low: smallest number allowed
    :param high: largest
    :return: a check for whole numbers
    """

    def check(value: Any) -> int:
        if (
            isinstance(value, bool)
            or not isinstance(value, Integral)
            or not low <= int(value) <= high
        ):
            raise ValueError(f"expected a whole number from {low} to {high}, got {_short(value)}")
        return int(value)

    return check


def real(low: float = -math.inf, high: float = math.inf) -> Check:
    """
    :param low: smallest number allowed
    :param high: largest
    :return: a check for finite numbers
    """

    def check(value: Any) -> float | int:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and low <= value <= high):
            raise ValueError(
                f"expected a finite number from {low:g} to {high:g}, got {_short(value)}"
            )
        return int(value) if isinstance(value, Integral) else float(value)

    return check


def flag(value: Any) -> bool:
    """:return: the value, which must be true or false"""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"expected true or false, got {_short(value)}")
    return bool(value)


def text(value: Any) -> str:
    """:return: the value, which must be a short string"""
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(f"expected a string of at most 200 characters, got {_short(value)}")
    return value


def optional(check: Check) -> Check:
    """:return: a check that also lets null pass"""
    return lambda value: None if value is None else check(value)


def one_of(names: Any) -> Check:
    """:return: a check for one of several strings"""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"expected one of {', '.join(sorted(names))}, got {_short(value)}")
        return value

    return check


def list_of(check: Check, longest: int) -> Check:
    """:return: a check of a list and of each of its entries"""

    def check_list(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple) or len(value) > longest:
            raise ValueError(f"expected a list of at most {longest} entries, got {_short(value)}")
        return [check(entry) for entry in value]

    return check_list


def entries(value: Any, *names: str) -> list[Any]:
    """
    :param value: what must be a mapping of exactly these names
    :param names: of its entries
    :return: the entries in the order of the names
    :raises ValueError: for another type, and for missing or unknown entries
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping, got {_short(value)}")
    missing, unknown = sorted(set(names) - set(value)), sorted(set(value) - set(names))
    if missing or unknown:
        found = [f"missing {_short(missing)}"] * bool(missing)
        found += [f"unknown {_short(unknown)}"] * bool(unknown)
        raise ValueError(f"expected the entries {', '.join(names)}; {', '.join(found)}")
    return [value[name] for name in names]


def plain(value: Any) -> Any:
    """
    :param value: an argument of a network or an optimizer
    :return: the value, which must be plain data of a moderate size
    :raises ValueError: for anything else
    """
    if value is None or isinstance(value, bool | str):
        return value if not isinstance(value, str) else text(value)
    if isinstance(value, Integral):
        return whole(-MAX_WIDTH, MAX_WIDTH)(value)
    if isinstance(value, Real):
        return real()(value)
    if isinstance(value, list | tuple):
        return list_of(plain, MAX_LAYERS)(value)
    if isinstance(value, Mapping):
        return arguments(value)
    raise ValueError(
        f"{_short(value)} cannot be shared safely: expected plain data, "
        "that is numbers, strings, true, false, null, lists and mappings of them"
    )


def arguments(value: Any) -> dict[str, Any]:
    """:return: the value, which must map names of arguments to plain data"""
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and name.isidentifier() for name in value
    ):
        raise ValueError(f"expected a mapping of names, got {_short(value)}")
    checked = {}
    for name, argument in value.items():
        with at(name):
            checked[name] = plain(argument)
    return checked


@dataclass(frozen=True)
class Codec:
    """
    How an attribute is written and read.

    :param encode: makes plain data of it
    :param decode: checks plain data and makes the attribute of it
    """

    encode: Check
    decode: Check


# -- spaces ------------------------------------------------------------------------------------


def encode_space(space: spaces.Space) -> dict[str, Any]:
    """
    :param space: of a kind that SB3 supports
    :return: the space as plain data, exact to the last bit of its bounds
    :raises ValueError: for other kinds
    """
    kind = type(space)
    if kind is spaces.Box and isinstance(space, spaces.Box):
        bounds = {"low": _encode_bound(space.low), "high": _encode_bound(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": space.dtype.name, **bounds}
    if kind is spaces.Discrete and isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if kind is spaces.MultiDiscrete and isinstance(space, spaces.MultiDiscrete):
        sizes = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"type": "MultiDiscrete", **sizes, "dtype": np.dtype(space.dtype).name}
    if kind is spaces.MultiBinary and isinstance(space, spaces.MultiBinary):
        n = space.n if isinstance(space.n, int | np.integer) else list(map(int, space.n))
        return {"type": "MultiBinary", "n": n if isinstance(n, list) else int(n)}
    if kind is spaces.Dict and isinstance(space, spaces.Dict):
        # A list of pairs, for the order of the entries is that of the features.
        return {
            "type": "Dict",
            "spaces": [[text(key), encode_space(part)] for key, part in space.spaces.items()],
        }
    raise ValueError(
        f"the space {_short(space)} cannot be shared: expected Box, Discrete, MultiDiscrete, "
        "MultiBinary, or a Dict of them, as Stable-Baselines3 supports them. Wrap the env so that "
        "it has such a space."
    )


def decode_space(value: Any, nested: bool = False) -> spaces.Space:
    """
    :param value: what :func:`encode_space` made
    :param nested: whether it is part of a Dict, which SB3 nests only once
    :return: the space
    :raises ValueError: saying what was wrong
    """
    names = {
        "Box": ("shape", "dtype", "low", "high"),
        "Discrete": ("n", "start"),
        "MultiDiscrete": ("nvec", "start", "dtype"),
        "MultiBinary": ("n",),
        **({} if nested else {"Dict": ("spaces",)}),
    }
    kind = one_of(names)(value.get("type") if isinstance(value, Mapping) else value)
    _, *given = entries(value, "type", *names[kind])
    if kind == "Box":
        return _decode_box(*given)
    if kind == "Discrete":
        n, start = given
        return spaces.Discrete(whole(1, MAX_ENTRIES)(n), start=whole(-(2**62), 2**62)(start))
    if kind == "MultiBinary":
        (n,) = given
        if isinstance(n, list):
            return spaces.MultiBinary(_shape(n))
        return spaces.MultiBinary(whole(1, MAX_ENTRIES)(n))
    if kind == "MultiDiscrete":
        nvec, start, dtype = given
        dtype = _dtype(dtype)
        if dtype.kind not in "iu":
            raise ValueError(f"dtype: expected whole numbers, got {dtype}")
        sizes = _entries_array(nvec, np.int64)
        if (sizes < 1).any() or (sizes > MAX_ENTRIES).any() or sizes.sum() > MAX_ENTRIES:
            raise ValueError(f"nvec: expected sizes from 1 to {MAX_ENTRIES} in all, got {nvec}")
        starts = _entries_array(start, np.int64)
        if starts.shape != sizes.shape:
            raise ValueError(f"start: expected the shape {sizes.shape}, got {starts.shape}")
        return spaces.MultiDiscrete(sizes, dtype=dtype, start=starts)
    parts: OrderedDict[str, spaces.Space] = OrderedDict()
    for pair in list_of(list_of(lambda entry: entry, 2), 256)(given[0]):
        if len(pair) != 2 or text(pair[0]) in parts or not pair[0] or "." in pair[0]:
            raise ValueError(f"expected pairs of a key, unique, and a space, got {_short(pair)}")
        with at(pair[0]):
            parts[pair[0]] = decode_space(pair[1], nested=True)
    if not parts:
        raise ValueError("expected a Dict with at least one entry")
    return spaces.Dict(parts)


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(list_of(whole(1, MAX_ENTRIES), 8)(value))
    if math.prod(shape) > MAX_ENTRIES:
        raise ValueError(f"shape: expected at most {MAX_ENTRIES} entries, got {shape}")
    return shape


def _dtype(value: Any) -> np.dtype:
    return np.dtype(one_of([dtype.name for dtype in DTYPES])(value))


def _decode_box(shape: Any, dtype: Any, low: Any, high: Any) -> spaces.Box:
    with at("shape"):
        shape = _shape(shape)
    with at("dtype"):
        dtype = _dtype(dtype)
    with at("low"):
        low = _decode_bound(low, shape, dtype)
    with at("high"):
        high = _decode_bound(high, shape, dtype)
    if not (low <= high).all():
        raise ValueError("expected low <= high in every entry")
    return spaces.Box(low, high, shape, dtype)


def _encode_bound(bound: np.ndarray) -> Any:
    """A number where all entries are equal, else the flat list; infinity, which JSON lacks, as
    text."""
    if np.isnan(bound).any():
        raise ValueError("the bounds of a Box must be numbers, got NaN")

    def number(value: Any) -> Any:
        finite = not isinstance(value, float) or math.isfinite(value)
        return value if finite else str(value)

    flat = bound.ravel()
    same = flat.size and (flat == flat[0]).all() and (np.signbit(flat) == np.signbit(flat[0])).all()
    return number(flat[0].item()) if same else [number(value) for value in flat.tolist()]


def _decode_bound(value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) and len(value) != math.prod(shape):
        raise ValueError(f"expected {math.prod(shape)} numbers or a single one, got {len(value)}")
    if dtype.kind == "f":
        words = {"inf": math.inf, "-inf": -math.inf}
        check = real(*(float(each) for each in (np.finfo(dtype).min, np.finfo(dtype).max)))
        values = [
            words[each] if isinstance(each, str) and each in words else float(check(each))
            for each in values
        ]
    elif dtype.kind == "b":
        values = [flag(each) for each in values]
    else:
        limits = np.iinfo(dtype)
        values = [whole(int(limits.min), int(limits.max))(each) for each in values]
    array = np.array(values, dtype)
    return np.broadcast_to(array, shape) if array.size == 1 else array.reshape(shape)


def _entries_array(value: Any, dtype: type) -> np.ndarray:
    """A rectangular array of whole numbers, at most two axes deep, as MultiDiscrete allows."""
    check = whole(-(2**62), 2**62)
    rows = list_of(lambda row: row, 2**12)(value)
    if rows and isinstance(rows[0], list):
        rows = [list_of(check, 2**12)(row) for row in rows]
        if len({len(row) for row in rows}) != 1:
            raise ValueError("expected rows of one length")
    else:
        rows = [check(entry) for entry in rows]
    array: np.ndarray = np.array(rows, dtype)
    if not array.size:
        raise ValueError("expected at least one entry")
    return array


# -- schedules ---------------------------------------------------------------------------------


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
        f"{_short(value)} cannot be shared safely: expected a number, or Stable-Baselines3's "
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
        f"the schedule {_short(schedule)} cannot be shared safely: expected one of the kinds "
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
            is_term = field.name in imitation.terms
            encoded[field.name] = encode_schedule(value) if is_term else real()(value)
    return encoded


def _decode_imitation(value: Any) -> Imitation:
    names = [field.name for field in dataclasses.fields(Imitation)]
    decoded = dict(zip(names, entries(value, *names), strict=True))
    for name in Imitation.terms:
        with at(name):
            # The names of the arguments are checked here, their ranges by `parse`.
            kind = decoded[name].get("kind") if isinstance(decoded[name], Mapping) else None
            fields = [f.name for f in dataclasses.fields(KINDS[one_of(KINDS)(kind)])]
            entries(decoded[name], "kind", *fields)
    for name in set(names) - set(Imitation.terms):
        with at(name):
            real(0, 2**31)(decoded[name])
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


def _encode(table: Mapping[str, Codec], model: DiffusionPPO) -> dict[str, Any]:
    encoded = {}
    for name, codec in table.items():
        with at(name):
            encoded[name] = codec.encode(getattr(model, name))
    return encoded


def _decode(table: Mapping[str, Codec], value: Any) -> dict[str, Any]:
    decoded = {}
    for (name, codec), entry in zip(table.items(), entries(value, *table), strict=True):
        with at(name):
            decoded[name] = codec.decode(entry)
    return decoded


# -- policy ------------------------------------------------------------------------------------


def _net_arch(value: Any) -> Any:
    layers = list_of(whole(1, MAX_WIDTH), MAX_LAYERS)
    if isinstance(value, Mapping):
        return {one_of(("pi", "vf"))(name): layers(widths) for name, widths in value.items()}
    return layers(value)


POLICY_KWARGS: dict[str, Check] = {
    "net_arch": _net_arch,
    "noise_schedule": one_of(diffusion.NOISE_SCHEDULES),
    "noise_levels": whole(1, 10_000),
    "denoising_steps": whole(1, 1_000),
    "denoiser_kwargs": arguments,
    "features_extractor_kwargs": arguments,
    "optimizer_kwargs": arguments,
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
    with at("class"):
        policy_class = POLICIES[one_of(POLICIES)(name_of_class)]
    decoded: dict[str, Any] = {}
    with at("kwargs"):
        if not isinstance(kwargs, Mapping):
            raise ValueError(f"expected a mapping, got {_short(kwargs)}")
        for name, argument in kwargs.items():
            with at(name):
                if name in CLASSES:
                    decoded[name] = CLASSES[name][one_of(CLASSES[name])(argument)]
                else:
                    decoded[name] = POLICY_KWARGS.get(name, plain)(argument)
        betas = decoded.get("optimizer_kwargs", {})
        decoded["optimizer_kwargs"] = {
            name: tuple(entry) if isinstance(entry, list) else entry
            for name, entry in betas.items()
        }
    return policy_class, decoded


def _name_of(value: Any, registry: Mapping[str, Any]) -> str:
    for name, known in registry.items():
        if value is known:
            return name
    raise ValueError(
        f"{_short(value)} cannot be shared safely, for a file can only name what this package "
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


def _optimizers(policy: DiffusionActorCriticPolicy) -> dict[str, th.optim.Optimizer]:
    return {"optimizer": policy.optimizer, "critic_optimizer": policy.critic_optimizer}


def _parameters(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


# -- a model -----------------------------------------------------------------------------------


@dataclass
class Description:
    """
    A model without its tensors: ``config.json``, checked.

    :param observation_space: of the model
    :param action_space: of the model
    :param policy_class: of the model
    :param policy_kwargs: all of them
    :param attributes: hyperparameters and progress by name of the attribute
    :param optimized: by name of the optimizer, the indices of the parameters whose state is kept;
        None where the optimizers are not
    :param random: what is not an array in the state of the random generators, if kept
    :param vec_normalize: arguments of VecNormalize and which of its statistics stand still, if kept
    """

    observation_space: spaces.Space
    action_space: spaces.Box
    policy_class: type[DiffusionActorCriticPolicy]
    policy_kwargs: dict[str, Any]
    attributes: dict[str, Any]
    optimized: dict[str, list[int]] | None
    random: dict[str, Any] | None
    vec_normalize: dict[str, Any] | None

    def outline(self) -> DiffusionActorCriticPolicy:
        """
        :return: the policy without memory for its tensors
        :raises ValueError: where class and arguments do not fit, or it would be too large
        """
        try:
            with th.device("meta"), preserved_random_state():
                policy = self.policy_class(
                    self.observation_space, self.action_space, lambda _: 0.0, **self.policy_kwargs
                )
        except Exception as error:
            raise ValueError(f"policy: cannot be built from these arguments: {error}") from error
        n_parameters = sum(tensor.numel() for tensor in unique_tensors(policy).values())
        if n_parameters > MAX_PARAMETERS:
            raise ValueError(f"policy: {n_parameters} parameters, at most {MAX_PARAMETERS} allowed")
        self._check_buffer(policy)
        return policy

    def _check_buffer(self, policy: DiffusionActorCriticPolicy) -> None:
        """The rollout buffer is built with the model."""
        steps = policy.process.denoising_steps
        entry = 4 * ((steps + 1) * policy.action_dim + steps + 6)
        entry += _n_bytes(self.observation_space)
        size = entry * self.attributes["n_steps"] * self.attributes["n_envs"]
        if size > MAX_BUFFER_BYTES:
            raise ValueError(
                f"hyperparameters: n_steps={self.attributes['n_steps']} decisions of "
                f"n_envs={self.attributes['n_envs']} envs would take {size / 2**30:.0f} GiB, at "
                f"most {MAX_BUFFER_BYTES / 2**30:.0f} allowed"
            )

    def tensors(self) -> dict[str, dict[str, Spec]]:
        """:return: by file the shapes and dtypes of the tensors that belong to this model"""
        policy = self.outline()
        files = {WEIGHTS: {name: _spec(each) for name, each in unique_tensors(policy).items()}}
        state: dict[str, Spec] = {}
        if self.optimized is not None:
            for name, optimizer in _optimizers(policy).items():
                parameters = _parameters(optimizer)
                layout = optimizer_layout(optimizer)
                for index in self.optimized[name]:
                    if index >= len(parameters):
                        raise ValueError(
                            f"optimizer: {name} has {len(parameters)} parameters, "
                            f"there is no number {index}"
                        )
                    shape = tuple(parameters[index].shape)
                    for part, (is_scalar, dtype) in layout.items():
                        state[f"{name}.{index}.{part}"] = (() if is_scalar else shape), dtype
        if self.random is not None:
            state |= {
                "random.python": ((625,), th.int64),
                "random.numpy": ((624,), th.int64),
                "random.torch": _spec(th.get_rng_state()),
            }
            state |= {f"random.cuda.{i}": ((16,), th.uint8) for i in range(self.random["cuda"])}
        if self.optimized is not None or self.random is not None:
            files[TRAINING_STATE] = state
        if self.vec_normalize is not None:
            shapes: dict[str, tuple[int, ...]] = {"ret_rms": ()}
            for name, space in _normalized_parts(self.observation_space, self.vec_normalize):
                shapes[name] = space.shape or ()
            files[VEC_NORMALIZE] = {
                f"{name}.{part}": (() if part == "count" else shape, th.float64)
                for name, shape in shapes.items()
                for part in ("mean", "var", "count")
            }
        return files


def _spec(tensor: th.Tensor) -> Spec:
    return tuple(tensor.shape), tensor.dtype


def _n_bytes(space: spaces.Space) -> int:
    if isinstance(space, spaces.Dict):
        return sum(map(_n_bytes, space.spaces.values()))
    return math.prod(space.shape or ()) * np.dtype(space.dtype or np.int64).itemsize


def optimizer_layout(optimizer: th.optim.Optimizer) -> dict[str, tuple[bool, th.dtype]]:
    """
    Found out by one step on a parameter of two entries.

    :param optimizer: with its arguments, on any device
    :return: by name of the entries that it keeps per parameter, whether the entry is a scalar, and
        its dtype
    """
    parameter = nn.Parameter(th.zeros(2))
    parameter.grad = th.zeros(2)
    optimizer_class: Any = type(optimizer)
    known = inspect.signature(optimizer_class).parameters
    given = {name: value for name, value in optimizer.defaults.items() if name in known}
    probe = optimizer_class([parameter], **{**given, "lr": 0.0})
    probe.step()
    return {
        name: (entry.ndim == 0, entry.dtype)
        for name, entry in probe.state[parameter].items()
        if isinstance(entry, th.Tensor)
    }


# -- writing -----------------------------------------------------------------------------------


def encode_model(
    model: DiffusionPPO, include_optimizer: bool = False
) -> tuple[dict[str, Any], dict[str, dict[str, th.Tensor]]]:
    """
    :param model: built
    :param include_optimizer: whether optimizers and, for a model with a seed, random generators
        are kept, so that training can go on
    :return: the configuration as plain data, and tensors by file and name
    :raises ValueError: naming what cannot be shared safely
    """
    if model.rollout_buffer_class not in (RolloutBuffer, DictRolloutBuffer):
        raise ValueError(
            f"rollout_buffer_class: {_short(model.rollout_buffer_class)} cannot be shared safely; "
            "train with Stable-Baselines3's own, or share the model by model.save()"
        )
    if model.rollout_buffer_kwargs:
        raise ValueError("rollout_buffer_kwargs: cannot be shared, expected none")
    training: dict[str, Any] = {**_encode(PROGRESS, model), "optimizer": None, "random": None}
    state: dict[str, th.Tensor] = {}
    if include_optimizer:
        training["optimizer"] = {}
        for name, optimizer in _optimizers(model.policy).items():
            kept = optimizer.state_dict()["state"]
            training["optimizer"][name] = sorted(kept)
            for index, parts in kept.items():
                for part, entry in parts.items():
                    if isinstance(entry, th.Tensor):
                        state[f"{name}.{index}.{part}"] = entry
        if model.seed is not None:
            training["random"], arrays = _encode_random(get_random_state())
            state |= arrays
    config: dict[str, Any] = {
        "format": FORMAT,
        "library_name": "sb3-diffrl",
        "algorithm": "DiffusionPPO",
        "versions": {
            "sb3-diffrl": version("sb3-diffrl"),
            "stable-baselines3": stable_baselines3.__version__,
            "torch": th.__version__.split("+")[0],
        },
    }
    for name in ("observation_space", "action_space"):
        with at(name):
            config[name] = encode_space(getattr(model, name))
    config["policy"] = encode_policy(model.policy)
    config["hyperparameters"] = _encode(HYPERPARAMETERS, model)
    config["training"] = training
    config["vec_normalize"] = None
    tensors = {WEIGHTS: unique_tensors(model.policy)}
    if include_optimizer:
        tensors[TRAINING_STATE] = state
    if model.get_vec_normalize_env() is not None:
        config["vec_normalize"], tensors[VEC_NORMALIZE] = _encode_vec_normalize(
            model.get_vec_normalize_env(), model.observation_space
        )
    tensors = {
        file: {name: tensor.detach().cpu().clone() for name, tensor in named.items()}
        for file, named in tensors.items()
    }
    _check_complete(config, tensors)
    return config, tensors


def _check_complete(config: dict[str, Any], tensors: dict[str, dict[str, th.Tensor]]) -> None:
    """A model that could not be loaded again is not written."""
    expected = decode_config(json.loads(json.dumps(config, allow_nan=False))).tensors()
    for file in expected.keys() | tensors.keys():
        with at(file):
            found = {name: _spec(tensor) for name, tensor in tensors.get(file, {}).items()}
            check_header(expected.get(file, {}), {n: _as_header(s) for n, s in found.items()})


def _encode_random(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    _, words, gauss = state["python"]
    kind, numpy_words, position, has_gauss, numpy_gauss = state["numpy"]
    if kind != "MT19937":
        raise ValueError(f"random state: expected NumPy's MT19937, got {kind}")
    numbers = {
        "python_gauss": gauss,
        "numpy_position": int(position),
        "numpy_has_gauss": int(has_gauss),
        "numpy_gauss": float(numpy_gauss),
        "cuda": len(state["cuda"]),
    }
    arrays = {
        "random.python": th.tensor(words),
        "random.numpy": th.tensor(numpy_words.astype(np.int64)),
        "random.torch": state["torch"],
        **{f"random.cuda.{i}": each for i, each in enumerate(state["cuda"])},
    }
    return numbers, arrays


def _decode_random(value: Any) -> dict[str, Any]:
    names = ("python_gauss", "numpy_position", "numpy_has_gauss", "numpy_gauss", "cuda")
    gauss, position, has_gauss, numpy_gauss, cuda = entries(value, *names)
    return {
        "python_gauss": optional(real())(gauss),
        "numpy_position": whole(0, 624)(position),
        "numpy_has_gauss": whole(0, 1)(has_gauss),
        "numpy_gauss": real()(numpy_gauss),
        "cuda": whole(0, 64)(cuda),
    }


def _random_state(numbers: dict[str, Any], tensors: Mapping[str, th.Tensor]) -> dict[str, Any]:
    for name in ("random.python", "random.numpy"):
        if not ((tensors[name] >= 0) & (tensors[name] < 2**32)).all():
            raise ValueError(f"{name}: expected words of 32 bits")
    numpy_state = (
        *("MT19937", tensors["random.numpy"].numpy().astype(np.uint32)),
        *(numbers[name] for name in ("numpy_position", "numpy_has_gauss", "numpy_gauss")),
    )
    state: dict[str, Any] = {
        "python": (3, tuple(tensors["random.python"].tolist()), numbers["python_gauss"]),
        "numpy": numpy_state,
        "torch": tensors["random.torch"],
        "cuda": [tensors[f"random.cuda.{i}"] for i in range(numbers["cuda"])],
    }
    try:  # on generators of our own, the global ones only if all of it is sound
        random.Random().setstate(state["python"])
        th.Generator().set_state(state["torch"])
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"not the state of a random generator: {error}") from error
    return state


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


def _encode_vec_normalize(
    env: VecNormalize | None, observation_space: spaces.Space
) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    assert env is not None
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


def _decode_vec_normalize(value: Any, observation_space: spaces.Space) -> dict[str, Any]:
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


def _normalized_parts(
    observation_space: spaces.Space, vec_normalize: Mapping[str, Any]
) -> list[tuple[str, spaces.Space]]:
    """Names of the statistics of observations, with the spaces they belong to."""
    if not vec_normalize["norm_obs"]:
        return []
    if isinstance(observation_space, spaces.Dict):
        keys = vec_normalize["norm_obs_keys"]
        return [(f"obs_rms.{key}", observation_space[key]) for key in keys]
    return [("obs_rms", observation_space)]


def _statistics_of(env: VecNormalize, name: str) -> RunningMeanStd:
    statistics: Any = env.obs_rms
    return statistics[name.removeprefix("obs_rms.")] if "." in name else statistics


def restore_vec_normalize(
    env: VecEnv, description: Description, tensors: Mapping[str, th.Tensor]
) -> VecNormalize:
    """
    :param env: envs to wrap, or wrapped in VecNormalize already; then its own switches stay
    :param description: whose ``vec_normalize`` is not None
    :param tensors: the statistics
    :return: the wrapper with the statistics
    :raises ValueError: where the wrapper's statistics are of other observations
    """
    arguments = dict(description.vec_normalize or {})
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
    parts = _normalized_parts(description.observation_space, arguments)
    if env.norm_obs and parts:
        found: Any = {name.removeprefix("obs_rms."): statistics(name) for name, _ in parts}
        is_dict = isinstance(description.observation_space, spaces.Dict)
        env.obs_rms = found if is_dict else found["obs_rms"]
    return env


# -- reading -----------------------------------------------------------------------------------


def parse_json(data: bytes) -> Any:
    """
    :param data: of a file that may come from anyone
    :return: what it holds
    :raises ValueError: for what is not strict JSON: NaN, infinities, a name twice, nesting beyond
        ``MAX_CONFIG_DEPTH``; for more than ``MAX_CONFIG_BYTES``
    """
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError(f"{len(data)} bytes, at most {MAX_CONFIG_BYTES} allowed")

    def no_constant(word: str) -> Any:
        raise ValueError(f"{word} is not a number of JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("the same name twice in a mapping")
        return found

    try:
        value = json.loads(
            data.decode("utf-8"), parse_constant=no_constant, object_pairs_hook=unique
        )
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_CONFIG_DEPTH} levels") from error
    level = [value]
    for _ in range(MAX_CONFIG_DEPTH):
        level = [
            entry
            for each in level
            if isinstance(each, list | dict)
            for entry in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise ValueError(f"nested deeper than {MAX_CONFIG_DEPTH} levels")
    return value


def decode_config(config: Any) -> Description:
    """
    :param config: what :func:`encode_model` made, from a file that may come from anyone
    :return: the description, every entry checked
    :raises ValueError: naming the entry, what was expected and what was found
    """
    written = config.get("format") if isinstance(config, dict) else None
    if written != FORMAT:
        raise ValueError(
            f"expected format {FORMAT} of sb3-diffrl, got {_short(written)}. A model that the RL "
            "Zoo or model.save() wrote is loaded by DiffusionPPO.load; a newer format needs a "
            "newer sb3-diffrl."
        )
    _, _, algorithm, _, *parts = entries(
        config,
        *("format", "library_name", "algorithm", "versions", "observation_space", "action_space"),
        *("policy", "hyperparameters", "training", "vec_normalize"),
    )
    with at("algorithm"):
        one_of(("DiffusionPPO",))(algorithm)
    with at("observation_space"):
        observation_space = decode_space(parts[0])
    with at("action_space"):
        action_space = decode_space(parts[1])
        check_action_space(action_space)
        assert isinstance(action_space, spaces.Box)
        if math.prod(action_space.shape) > MAX_ACTION_ENTRIES:
            raise ValueError(f"expected at most {MAX_ACTION_ENTRIES} entries")
    with at("policy"):
        policy_class, policy_kwargs = decode_policy(parts[2])
    with at("hyperparameters"):
        attributes = _decode(HYPERPARAMETERS, parts[3])
    with at("training"):
        *progress, optimized, numbers = entries(parts[4], *PROGRESS, "optimizer", "random")
        attributes |= _decode(PROGRESS, dict(zip(PROGRESS, progress, strict=True)))
        if optimized is not None:
            with at("optimizer"):
                optimizers = ("optimizer", "critic_optimizer")
                indices = [
                    list_of(whole(0, 10**6), 10**5)(each)
                    for each in entries(optimized, *optimizers)
                ]
                optimized = dict(zip(optimizers, indices, strict=True))
        if numbers is not None:
            with at("random"):
                numbers = _decode_random(numbers)
    vec_normalize = None
    if parts[5] is not None:
        with at("vec_normalize"):
            vec_normalize = _decode_vec_normalize(parts[5], observation_space)
    for name in ("ep_info_buffer", "ep_success_buffer"):
        if attributes[name] is not None:
            attributes[name] = deque(attributes[name], attributes["_stats_window_size"])
    return Description(
        observation_space=observation_space,
        action_space=action_space,
        policy_class=policy_class,
        policy_kwargs=policy_kwargs,
        attributes=attributes,
        optimized=optimized,
        random=numbers,
        vec_normalize=vec_normalize,
    )


Header = Mapping[str, tuple[tuple[int, ...], str]]


def _as_header(spec: Spec) -> tuple[tuple[int, ...], str]:
    shape, dtype = spec
    return shape, SAFETENSORS_DTYPES.get(dtype, str(dtype))


def check_header(expected: Mapping[str, Spec], found: Header) -> None:
    """
    :param expected: shapes and dtypes by name
    :param found: shapes and dtypes, as safetensors calls them, by name
    :raises ValueError: naming the first tensor that is missing, too many or of another kind
    """
    for name in sorted(expected.keys() - found.keys()):
        raise ValueError(f"the tensor {name!r} is missing")
    for name in sorted(found.keys() - expected.keys()):
        raise ValueError(f"the tensor {_short(name)} does not belong to this model")
    for name, spec in expected.items():
        if found[name] != _as_header(spec):
            (shape, dtype), (was_shape, was_dtype) = _as_header(spec), found[name]
            raise ValueError(
                f"the tensor {name!r} is {was_dtype} of shape {was_shape}, "
                f"expected {dtype} of shape {shape}"
            )


def read_tensors(path: Path, expected: Mapping[str, Spec]) -> Callable[[], dict[str, th.Tensor]]:
    """
    Compare the header of a file with what it must hold.

    :param path: a safetensors file that may come from anyone
    :param expected: shapes and dtypes by name
    :return: a function that reads the tensors
    :raises ValueError: where the file is no such file or holds other tensors
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes, at most {MAX_HEADER_BYTES} allowed")
    try:
        with safe_open(path, framework="pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            found = {
                name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()
            }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"not a sound safetensors file: {error}") from error
    check_header(expected, found)

    def read() -> dict[str, th.Tensor]:
        from safetensors.torch import load_file

        return load_file(path)

    return read


def build_model(
    cls: type[Model],
    description: Description,
    tensors: Mapping[str, Mapping[str, th.Tensor]],
    env: VecEnv | None,
    device: th.device | str,
    changes: Mapping[str, Any],
) -> Model:
    """
    :param cls: what to build
    :param description: checked
    :param tensors: by file and name, checked
    :param env: to train in, wrapped as the model needs it
    :param device: of the policy
    :param changes: attributes to set otherwise than described
    :return: the model
    """
    model = cls(description.policy_class, env, device=device, _init_setup_model=False)  # type: ignore[arg-type]  # without an env
    attributes = {**description.attributes, **changes}
    if env is not None:
        attributes["n_envs"] = env.num_envs
    model.__dict__.update(
        attributes,
        observation_space=description.observation_space,
        action_space=description.action_space,
        policy_kwargs=description.policy_kwargs,
    )
    model._setup_model()
    with th.no_grad():
        for name, tensor in unique_tensors(model.policy).items():
            tensor.copy_(tensors[WEIGHTS][name])
    state = tensors.get(TRAINING_STATE, {})
    if description.optimized is not None:
        for name, optimizer in _optimizers(model.policy).items():
            layout = optimizer_layout(optimizer)
            kept = {
                index: {part: state[f"{name}.{index}.{part}"] for part in layout}
                for index in description.optimized[name]
            }
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": kept, "param_groups": groups})
    if description.random is not None and "seed" not in changes:
        with at("random"):
            set_random_state(_random_state(description.random, state))
    return model
