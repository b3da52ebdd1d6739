"""Action chunks."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.wrappers import ActionChunkWrapper

# -- action chunks -----------------------------------------------------------------------------


class CountEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Rewards the number of the step by itself and remembers the actions.

    :param length: steps of an episode
    :param truncates: whether episodes are cut rather than end
    """

    observation_space = spaces.Box(-100, 100, (1,), np.float32)
    action_space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))

    def __init__(self, length: int = 7, truncates: bool = False):
        self.length, self.truncates = length, truncates
        self.actions: list[np.ndarray] = []

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.actions = []
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        n = len(self.actions)
        ends = n == self.length
        info = {"n": n, "is_success": ends}
        obs = np.full(1, n, np.float32)
        return obs, float(n), ends and not self.truncates, ends and self.truncates, info


@pytest.mark.parametrize("truncates", [False, True])
def test_a_chunk_is_executed_up_to_the_end_of_the_episode(truncates: bool) -> None:
    env = CountEnv(truncates=truncates)
    chunks = ActionChunkWrapper(env, horizon=4, n_executed=3, gamma=0.5)
    assert chunks.action_space == spaces.Box(
        np.tile(env.action_space.low, (4, 1)), np.tile(env.action_space.high, (4, 1))
    )
    obs, _ = chunks.reset()
    chunk = np.arange(8, dtype=np.float32).reshape(4, 2)

    obs, reward, terminated, truncated, info = chunks.step(chunk)
    assert obs == 3 and reward == 1 + 0.5 * 2 + 0.25 * 3 and not (terminated or truncated)
    np.testing.assert_array_equal(env.actions, chunk[:3])
    assert info["env_steps"] == 3 and [i["n"] for i in info["chunk_infos"]] == [1, 2, 3]

    chunks.step(chunk)
    obs, reward, terminated, truncated, info = chunks.step(chunk)
    assert obs == 7 and reward == 7 and (terminated, truncated) == (not truncates, truncates)
    assert info["env_steps"] == 1 and info["is_success"] and len(info["chunk_infos"]) == 1


def test_the_actions_before_the_start_of_a_chunk_are_not_executed() -> None:
    env = CountEnv()
    chunks = ActionChunkWrapper(env, horizon=4, n_executed=2, start=1)
    chunks.reset()
    chunk = np.arange(8, dtype=np.float32).reshape(4, 2)
    chunks.step(chunk)
    np.testing.assert_array_equal(env.actions, chunk[1:3])
    assert ActionChunkWrapper(env, 4, start=1).n_executed == 3


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_chunks_in_training_count_environment_steps(vec_env: type[DummyVecEnv]) -> None:
    env = vec_env([lambda: ActionChunkWrapper(Monitor(CountEnv()), 3)] * 2)
    model = DiffusionPPO("policy", env, n_steps=6, batch_size=12, policy_kwargs={"net_arch": [8]})
    model.learn(12)
    env.close()
    # Two episodes of 7 steps each in chunks of 3, 3 and 1.
    assert model.num_timesteps == 12 and model.env_steps == 28
    assert [info["r"] for info in model.ep_info_buffer or ()] == [28.0] * 4  # undiscounted
    assert [info["l"] for info in model.ep_info_buffer or ()] == [7] * 4
    assert list(model.ep_success_buffer or ()) == [True] * 4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"horizon": 2, "n_executed": 3}, "between 1 and horizon - start = 2, got 3"),
        ({"horizon": 4, "n_executed": 3, "start": 2}, "between 1 and horizon - start = 2, got 3"),
        ({"horizon": 2, "start": 2}, "start must lie between 0 and horizon - 1 = 1, got 2"),
        ({"horizon": 2, "start": -1}, "between 0 and horizon - 1 = 1, got -1"),
        ({"horizon": 2, "gamma": 0.0}, r"gamma must lie in \(0, 1\], got 0.0"),
    ],
)
def test_bad_chunks(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionChunkWrapper(CountEnv(), **kwargs)


def test_chunks_of_discrete_actions_are_refused() -> None:
    env = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match=r"needs a Box action space, got Discrete\(2\)"):
        ActionChunkWrapper(env, 2)
