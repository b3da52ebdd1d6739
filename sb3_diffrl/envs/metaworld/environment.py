"""A task of Meta-World as a gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_diffrl.envs.metaworld.perturbations import Perturbation, as_perturbation
from sb3_diffrl.envs.metaworld.rendering import choose_backend
from sb3_diffrl.envs.metaworld.scene import perturb_dynamics, perturb_light, place_blocks
from sb3_diffrl.envs.metaworld.tasks import Floats, make_task, task_name
from sb3_diffrl.wrappers import PerturbationWrapper

REWARDS = ("dense", "sparse")
CAMERAS = (
    *("topview", "corner", "corner2", "corner3", "corner4"),
    *("behindGripper", "gripperPOV"),
)

MAX_OVERLAP = 0.01
"""
Perturbed positions in which things begin this much deeper inside of one another than in a clean
scene, in m, are drawn again: 10 cm off, some doors reach into the hand and some drawers into the
wall around the table.
"""


class MetaWorldEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """
    One of Meta-World's tasks for the Sawyer arm. ``gym.make("sb3_diffrl/MetaWorld-v0")`` adds what
    perturbs sensing, see :func:`make_metaworld`, and the time limit.

    The observation is Meta-World's, ``(39,)`` float32 in metres: the hand's position 0:3, how far
    the gripper is open 3, position and quaternion of the object 4:11, of a second object 11:18,
    the same of the step before 18:36, and the goal 36:39. Where the task has no second object, the
    first distractor takes its place. Distractors without a place are appended, 7 entries each. The
    bounds are infinite. The action, ``(4,)``, moves the hand by 1 cm × its first three entries and
    closes the gripper by its last.

    Success ends the episode. ``info`` holds Meta-World's entries and ``is_success``.

    :param task: ``"assembly"`` or ``"assembly-v3"``, any of Meta-World's 50;
        :data:`~sb3_diffrl.envs.metaworld.TASKS` are the twenty that suit perturbed positions
    :param perturbation: None; the name of one of :data:`~sb3_diffrl.envs.metaworld.LEVELS`; or the
        fields of a :class:`~sb3_diffrl.envs.metaworld.Perturbation` as a mapping
    :param reward: ``"dense"``: Meta-World's, within 0 and 10, made (reward − 10) / 10, so that no
        step earns more than 0 and an early success is never worse than staying; ``"sparse"``: 1 at
        success, else 0
    :param spread: where positions are not perturbed, object and goal are drawn within ± this, in m,
        of the centre of the task's own box, and within that box
    :param distractor_slots: how many distractors are appended to the observation; None: as many as
        need be. Those beyond what the perturbation has are zeros, so that an environment without
        distractors can have the observation of one with them
    :param render_mode: None or ``"rgb_array"``
    :param camera: ``"topview"``, ``"corner"``, ``"corner2"``, ``"corner3"``, ``"corner4"``,
        ``"behindGripper"`` or ``"gripperPOV"``
    :param width: of the rendered image, in pixels
    :param height: of the rendered image, in pixels
    :raises ValueError: for an unknown task, level, field, reward or render mode
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 -- as gymnasium's

    def __init__(
        self,
        task: str = "assembly",
        perturbation: str | Mapping[str, Any] | Perturbation | None = None,
        reward: str = "dense",
        spread: float = 0.02,
        distractor_slots: int | None = None,
        render_mode: str | None = None,
        camera: str = "corner3",
        width: int = 256,
        height: int = 256,
    ) -> None:
        if reward not in REWARDS:
            raise ValueError(f"reward: {reward!r}, expected 'dense' or 'sparse'")
        if not spread >= 0:
            raise ValueError(f"spread: {spread}, expected metres from 0")
        if camera not in CAMERAS:
            raise ValueError(f"camera: {camera!r}, expected one of {', '.join(CAMERAS)}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: {render_mode!r}, expected None or 'rgb_array'")
        self.perturbation = as_perturbation(perturbation)
        self.task = task_name(task).removesuffix("-v3")
        self.reward = reward
        self.spread = spread
        self.render_mode = render_mode
        self.camera = camera
        if render_mode is not None:
            choose_backend()
        self._task = make_task(
            task_name(task),
            n_blocks=self.perturbation.distractors,
            render_mode=render_mode,
            camera_name=camera,
            width=width,
            height=height,
        )
        own = self._task.reset_box
        self.position_box = reset_box(self.task, own, spread, self.perturbation)
        self._max_overlap = np.inf
        if self.perturbation.positions or self.perturbation.goals:
            clean, rng = reset_box(self.task, own, 0.02, Perturbation()), np.random.default_rng(0)
            self._task.begin(lambda: rng.uniform(*clean))
            self._max_overlap = self._task.overlap() + MAX_OVERLAP
        self._n_inside = 0 if self._task.has_second_object else 1
        needed = max(self.perturbation.distractors - self._n_inside, 0)
        self.distractor_slots = needed if distractor_slots is None else distractor_slots
        if self.distractor_slots < needed:
            raise ValueError(
                f"distractor_slots: {distractor_slots}, expected at least {needed} for "
                f"{self.perturbation.distractors} distractors in {self.task}"
            )
        size = 39 + 7 * self.distractor_slots
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        :param seed: of the generator that draws positions and perturbations
        :param options: not used
        :return: the first observation, and an info with ``is_success``
        """
        super().reset(seed=seed)
        task, rng, perturbation = self._task, self.np_random, self.perturbation
        task.begin(lambda: rng.uniform(*self.position_box), self._max_overlap)
        if perturbation.lighting:
            perturb_light(task.model, perturbation.lighting, rng)
        if perturbation.friction or perturbation.mass or perturbation.damping:
            perturb_dynamics(task.model, perturbation, rng)
        if perturbation.distractors:
            observation = task.first_observation()
            things = observation[[[4, 5], [36, 37], *([[11, 12]] if not self._n_inside else [])]]
            place_blocks(task.model, task.data, perturbation.distractors, things, rng)
        return self._observed(task.first_observation()), {"is_success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        :param action: ``(4,)``, clipped to [-1, 1]
        :return: observation, reward, whether the task succeeded, False, info
        """
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        observation, dense, _, _, info = self._task.step(action)
        success = bool(info["success"])
        reward = np.clip(float(dense), 0, 10) / 10 - 1 if self.reward == "dense" else success
        info["is_success"] = success
        return self._observed(observation), float(reward), success, False, info

    @property
    def model(self) -> Any:
        """MuJoCo's model, ``mujoco.MjModel``."""
        return self._task.model

    @property
    def data(self) -> Any:
        """MuJoCo's state, ``mujoco.MjData``."""
        return self._task.data

    @property
    def observed_positions(self) -> list[int]:
        """The entries of the observation that are positions of objects and distractors."""
        places = [4]
        if self._task.has_second_object or self.perturbation.distractors:
            places.append(11)
        n_outside = max(self.perturbation.distractors - self._n_inside, 0)
        places += [39 + 7 * i for i in range(n_outside)]
        return [place + axis for place in places for axis in range(3)]

    def _observed(self, observation: Floats) -> NDArray[np.float32]:
        appended = np.zeros((self.distractor_slots, 7))
        outside = self._task.block_poses()[self._n_inside :]
        appended[: len(outside)] = outside
        return np.concatenate([observation, appended.ravel()]).astype(np.float32)

    def render(self) -> Any:
        """
        :return: an image ``(height, width, 3)`` uint8, or None where ``render_mode`` is None
        """
        if self.render_mode is None:
            return None
        image = self._task.render()
        if self.camera.startswith("corner"):  # Meta-World's are upside down
            image = np.ascontiguousarray(image[::-1, ::-1])
        return image

    def close(self) -> None:
        """Free the renderer."""
        self._task.close()


def reset_box(task: str, own: Floats, spread: float, perturbation: Perturbation) -> Floats:
    """
    Where object and goal are drawn.

    Without perturbation: within ± ``spread`` of the centre of the task's own box, and within that
    box. With it: in x and y within ± ``positions`` or ± ``goals`` of the centre, beyond the own box
    where need be, so that all tasks are perturbed alike; heights stay within the own box, since
    things stand on the table.

    :param task: name without version
    :param own: low and high corner of the task's own box, ``(2, 3)`` or ``(2, 6)``
    :param spread: in m
    :param perturbation: its ``positions`` and ``goals`` count
    :return: low and high corner, as in ``own``
    """
    centre = own.mean(0)
    half = np.repeat([perturbation.positions, perturbation.goals], 3)[: len(centre)]
    near = np.clip(np.stack([centre - spread, centre + spread]), *own)
    wide = np.stack([centre - half, centre + half])
    wide[:, 2::3] = np.clip(wide[:, 2::3], own[0, 2::3], own[1, 2::3])
    box = np.where(half > 0, wide, near)
    if task == "disassemble":  # has no goal to place: these are drawn to be rejected by, no more
        box[:, 3:] = own[:, 3:]
    return box


def make_metaworld(**arguments: Any) -> gym.Env[NDArray[np.float32], NDArray[np.float32]]:
    """
    What ``gym.make("sb3_diffrl/MetaWorld-v0")`` calls.

    :param arguments: of :class:`MetaWorldEnv`
    :return: that environment, in a :class:`~sb3_diffrl.wrappers.PerturbationWrapper` where the
        perturbation has noise, an offset or a delay. Noise and offset are on the positions of
        objects and distractors; the entries of the step before show what was seen then; hand and
        goal are known exactly
    """
    env = MetaWorldEnv(**arguments)
    if not env.perturbation.sensing:
        return env
    return PerturbationWrapper(
        env,
        observation_noise=env.perturbation.observation_noise,
        observation_offset=env.perturbation.observation_offset,
        action_delay=env.perturbation.action_delay,
        indices=env.observed_positions,
        previous={i + 18: i for i in env.observed_positions if i < 18},
    )
