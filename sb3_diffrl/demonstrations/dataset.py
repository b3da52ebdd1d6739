"""The demonstrations that a policy imitates, as flat NumPy arrays with the ends of the episodes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sb3_diffrl.demonstrations.windows import lay_out_history, window_indices

Array: TypeAlias = NDArray[Any]
Observations: TypeAlias = Array | dict[str, Array]

_BOUND_TOLERANCE = 1e-6
_DICT_PREFIX = "observations/"


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """
    Episodes laid end to end: ``M`` decisions in ``E`` episodes.

    :param observations: what was seen before each decision, ``(M, *obs_shape)``, or a dictionary of
        such arrays for a Dict observation space
    :param actions: what was done, ``(M, *action_shape)``, in the environment's own units
    :param episode_ends: for each episode the index one past its last decision, ``(E,)`` int64,
        strictly increasing, the last being ``M``
    :param rewards: what each decision earned, ``(M,)``, if known
    :param successes: whether each episode succeeded, ``(E,)`` bool, if known
    """

    observations: Observations
    actions: Array
    episode_ends: NDArray[np.int64]
    rewards: Array | None = None
    successes: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        def keep(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        keep("observations", _map(np.asarray, self.observations))
        keep("actions", np.asarray(self.actions))
        keep("episode_ends", _as_indices("episode_ends", self.episode_ends))
        if self.rewards is not None:
            keep("rewards", np.asarray(self.rewards))
        if self.successes is not None:
            keep("successes", np.asarray(self.successes, dtype=bool))

        if self.actions.ndim == 0 or len(self.actions) == 0:
            raise ValueError(
                f"actions: empty (shape {self.actions.shape}); "
                "demonstrations need at least one decision, shape (M, *action_shape)"
            )
        if isinstance(self.observations, dict) and not self.observations:
            raise ValueError("observations: the dictionary is empty; give one array for each key")
        m = len(self.actions)
        for name, array in _fields(self.observations):
            _check_length(name, array, m, "one observation for each action")
        if self.rewards is not None and self.rewards.shape != (m,):
            raise ValueError(
                f"rewards: shape {self.rewards.shape}, expected ({m},), one for each action"
            )
        self._check_episode_ends(m)
        if self.successes is not None and self.successes.shape != (len(self),):
            raise ValueError(
                f"successes: shape {self.successes.shape}, expected ({len(self)},), "
                "one for each episode"
            )

    def _check_episode_ends(self, m: int) -> None:
        ends = self.episode_ends
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

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: ArrayLike | Sequence[ArrayLike],
        episode_ends: ArrayLike | None = None,
        rewards: ArrayLike | Sequence[ArrayLike] | None = None,
        successes: ArrayLike | None = None,
    ) -> Demonstrations:
        """
        Build from flat arrays, or from lists that hold one array for each episode.

        Lists are taken as episodes when ``actions`` is a list or tuple of arrays; the ends are then
        known and ``episode_ends`` must be left out. A list that holds one array for each decision
        is to be stacked first.

        :param observations: ``(M, *obs_shape)``, a dictionary of such arrays, a list of per-episode
            arrays or dictionaries, or a dictionary of lists
        :param actions: ``(M, *action_shape)``, or a list of per-episode arrays
        :param episode_ends: exclusive ends, ``(E,)``; by default all is one episode
        :param rewards: ``(M,)``, or a list of per-episode arrays
        :param successes: ``(E,)``
        :return: the demonstrations
        """
        if isinstance(actions, list | tuple) and all(isinstance(a, np.ndarray) for a in actions):
            if episode_ends is not None:
                raise ValueError(
                    "episode_ends: actions is a list of episodes, whose lengths give the ends; "
                    "leave episode_ends out or pass one flat array"
                )
            if not actions:
                raise ValueError("actions: empty list; demonstrations need at least one episode")
            lengths = [len(np.atleast_1d(a)) for a in actions]
            return cls(
                observations=_join_episodes("observations", observations, lengths),
                actions=_join("actions", actions),
                episode_ends=np.cumsum(lengths, dtype=np.int64),
                rewards=None if rewards is None else _join_episodes("rewards", rewards, lengths),
                successes=None if successes is None else np.asarray(successes),
            )
        flat = np.asarray(actions)
        if episode_ends is None:
            episode_ends = [len(np.atleast_1d(flat))]
        return cls(
            observations=_map(np.asarray, observations),
            actions=flat,
            episode_ends=np.asarray(episode_ends),
            rewards=None if rewards is None else np.asarray(rewards),
            successes=None if successes is None else np.asarray(successes),
        )

    def __len__(self) -> int:
        return len(self.episode_ends)

    def __repr__(self) -> str:
        return f"Demonstrations(episodes={len(self)}, decisions={self.n_decisions})"

    @property
    def n_decisions(self) -> int:
        """The number of decisions, ``M``."""
        return len(self.actions)

    @property
    def episode_starts(self) -> NDArray[np.int64]:
        """The index of each episode's first decision, ``(E,)``."""
        return np.concatenate([[0], self.episode_ends[:-1]]).astype(np.int64)

    def subset(self, episode_indices: ArrayLike) -> Demonstrations:
        """
        Choose episodes.

        :param episode_indices: indices or a boolean mask over the episodes, in the wanted order
        :return: those episodes alone
        """
        chosen = np.arange(len(self))[np.asarray(episode_indices)]
        if chosen.size == 0:
            raise ValueError("episode_indices: empty; choose at least one episode")
        starts, ends = self.episode_starts[chosen], self.episode_ends[chosen]
        rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
        return Demonstrations(
            observations=_map(lambda x: x[rows], self.observations),
            actions=self.actions[rows],
            episode_ends=np.cumsum(ends - starts, dtype=np.int64),
            rewards=None if self.rewards is None else self.rewards[rows],
            successes=None if self.successes is None else self.successes[chosen],
        )

    def split(self, fraction: float, seed: int = 0) -> tuple[Demonstrations, Demonstrations]:
        """
        Split by episode, so that no episode is on both sides.

        :param fraction: share of the episodes that goes to the validation part, in (0, 1); each
            part gets at least one episode
        :param seed: seed of the draw
        :return: the training part and the validation part
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: {fraction}, expected a number between 0 and 1, exclusive")
        if len(self) < 2:
            raise ValueError("split: needs at least two episodes, got one; mark episode_ends")
        n_validation = min(max(round(fraction * len(self)), 1), len(self) - 1)
        order = np.random.default_rng(seed).permutation(len(self))
        return (
            self.subset(np.sort(order[n_validation:])),
            self.subset(np.sort(order[:n_validation])),
        )

    def windows(
        self, horizon: int | None = None, n_observations: int | None = None, start: int = 0
    ) -> Demonstrations:
        """
        Cut step-wise episodes into decisions of several actions on several observations, one for
        every step, see :mod:`sb3_diffrl.demonstrations.windows`.

        As the decisions overlap, what each earned would not add up to the return: they have no
        rewards.

        :param horizon: number of actions ``H``: actions become ``(M, H, *action_shape)``; None for
            one action each
        :param n_observations: number ``n`` of observations, the oldest first: observations become
            ``(M, n, *obs_shape)``, and images ``(M, H, W, n C)`` or ``(M, n C, H, W)``; None for
            one each
        :param start: index of the action of the current step within its chunk
        :return: the decisions, in the same episodes
        """
        for name, size in (("horizon", horizon), ("n_observations", n_observations)):
            if size is not None and size < 1:
                raise ValueError(f"{name}: {size}, expected at least 1, or None for single steps")
        if not 0 <= start < (horizon or 1):
            raise ValueError(f"start: {start}, expected 0 to {(horizon or 1) - 1}, below horizon")
        observations, actions = self.observations, self.actions
        if n_observations is not None:
            seen = window_indices(self.episode_ends, np.arange(1 - n_observations, 1))
            observations = _map(lambda x: lay_out_history(x[seen], axis=1), observations)
        if horizon is not None:
            actions = actions[window_indices(self.episode_ends, np.arange(horizon) - start)]
        return Demonstrations(observations, actions, self.episode_ends, successes=self.successes)

    def validate(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        """
        Raise a ``ValueError`` that names field, first bad index and expectation if these
        demonstrations do not fit an environment.

        :param observation_space: the environment's, a Dict space for dictionaries
        :param action_space: the environment's, a Box
        """
        if not isinstance(action_space, spaces.Box):
            raise ValueError(f"actions: the action space is {action_space}, expected a Box")
        if isinstance(observation_space, spaces.Dict):
            if not isinstance(self.observations, dict):
                raise ValueError(
                    "observations: one array, expected a dictionary with the keys "
                    f"{sorted(observation_space.spaces)}, as the observation space has"
                )
            expected, found = set(observation_space.spaces), set(self.observations)
            if expected != found:
                raise ValueError(
                    f"observations: missing keys {sorted(expected - found)}, "
                    f"unknown keys {sorted(found - expected)}; "
                    f"expected exactly {sorted(expected)}"
                )
            for key, space in observation_space.spaces.items():
                _check_values(f"observations[{key!r}]", self.observations[key], space)
        elif isinstance(self.observations, dict):
            raise ValueError(
                f"observations: a dictionary with the keys {sorted(self.observations)}, expected "
                f"one array of shape (M, {_inner(observation_space.shape)})"
            )
        else:
            _check_values("observations", self.observations, observation_space)
        _check_values("actions", self.actions, action_space)
        _check_bounds("actions", self.actions, action_space)
        if self.rewards is not None:
            _check_finite("rewards", self.rewards)

    @staticmethod
    def concatenate(parts: Sequence[Demonstrations]) -> Demonstrations:
        """
        Lay several sets of demonstrations end to end.

        Rewards and successes are kept when every part has them.

        :param parts: at least one set, all with the same observation keys and shapes
        :return: all of their episodes
        """
        if not parts:
            raise ValueError("concatenate: empty list; give at least one Demonstrations")
        first = parts[0].observations
        observations: Observations
        if isinstance(first, dict):
            dicts = [p.observations for p in parts if isinstance(p.observations, dict)]
            if len(dicts) < len(parts) or any(d.keys() != first.keys() for d in dicts):
                raise ValueError(
                    f"observations: every part needs the keys {sorted(first)}, as the first has"
                )
            observations = {k: _join(f"observations[{k!r}]", [d[k] for d in dicts]) for k in first}
        else:
            arrays = [p.observations for p in parts if not isinstance(p.observations, dict)]
            if len(arrays) < len(parts):
                raise ValueError("observations: some parts are dictionaries and others are not")
            observations = _join("observations", arrays)
        offsets = np.cumsum([0] + [p.n_decisions for p in parts[:-1]])
        rewards = [p.rewards for p in parts if p.rewards is not None]
        successes = [p.successes for p in parts if p.successes is not None]
        return Demonstrations(
            observations=observations,
            actions=_join("actions", [p.actions for p in parts]),
            episode_ends=np.concatenate(
                [p.episode_ends + o for p, o in zip(parts, offsets, strict=True)]
            ),
            rewards=np.concatenate(rewards) if len(rewards) == len(parts) else None,
            successes=np.concatenate(successes) if len(successes) == len(parts) else None,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """
        Write a compressed ``.npz`` that holds no pickles; a file is replaced whole or not at all.

        :param path: where to; ``.npz`` is appended where it is missing
        :return: the path of the file
        """
        target = _npz_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"actions": self.actions, "episode_ends": self.episode_ends}
        if isinstance(self.observations, dict):
            arrays |= {_DICT_PREFIX + key: value for key, value in self.observations.items()}
        else:
            arrays["observations"] = self.observations
        if self.rewards is not None:
            arrays["rewards"] = self.rewards
        if self.successes is not None:
            arrays["successes"] = self.successes
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise ValueError(f"{name}: dtype object cannot be saved without pickle")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Demonstrations:
        """
        Read what :meth:`save` wrote.

        :param path: the file; ``.npz`` is appended where it is missing
        :return: the demonstrations
        """
        source = _npz_path(path)
        with np.load(source, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        by_key = {
            name.removeprefix(_DICT_PREFIX): array
            for name, array in arrays.items()
            if name.startswith(_DICT_PREFIX)
        }
        missing = [n for n in ("actions", "episode_ends") if n not in arrays]
        if not by_key and "observations" not in arrays:
            missing.append("observations")
        if missing:
            raise ValueError(f"{source}: not a file of demonstrations, it lacks {missing}")
        return cls(
            observations=by_key or arrays["observations"],
            actions=arrays["actions"],
            episode_ends=arrays["episode_ends"],
            rewards=arrays.get("rewards"),
            successes=arrays.get("successes"),
        )


def _npz_path(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


def _map(function: Callable[[Any], Array], observations: Any) -> Observations:
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


def _fields(observations: Observations) -> Iterator[tuple[str, Array]]:
    if isinstance(observations, dict):
        for key, array in observations.items():
            yield f"observations[{key!r}]", array
    else:
        yield "observations", observations


def _as_indices(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: dtype {array.dtype}, expected whole numbers (int64)")
    return array.astype(np.int64)


def _join(name: str, arrays: Sequence[ArrayLike]) -> Array:
    """Concatenate arrays whose shapes after the first axis agree."""
    parts = [np.asarray(a) for a in arrays]
    for index, part in enumerate(parts):
        if part.ndim == 0 or part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(
                f"{name}[{index}]: shape {part.shape}, expected "
                f"(length, {_inner(parts[0].shape[1:])}), as the first"
            )
    return np.concatenate(parts)


def _join_episodes(name: str, episodes: Any, lengths: list[int]) -> Any:
    """Concatenate per-episode arrays or dictionaries, each as long as the episode's actions."""
    if isinstance(episodes, dict):
        return {k: _join_episodes(f"{name}[{k!r}]", v, lengths) for k, v in episodes.items()}
    if not isinstance(episodes, list | tuple) or len(episodes) != len(lengths):
        found = len(episodes) if isinstance(episodes, list | tuple) else type(episodes).__name__
        raise ValueError(
            f"{name}: {found}, expected a list of {len(lengths)} episodes, as actions is"
        )
    if isinstance(episodes[0], dict):
        by_key = {k: [episode[k] for episode in episodes] for k in episodes[0]}
        return _join_episodes(name, by_key, lengths)
    for index, (episode, length) in enumerate(zip(episodes, lengths, strict=True)):
        _check_length(f"{name}[{index}]", np.asarray(episode), length, "as many as its actions")
    return _join(name, episodes)


def _inner(shape: tuple[int, ...] | None) -> str:
    return ", ".join(map(str, shape or ()))


def _check_length(name: str, array: Array, length: int, why: str) -> None:
    if array.ndim == 0 or len(array) != length:
        found = "a scalar" if array.ndim == 0 else f"length {len(array)} (shape {array.shape})"
        raise ValueError(f"{name}: {found}, expected length {length}, {why}")


def _check_values(name: str, array: Array, space: spaces.Space[Any]) -> None:
    """Check shape and finiteness against a space."""
    shape = space.shape
    if shape is not None and array.shape[1:] != shape:
        raise ValueError(
            f"{name}[0]: shape {array.shape[1:]}, expected {shape} in an array of shape "
            f"(M, {_inner(shape)}); reshape or transpose it to the space of the environment"
        )
    _check_finite(name, array)
    if isinstance(space, spaces.Discrete):
        low, high = int(space.start), int(space.start + space.n - 1)
        index = _first((array < low) | (array > high) | (array != np.rint(array)))
        if index is not None:
            raise ValueError(
                f"{name}[{_inner(index)}] = {array[index]}, expected an integer from {low} to "
                f"{high}, as the observation space {space} has"
            )


def _check_finite(name: str, array: Array) -> None:
    if array.dtype.kind in "iub":
        return
    if array.dtype.kind != "f":
        raise ValueError(f"{name}: dtype {array.dtype}, expected real numbers")
    index = _first(~np.isfinite(array))
    if index is not None:
        raise ValueError(
            f"{name}[{_inner(index)}] = {array[index]}, expected a finite number; "
            "drop or repair the episodes with missing values"
        )


def _check_bounds(name: str, array: Array, space: spaces.Box) -> None:
    index = _first((array < space.low - _BOUND_TOLERANCE) | (array > space.high + _BOUND_TOLERANCE))
    if index is not None:
        low, high = space.low[index[1:]], space.high[index[1:]]
        raise ValueError(
            f"{name}[{_inner(index)}] = {array[index]:g}, expected within [{low:g}, {high:g}], the "
            f"bounds of the action space; scale or clip to the environment's own units"
        )


def _first(bad: NDArray[np.bool_]) -> tuple[int, ...] | None:
    """The index of the first true entry in row-major order, or None."""
    if not bad.any():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
