"""Perturbed sensing of any environment, by brute force."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from sb3_diffrl.wrappers import PerturbationWrapper

N = 4


class Recorder(gym.Env[np.ndarray, np.ndarray]):
    """Shows a number drawn at reset, the step, what was shown one step ago, and a constant."""

    def __init__(self, low: float = -1.0) -> None:
        self.observation_space = spaces.Box(-100.0, 10_000.0, (N,), np.float32)
        self.action_space = spaces.Box(np.array([low, -1], np.float32), np.ones(2, np.float32))
        self.done: list[np.ndarray] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.drawn, self.t, self.done = self.np_random.uniform(), 0, []
        return self.show(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.done.append(action)
        return self.show(), float(self.t), False, False, {"t": self.t}

    def show(self) -> np.ndarray:
        return np.array([self.drawn, self.t, max(self.t - 1, 0), 7], np.float32)


def play(env: gym.Env, n: int, seed: int | None) -> np.ndarray:
    """What is seen in an episode of ``n`` steps, ``(n + 1, N)``."""
    seen = [env.reset(seed=seed)[0]]
    seen += [env.step(np.zeros(2, np.float32))[0] for _ in range(n)]
    return np.array(seen)


def test_without_perturbation_it_changes_nothing() -> None:
    env = PerturbationWrapper(Recorder())
    assert env.observation_space == env.unwrapped.observation_space
    assert np.array_equal(play(env, 20, 3), play(Recorder(), 20, 3))


def test_noise_is_gaussian_new_in_every_step_and_on_its_entries_alone() -> None:
    env = PerturbationWrapper(Recorder(), observation_noise=0.5, indices=[0, 3])
    noise = play(env, 20_000, 0) - play(Recorder(), 20_000, 0)
    assert not noise[:, [1, 2]].any()
    assert np.abs(noise[:, [0, 3]].mean(0)).max() < 4 * 0.5 / np.sqrt(20_000)
    assert noise[:, [0, 3]].std(0) == pytest.approx([0.5, 0.5], rel=0.03)
    assert (np.abs(noise[:, 0]) > 1).mean() == pytest.approx(0.0455, abs=0.006)  # beyond 2 σ
    assert abs(np.corrcoef(noise[1:, 0], noise[:-1, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(noise[:, 0], noise[:, 3])[0, 1]) < 0.03


def test_offsets_are_uniform_and_stay_for_an_episode() -> None:
    env, plain = PerturbationWrapper(Recorder(), observation_offset=0.2), Recorder()
    offsets = []
    for episode in range(2000):
        seed = 5 if episode == 0 else None
        offset = play(env, 2, seed) - play(plain, 2, seed)
        assert np.ptp(offset, axis=0).max() < 1e-5
        offsets.append(offset[0])
    drawn = np.array(offsets)
    assert np.abs(drawn).max() <= 0.2 + 1e-6
    assert drawn.std(0) == pytest.approx([0.2 / np.sqrt(3)] * N, rel=0.06)
    assert np.abs(drawn.mean(0)).max() < 0.012
    assert np.abs(np.corrcoef(drawn.T) - np.eye(N)).max() < 0.1


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_actions_are_late(delay: int) -> None:
    recorder = Recorder()
    env = PerturbationWrapper(recorder, action_delay=delay)
    rng = np.random.default_rng(0)
    for seed in range(2):
        env.reset(seed=seed)
        actions = rng.uniform(-1, 1, (8, 2)).astype(np.float32)
        buffer = np.empty(2, np.float32)
        for action in actions:
            buffer[:] = action  # the caller may use its array again
            env.step(buffer)
        expected = np.concatenate([np.zeros((delay, 2)), actions])[:8]
        assert np.array_equal(recorder.done, expected)


def test_where_there_is_no_zero_the_nearest_is_done() -> None:
    recorder = Recorder(low=0.25)
    env = PerturbationWrapper(recorder, action_delay=1)
    env.reset(seed=0)
    env.step(np.ones(2, np.float32))
    assert recorder.done[0].tolist() == [0.25, 0]


def test_an_entry_of_the_step_before_shows_what_was_seen_then() -> None:
    env = PerturbationWrapper(
        Recorder(), observation_noise=0.3, observation_offset=1, indices=[0, 1], previous={2: 1}
    )
    for seed in (0, None):
        seen = play(env, 50, seed)
        assert np.array_equal(seen[1:, 2], seen[:-1, 1])
        assert seen[0, 2] == seen[0, 1]


def test_a_seed_gives_the_same_episodes() -> None:
    def episodes() -> np.ndarray:
        env = PerturbationWrapper(Recorder(), observation_noise=0.3, observation_offset=0.1)
        return np.array([play(env, 5, 7), play(env, 5, None), play(env, 5, 8), play(env, 5, 7)])

    first, second = episodes(), episodes()
    assert np.array_equal(first, second)
    assert np.array_equal(first[0], first[3])
    assert not np.array_equal(first[0] - first[0, 0], first[1] - first[1, 0])
    assert not np.array_equal(first[0] - first[0, 0], first[2] - first[2, 0])


def test_its_draws_are_not_those_of_the_environment() -> None:
    env = PerturbationWrapper(Recorder(), observation_offset=1, indices=[3])
    shown = np.array([play(env, 0, seed)[0] for seed in range(300)], float)
    assert abs(np.corrcoef(shown[:, 0], shown[:, 3])[0, 1]) < 0.15


@pytest.mark.parametrize(
    ("arguments", "low", "high"),
    [
        ({"observation_offset": 2}, [-102, -102, -102, -102], [10_002] * 4),
        (
            {"observation_offset": 2, "indices": [1], "previous": {2: 1}},
            [-100, -102, -102, -100],
            [10_000, 10_002, 10_002, 10_000],
        ),
        (
            {"observation_noise": 0.1, "indices": [0]},
            [-np.inf, -100, -100, -100],
            [np.inf, 10_000, 10_000, 10_000],
        ),
        ({"action_delay": 2}, [-100] * 4, [10_000] * 4),
    ],
)
def test_the_space_holds_what_is_seen(
    arguments: dict[str, Any], low: list[float], high: list[float]
) -> None:
    env = PerturbationWrapper(Recorder(), **arguments)
    assert isinstance(env.observation_space, spaces.Box)
    assert env.observation_space.low.tolist() == low
    assert env.observation_space.high.tolist() == high
    assert all(env.observation_space.contains(seen) for seen in play(env, 20, 0))


@pytest.mark.filterwarnings("ignore")
def test_gymnasium_s_checker_passes() -> None:
    check_env(PerturbationWrapper(Recorder(), 0.1, 0.1, 2), skip_render_check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observation_noise": -0.1}, "observation_noise: -0.1, expected a finite number from 0"),
        ({"observation_offset": np.inf}, "observation_offset: inf"),
        ({"action_delay": 1.5}, "action_delay: 1.5, expected a whole number"),
        ({"action_delay": -1}, "action_delay: -1"),
        ({"indices": [4]}, r"indices: \[4\], expected entries from 0 to 3"),
        ({"indices": [1], "previous": {2: 9}}, "previous: .*from 0 to 3"),
        ({"previous": {2: 1}}, r"previous: \[2\] are also among indices"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerturbationWrapper(Recorder(), **arguments)


def test_other_spaces_are_refused() -> None:
    env: Any = Recorder()
    env.observation_space = spaces.Box(0, 1, (2, 2), np.float32)
    with pytest.raises(ValueError, match=r"observation space: .*expected a Box with vectors"):
        PerturbationWrapper(env)
    env = Recorder()
    env.action_space = spaces.Discrete(3)
    with pytest.raises(ValueError, match="action space: Discrete"):
        PerturbationWrapper(env)
