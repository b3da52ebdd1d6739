"""From a record of wrappers: the same env again, and demonstrations in its decisions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.wrappers.action_chunks import ActionChunkWrapper
from sb3_diffrl.wrappers.observation_history import ObservationHistoryWrapper
from sb3_diffrl.wrappers.records import WrapperRecord, find, recorded_wrappers

WRAPPERS: dict[str, Any] = {
    each.__name__: each for each in (ObservationHistoryWrapper, ActionChunkWrapper)
}


@contextmanager
def mending_spaces() -> Iterator[None]:
    """Have SB3's error of an env whose spaces are not the model's say how to mend it."""
    try:
        yield
    except ValueError as error:
        if "spaces do not match" not in str(error):
            raise
        raise ValueError(
            f"{error}. A model that was trained with action chunks or observation histories, see "
            "its env_wrappers, needs an env wrapped likewise: "
            "sb3_diffrl.wrappers.rewrap(env, model.env_wrappers)"
        ) from error


def rewrap(env: gym.Env, env_wrappers: Sequence[WrapperRecord]) -> gym.Env:
    """
    Wrap an env as that of another model was::

        env = rewrap(gym.make("MyEnv-v0"), model.env_wrappers)

    :param env: without any of these wrappers, or with the same ones, which is left as it is
    :param env_wrappers: ``env_wrappers`` of a model
    :return: the wrapped env
    :raises ValueError: for an env that is wrapped otherwise, and for unknown wrappers
    """
    found = recorded_wrappers(env)
    if found == list(env_wrappers):
        return env
    if found:
        raise ValueError(
            f"env: wrapped in {found}, the model's in {list(env_wrappers)}. Give the bare env, "
            "which is then wrapped."
        )
    for record in env_wrappers:
        if record["name"] not in WRAPPERS:
            raise ValueError(
                f"env_wrappers: unknown {record['name']!r}, expected {', '.join(WRAPPERS)}"
            )
        env = WRAPPERS[record["name"]](env, **record["arguments"])
    return env


def decisions(
    demonstrations: Demonstrations,
    env_wrappers: Sequence[WrapperRecord],
    observation_space: spaces.Space,
    action_space: spaces.Space,
) -> Demonstrations:
    """
    :param demonstrations: step-wise, or such decisions already, which are left as they are
    :param env_wrappers: of the model that is to imitate them
    :param observation_space: of the model
    :param action_space: of the model
    :return: the decisions of the wrapped env, see :meth:`Demonstrations.windows`
    """
    chunk = find(env_wrappers, ActionChunkWrapper.__name__) or {}
    history = find(env_wrappers, ObservationHistoryWrapper.__name__) or {}
    if chunk:
        step_wise = demonstrations.actions.shape[1:] != action_space.shape
    else:
        step_wise = bool(history) and not _of(observation_space, demonstrations.observations)
    if not step_wise:
        return demonstrations
    return demonstrations.windows(
        chunk.get("horizon"), history.get("n_observations"), chunk.get("start", 0)
    )


def _of(space: spaces.Space, observations: Any) -> bool:
    """Whether arrays have the shapes of a space, up to the place of an image's channels."""
    if isinstance(space, spaces.Dict) and isinstance(observations, dict):
        return all(_of(space[key], observations[key]) for key in space if key in observations)
    return sorted(observations.shape[1:]) == sorted(space.shape or ())
