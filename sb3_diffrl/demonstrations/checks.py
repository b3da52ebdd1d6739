"""Checks of demonstrations, in chunks, that name field, index and expectation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_diffrl.demonstrations.arrays import Array, Source, chunks

_BOUND_TOLERANCE = 1e-6


def inner(shape: tuple[int, ...] | None) -> str:
    """
    :param shape: of one entry, or an index
    :return: its numbers with commas
    """
    return ", ".join(map(str, shape or ()))


def check_length(name: str, array: Source, length: int, why: str) -> None:
    """
    :param name: of the field
    :param array: of which the first axis counts
    :param length: which it must have
    :param why: end of the message
    """
    if array.ndim == 0 or len(array) != length:
        found = "a scalar" if array.ndim == 0 else f"length {len(array)} (shape {array.shape})"
        raise ValueError(f"{name}: {found}, expected length {length}, {why}")


def check_episode_ends(ends: NDArray[np.int64], m: int) -> None:
    """
    :param ends: exclusive ends of the episodes
    :param m: number of decisions
    """
    if ends.ndim != 1 or len(ends) == 0:
        raise ValueError(
            f"episode_ends: shape {ends.shape}, expected (E,) with at least one episode"
        )
    lengths = np.diff(ends, prepend=0)
    if np.any(lengths <= 0):
        bad = int(np.argmax(lengths <= 0))
        raise ValueError(
            f"episode_ends[{bad}] = {ends[bad]} is not above its predecessor "
            f"({ends[bad - 1] if bad else 0}); expected the exclusive end of each episode, "
            "strictly increasing: drop empty episodes"
        )
    if ends[-1] != m:
        raise ValueError(
            f"episode_ends[{len(ends) - 1}] = {ends[-1]}, expected {m}, the number of actions: "
            "the last episode ends where the arrays end"
        )


def check_weights(weights: NDArray[np.float64]) -> None:
    """
    :param weights: one for each episode
    """
    wrong = ~np.isfinite(weights) | (weights < 0)
    if wrong.any():
        bad = int(np.argmax(wrong))
        raise ValueError(f"weights[{bad}] = {weights[bad]}, expected a finite number, at least 0")


def check_observations(observations: Any, space: spaces.Space[Any]) -> None:
    """
    :param observations: one array, or a dictionary of them
    :param space: of the environment, a Dict space for dictionaries
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(observations, dict):
            raise ValueError(
                "observations: one array, expected a dictionary with the keys "
                f"{sorted(space.spaces)}, as the observation space has"
            )
        expected, found = set(space.spaces), set(observations)
        if expected != found:
            raise ValueError(
                f"observations: missing keys {sorted(expected - found)}, "
                f"unknown keys {sorted(found - expected)}; "
                f"expected exactly {sorted(expected)}"
            )
        for key, part in space.spaces.items():
            check_values(f"observations[{key!r}]", observations[key], part)
    elif isinstance(observations, dict):
        raise ValueError(
            f"observations: a dictionary with the keys {sorted(observations)}, expected "
            f"one array of shape (M, {inner(space.shape)})"
        )
    else:
        check_values("observations", observations, space)


def check_actions(actions: Source, space: spaces.Space[Any]) -> None:
    """
    :param actions: ``(M, ...)``
    :param space: of the environment, a Box, whose bounds hold
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(f"actions: the action space is {space}, expected a Box")
    check_values("actions", actions, space)
    check_bounds("actions", actions, space)


def check_values(name: str, array: Source, space: spaces.Space[Any]) -> None:
    """
    Check shape and finiteness against a space, that images are whole numbers, and that discrete
    values lie in it.

    :param name: of the field
    :param array: ``(M, ...)``
    :param space: of the environment
    """
    shape = space.shape
    if shape is not None and array.shape[1:] != shape:
        raise ValueError(
            f"{name}[0]: shape {array.shape[1:]}, expected {shape} in an array of shape "
            f"(M, {inner(shape)}); reshape or transpose it to the space of the environment"
        )
    if _is_image(space) and array.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: dtype {array.dtype}, expected integers from 0 to 255 (uint8), as the image "
            "space has, for they are divided by 255 later; multiply images in [0, 1] by 255, round "
            "and cast them to uint8"
        )
    check_finite(name, array)
    bounds = _integer_bounds(space)
    if bounds is not None:
        low, high = bounds
        _refuse_first(
            name,
            array,
            lambda x: (x < low) | (x > high) | (x != np.rint(x)),
            lambda entry: (
                f"expected an integer from {low[entry]} to {high[entry]}, as the observation space "
                f"{space} has"
            ),
        )


def check_finite(name: str, array: Source) -> None:
    """
    :param name: of the field
    :param array: of real numbers
    """
    if array.dtype.kind in "iub":
        return
    if array.dtype.kind != "f":
        raise ValueError(f"{name}: dtype {array.dtype}, expected real numbers")
    _refuse_first(
        name,
        array,
        lambda x: ~np.isfinite(x),
        lambda _: "expected a finite number; drop or repair the episodes with missing values",
    )


def check_bounds(name: str, array: Source, space: spaces.Box) -> None:
    """
    :param name: of the field
    :param array: ``(M, *space.shape)``
    :param space: whose bounds hold
    """
    _refuse_first(
        name,
        array,
        lambda x: (x < space.low - _BOUND_TOLERANCE) | (x > space.high + _BOUND_TOLERANCE),
        lambda entry: (
            f"expected within [{space.low[entry]:g}, {space.high[entry]:g}], the bounds "
            "of the action space; scale or clip to the environment's own units"
        ),
    )


def _is_image(space: spaces.Space[Any]) -> bool:
    """As SB3's ``is_image_space``: what is divided by 255 before the network sees it."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _integer_bounds(space: spaces.Space[Any]) -> tuple[Array, Array] | None:
    """Smallest and largest value of each entry of a discrete space, else None."""
    if isinstance(space, spaces.Discrete):
        low, n = np.asarray(space.start), np.asarray(space.n)
    elif isinstance(space, spaces.MultiDiscrete):
        low, n = space.start, space.nvec
    elif isinstance(space, spaces.MultiBinary):
        low, n = np.zeros(space.shape, np.int64), np.full(space.shape, 2)
    else:
        return None
    return low, low + n - 1


def _refuse_first(
    name: str,
    array: Source,
    is_bad: Callable[[Array], NDArray[np.bool_]],
    expectation: Callable[[tuple[int, ...]], str],
) -> None:
    """Raise for the first bad entry in row-major order, if there is one."""
    for start, chunk in chunks(array):
        bad = is_bad(chunk)
        if bad.any():
            row, *entry = map(int, np.unravel_index(int(np.argmax(bad)), bad.shape))
            raise ValueError(
                f"{name}[{inner((start + row, *entry))}] = {float(chunk[(row, *entry)]):.6g}, "
                + expectation(tuple(entry))
            )
