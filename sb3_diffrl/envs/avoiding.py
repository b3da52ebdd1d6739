"""The Avoiding task as gymnasium environments, single and vectorised."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sb3_diffrl.envs.avoiding_planner import avoiding_demonstrations, scene_layout
from sb3_diffrl.envs.avoiding_render import draw
from sb3_diffrl.envs.avoiding_world import (
    HIGH,
    LOW,
    MAX_DISPLACEMENT,
    MAX_EPISODE_STEPS,
    N_WAYS,
    OBSTACLES,
    Bools,
    Floats,
    advance,
    displaced_layouts,
    mode_entropy,
    observe,
    start_positions,
    ways_taken,
)

__all__ = [
    "MAX_EPISODE_STEPS",
    "N_WAYS",
    "AvoidingEnv",
    "AvoidingVectorEnv",
    "avoiding_demonstrations",
    "mode_entropy",
]


class _Task:
    """
    What both environments share: the spaces, the checked arguments, and how an episode begins.

    :param perturbation: see :class:`AvoidingEnv`
    :param displacement: see :class:`AvoidingEnv`
    :param render_mode: None or ``"rgb_array"``
    """

    def __init__(
        self, perturbation: str | None, displacement: float, render_mode: str | None
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: {render_mode!r}, expected None or 'rgb_array'")
        if not 0 <= displacement <= MAX_DISPLACEMENT:
            raise ValueError(
                f"displacement: {displacement}, expected metres from 0 to {MAX_DISPLACEMENT}"
            )
        self.displacement = displacement
        self.layout: Floats | None = OBSTACLES
        if perturbation == "episode":
            self.layout = None
        elif perturbation is not None:
            self.layout = scene_layout(_scene_number(perturbation), displacement)

        self.observation_space = spaces.Box(
            np.tile(LOW, 7).astype(np.float32), np.tile(HIGH, 7).astype(np.float32)
        )
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def begin(self, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """
        :param rng: the environment's source of randomness
        :return: a start position ``(1, 2)`` and a layout ``(1, 6, 2)``
        """
        position = start_positions(rng, 1)
        if self.layout is None:
            return position, displaced_layouts(rng, 1, self.displacement)
        return position, self.layout[None]


def _scene_number(perturbation: str) -> int:
    name, colon, number = str(perturbation).partition(":")
    if name != "scene" or (colon and not (number.isascii() and number.isdigit())):
        raise ValueError(
            f"perturbation: {perturbation!r}, expected None, 'episode', 'scene' or 'scene:<n>' "
            "with a whole number n from 0"
        )
    return int(number or 0)


class AvoidingEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """
    Pass three rows of obstacles to the finish line, in any of 24 ways.

    The observation is the effector's position and the six obstacles' positions, (14,) in metres;
    the action is the displacement, (2,), where 1 is .03 m. Crossing the finish line earns 1 and
    ends the episode, a collision ends it with 0. The effector is kept within x [-1, 1] and
    y [-.1, 1]. ``info`` always has ``is_success``, ``collision``, and ``way``: 0 to 23 after a
    success, else -1.

    :param perturbation: None, the plain layout; ``"scene:<n>"``, the displaced layout number n
        (``"scene"``: number 0), the same in every episode whatever the seed; ``"episode"``,
        displaced anew at every reset
    :param displacement: each obstacle moves uniformly within ± this in x and ± 0.3 of it in y
    :param render_mode: None or ``"rgb_array"``
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 -- as gymnasium's

    def __init__(
        self,
        perturbation: str | None = None,
        displacement: float = 0.10,
        render_mode: str | None = None,
    ) -> None:
        self._task = _Task(perturbation, displacement, render_mode)
        self.observation_space = self._task.observation_space
        self.action_space = self._task.action_space
        self.render_mode = render_mode
        self._obstacles = OBSTACLES[None]
        self._position: Floats = np.zeros((1, 2))
        self._right: Bools = np.zeros((1, 6), bool)
        self._trail: list[Floats] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        :param seed: reseeds the starts and, in the ``"episode"`` form, the layouts
        :param options: unused
        :return: observation ``(14,)`` and info
        """
        super().reset(seed=seed)
        self._position, self._obstacles = self._task.begin(self.np_random)
        self._right = np.zeros((1, 6), bool)
        self._trail = [self._position[0]]
        info = {"is_success": False, "collision": False, "way": -1}
        return observe(self._position, self._obstacles)[0], info

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """
        :param action: ``(2,)``, clipped to [-1, 1]
        :return: observation ``(14,)``, reward, terminated, truncated (always False: the time limit
            is a wrapper's), info
        """
        self._position, self._right, collision, finish = advance(
            self._position, self._obstacles, self._right, np.asarray(action).reshape(1, 2)
        )
        success, collided = bool(finish[0]), bool(collision[0])
        way = int(ways_taken(self._right)[0]) if success else -1
        if self.render_mode is not None:
            self._trail.append(self._position[0])
        info = {"is_success": success, "collision": collided, "way": way}
        observation = observe(self._position, self._obstacles)[0]
        return observation, float(success), success or collided, False, info

    def render(self) -> NDArray[np.uint8] | None:
        """
        :return: an RGB image, ``(288, 512, 3)``, or None where there is no render mode
        """
        if self.render_mode is None:
            return None
        return draw(self._obstacles[0], np.array(self._trail))


class AvoidingVectorEnv(VectorEnv[NDArray[np.float32], NDArray[np.float32], NDArray[Any]]):
    """
    ``N`` Avoiding tasks stepped together; an episode that ends begins anew in the same step.

    Environment ``i`` behaves exactly as an :class:`AvoidingEnv` with the seed ``seed + i``.
    ``infos`` has the keys of :class:`AvoidingEnv` as arrays ``(N,)`` and, in steps that end
    episodes, ``final_obs`` and ``final_info`` with their masks.

    :param num_envs: ``N``
    :param perturbation: see :class:`AvoidingEnv`
    :param displacement: see :class:`AvoidingEnv`
    :param render_mode: None or ``"rgb_array"``
    :param max_episode_steps: steps after which an episode is truncated
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 -- as gymnasium's
        **AvoidingEnv.metadata,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        perturbation: str | None = None,
        displacement: float = 0.10,
        render_mode: str | None = None,
        max_episode_steps: int = MAX_EPISODE_STEPS,
    ) -> None:
        self._task = _Task(perturbation, displacement, render_mode)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.max_episode_steps = max_episode_steps
        self.single_observation_space = self._task.observation_space
        self.single_action_space = self._task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._generators = [np_random()[0] for _ in range(num_envs)]
        self._obstacles = np.repeat(OBSTACLES[None], num_envs, axis=0)
        self._position: Floats = np.zeros((num_envs, 2))
        self._right = np.zeros((num_envs, 6), bool)
        self._steps = np.zeros(num_envs, np.int64)
        self._trails: list[list[Floats]] = [[] for _ in range(num_envs)]

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """
        :param seed: environment ``i`` takes ``seed + i``, or entry ``i`` of a list; None goes on
            with the generators as they are
        :param options: unused
        :return: observations ``(N, 14)`` and infos
        """
        seeds: list[int | None]
        if isinstance(seed, list):
            seeds = seed
        else:
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(
                f"seed: {len(seeds)} given, expected {self.num_envs}, one for each env"
            )
        for i, one in enumerate(seeds):
            if one is not None:
                self._generators[i] = np_random(one)[0]
        everyone = np.ones(self.num_envs, bool)
        self._begin(everyone)
        return observe(self._position, self._obstacles), _infos(~everyone, ~everyone, self._right)

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[
        NDArray[np.float32],
        NDArray[np.float64],
        NDArray[np.bool_],
        NDArray[np.bool_],
        dict[str, Any],
    ]:
        """
        :param actions: ``(N, 2)``, clipped to [-1, 1]
        :return: observations ``(N, 14)`` (of the new episode where one ended), rewards, terminated
            and truncated ``(N,)``, infos
        """
        actions = np.asarray(actions).reshape(self.num_envs, 2)
        self._position, self._right, collision, success = advance(
            self._position, self._obstacles, self._right, actions
        )
        self._steps += 1
        terminated = success | collision
        truncated = self._steps >= self.max_episode_steps
        done = terminated | truncated
        observations = observe(self._position, self._obstacles)
        infos = _infos(success, collision, self._right)
        if self.render_mode is not None:
            for trail, position in zip(self._trails, self._position, strict=True):
                trail.append(position)
        if done.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(done):
                final_obs[i] = observations[i].copy()
            final_info = {k: np.where(done, v, v.dtype.type(0)) for k, v in infos.items()}
            self._begin(done)
            observations = observe(self._position, self._obstacles)
            infos = _infos(success & ~done, collision & ~done, self._right)
            infos |= {"final_obs": final_obs, "_final_obs": done.copy()}
            infos |= {"final_info": final_info, "_final_info": done.copy()}
        return observations, success.astype(np.float64), terminated, truncated, infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """
        :return: one RGB image ``(288, 512, 3)`` for each environment, or None where there is no
            render mode
        """
        if self.render_mode is None:
            return None
        pairs = zip(self._obstacles, self._trails, strict=True)
        return tuple(draw(obstacles, np.array(trail)) for obstacles, trail in pairs)

    def _begin(self, which: Bools) -> None:
        """Begin a new episode in the environments of a mask, ``(N,)``."""
        for i in np.flatnonzero(which):
            position, obstacles = self._task.begin(self._generators[i])
            self._position[i], self._obstacles[i] = position[0], obstacles[0]
            self._trails[i] = [position[0]]
        self._right[which] = False
        self._steps[which] = 0


def _infos(success: Bools, collision: Bools, right: Bools) -> dict[str, Any]:
    """The info of every environment as arrays ``(N,)``, each with its mask."""
    infos = {
        "is_success": success,
        "collision": collision,
        "way": np.where(success, ways_taken(right), -1),
    }
    everyone = np.ones(len(success), bool)
    return infos | {f"_{key}": everyone.copy() for key in infos}
