"""Decisions of several actions."""

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor

from sb3_diffrl.wrappers.records import RecordedWrapper


class ActionChunkWrapper(RecordedWrapper):
    """
    Decisions of ``H`` actions, of which ``n`` are executed, from the one at index ``start`` on::

        step              0  1  2  3  4  5      H = 4, start = 1, n = 2
        decision 1    a0 a1 a2 a3
                         == ==
        decision 2          b0 b1 b2 b3
                               == ==

    With ``n < H`` this is receding-horizon control. A policy that predicts from the oldest of its
    ``n_observations`` on, as those of Diffusion Policy and LeRobot do, has
    ``start = n_observations - 1``: the actions before belong to the past.

    A real robot does not stand still while the next chunk is computed. With a ``delay`` of ``d``
    steps, decision 2 is made from the observation at its beginning while the robot goes on with
    ``d`` more actions of decision 1, and takes over after them::

        step              0  1  2  3  4  5  6  7     H = 6, n = 4, d = 2
        decision 1       a0 a1 a2 a3 a4 a5
                         == == == == == ==
        decision 2                   b0 b1 b2 b3 b4 b5
                                           == == == ==

    The first decision of an episode is waited for. Which actions are under way is not part of the
    observation.

    The algorithm's ``gamma`` is one per decision: for a discount ``g`` per environment step it is
    ``g**n``, :attr:`decision_gamma`. Episode returns and lengths stay those of the environment: a
    :class:`~stable_baselines3.common.monitor.Monitor` is put inside where there is none. A time
    limit inside counts environment steps.

    :param env: environment with a Box action space ``(*shape)``
    :param horizon: number of actions ``H`` in a chunk
    :param n_executed: number ``n`` of them that are executed; by default as many as there are
    :param start: index of the first one that is executed, 0 to ``H - 1``
    :param gamma: discount per environment step of the rewards within a chunk, above 0 to 1
    :param delay: number ``d`` of steps that a decision takes, 0 to ``n - 1``
    :raises ValueError: for a value out of its range, or another action space
    """

    def __init__(
        self,
        env: gym.Env,
        horizon: int,
        n_executed: int | None = None,
        start: int = 0,
        gamma: float = 1.0,
        delay: int = 0,
    ):
        n_executed = checked_n_executed(horizon, n_executed, start, delay)
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {gamma}.")
        space = env.action_space
        if not isinstance(space, gym.spaces.Box):
            raise ValueError(f"ActionChunkWrapper needs a Box action space, got {space}.")
        super().__init__(env if is_wrapped(env, Monitor) else Monitor(env))
        self.horizon, self.n_executed, self.start = horizon, n_executed, start
        self.gamma, self.delay = gamma, delay
        self._under_way: np.ndarray | None = None
        low, high = (
            np.broadcast_to(bound, (horizon, *space.shape)) for bound in (space.low, space.high)
        )
        self.action_space = gym.spaces.Box(low, high, dtype=space.dtype.type)

    @property
    def decision_gamma(self) -> float:
        """Discount per decision that belongs to the discount per environment step."""
        return self.gamma**self.n_executed

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """
        :param kwargs: of the environment
        :return: first observation and info
        """
        self._under_way = None
        return self.env.reset(**kwargs)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Execute a chunk, up to the first end of an episode.

        :param action: ``(H, *shape)``
        :return: the last observation, the discounted sum of the rewards, whether the episode ended
            or was cut, and the last info with ``env_steps``, the number of actions executed, and
            ``chunk_infos``, the infos of all of them
        """
        first, end = self.start + self.delay, self.start + self.n_executed
        before = action[self.start : first] if self._under_way is None else self._under_way
        self._under_way = action[end : end + self.delay]
        total, infos = 0.0, []
        for i, one in enumerate([*before, *action[first:end]]):
            observation, reward, terminated, truncated, info = self.env.step(one)
            total += self.gamma**i * float(reward)
            infos.append(info)
            if terminated or truncated:
                break
        extra = {"env_steps": len(infos), "chunk_infos": infos}
        return observation, total, terminated, truncated, {**infos[-1], **extra}


def checked_n_executed(horizon: int, n_executed: int | None, start: int, delay: int) -> int:
    """
    :param horizon: number of actions in a chunk
    :param n_executed: number of them that are executed, None for as many as there are
    :param start: index of the first one that is executed
    :param delay: number of steps that a decision takes
    :return: number of actions that are executed
    :raises ValueError: where they do not fit together
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}.")
    if not 0 <= start < horizon:
        raise ValueError(f"start must lie between 0 and horizon - 1 = {horizon - 1}, got {start}.")
    if delay < 0:
        raise ValueError(f"delay must be at least 0, got {delay}.")
    most = horizon - start - delay
    n_executed = most if n_executed is None else n_executed
    if not 1 <= n_executed <= most:
        raise ValueError(
            f"n_executed must lie between 1 and horizon - start - delay = {most}, got {n_executed}."
        )
    if delay >= n_executed:
        raise ValueError(
            f"delay must be less than n_executed = {n_executed}, got {delay}: a decision is to be "
            "ready before the next one begins."
        )
    return n_executed
