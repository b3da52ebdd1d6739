"""ChunkedPolicy: chunks one action at a time."""

import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.chunked_policy import ChunkedPolicy
from sb3_diffrl.wrappers import ActionChunkWrapper, ObservationHistoryWrapper

CHUNKS: list[dict[str, Any]] = [
    {"horizon": 4},
    {"horizon": 4, "n_executed": 2},
    {"horizon": 5, "n_executed": 2, "start": 1},
    {"horizon": 7, "n_executed": 4, "start": 1, "delay": 2},
]


class PlaneEnv(gym.Env[np.ndarray, np.ndarray]):
    """Moves by the action and writes observations in place; 11 steps."""

    observation_space = spaces.Box(-50, 50, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.position = np.ones(2, np.float32)
        self.actions: list[np.ndarray] = []
        return self.position.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.actions.append(action.copy())
        self.position = self.position + action
        return self.position, 0.0, len(self.actions) == 11, False, {}


def model_for(env: gym.Env) -> DiffusionPPO:
    return DiffusionPPO("policy", env, n_steps=8, batch_size=8, policy_kwargs={"net_arch": [8]})


def act(policy: ChunkedPolicy, env: PlaneEnv) -> np.ndarray:
    policy.reset()
    observation, _ = env.reset()
    done = False
    while not done:
        observation, _, done, _, _ = env.step(policy.predict(observation))
    return np.array(env.actions)


@pytest.mark.parametrize("arguments", CHUNKS)
@pytest.mark.parametrize("n_observations", [None, 3])
@pytest.mark.parametrize("deterministic", [False, True])
def test_it_acts_as_the_model_in_its_wrapped_env(
    arguments: dict[str, Any], n_observations: int | None, deterministic: bool
) -> None:
    bare = PlaneEnv()
    seen = bare if n_observations is None else ObservationHistoryWrapper(bare, n_observations)
    env = ActionChunkWrapper(seen, **arguments)
    model = model_for(env)
    th.manual_seed(1)
    observation, _ = env.reset()
    done = False
    while not done:
        action, _ = model.predict(observation, deterministic=deterministic)
        observation, _, done, _, _ = env.step(action)
    expected = np.array(bare.actions)

    policy = ChunkedPolicy(model, deterministic=deterministic)
    for _ in range(2):  # the second time after a reset within an episode
        th.manual_seed(1)
        np.testing.assert_array_equal(act(policy, PlaneEnv()), expected)
        policy.predict(np.zeros(2, np.float32))


class Counting:
    """Stands for a model: its n-th chunk holds ``10 n + i`` at index i."""

    def __init__(self, horizon: int):
        arguments = {"horizon": horizon, "n_executed": horizon, "start": 0, "gamma": 1, "delay": 0}
        self.env_wrappers = [{"name": "ActionChunkWrapper", "arguments": arguments}]
        self.horizon, self.n, self.threads = horizon, 0, set[threading.Thread]()

    def predict(self, observation: Any, deterministic: bool) -> tuple[np.ndarray, None]:
        chunk = 10.0 * self.n + np.arange(self.horizon)
        self.n += 1
        self.threads.add(threading.current_thread())
        return chunk[:, None], None


@pytest.mark.parametrize("m", [0.0, 0.01, 2.0])
def test_temporal_ensembling_weighs_the_oldest_most(m: float) -> None:
    policy = ChunkedPolicy(Counting(3), ensemble=m)  # type: ignore[arg-type]
    found = [float(policy.predict(np.zeros(1))[0]) for _ in range(5)]
    w = np.exp(-m * np.arange(3))
    expected = [
        0,
        np.average([1, 10], weights=w[:2]),
        np.average([2, 11, 20], weights=w),
        np.average([12, 21, 30], weights=w),  # the first chunk has ended
        np.average([22, 31, 40], weights=w),
    ]
    np.testing.assert_allclose(found, expected)


def test_ensembling_every_other_step_with_chunks_that_begin_in_the_past() -> None:
    policy = ChunkedPolicy(Counting(6), n_executed=2, start=1, ensemble=0.0)  # type: ignore[arg-type]
    found = [float(policy.predict(np.zeros(1))[0]) for _ in range(6)]
    expected = [1, 2, (3 + 11) / 2, (4 + 12) / 2, (5 + 13 + 21) / 3, (14 + 22) / 2]
    np.testing.assert_allclose(found, expected)


def test_delayed_chunks_are_computed_in_a_thread_beside() -> None:
    model = Counting(6)
    policy = ChunkedPolicy(model, n_executed=4, delay=2)  # type: ignore[arg-type]
    found = [int(policy.predict(np.zeros(1))[0]) for _ in range(11)]
    assert found == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 22]
    assert threading.current_thread() not in model.threads and len(model.threads) == 1


def test_the_thread_is_waited_for_only_when_its_chunk_is_needed() -> None:
    model, ready = Counting(6), threading.Event()
    predict = model.predict

    def slow(observation: Any, deterministic: bool) -> tuple[np.ndarray, None]:
        if model.n == 1:
            assert ready.wait(10)
        return predict(observation, deterministic)

    model.predict = slow  # type: ignore[method-assign]
    policy = ChunkedPolicy(model, n_executed=4, delay=2)  # type: ignore[arg-type]
    found = [int(policy.predict(np.zeros(1))[0]) for _ in range(6)]
    assert found == [0, 1, 2, 3, 4, 5] and model.n == 1  # the second chunk is still under way
    ready.set()
    assert int(policy.predict(np.zeros(1))[0]) == 12


@pytest.mark.parametrize("delay", [0, 2])
def test_an_episode_begins_after_a_prediction_that_failed(delay: int) -> None:
    model = Counting(6)
    predict = model.predict

    def failing(observation: Any, deterministic: bool) -> tuple[np.ndarray, None]:
        if observation[0] < 0:
            raise ValueError("bad observation")
        return predict(observation, deterministic)

    model.predict = failing  # type: ignore[method-assign]
    policy = ChunkedPolicy(model, n_executed=4, delay=delay)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bad observation"):
        policy.predict(-np.ones(1))
    policy.reset()
    steps = [float(policy.predict(np.zeros(1))[0]) for _ in range(4)]
    if delay:
        policy.predict(-np.ones(1))  # fails in the thread beside
    policy.reset()
    assert [*steps, float(policy.predict(np.zeros(1))[0])] == [0, 1, 2, 3, 10]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a model that predicts chunks"):
        ChunkedPolicy(model_for(PlaneEnv()))
    model: Any = Counting(4)
    with pytest.raises(ValueError, match=r"horizon - start - delay = 3, got 4"):
        ChunkedPolicy(model, start=1, n_executed=4)
    with pytest.raises(ValueError, match="ensemble must be"):
        ChunkedPolicy(model, ensemble=-1.0)
