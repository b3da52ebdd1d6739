"""Observations in one array or a dictionary of them; episodes in lists, laid end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from sb3_diffrl.demonstrations.arrays import ConcatenatedArray, Source, as_source, is_lazy
from sb3_diffrl.demonstrations.checks import check_length, inner

Observations: TypeAlias = Source | dict[str, Source]


def map_observations(function: Callable[[Any], Any], observations: Any) -> Observations:
    """
    :param function: of one array
    :param observations: one array, or a dictionary of them
    :return: the same with what the function gives
    """
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


def fields(observations: Observations) -> Iterator[tuple[str, Source]]:
    """
    :param observations: one array, or a dictionary of them
    :return: each array with the name that messages give it
    """
    if isinstance(observations, dict):
        for key, array in observations.items():
            yield f"observations[{key!r}]", array
    else:
        yield "observations", observations


def is_array(value: object) -> bool:
    """
    :param value: what the user brought
    :return: whether it is an array, in memory or lazy
    """
    return isinstance(value, np.ndarray) or is_lazy(value)


def join(name: str, arrays: Sequence[Any]) -> Source:
    """
    Concatenate arrays whose shapes after the first axis agree; lazy ones without reading.

    :param name: of the field, for messages
    :param arrays: at least one
    :return: ``(M, ...)``
    """
    parts = [as_source(a) for a in arrays]
    if any(map(is_lazy, parts)):
        return ConcatenatedArray(parts, name)
    for index, part in enumerate(parts):
        if part.ndim == 0 or part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(
                f"{name}[{index}]: shape {part.shape}, expected "
                f"(length, {inner(parts[0].shape[1:])}), as the first"
            )
    return np.concatenate(parts)


def join_episodes(name: str, episodes: Any, lengths: list[int]) -> Any:
    """
    Concatenate per-episode arrays or dictionaries, each as long as the episode's actions.

    :param name: of the field, for messages
    :param episodes: a list of arrays or dictionaries, or a dictionary of lists
    :param lengths: of the episodes
    :return: ``(M, ...)``, or a dictionary of such arrays
    """
    if isinstance(episodes, dict):
        return {k: join_episodes(f"{name}[{k!r}]", v, lengths) for k, v in episodes.items()}
    if not isinstance(episodes, list | tuple) or len(episodes) != len(lengths):
        found = len(episodes) if isinstance(episodes, list | tuple) else type(episodes).__name__
        raise ValueError(
            f"{name}: {found}, expected a list of {len(lengths)} episodes, as actions is"
        )
    if isinstance(episodes[0], dict):
        by_key = {k: [episode[k] for episode in episodes] for k in episodes[0]}
        return join_episodes(name, by_key, lengths)
    for index, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
        check_length(f"{name}[{index}]", as_source(episode), length, "as many as its actions")
    return join(name, episodes)
