"""What may differ from the scenes of the demonstrations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Perturbation:
    """
    Drawn anew at every reset; 0 leaves alone.

    :param positions: the object is placed uniformly within ± this, in m, of the centre of the
        task's own box, in x and y
    :param goals: the same for the goal, where it is placed apart from the object
    """

    positions: float = 0.0
    goals: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name}: {value}, expected a finite number from 0")


LEVELS: dict[str, Perturbation] = {
    "none": Perturbation(),
    "positions": Perturbation(positions=0.1, goals=0.1),
    "object": Perturbation(positions=0.1),
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
