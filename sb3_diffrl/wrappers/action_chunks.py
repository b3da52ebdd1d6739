"""Decisions of several actions."""

from typing import Any

import gymnasium as gym
import numpy as np


class ActionChunkWrapper(gym.Wrapper[Any, np.ndarray, Any, np.ndarray]):
    """
    Decisions of ``H`` actions, of which ``n`` are executed, from the one at index ``start`` on::

        decision 1   a0 a1 a2 a3             H = 4 predicted
                        == ==                start = 1, n = 2 executed
        decision 2         a2 a3 a4 a5
                              == ==

    A policy that was trained to predict from the oldest of its ``n_observations`` on, as those of
    Diffusion Policy and LeRobot are, has ``start = n_observations - 1``: the actions before belong
    to the past.

    The algorithm's ``gamma`` is one per decision: for a discount ``g`` per environment step it is
    ``g**n``. Put a :class:`~stable_baselines3.common.monitor.Monitor` inside, so that episode
    returns and lengths stay those of the environment. A time limit inside counts environment steps.

    :param env: environment with a Box action space ``(*shape)``
    :param horizon: number of actions ``H`` in a chunk
    :param n_executed: number ``n`` of them that are executed, 1 to ``H - start``; by default all
        from ``start`` on
    :param start: index of the first one that is executed, 0 to ``H - 1``
    :param gamma: discount per environment step of the rewards within a chunk, above 0 to 1
    :raises ValueError: for a value out of its range, or another action space
    """

    def __init__(
        self,
        env: gym.Env,
        horizon: int,
        n_executed: int | None = None,
        start: int = 0,
        gamma: float = 1.0,
    ):
        super().__init__(env)
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}.")
        if not 0 <= start < horizon:
            raise ValueError(
                f"start must lie between 0 and horizon - 1 = {horizon - 1}, got {start}."
            )
        n_executed = horizon - start if n_executed is None else n_executed
        if not 1 <= n_executed <= horizon - start:
            raise ValueError(
                f"n_executed must lie between 1 and horizon - start = {horizon - start}, got "
                f"{n_executed}."
            )
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {gamma}.")
        space = env.action_space
        if not isinstance(space, gym.spaces.Box):
            raise ValueError(f"ActionChunkWrapper needs a Box action space, got {space}.")
        self.horizon, self.n_executed, self.start, self.gamma = horizon, n_executed, start, gamma
        low, high = (
            np.broadcast_to(bound, (horizon, *space.shape)) for bound in (space.low, space.high)
        )
        self.action_space = gym.spaces.Box(low, high, dtype=space.dtype.type)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Execute a chunk, up to the first end of an episode.

        :param action: ``(H, *shape)``
        :return: the last observation, the discounted sum of the rewards, whether the episode ended
            or was cut, and the last info with ``env_steps``, the number of actions executed, and
            ``chunk_infos``, the infos of all of them
        """
        total, infos = 0.0, []
        for i in range(self.n_executed):
            observation, reward, terminated, truncated, info = self.env.step(action[self.start + i])
            total += self.gamma**i * float(reward)
            infos.append(info)
            if terminated or truncated:
                break
        extra = {"env_steps": len(infos), "chunk_infos": infos}
        return observation, total, terminated, truncated, {**infos[-1], **extra}
