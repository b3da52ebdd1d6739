"""
Demonstrations carried over to scenes in which things stand elsewhere.

What a hand does to a thing depends on where the hand is relative to it. A demonstration is moved
accordingly: wherever the thing was met, the hand goes there and then does what was demonstrated
(the idea of MimicGen, Mandlekar et al. 2023, without its simulator: nothing is executed here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_diffrl.demonstrations.dataset import Demonstrations

Floats = NDArray[np.float32]

STANDSTILL = 0.02
"""Part of ``step`` that counts for a step in which the hand does not move: no way is zero."""
SIMULTANEOUS = 1e-4
"""Part of a step by which times differ that are the same but for rounding."""


@dataclass(frozen=True)
class Transport:
    """
    Which entries of a vector observation are positions, and how actions move the hand.

    A position takes three entries, given by the first. The first three entries of the action move
    the hand by ``step`` times their values, in units of the observation, and are bounded by 1.

    :param hand: of the hand's position
    :param objects: of the positions of the things to handle, the first of which is reached first
    :param goal: of the place to bring them to, None where there is none
    :param previous: number of entries at the front that are repeated behind them as they were in
        the step before, 0 for none
    :param step: way of the hand for an action of 1
    :param moved: how far a thing is moved in the plane before it counts as touched, in units of the
        observation
    :param lifted: the same in height, where things that are put down settle first
    :raises ValueError: for negative entries, no objects, or a length that is not positive
    """

    hand: int
    objects: tuple[int, ...]
    goal: int | None = None
    previous: int = 0
    step: float = 0.01
    moved: float = 0.003
    lifted: float = 0.006

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        entries = [self.hand, *self.objects, self.previous, self.goal or 0]
        lengths = (self.step, self.moved, self.lifted)
        if not self.objects or min(entries) < 0 or not all(length > 0 for length in lengths):
            raise ValueError(
                f"{self}: expected the entries of a hand and of at least one object, from 0, and "
                "positive lengths step, moved and lifted"
            )

    def __call__(self, observations: Floats, actions: Floats, met: Floats) -> tuple[Floats, Floats]:
        """
        Carry a demonstration over.

        The hand begins where it did, is displaced as the first object is when it touches it, and as
        the goal is at the end. In between, the displacement grows in proportion to the demonstrated
        way in the plane of the first two axes, so that what was straight above something stays
        above it. Objects stand where they were met, and move with the hand's displacement once
        touched. Where the hand would have to be faster than it can be, it takes more steps,
        each of which repeats the action of the demonstrated step that is under way.

        :param observations: of a demonstration, ``(T, F)``
        :param actions: its actions, ``(T, A)``
        :param met: first observation of an episode elsewhere, ``(F,)``
        :return: observations ``(T', F)`` and actions ``(T', A)`` of the demonstration as it would
            be there
        :raises ValueError: where the shapes do not fit
        """
        self._check(observations, actions, met)
        met = met.astype(np.float64)
        last = len(actions) - 1
        placed = [*self.objects] if self.goal is None else [*self.objects, self.goal]
        shifts = {at: met[at : at + 3] - observations[0, at : at + 3] for at in placed}
        touched = {at: self._touched(observations[:, at : at + 3]) for at in self.objects}
        first = self.objects[0]
        milestones = {0: np.zeros(3), touched[first] or last: shifts[first]}
        for at in self.objects[1:]:
            step = touched[at]
            if step is not None and step > max(milestones) + 1:
                milestones[step] = shifts[at]
        if self.goal is not None and last > max(milestones):
            milestones[last] = shifts[self.goal]

        hand = observations[:, self.hand : self.hand + 3]
        displacement = np.zeros((last + 1, 3))
        for begin, end in pairwise(sorted(milestones)):
            way = milestones[end] - milestones[begin]
            share = _share_of_way(hand[:, :2], begin, end, STANDSTILL * self.step)
            displacement += share[:, None] * way

        moved = observations.astype(np.float64)
        moved[:, self.hand : self.hand + 3] += displacement
        for at in placed:
            moved[:, at : at + 3] += shifts[at]
            if (step := touched.get(at)) is not None:
                moved[step:, at : at + 3] += displacement[step:] - displacement[step]
        acted = actions.astype(np.float64)
        acted[:-1, :3] += np.diff(displacement, axis=0) / self.step
        return self._in_time(moved, acted, np.abs(actions[:, :3]).max(axis=1))

    def _touched(self, position: Floats) -> int | None:
        """First step at which a thing was moved, None where it never is."""
        way = np.abs(position - position[0])
        in_plane = np.hypot(way[:, 0], way[:, 1]) > self.moved
        steps = np.flatnonzero(in_plane | (way[:, 2] > self.lifted))
        return max(int(steps[0]) - 1, 1) if len(steps) else None

    def _in_time(
        self, observations: NDArray[np.float64], actions: NDArray[np.float64], speed: Floats
    ) -> tuple[Floats, Floats]:
        """Stretch the time where actions exceed 1, or what was demonstrated if that was more."""
        stretch = np.maximum(1, np.abs(actions[:, :3]).max(axis=1) / np.maximum(1, speed))
        actions[:, :3] /= stretch[:, None]
        times = np.concatenate([[0], np.cumsum(stretch)[:-1]])
        clock = np.arange(np.ceil(times[-1] - SIMULTANEOUS) + 1)
        below = np.searchsorted(times, clock + SIMULTANEOUS, side="right") - 1
        above = np.minimum(below + 1, len(times) - 1)
        steps = np.interp(clock, times, np.arange(len(times)))
        weight = np.maximum(steps - below, 0)[:, None]
        there = (1 - weight) * observations[below] + weight * observations[above]
        n = self.previous
        there[1:, n : 2 * n] = there[:-1, :n]
        there[:1, n : 2 * n] = there[:1, :n]
        return there.astype(np.float32), actions[below].astype(np.float32)

    def _check(self, observations: Any, actions: Floats, met: Floats) -> None:
        if isinstance(observations, dict):
            raise ValueError(
                f"transport: a dictionary of observations, {[*observations]}, expected one vector. "
                "Give a function (observations, actions, met) of your own, which may call a "
                "Transport with one of the entries."
            )
        size = max(self.hand + 3, *(at + 3 for at in self.objects), 2 * self.previous)
        size = max(size, 0 if self.goal is None else self.goal + 3)
        if observations.ndim != 2 or observations.shape[1] < size or actions.ndim != 2:
            raise ValueError(
                f"transport: demonstrations of shapes {observations.shape} and {actions.shape}, "
                f"expected vector observations (T, F) with F of at least {size}, and actions (T, A)"
            )
        if met.shape != observations.shape[1:] or actions.shape[1] < 3:
            raise ValueError(
                f"transport: observation of shape {met.shape} and actions {actions.shape[1:]}, "
                f"expected {observations.shape[1:]}, as demonstrated, and at least 3 actions"
            )


def as_transport(spec: Any) -> Callable[..., tuple[Any, NDArray[Any]]] | None:
    """
    :param spec: the mapping of a :class:`Transport`'s parameters, a function of the same arguments,
        or None
    :return: what carries over, None where nothing does
    :raises ValueError: saying what is expected
    """
    if spec is None or callable(spec):
        return spec
    try:
        return Transport(**spec)
    except TypeError as error:
        names = ", ".join(f.name for f in fields(Transport))
        raise ValueError(
            f"imitation: transport={spec!r}, expected a function, or a mapping of {names} ({error})"
        ) from error


def carry_over(
    demonstrations: Demonstrations,
    transport: Callable[..., tuple[Any, NDArray[Any]]],
    met: Iterable[Any],
    drawn: Sequence[int],
) -> Demonstrations:
    """
    Carry a demonstration over to each scene.

    :param demonstrations: in environment steps and the env's own units
    :param transport: see :class:`Transport`
    :param met: first observations of ``N`` episodes, each in the env's own units
    :param drawn: for each the number of the demonstration
    :return: ``N`` demonstrations in environment steps
    """
    episodes = []
    for episode, first in zip(drawn, met, strict=True):
        one = demonstrations.subset([episode]).in_memory()
        episodes.append(transport(one.observations, one.actions, first))
    observations, actions = zip(*episodes, strict=True)
    return Demonstrations.from_arrays(list(observations), list(actions))


def _share_of_way(path: Floats, begin: int, end: int, standstill: float) -> NDArray[np.float64]:
    """``(T,)``: 0 until a step, 1 from another on, in between the share of the way done."""
    way = np.zeros(len(path))
    steps = np.linalg.norm(np.diff(path[begin : end + 1], axis=0), axis=1) + standstill
    way[begin + 1 : end + 1] = steps
    return np.cumsum(way) / steps.sum()
