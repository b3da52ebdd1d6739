"""Spaces as plain data, exact to the last bit."""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_diffrl.sharing.checks import at, entries, flag, list_of, one_of, real, short, text, whole

MAX_ENTRIES = 2**24
DTYPES = tuple(
    np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64"),
        *("uint8", "uint16", "uint32", "uint64"),
    )
)


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
        f"the space {short(space)} cannot be shared: expected Box, Discrete, MultiDiscrete, "
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
            raise ValueError(f"expected pairs of a key, unique, and a space, got {short(pair)}")
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
    return np.broadcast_to(array[0], shape) if array.size == 1 else array.reshape(shape)


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
