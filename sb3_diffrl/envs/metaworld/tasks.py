"""Tasks of Meta-World by name, and the few things changed in them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_diffrl.envs.metaworld.scene import Pristine, add_blocks, block_name

Floats = NDArray[np.float64]

TASKS = (
    "assembly",
    "basketball",
    "button-press-topdown",
    "coffee-pull",
    "coffee-push",
    "dial-turn",
    "disassemble",
    "door-lock",
    "door-unlock",
    "drawer-open",
    "handle-pull",
    "handle-pull-side",
    "lever-pull",
    "pick-place",
    "pick-place-wall",
    "push",
    "push-wall",
    "stick-push",
    "sweep",
    "window-open",
)
"""
Twenty tasks whose scripted expert still succeeds when object and goal are ±10 cm away from where
they usually are.
"""

MAX_DRAWS = 10_000
"""Positions drawn before giving up on one that a task accepts."""


def task_name(task: str) -> str:
    """
    :param task: ``"assembly"`` or ``"assembly-v3"``, any of Meta-World's 50
    :return: Meta-World's name, ``"assembly-v3"``
    :raises ValueError: for an unknown name
    """
    known = _metaworld("env_dict").ALL_V3_ENVIRONMENTS
    name = task if task.endswith("-v3") else f"{task}-v3"
    if name not in known:
        names = ", ".join(sorted(each.removesuffix("-v3") for each in known))
        raise ValueError(f"task: {task!r}, expected one of {names}")
    return name


def make_task(name: str, n_blocks: int = 0, **arguments: Any) -> Any:
    """
    :param name: Meta-World's name of a task
    :param n_blocks: number of distractors
    :param arguments: of the task's constructor: ``render_mode``, ``camera_name``, ``width``,
        ``height``
    :return: the task, a ``SawyerXYZEnv`` with the methods of :class:`TaskHooks`
    """
    base = _metaworld("env_dict").ALL_V3_ENVIRONMENTS[name]
    task = type(base.__name__, (TaskHooks, base), {"n_blocks": n_blocks})(**arguments)
    task.prepare()
    return task


def make_expert(name: str) -> Callable[[Floats], Floats]:
    """
    :param name: Meta-World's name of a task
    :return: its scripted expert: from an observation in Meta-World's layout, ``(39,)`` float64, to
        an action within [-1, 1], ``(4,)``
    """
    policy = _metaworld("policies").ENV_POLICY_MAP[name]()

    def act(observation: Floats) -> Floats:
        return np.clip(policy.get_action(observation), -1.0, 1.0)

    return act


def _metaworld(module: str) -> Any:
    try:
        return importlib.import_module(f"metaworld.{module}")
    except ModuleNotFoundError as error:
        if error.name != "metaworld":
            raise
        raise ImportError(
            "Meta-World is not installed: pip install 'sb3-diffrl[metaworld]'"
        ) from error


class TaskHooks:
    """
    What is changed in a task of Meta-World.

    - Positions come from a function that is handed in. Meta-World draws from a generator that
      ``reset(seed=)`` does not seed.
    - An episode depends on nothing that happened before it: the model's arrays are put back. The
      hand's way to its start, a quarter of a thousand simulator steps that are the same each time,
      is simulated once.
    - ``reset_model`` runs twice with the same positions, because many tasks read the simulator's
      positions before these are up to date. In Meta-World the first observation of some tasks shows
      the object where it is not.
    - The observation is not clipped: Meta-World clips goals to its own box in ``step``, and not in
      ``reset``.
    - No limit of 500 steps; time limits are gymnasium's ``TimeLimit``.
    - Contacts are looked through as arrays, with the same results: Meta-World's loop over them
      takes longer than the simulator.
    """

    # Of Meta-World's classes, which are only known when a task is made.
    model: Any
    data: Any
    fullpath: str
    width: int
    height: int
    frame_skip: int
    tcp_center: Floats
    init_tcp: Floats
    curr_path_length: int
    max_path_length: int
    reset_model: Callable[[], Floats]
    _random_reset_space: spaces.Box
    _get_pos_objects: Callable[[], Floats]
    _get_obs: Callable[[], Floats]

    n_blocks: int  # number of distractors
    _draw: Callable[[], Floats]
    _last_draw: Floats
    _n_draws = 0
    _hand_at_start: Floats | None = None

    def prepare(self) -> None:
        """Set up what Meta-World's benchmarks set up from outside."""
        space = self._random_reset_space
        self.reset_box = np.stack([space.low, space.high])
        self._partially_observable = False
        self._set_task_called = True
        self.goal_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self._HAND_SPACE = self.goal_space
        self.__dict__.pop("sawyer_observation_space", None)  # cached with the former bounds
        self.max_path_length = np.iinfo(np.int64).max
        self._pristine = Pristine(self.model)

    def begin(self, draw: Callable[[], Floats], max_overlap: float = np.inf) -> None:
        """
        Begin an episode; :meth:`first_observation` is called once all is in place.

        :param draw: draws where object and goal are, ``(3,)`` or ``(6,)`` in metres, until the task
            accepts them
        :param max_overlap: they are drawn again where things are deeper inside of one another, in m
        :raises ValueError: where the task accepts none
        """
        import mujoco

        self._n_draws = 0
        while True:
            self._pristine.restore()
            mujoco.mj_resetData(self.model, self.data)
            self.curr_path_length = 0
            self._draw = draw
            self.reset_model()
            self._draw = self._last_draw.copy
            self._n_draws -= 1
            self.reset_model()
            if self.overlap() <= max_overlap:
                break

    def overlap(self) -> float:
        """
        :return: how deep things are inside of one another at most, in m
        """
        import mujoco

        mujoco.mj_forward(self.model, self.data)
        return -float(np.min(self.data.contact.dist, initial=0.0))

    def first_observation(self) -> Floats:
        """
        :return: the observation of the present state, which is also the one before it, ``(39,)``
        """
        import mujoco

        mujoco.mj_forward(self.model, self.data)
        self._prev_obs = self._get_curr_obs_combined_no_goal()
        return self._get_obs()

    def _get_state_rand_vec(self) -> Floats:
        if self._n_draws == MAX_DRAWS:
            raise ValueError(
                f"positions: none of {MAX_DRAWS} draws keeps the distance between object and goal "
                "that the task wants and leaves room for the robot; change `spread` or the "
                "perturbation's positions and goals"
            )
        self._n_draws += 1
        self._last_draw = self._draw()
        return self._last_draw.copy()

    @property
    def has_second_object(self) -> bool:
        """Whether the observation's place for a second object, 11:18, is the task's own."""
        return len(self._get_pos_objects()) > 3

    def block_poses(self) -> Floats:
        """
        :return: position and quaternion of each distractor, ``(n_blocks, 7)``
        """
        bodies = [self.data.body(block_name(i)) for i in range(self.n_blocks)]
        return np.array([[*body.xpos, *body.xquat] for body in bodies]).reshape(-1, 7)

    def touching_object(self, object_geom_id: int) -> bool:
        """
        :param object_geom_id: of an object
        :return: whether both pads of the gripper press on it
        """
        contact, forces = self.data.contact, self.data.efc_force
        pairs, addresses = contact.geom, contact.efc_address
        of_object = (pairs == object_geom_id).any(axis=1)
        for pad in ("leftpad_geom", "rightpad_geom"):
            touching = of_object & (pairs == self.data.geom(pad).id).any(axis=1)
            if not touching.any() or not sum(forces[addresses[touching]]) > 0:
                return False
        return True

    def _get_curr_obs_combined_no_goal(self) -> Floats:
        observation: Floats = super()._get_curr_obs_combined_no_goal()  # type: ignore[misc]  # Meta-World's
        if self.n_blocks and not self.has_second_object:
            observation[11:18] = self.block_poses()[0]
        return observation

    def _initialize_simulation(self) -> tuple[Any, Any]:
        if not self.n_blocks:
            return super()._initialize_simulation()  # type: ignore[misc]  # Meta-World's
        import mujoco

        spec = mujoco.MjSpec.from_file(self.fullpath)
        add_blocks(spec, self.n_blocks)
        model = spec.compile()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, self.width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, self.height)
        return model, mujoco.MjData(model)

    def _reset_hand(self, steps: int = 50) -> None:
        import mujoco

        kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        if self._hand_at_start is None:
            super()._reset_hand(steps)  # type: ignore[misc]  # Meta-World's
            self._hand_at_start = np.empty(mujoco.mj_stateSize(self.model, kind))
            mujoco.mj_getState(self.model, self.data, self._hand_at_start, kind)
        mujoco.mj_setState(self.model, self.data, self._hand_at_start, kind)
        mujoco.mj_forward(self.model, self.data)
        self.init_tcp = self.tcp_center
