"""The demonstrations that a policy imitates, as flat arrays with the ends of the episodes."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sb3_diffrl.demonstrations import files, formats
from sb3_diffrl.demonstrations.arrays import (
    Source,
    as_source,
    choose_rows,
    is_lazy,
)
from sb3_diffrl.demonstrations.checks import (
    check_actions,
    check_episode_ends,
    check_finite,
    check_length,
    check_observations,
    check_weights,
)
from sb3_diffrl.demonstrations.joining import (
    Observations,
    fields,
    is_array,
    join,
    join_episodes,
    map_observations,
)
from sb3_diffrl.demonstrations.readers import Readers
from sb3_diffrl.demonstrations.statistics import Statistics
from sb3_diffrl.demonstrations.windows import WindowedArray, lay_out_history


@dataclass(frozen=True, eq=False)
class Demonstrations(Readers):
    """
    Episodes laid end to end: ``M`` decisions in ``E`` episodes.

    Arrays in memory are NumPy's. Memory maps, HDF5 datasets and the lazy arrays of
    :mod:`sb3_diffrl.demonstrations.arrays` stay where they are and are read in pieces.

    :param observations: what was seen before each decision, ``(M, *obs_shape)``, or a dictionary of
        such arrays for a Dict observation space
    :param actions: what was done, ``(M, *action_shape)``, in the environment's own units
    :param episode_ends: for each episode the index one past its last decision, ``(E,)`` int64,
        strictly increasing, the last being ``M``
    :param rewards: what each decision earned, ``(M,)``, if known
    :param successes: whether each episode succeeded, ``(E,)`` bool, if known
    :param weights: how often the decisions of each episode are drawn in training, relative to one
        another, ``(E,)``, at least 0; None draws all alike
    """

    observations: Observations
    actions: Source
    episode_ends: NDArray[np.int64]
    rewards: Source | None = None
    successes: NDArray[np.bool_] | None = None
    weights: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        def keep(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        keep("observations", map_observations(as_source, self.observations))
        keep("actions", as_source(self.actions))
        keep("episode_ends", _as_indices("episode_ends", self.episode_ends))
        if self.rewards is not None:
            keep("rewards", as_source(self.rewards))
        if self.successes is not None:
            keep("successes", np.asarray(self.successes, dtype=bool))
        if self.weights is not None:
            keep("weights", np.asarray(self.weights, dtype=np.float64))

        if self.actions.ndim == 0 or len(self.actions) == 0:
            raise ValueError(
                f"actions: empty (shape {self.actions.shape}); "
                "demonstrations need at least one decision, shape (M, *action_shape)"
            )
        if isinstance(self.observations, dict) and not self.observations:
            raise ValueError("observations: the dictionary is empty; give one array for each key")
        m = len(self.actions)
        for name, array in fields(self.observations):
            check_length(name, array, m, "one observation for each action")
        check_episode_ends(self.episode_ends, m)
        for name, shape, of in (
            ("rewards", (m,), "action"),
            ("successes", (len(self),), "episode"),
            ("weights", (len(self),), "episode"),
        ):
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(
                    f"{name}: shape {array.shape}, expected {shape}, one for each {of}"
                )
        if self.weights is not None:
            check_weights(self.weights)

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: ArrayLike | Sequence[ArrayLike],
        episode_ends: ArrayLike | None = None,
        rewards: ArrayLike | Sequence[ArrayLike] | None = None,
        successes: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Demonstrations:
        """
        Build from flat arrays, or from lists that hold one array for each episode.

        Lists are taken as episodes when ``actions`` is a list or tuple of arrays, in memory or lazy
        (all of a field are then joined without being read); the ends are then
        known and ``episode_ends`` must be left out. A list that holds one array for each decision
        is to be stacked first.

        :param observations: ``(M, *obs_shape)``, a dictionary of such arrays, a list of per-episode
            arrays or dictionaries, or a dictionary of lists
        :param actions: ``(M, *action_shape)``, or a list of per-episode arrays
        :param episode_ends: exclusive ends, ``(E,)``; by default all is one episode
        :param rewards: ``(M,)``, or a list of per-episode arrays
        :param successes: ``(E,)``
        :param weights: ``(E,)``
        :return: the demonstrations
        """
        of_episodes: dict[str, Any] = {"successes": successes, "weights": weights}
        if isinstance(actions, list | tuple) and all(map(is_array, actions)):
            if episode_ends is not None:
                raise ValueError(
                    "episode_ends: actions is a list of episodes, whose lengths give the ends; "
                    "leave episode_ends out or pass one flat array"
                )
            if not actions:
                raise ValueError("actions: empty list; demonstrations need at least one episode")
            lengths = [len(a) if is_lazy(a) else len(np.atleast_1d(a)) for a in actions]
            return cls(
                observations=join_episodes("observations", observations, lengths),
                actions=join("actions", actions),
                episode_ends=np.cumsum(lengths, dtype=np.int64),
                rewards=None if rewards is None else join_episodes("rewards", rewards, lengths),
                **of_episodes,
            )
        flat = as_source(actions)
        if episode_ends is None:
            episode_ends = [len(flat) if flat.ndim else 1]
        return cls(
            observations=observations,
            actions=flat,
            episode_ends=np.asarray(episode_ends),
            rewards=rewards,  # type: ignore[arg-type]  # made an array by the constructor
            **of_episodes,
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

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of decisions in each episode, ``(E,)``."""
        return np.diff(self.episode_ends, prepend=0)

    @property
    def returns(self) -> NDArray[np.float64]:
        """The sum of the rewards of each episode, ``(E,)``."""
        if self.rewards is None:
            raise ValueError("rewards: not known; give them to tell the returns")
        return np.add.reduceat(np.asarray(self.rewards, np.float64), self.episode_starts)

    @property
    def is_lazy(self) -> bool:
        """Whether observations or actions lie elsewhere than in memory."""
        return any(is_lazy(x) for _, x in (*fields(self.observations), ("", self.actions)))

    @property
    def n_bytes(self) -> int:
        """The size of observations and actions, wherever they lie."""
        arrays = [array for _, array in fields(self.observations)] + [self.actions]
        return sum(array.dtype.itemsize * math.prod(array.shape) for array in arrays)

    def to_minari(
        self,
        dataset_id: str,
        env: Any = None,
        *,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        progress_bar: bool = False,
        **metadata: Any,
    ) -> Any:
        """
        Write a Minari dataset, episode by episode; pip install 'sb3-diffrl[minari]'.

        Minari keeps one observation more than actions, which demonstrations lack: the last is
        repeated. All episodes end in a truncation, for demonstrations do not tell. Successes are
        kept in ``infos``, weights are not. Images are kept as they are, without JPEG.

        :param dataset_id: ``namespace/name-v0``
        :param env: the environment, its id or its spec, by which Minari can make it again
        :param observation_space: where no env is given
        :param action_space: where no env is given
        :param progress_bar: whether to show one
        :param metadata: further arguments of ``minari.create_dataset_from_buffers``
        :return: the ``minari.MinariDataset``
        :raises ValueError: where the episodes do not fit the spaces or the id is taken
        """
        from sb3_diffrl.demonstrations import minari

        return minari.write(
            self, dataset_id, env, observation_space, action_space, progress_bar, metadata
        )

    def subset(self, episode_indices: ArrayLike) -> Demonstrations:
        """
        Choose episodes.

        :param episode_indices: indices or a boolean mask over the episodes, in the wanted order
        :return: those episodes alone
        """
        chosen = np.arange(len(self))[np.asarray(episode_indices)]
        if chosen.size == 0:
            raise ValueError("episode_indices: empty; choose at least one episode")
        if len(chosen) == len(self) and np.array_equal(chosen, np.arange(len(self))):
            return self
        starts, ends = self.episode_starts[chosen], self.episode_ends[chosen]
        rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
        return Demonstrations(
            observations=map_observations(lambda x: choose_rows(x, rows), self.observations),
            actions=choose_rows(self.actions, rows),
            episode_ends=np.cumsum(ends - starts, dtype=np.int64),
            rewards=None if self.rewards is None else choose_rows(self.rewards, rows),
            successes=None if self.successes is None else self.successes[chosen],
            weights=None if self.weights is None else self.weights[chosen],
        )

    def filter(self, keep: ArrayLike | Callable[[Demonstrations], bool]) -> Demonstrations:
        """
        Keep some episodes.

        :param keep: a mask over the episodes, ``(E,)`` bool, or a function that is given each
            episode, as demonstrations of that one alone, and says whether to keep it
        :return: those episodes
        :raises ValueError: where none is left
        """
        if callable(keep):
            keep = [bool(keep(self.subset([i]))) for i in range(len(self))]
        mask = np.asarray(keep)
        if mask.dtype != bool or mask.shape != (len(self),):
            raise ValueError(
                f"keep: dtype {mask.dtype} and shape {mask.shape}, expected a mask of "
                f"{len(self)} booleans, one for each episode"
            )
        if not mask.any():
            raise ValueError(f"filter: none of the {len(self)} episodes is left")
        return self.subset(mask)

    def successful(self) -> Demonstrations:
        """
        :return: the episodes that succeeded
        :raises ValueError: where successes are not known, or none is left
        """
        if self.successes is None:
            raise ValueError("successes: not known; give them, or choose episodes by filter(mask)")
        return self.filter(self.successes)

    def top_returns(self, best: int | float) -> Demonstrations:
        """
        :param best: number of episodes (int), or fraction of them (float, above 0, at most 1,
            rounded up)
        :return: the episodes of the highest returns, in the order in which they were
        """
        if isinstance(best, float):
            if not 0 < best <= 1:
                raise ValueError(f"best: {best}, expected a fraction above 0, at most 1")
            best = math.ceil(best * len(self))
        if not 1 <= best <= len(self):
            raise ValueError(f"best: {best}, expected from 1 to {len(self)} episodes")
        return self.subset(np.sort(np.argsort(-self.returns, kind="stable")[:best]))

    def weighted(self, weights: ArrayLike | None) -> Demonstrations:
        """
        :param weights: see :class:`Demonstrations`; None draws all decisions alike
        :return: the same episodes with these weights
        """
        return dataclasses.replace(self, weights=weights)  # type: ignore[arg-type]  # made an array

    def with_observations(self, observations: Observations) -> Demonstrations:
        """
        :param observations: as many as there were
        :return: the same episodes with these observations
        """
        return dataclasses.replace(self, observations=observations)

    def in_memory(self) -> Demonstrations:
        """
        :return: the same with all arrays read into memory
        """
        return dataclasses.replace(
            self,
            observations=map_observations(np.array, self.observations),
            actions=np.array(self.actions),
            rewards=None if self.rewards is None else np.array(self.rewards),
        )

    def statistics(self) -> dict[str, Statistics]:
        """
        Read all in chunks and sum it up.

        :return: by name of the field: ``"actions"``, ``"rewards"``, ``"observations"`` or
            ``"observations['key']"``
        """
        return {name: Statistics.of(array) for name, array in self.arrays().items()}

    def arrays(self) -> dict[str, Source]:
        """
        :return: what is there for each decision, by name of the field, as in :meth:`statistics`
        """
        arrays = dict(fields(self.observations)) | {"actions": self.actions}
        if self.rewards is not None:
            arrays["rewards"] = self.rewards
        return arrays

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

        They are read from these episodes when asked for. As they overlap, what each earned would
        not add up to the return: they have no rewards.

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
            seen, layout = range(1 - n_observations, 1), partial(lay_out_history, axis=1)
            observations = map_observations(
                lambda x: WindowedArray(x, self.episode_ends, seen, layout), observations
            )
        if horizon is not None:
            executed = range(-start, horizon - start)
            actions = WindowedArray(actions, self.episode_ends, executed)
        return Demonstrations(
            observations,
            actions,
            self.episode_ends,
            successes=self.successes,
            weights=self.weights,
        )

    def validate(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        """
        Raise a ``ValueError`` that names field, first bad index and expectation if these
        demonstrations do not fit an environment.

        :param observation_space: the environment's, a Dict space for dictionaries
        :param action_space: the environment's, a Box
        """
        check_observations(self.observations, observation_space)
        check_actions(self.actions, action_space)
        if self.rewards is not None:
            check_finite("rewards", self.rewards)

    def check_finite(self) -> None:
        """Raise a ``ValueError`` that names field and index of a missing or infinite value."""
        for name, array in self.arrays().items():
            check_finite(name, array)

    @staticmethod
    def concatenate(parts: Sequence[Demonstrations]) -> Demonstrations:
        """
        Lay several sets of demonstrations end to end.

        Rewards and successes are kept when every part has them; where one part has weights, those
        of the others are 1.

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
            observations = {k: join(f"observations[{k!r}]", [d[k] for d in dicts]) for k in first}
        else:
            arrays = [p.observations for p in parts if not isinstance(p.observations, dict)]
            if len(arrays) < len(parts):
                raise ValueError("observations: some parts are dictionaries and others are not")
            observations = join("observations", arrays)
        offsets = np.cumsum([0] + [p.n_decisions for p in parts[:-1]])
        rewards = [p.rewards for p in parts if p.rewards is not None]
        successes = [p.successes for p in parts if p.successes is not None]
        return Demonstrations(
            observations=observations,
            actions=join("actions", [p.actions for p in parts]),
            episode_ends=np.concatenate(
                [p.episode_ends + o for p, o in zip(parts, offsets, strict=True)]
            ),
            rewards=join("rewards", rewards) if len(rewards) == len(parts) else None,
            successes=np.concatenate(successes) if len(successes) == len(parts) else None,
            weights=None
            if not any(p.weights is not None for p in parts)
            else np.concatenate(
                [np.ones(len(p)) if p.weights is None else p.weights for p in parts]
            ),
        )

    def save(self, path: str | os.PathLike[str], progress_bar: bool = False) -> Path:
        """
        Write one compressed ``.npz`` file, or a ``.demos`` folder with one ``.npy`` for each array,
        which :meth:`load` maps into memory; neither holds pickles. What is written is put in place
        whole or not at all.

        :param path: where to; its suffix chooses, and ``.npz`` is appended where there is none
        :param progress_bar: whether to show one for a ``.demos`` folder, written in chunks
        :return: the path written
        """
        return files.save(self, path, progress_bar)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], format: str | None = None, **options: Any
    ) -> Demonstrations:
        """
        Read what :meth:`save` wrote, or any other format of
        :data:`sb3_diffrl.demonstrations.formats.FORMATS`.

        :param path: file or folder, whose content tells the format; ``.npz`` is appended where
            there is no such path without it
        :param format: name of the format, needed where the path does not tell it
        :param options: of the format's reader
        :return: the demonstrations
        :raises ValueError: naming file, key and index of what is wrong
        """
        source = Path(path)
        if format is None and not source.exists():
            source = files.with_suffix(source)
        return formats.read(source if format is None else path, format, **options)


def _as_indices(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: dtype {array.dtype}, expected whole numbers (int64)")
    return array.astype(np.int64)
