"""Success statistics, the callback that follows them, and vectorised gymnasium envs as SB3's."""

import random
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.callbacks import SuccessCallback
from sb3_diffrl.envs.avoiding import AvoidingVectorEnv
from sb3_diffrl.evaluation import Evaluation, evaluate, wilson_interval
from sb3_diffrl.wrappers import GymVecEnv
from tests.envs import CountingEnv, ScriptedEnv, TargetEnv, counting, several


def make_model(env: gym.Env[Any, Any] | VecEnv | None = None, **kwargs: Any) -> DiffusionPPO:
    return DiffusionPPO(
        "policy",
        env if env is not None else TargetEnv(),
        n_steps=16,
        batch_size=16,
        n_epochs=1,
        policy_kwargs={"net_arch": [16], "denoising_steps": 2},
        seed=0,
        device="cpu",
        **kwargs,
    )


# -- statistics --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        # Newcombe 1998, table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        # and by symmetry
        (20, 20, (0.8389, 1.0)),
        (5, 10, (0.2366, 0.7634)),
    ],
)
def test_wilson_interval(successes: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=5e-5)


def test_wilson_interval_holds_what_it_promises() -> None:
    rng = np.random.default_rng(0)
    for p in (0.05, 0.5, 0.95):
        counts = rng.binomial(100, p, 2000)
        bounds = np.array([wilson_interval(int(count), 100) for count in counts])
        covered = ((bounds[:, 0] <= p) & (p <= bounds[:, 1])).mean()
        assert 0.92 < covered < 0.98
    low, high = wilson_interval(40, 100, z=1.0)
    assert low == pytest.approx(0.3525, abs=1e-3) and high == pytest.approx(0.4497, abs=1e-3)


def test_evaluation_properties() -> None:
    result = Evaluation(np.array([True, False, True, True]), np.zeros(4), np.ones(4), [{}] * 4)
    assert result.success_rate == 0.75
    assert result.interval == wilson_interval(3, 4)


# -- evaluate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_episodes", [1, 2, 3, 7, 12])
def test_episodes_are_shared_evenly(n_episodes: int) -> None:
    result = evaluate(make_model(counting(3)), counting(3), n_episodes)
    numbers = [info["number"] for info in result.infos]
    counts = np.bincount(numbers, minlength=3)
    assert counts.sum() == n_episodes and np.ptp(counts) <= 1
    assert len(result.successes) == len(result.returns) == len(result.lengths) == n_episodes
    seen = [0, 0, 0]
    for i, number in enumerate(numbers):  # each env's first episodes, in order
        env = CountingEnv(number)
        env.episode = seen[number]
        seen[number] += 1
        assert result.lengths[i] == env.length
        assert result.successes[i] == env.succeeds


def test_short_episodes_do_not_count_more_often() -> None:
    env = DummyVecEnv(
        [
            lambda: TargetEnv(episode_length=1, success=True),
            lambda: TargetEnv(episode_length=20, success=False),
        ]
    )
    result = evaluate(make_model(), env, 10)
    assert result.success_rate == 0.5
    assert sorted(result.lengths) == [1] * 5 + [20] * 5


def test_returns_are_sums_of_rewards() -> None:
    outcomes = [1.0, 0.0, 3.0, 5.0]
    env = ScriptedEnv(outcomes)
    result = evaluate(make_model(ScriptedEnv([0])), env, 4)
    assert result.returns.tolist() == outcomes
    assert result.successes.tolist() == [True, False, True, True]
    assert result.lengths.tolist() == [4] * 4
    none = evaluate(make_model(), TargetEnv(), 2)  # no info["is_success"]
    assert none.success_rate == 0


def test_global_random_state_is_left_alone() -> None:
    model, env = make_model(), several(2)
    random.seed(3)
    np.random.seed(4)
    th.manual_seed(5)

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(th.rand(()))

    states = random.getstate(), np.random.get_state(), th.get_rng_state()
    expected = draws()
    random.setstate(states[0])
    np.random.set_state(states[1])
    th.set_rng_state(states[2])
    evaluate(model, env, 4)
    assert draws() == expected


def test_random_state_is_left_alone_when_an_env_fails() -> None:
    class Failing(TargetEnv):
        def step(self, action: np.ndarray) -> Any:
            th.rand(3)
            raise RuntimeError("broken")

    model = make_model()
    th.manual_seed(5)
    state = th.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, Failing(), 4)
    assert th.equal(th.get_rng_state(), state)


def test_seed_decides() -> None:
    model, env = make_model(), several(2)
    returns = [evaluate(model, env, 6, seed=seed).returns for seed in (1, 1, 2)]
    np.testing.assert_array_equal(returns[0], returns[1])
    assert not np.array_equal(returns[0], returns[2])


def test_deterministic_is_handed_on() -> None:
    model, env = make_model(), several(2)
    stochastic, deterministic = (evaluate(model, env, 6, d).returns for d in (False, True))
    assert not np.array_equal(stochastic, deterministic)
    calls = []
    predict = model.predict

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["deterministic"])
        return predict(*args, **kwargs)

    model.predict = spy  # type: ignore[method-assign]
    evaluate(model, env, 2, deterministic=True)
    assert set(calls) == {True}


class Still(gym.Env[np.ndarray, np.ndarray]):
    """Shows the same in each of five steps and keeps the actions of each episode."""

    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.Box(-1, 1, (2,))

    def __init__(self) -> None:
        self.episodes: list[list[np.ndarray]] = []

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        self.episodes.append([])
        return np.ones(3, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.episodes[-1].append(action)
        return np.ones(3, np.float32), 0.0, len(self.episodes[-1]) == 5, False, {}


@pytest.mark.parametrize("algorithm", [PPO, SAC])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("every", [-1, 2])
def test_gsde_draws_its_noise_for_each_episode(
    algorithm: type[PPO] | type[SAC], n_envs: int, every: int
) -> None:
    def acted() -> np.ndarray:
        env = DummyVecEnv([Still] * n_envs)
        evaluate(model, env, 2 * n_envs)
        return np.array([kept[:2] for kept in env.get_attr("episodes")]).reshape(2 * n_envs, 5, 2)

    kwargs: dict[str, Any] = {"use_sde": True, "sde_sample_freq": every, "device": "cpu"}
    model = algorithm("MlpPolicy", Still(), policy_kwargs={"log_std_init": -2.0}, **kwargs)
    noise: Any = getattr(model.policy, "actor", model.policy)
    noise.reset_noise(2)
    left = noise.action_dist.exploration_matrices
    first = acted()
    assert noise.action_dist.exploration_matrices is left
    noise.reset_noise(2)
    np.testing.assert_array_equal(acted(), first)  # whatever noise training left behind
    draws = [first[:, :5]] if every == -1 else [first[:, :2], first[:, 2:4], first[:, 4:]]
    for held in draws:
        assert np.ptp(held, axis=1).max() < 1e-6
    firsts = np.concatenate([held[:, 0] for held in draws]).round(5)
    assert len(np.unique(firsts, axis=0)) == len(firsts)


def test_envs_that_normalise_keep_their_statistics_and_tell_true_returns() -> None:
    env = VecNormalize(several(2, reward_scale=50.0))
    model = make_model(env)
    model.learn(32)
    before, count = env.ret_rms.mean, env.ret_rms.count
    plain = evaluate(model, several(2, reward_scale=50.0), 4)
    normalized = evaluate(model, env, 4)
    np.testing.assert_allclose(normalized.returns, plain.returns, rtol=1e-5)
    assert (env.ret_rms.mean, env.ret_rms.count, env.training) == (before, count, True)


@pytest.mark.parametrize("n_episodes", [0, -3])
def test_no_episodes_are_refused(n_episodes: int) -> None:
    with pytest.raises(ValueError, match="n_episodes: expected 1 or more"):
        evaluate(make_model(), TargetEnv(), n_episodes)


def test_forms_of_the_env_agree() -> None:
    model = make_model()
    forms: list[Any] = [
        TargetEnv(),
        DummyVecEnv([TargetEnv]),
        SyncVectorEnv([TargetEnv], autoreset_mode=AutoresetMode.SAME_STEP),
    ]
    results = [evaluate(model, env, 5, seed=2) for env in forms]
    for result in results[1:]:
        np.testing.assert_allclose(result.returns, results[0].returns, rtol=1e-6)
        np.testing.assert_array_equal(result.lengths, results[0].lengths)


def test_other_algorithms_and_the_task() -> None:
    ppo = PPO("MlpPolicy", TargetEnv(success=True), n_steps=8, batch_size=8, device="cpu")
    assert evaluate(ppo, TargetEnv(success=True), 3).success_rate == 1
    task = AvoidingVectorEnv(4)
    result = evaluate(make_model(GymVecEnv(AvoidingVectorEnv(1))), task, 10)
    assert len(result.infos) == 10 and all("way" in info for info in result.infos)
    assert result.lengths.max() <= 120


# -- the callback ------------------------------------------------------------------------------


def test_success_callback_follows_training_and_leaves_it_alone() -> None:
    states = []
    for watched in (False, True):
        model = make_model(counting(2, env_steps=3))
        callback = SuccessCallback(several(2, success=True), 100, n_episodes=4)
        model.learn(160, callback=callback if watched else None)
        states.append({k: v.clone() for k, v in model.policy.state_dict().items()})
    assert all(th.equal(states[0][key], states[1][key]) for key in states[0])
    # Rollouts of 96 environment steps: points where a multiple of 100 has been passed.
    assert [step for step, _ in callback.curve] == [0, 192, 288, 384, 480]
    assert {rate for _, rate in callback.curve} == {1.0}


def test_success_callback_with_another_algorithm() -> None:
    model = PPO("MlpPolicy", TargetEnv(), n_steps=8, batch_size=8, device="cpu")
    callback = SuccessCallback(TargetEnv(success=False), 8, n_episodes=1)
    model.learn(16, callback=callback)
    assert callback.curve == [(0, 0.0), (8, 0.0), (16, 0.0)]
    # Two envs, whose decisions take three environment steps each.
    model = PPO("MlpPolicy", counting(2, env_steps=3), n_steps=8, batch_size=8, device="cpu")
    callback = SuccessCallback(TargetEnv(success=False), 60, n_episodes=1)
    model.learn(48, callback=callback)
    assert [step for step, _ in callback.curve] == [0, 96, 144]


@pytest.mark.parametrize("algorithm", [PPO, DiffusionPPO])
def test_success_callback_begins_anew_with_the_count(algorithm: type[PPO]) -> None:
    policy = "MlpPolicy" if algorithm is PPO else "policy"
    model = algorithm(policy, counting(2, env_steps=3), n_steps=8, batch_size=8, device="cpu")
    callback = SuccessCallback(TargetEnv(success=False), 60, n_episodes=1)
    for go_on in (False, True, False):
        model.learn(16, callback=callback, reset_num_timesteps=not go_on)
    assert [step for step, _ in callback.curve] == [0, 48, 96, 0, 48]


# -- vectorised gymnasium envs -----------------------------------------------------------------


def clean(info: dict[str, Any]) -> dict[str, Any]:
    """What the two kinds of envs must agree on."""
    cleaned = {key: value for key, value in info.items() if key != "terminal_observation"}
    cleaned["TimeLimit.truncated"] = bool(info.get("TimeLimit.truncated", False))
    if "episode" in cleaned:
        cleaned["episode"] = {key: float(cleaned["episode"][key]) for key in ("r", "l")}
    return cleaned


def assert_same_observations(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_observations(a[key], b[key])
    else:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


BUILDERS: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "counting": CountingEnv,
    "vector": TargetEnv,
    "terminating": lambda: TargetEnv(time_limit=False, success=True),
    "image": lambda: TargetEnv("image"),
    "dict": lambda: TargetEnv("dict", episode_length=3),
    "discrete": lambda: TargetEnv("discrete"),
    "statistics": lambda: gym.wrappers.RecordEpisodeStatistics(TargetEnv(episode_length=5)),
    "time_limit": lambda: gym.wrappers.TimeLimit(CountingEnv(), 4),
}


def pair(name: str) -> tuple[VecEnv, VecEnv]:
    builders = [BUILDERS[name]] * 3
    vectorized = SyncVectorEnv(builders, autoreset_mode=AutoresetMode.SAME_STEP)
    return DummyVecEnv(list(builders)), GymVecEnv(vectorized)


@pytest.mark.parametrize("name", BUILDERS)
def test_gym_vec_env_equals_dummy_vec_env(name: str) -> None:
    envs = pair(name)
    rng = np.random.default_rng(0)
    for env in envs:
        env.seed(7)
    assert envs[0].observation_space == envs[1].observation_space
    assert envs[0].action_space == envs[1].action_space
    assert_same_observations(*(env.reset() for env in envs))
    assert envs[0].reset_infos == envs[1].reset_infos
    n_done = 0
    for _ in range(20):
        actions = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        expected, found = (env.step(actions) for env in envs)
        assert_same_observations(expected[0], found[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
        assert np.asarray(found[1]).dtype == np.float32
        np.testing.assert_array_equal(found[2], expected[2])
        assert len(found[3]) == 3
        for i in range(3):
            assert clean(found[3][i]) == clean(expected[3][i])
            assert ("terminal_observation" in found[3][i]) == bool(expected[2][i])
            if expected[2][i]:
                n_done += 1
                last = (infos[i]["terminal_observation"] for infos in (expected[3], found[3]))
                assert_same_observations(*last)
    assert n_done >= 6
    for env in envs:
        env.close()


def test_reset_infos_are_those_of_the_last_reset() -> None:
    envs = pair("counting")
    for env in envs:
        env.reset()
    for _ in range(9):
        for env in envs:
            env.step(np.zeros((3, 2), np.float32))
        assert envs[0].reset_infos == envs[1].reset_infos


def test_seeds_hold_for_one_reset() -> None:
    envs = pair("vector")
    for env in envs:
        env.seed(3)
    firsts: list[list[Any]] = [[env.reset() for _ in range(3)] for env in envs]
    for expected, found in zip(*firsts, strict=True):
        assert_same_observations(expected, found)
    assert not np.array_equal(firsts[0][0], firsts[0][1])


def test_training_in_either_kind_is_the_same() -> None:
    states = []
    for env in pair("vector"):
        model = make_model(VecMonitor(env))
        model.learn(96)
        states.append((model.policy.state_dict(), list(model.ep_info_buffer or [])))
    assert all(th.equal(states[0][0][key], states[1][0][key]) for key in states[0][0])
    assert [info["r"] for info in states[0][1]] == [info["r"] for info in states[1][1]]
    assert len(states[0][1]) == 12


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode: AutoresetMode) -> None:
    env = SyncVectorEnv([TargetEnv], autoreset_mode=mode)
    with pytest.raises(ValueError, match=rf"autoreset_mode=.*{mode.name}.*SAME_STEP"):
        GymVecEnv(env)
    with pytest.raises(ValueError, match="SAME_STEP"):
        evaluate(make_model(), env, 1)


def test_attributes_and_methods_of_the_vectorized_env() -> None:
    env = GymVecEnv(AvoidingVectorEnv(3, perturbation="episode"))
    assert env.get_attr("num_envs") == [3] * 3
    assert env.get_attr("num_envs", indices=[0, 2]) == [3] * 2
    env.set_attr("colour", "red")
    assert env.get_attr("colour", indices=1) == ["red"]
    assert env.env_method("__repr__", indices=[1]) == [repr(env.venv)]
    assert env.env_is_wrapped(gym.Wrapper) == [False] * 3


class Counter(BaseCallback):
    """Counts decisions."""

    def _on_step(self) -> bool:
        return True


def test_evaluating_in_a_callback_is_harmless_in_another_env() -> None:
    class Watch(Counter):
        def _on_rollout_start(self) -> None:
            evaluate(self.model, several(3), 3)

    states = []
    for callback in (Counter(), Watch()):
        model = make_model(several(2)).learn(96, callback=callback)
        states.append(model.policy.state_dict())
    assert all(th.equal(states[0][key], states[1][key]) for key in states[0])
