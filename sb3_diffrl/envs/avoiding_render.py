"""Pictures of the Avoiding task in pure NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sb3_diffrl.envs.avoiding_world import FINISH_Y, LOW, RADIUS, START_X, Floats

WIDTH, HEIGHT = 512, 288  # pixels; the workspace is 2 m wide
_PER_METRE = WIDTH / 2
_X = LOW[0] + (np.arange(WIDTH) + 0.5) / _PER_METRE
_Y = LOW[1] + (HEIGHT - np.arange(HEIGHT)[:, None] - 0.5) / _PER_METRE

_BACKGROUND = (250, 250, 247)
_START = (205, 220, 235)
_FINISH = (70, 160, 90)
_OBSTACLE = (200, 75, 60)
_TRAIL = (140, 170, 210)
_EFFECTOR = (30, 70, 140)


def draw(obstacles: Floats, trail: Floats) -> NDArray[np.uint8]:
    """
    :param obstacles: ``(6, 2)``
    :param trail: the effector's positions so far, the last being where it is now, ``(T, 2)``
    :return: an RGB image, ``(HEIGHT, WIDTH, 3)``
    """
    image = np.full((HEIGHT, WIDTH, 3), _BACKGROUND, np.uint8)
    image[(np.abs(_X) < START_X + 0.02) & (np.abs(_Y) < 0.02)] = _START
    image[np.broadcast_to(np.abs(_Y - FINISH_Y) < 0.006, image.shape[:2])] = _FINISH
    for centre in obstacles:
        image[_disc(centre, RADIUS)] = _OBSTACLE
    for a, b in pairwise(trail):
        for point in np.linspace(a, b, 6):
            _stamp(image, point, 0.006, _TRAIL)
    _stamp(image, trail[-1], 0.018, _EFFECTOR)
    return image


def _disc(centre: Floats, radius: float) -> NDArray[np.bool_]:
    return np.asarray((_X - centre[0]) ** 2 + (_Y - centre[1]) ** 2 < radius**2)


def _stamp(
    image: NDArray[np.uint8], centre: Floats, radius: float, colour: tuple[int, int, int]
) -> None:
    """Draw a small disc, looking only at the pixels around it."""
    column = int((centre[0] - LOW[0]) * _PER_METRE)
    row = HEIGHT - 1 - int((centre[1] - LOW[1]) * _PER_METRE)
    reach = int(radius * _PER_METRE) + 1
    rows = slice(max(row - reach, 0), row + reach + 1)
    columns = slice(max(column - reach, 0), column + reach + 1)
    near = (_X[columns] - centre[0]) ** 2 + (_Y[rows] - centre[1]) ** 2 < radius**2
    image[rows, columns][near] = colour
