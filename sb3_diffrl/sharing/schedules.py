"""Rates, schedules and imitation as plain data."""

import dataclasses
from collections.abc import Mapping
from numbers import Real
from typing import Any

from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from sb3_diffrl.demonstrations.transport import Transport
from sb3_diffrl.imitation import Imitation
from sb3_diffrl.schedules import KINDS, Knob
from sb3_diffrl.sharing.checks import (
    MAX_LAYERS,
    Check,
    at,
    entries,
    list_of,
    one_of,
    optional,
    real,
    short,
    whole,
)


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


def encode_imitation(imitation: Imitation) -> dict[str, Any]:
    """
    :param imitation: terms with schedules, and a ``Transport`` or none
    :return: its fields by name
    :raises ValueError: for objects and functions of the user's own
    """
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
    if isinstance(value, Mapping):  # files of the first version had no lengths but `step`
        value = {"moved": Transport.moved, "lifted": Transport.lifted, **value}
    found = {}
    for (name, check), given in zip(checks.items(), entries(value, *checks), strict=True):
        with at(name):
            found[name] = check(given)
    return found


def decode_imitation(value: Any) -> Imitation:
    """
    :param value: what :func:`encode_imitation` made
    :return: the imitation
    :raises ValueError: saying what was wrong
    """
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
