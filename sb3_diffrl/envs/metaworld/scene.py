"""Perturbations of a simulated scene: light, dynamics, and blocks that stand about."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_diffrl.envs.metaworld.perturbations import Perturbation

Floats = NDArray[np.float64]

MODEL_ARRAYS = (
    *("body_pos", "body_quat", "site_pos", "site_quat", "geom_pos", "geom_quat"),
    *("light_diffuse", "light_ambient", "light_specular", "light_dir"),
    *("geom_friction", "dof_damping", "dof_invweight0"),
    *("body_mass", "body_subtreemass", "body_inertia", "body_invweight0"),
)
"""What tasks and perturbations change in a model."""

HEADLIGHT = ("ambient", "diffuse", "specular")

BLOCK = 0.02
"""Half of a block's height and width, in m."""

TABLE = np.array([[-0.3, 0.45], [0.3, 0.85]])
"""Low and high corner of where blocks are put, x and y in m."""

CLEARANCE = 0.1
"""Between the centres of a block and of the object, the goal or another block, in x and y, in m."""

MAX_TRIES = 1000
"""Places tried for each block."""


class Pristine:
    """
    What a model was like, to put it back.

    :param model: MuJoCo's
    """

    def __init__(self, model: Any) -> None:
        arrays = [getattr(model, name) for name in MODEL_ARRAYS]
        arrays += [getattr(model.vis.headlight, name) for name in HEADLIGHT]
        self._pairs = [(array, array.copy()) for array in arrays]

    def restore(self) -> None:
        """Put all back, in place."""
        for array, kept in self._pairs:
            array[...] = kept


def perturb_light(model: Any, strength: float, rng: np.random.Generator) -> None:
    """
    :param model: MuJoCo's, changed in place
    :param strength: see :class:`~sb3_diffrl.envs.metaworld.Perturbation`
    :param rng: draws the factors
    """
    lights = [model.light_diffuse, model.light_specular]
    for light in lights + [getattr(model.vis.headlight, name) for name in HEADLIGHT]:
        light *= rng.uniform(1 - strength, 1 + strength, light.shape)
    direction = model.light_dir + strength * rng.uniform(-0.6, 0.6, model.light_dir.shape)
    model.light_dir[:] = direction / np.linalg.norm(direction, axis=1, keepdims=True)


def perturb_dynamics(model: Any, perturbation: Perturbation, rng: np.random.Generator) -> None:
    """
    :param model: MuJoCo's, changed in place
    :param perturbation: its ``friction``, ``mass`` and ``damping`` count
    :param rng: draws the factors
    """
    ranges = [perturbation.friction, perturbation.mass, perturbation.damping]
    friction, mass, damping = np.exp(rng.uniform(-1, 1, 3) * np.log1p(ranges))
    model.geom_friction *= friction
    model.dof_damping *= damping
    movable = movable_bodies(model)
    for array in (model.body_mass, model.body_subtreemass, model.body_inertia):
        array[movable] *= mass
    # MuJoCo's constraint solver scales by these, which it derives from the masses when compiling.
    model.body_invweight0[movable] /= mass
    model.dof_invweight0[movable[model.dof_bodyid]] /= mass


def movable_bodies(model: Any) -> NDArray[np.bool_]:
    """
    :param model: MuJoCo's
    :return: which bodies have joints and are not the robot's, ``(nbody,)``
    """
    robot = model.body("base").id
    return np.asarray((model.body_weldid != 0) & (model.body_rootid != robot))


def add_blocks(spec: Any, n: int) -> None:
    """
    Add blocks that can be pushed, parked at the far side of the table.

    :param spec: MuJoCo's ``MjSpec``
    :param n: number of blocks
    """
    import mujoco

    for i in range(n):
        body = spec.worldbody.add_body(name=block_name(i), pos=[-0.6, 0.3 + 0.08 * i, BLOCK])
        body.add_freejoint()
        # Meta-World's assets have inertia computed from geoms of some groups only.
        body.explicitinertial = True
        body.ipos = [0, 0, 0]
        body.mass = 0.1
        body.inertia = [2 / 3 * body.mass * BLOCK**2] * 3  # of a cube, m (2 h)² / 6
        hue = 2 * np.pi * i / 8
        colour = [0.5 + 0.5 * np.cos(hue + shift) for shift in (0, 2, 4)]
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[BLOCK] * 3,
            rgba=[*colour, 1],
            friction=[1, 0.005, 0.0001],
            contype=1,
            conaffinity=1,
        )


def place_blocks(
    model: Any, data: Any, n: int, keep_away_from: Floats, rng: np.random.Generator
) -> None:
    """
    Put the blocks on the table, upright and turned at random, where they touch the table alone.

    :param model: MuJoCo's
    :param data: MuJoCo's, changed in place
    :param n: number of blocks
    :param keep_away_from: x and y of the object, goal and the like, ``(P, 2)``
    :param rng: draws the poses
    :raises RuntimeError: where there is no room
    """
    import mujoco

    table = model.body("tablelink").id
    taken = [*keep_away_from]
    for i in range(n):
        body = model.body(block_name(i)).id
        joint = data.joint(model.body_jntadr[body])
        for _ in range(MAX_TRIES):
            place, angle = rng.uniform(*TABLE), rng.uniform(-np.pi, np.pi)
            if np.linalg.norm(np.array(taken) - place, axis=1).min() < CLEARANCE:
                continue
            joint.qpos[:] = [*place, BLOCK, np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
            joint.qvel[:] = 0
            mujoco.mj_forward(model, data)
            pairs = model.geom_bodyid[data.contact.geom]
            if set(pairs[(pairs == body).any(axis=1)].ravel()) <= {body, table}:
                taken.append(place)
                break
        else:
            raise RuntimeError(
                f"distractors: no room for {n} of them on the table; ask for fewer of them"
            )


def block_name(i: int) -> str:
    """
    :param i: number of a block
    :return: name of its body
    """
    return f"distractor_{i}"
