"""Checks of plain data that may come from anyone; errors say what was expected and found."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

MAX_CONFIG_BYTES = 2**24
MAX_CONFIG_DEPTH = 16
MAX_WIDTH = 2**13  # of a layer, and of whatever other size an argument of a network is
MAX_LAYERS = 64

Check = Callable[[Any], Any]


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


def short(value: Any) -> str:
    """:return: the value for a message, cut to 80 characters"""
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
            raise ValueError(f"expected a whole number from {low} to {high}, got {short(value)}")
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
                f"expected a finite number from {low:g} to {high:g}, got {short(value)}"
            )
        return int(value) if isinstance(value, Integral) else float(value)

    return check


def flag(value: Any) -> bool:
    """:return: the value, which must be true or false"""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"expected true or false, got {short(value)}")
    return bool(value)


def text(value: Any) -> str:
    """:return: the value, which must be a short string"""
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(f"expected a string of at most 200 characters, got {short(value)}")
    return value


def optional(check: Check) -> Check:
    """:return: a check that also lets null pass"""
    return lambda value: None if value is None else check(value)


def one_of(names: Any) -> Check:
    """:return: a check for one of several strings"""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"expected one of {', '.join(sorted(names))}, got {short(value)}")
        return value

    return check


def list_of(check: Check, longest: int) -> Check:
    """:return: a check of a list and of each of its entries"""

    def check_list(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple) or len(value) > longest:
            raise ValueError(f"expected a list of at most {longest} entries, got {short(value)}")
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
        raise ValueError(f"expected a mapping, got {short(value)}")
    missing, unknown = sorted(set(names) - set(value)), sorted(set(value) - set(names))
    if missing or unknown:
        found = [f"missing {short(missing)}"] * bool(missing)
        found += [f"unknown {short(unknown)}"] * bool(unknown)
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
        f"{short(value)} cannot be shared safely: expected plain data, "
        "that is numbers, strings, true, false, null, lists and mappings of them"
    )


def arguments(value: Any) -> dict[str, Any]:
    """:return: the value, which must map names of arguments to plain data"""
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and name.isidentifier() for name in value
    ):
        raise ValueError(f"expected a mapping of names, got {short(value)}")
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
