"""What may differ from the scenes of the demonstrations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Perturbation:
    """
    What is drawn anew at every reset; 0 leaves it alone.

    :param positions: the object is placed uniformly within ± this, in m, of the centre of the
        task's own box, in x and y
    :param goals: the same for the goal, where it is placed apart from the object
    :param lighting: strength from 0 to 1: each colour of each lamp and of the camera's own light is
        multiplied by U(1 − strength, 1 + strength), and the lamps' directions turn by up to about
        strength × 45°. Only images show it
    :param distractors: number of blocks, 0 to 8, that stand about on the table, can be pushed and
        may be in the way
    :param friction: all friction coefficients are multiplied by one factor, log-uniform within
        [1 / (1 + friction), 1 + friction]
    :param mass: the same for mass and inertia of what can be moved (not of the robot)
    :param damping: the same for the damping of all joints, the robot's included
    :param observation_noise: standard deviation of Gaussian noise, in m, on the observed positions
        of objects and distractors, anew in every step
    :param observation_offset: the same positions are shifted by U(−this, this), in m, one draw for
        each coordinate and episode
    :param action_delay: steps by which actions are late, a whole number
    :raises ValueError: naming the field, for negative, infinite and too large values
    """

    positions: float = 0.0
    goals: float = 0.0
    lighting: float = 0.0
    distractors: int = 0
    friction: float = 0.0
    mass: float = 0.0
    damping: float = 0.0
    observation_noise: float = 0.0
    observation_offset: float = 0.0
    action_delay: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.name in ("distractors", "action_delay")
            largest = {"lighting": 1, "distractors": 8}.get(field.name, math.inf)
            if not (math.isfinite(value) and 0 <= value <= largest) or (whole and value % 1):
                kind = "a whole number" if whole else "a finite number"
                limit = f" to {largest}" if math.isfinite(largest) else ""
                raise ValueError(f"{field.name}: {value}, expected {kind} from 0{limit}")

    @property
    def sensing(self) -> bool:
        """Whether it perturbs observations or actions."""
        return bool(self.observation_noise or self.observation_offset or self.action_delay)


_positions = Perturbation(positions=0.1, goals=0.1)
_paper = replace(_positions, lighting=0.7, distractors=1)
_dynamics = Perturbation(friction=1.0, mass=1.0, damping=1.0)
_sensing = Perturbation(observation_noise=0.002, observation_offset=0.005, action_delay=1)

LEVELS: dict[str, Perturbation] = {
    "none": Perturbation(),
    "positions": _positions,
    "object": Perturbation(positions=0.1),
    "lighting": Perturbation(lighting=0.7),
    "distractors": Perturbation(distractors=1),
    "paper": _paper,
    "dynamics": _dynamics,
    "sensing": _sensing,
    "all": replace(
        _paper,
        friction=1.0,
        mass=1.0,
        damping=1.0,
        observation_noise=0.002,
        observation_offset=0.005,
        action_delay=1,
    ),
}
"""Perturbations by name."""


def as_perturbation(perturbation: str | Mapping[str, Any] | Perturbation | None) -> Perturbation:
    """
    :param perturbation: None, the name of a level, the fields as a mapping, or one as it is
    :return: the perturbation
    :raises ValueError: for an unknown level or field
    """
    if perturbation is None:
        return Perturbation()
    if isinstance(perturbation, Perturbation):
        return perturbation
    if isinstance(perturbation, str):
        if perturbation not in LEVELS:
            raise ValueError(
                f"perturbation: {perturbation!r}, expected None, one of {', '.join(LEVELS)}, or "
                "a mapping of fields such as {positions: 0.05}"
            )
        return LEVELS[perturbation]
    known = [field.name for field in fields(Perturbation)]
    if unknown := sorted(set(perturbation) - set(known)):
        raise ValueError(f"perturbation: unknown {unknown}, expected fields of {', '.join(known)}")
    return Perturbation(**perturbation)
