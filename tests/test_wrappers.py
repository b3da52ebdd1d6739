"""Action chunks and observation histories: as env wrappers, in training, and kept with a model."""

import json
import logging
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_diffrl import Demonstrations, DiffusionPPO
from sb3_diffrl.evaluation import evaluate
from sb3_diffrl.wrappers import ActionChunkWrapper, ObservationHistoryWrapper, rewrap

SMALL: dict[str, Any] = {"n_steps": 6, "batch_size": 6, "policy_kwargs": {"net_arch": [8]}}


class CountEnv(gym.Env[Any, np.ndarray]):
    """
    Observes and rewards the number of the step and remembers the actions.

    :param length: steps of an episode
    :param truncates: whether episodes are cut rather than end
    :param space: of the observations, filled with the number of the step
    """

    action_space = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))

    def __init__(
        self,
        length: int = 7,
        truncates: bool = False,
        space: spaces.Space = spaces.Box(-100, 100, (1,), np.float32),  # noqa: B008
    ):
        self.length, self.truncates, self.observation_space = length, truncates, space
        self.actions: list[np.ndarray] = []

    def observe(self) -> Any:
        def fill(space: Any) -> np.ndarray:
            return np.full(space.shape, len(self.actions), space.dtype)

        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: fill(part) for key, part in space.items()}
        return fill(space)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**kwargs)
        self.actions = []
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        n = len(self.actions)
        ends = n == self.length
        info = {"n": n, "is_success": ends}
        return self.observe(), float(n), ends and not self.truncates, ends and self.truncates, info


def chunk_of(number: int, horizon: int) -> np.ndarray:
    """Actions whose first entry tells the chunk, the second the index."""
    return np.array([[number, i] for i in range(horizon)], np.float32)


# -- action chunks -----------------------------------------------------------------------------


@pytest.mark.parametrize("truncates", [False, True])
def test_a_chunk_is_executed_up_to_the_end_of_the_episode(truncates: bool) -> None:
    env = CountEnv(truncates=truncates)
    chunks = ActionChunkWrapper(env, horizon=4, n_executed=3, gamma=0.5)
    assert chunks.action_space == spaces.Box(
        np.tile(env.action_space.low, (4, 1)), np.tile(env.action_space.high, (4, 1))
    )
    assert chunks.decision_gamma == 0.125
    obs, _ = chunks.reset()
    chunk = chunk_of(0, 4)

    obs, reward, terminated, truncated, info = chunks.step(chunk)
    assert obs == 3 and reward == 1 + 0.5 * 2 + 0.25 * 3 and not (terminated or truncated)
    np.testing.assert_array_equal(env.actions, chunk[:3])
    assert info["env_steps"] == 3 and [i["n"] for i in info["chunk_infos"]] == [1, 2, 3]

    chunks.step(chunk)
    obs, reward, terminated, truncated, info = chunks.step(chunk)
    assert obs == 7 and reward == 7 and (terminated, truncated) == (not truncates, truncates)
    assert info["env_steps"] == 1 and info["is_success"] and len(info["chunk_infos"]) == 1
    assert info["episode"]["r"] == 28 and info["episode"]["l"] == 7  # undiscounted


def test_the_actions_before_the_start_of_a_chunk_are_not_executed() -> None:
    env = CountEnv()
    chunks = ActionChunkWrapper(env, horizon=4, n_executed=2, start=1)
    chunks.reset()
    chunks.step(chunk_of(0, 4))
    np.testing.assert_array_equal(env.actions, chunk_of(0, 4)[1:3])
    assert ActionChunkWrapper(env, 4, start=1).n_executed == 3


@pytest.mark.parametrize("start", [0, 1])
def test_a_delayed_chunk_takes_over_while_the_one_before_goes_on(start: int) -> None:
    env = CountEnv(length=11)
    chunks = ActionChunkWrapper(env, horizon=6 + start, start=start, delay=2)
    assert chunks.n_executed == 4
    for _ in range(2):  # a new episode forgets what was under way
        chunks.reset()
        env_steps = [chunks.step(chunk_of(k, 6 + start))[4]["env_steps"] for k in range(3)]
        assert env_steps == [4, 4, 3]
        # The timeline of the wrapper's docstring: (decision, index from `start` on).
        expected = [(0, i) for i in range(6)] + [(1, i) for i in (2, 3, 4, 5)] + [(2, 2)]
        assert [(int(k), int(i) - start) for k, i in env.actions] == expected


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"horizon": 2, "n_executed": 3}, "between 1 and horizon - start - delay = 2, got 3"),
        ({"horizon": 4, "n_executed": 3, "start": 2}, "horizon - start - delay = 2, got 3"),
        ({"horizon": 2, "start": 2}, "start must lie between 0 and horizon - 1 = 1, got 2"),
        ({"horizon": 2, "start": -1}, "between 0 and horizon - 1 = 1, got -1"),
        ({"horizon": 2, "gamma": 0.0}, r"gamma must lie in \(0, 1\], got 0.0"),
        ({"horizon": 2, "delay": -1}, "delay must be at least 0, got -1"),
        ({"horizon": 4, "delay": 2}, "delay must be less than n_executed = 2, got 2"),
    ],
)
def test_bad_chunks(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionChunkWrapper(CountEnv(), **kwargs)


def test_chunks_of_discrete_actions_are_refused() -> None:
    env = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match=r"needs a Box action space, got Discrete\(2\)"):
        ActionChunkWrapper(env, 2)


def test_a_monitor_is_put_inside_unless_there_is_one() -> None:
    monitor = Monitor(CountEnv())
    assert ActionChunkWrapper(ObservationHistoryWrapper(monitor, 2), 2).env.env.env is monitor  # type: ignore[attr-defined]
    assert is_wrapped(ActionChunkWrapper(CountEnv(), 2), Monitor)


# -- in training -------------------------------------------------------------------------------


@pytest.mark.parametrize("vec_env", [DummyVecEnv, SubprocVecEnv])
def test_chunks_in_training_count_environment_steps(vec_env: type[DummyVecEnv]) -> None:
    env = vec_env([lambda: ActionChunkWrapper(CountEnv(), 3, gamma=0.9)] * 2)
    model = DiffusionPPO("policy", env, gamma=0.729, **SMALL)
    model.learn(12)
    env.close()
    # Two episodes of 7 steps each in chunks of 3, 3 and 1.
    assert model.num_timesteps == 12 and model.env_steps == 28
    assert [info["r"] for info in model.ep_info_buffer or ()] == [28.0] * 4  # undiscounted
    assert [info["l"] for info in model.ep_info_buffer or ()] == [7] * 4
    assert list(model.ep_success_buffer or ()) == [True] * 4
    assert model.env_wrappers[0]["arguments"]["horizon"] == 3


@pytest.mark.parametrize("truncates", [False, True])
def test_advantages_discount_by_decision_and_look_beyond_time_limits(truncates: bool) -> None:
    g, n = 0.9, 3
    env = ActionChunkWrapper(CountEnv(truncates=truncates), n, gamma=g)
    gamma = env.decision_gamma
    model = DiffusionPPO("policy", env, gamma=gamma, gae_lambda=1.0, n_epochs=1, **SMALL)
    with th.no_grad():
        for parameter in model.policy.value_net.parameters():
            parameter.zero_()
        next(reversed(list(model.policy.value_net.parameters()))).fill_(5.0)
    model.policy.set_training_mode(False)
    _, callback = model._setup_learn(6)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 6)  # type: ignore[arg-type]
    # Steps 1 to 3, 4 to 6, 7. The critic says 5 of every state.
    first, second, third = (1 + 2 * g + 3 * g**2), (4 + 5 * g + 6 * g**2), 7.0
    if truncates:
        third += gamma * 5
    expected = [first + gamma * second + gamma**2 * third, second + gamma * third, third]
    np.testing.assert_allclose(model.rollout_buffer.returns[:3, 0], expected, rtol=1e-5)


def test_evaluations_count_environment_steps_and_undiscounted_returns() -> None:
    env = ActionChunkWrapper(CountEnv(), 3, gamma=0.5)
    model = DiffusionPPO("policy", env, gamma=0.125, **SMALL)
    result = evaluate(model, env, 2)
    assert list(result.lengths) == [7, 7] and list(result.returns) == [28, 28]
    assert evaluate_policy(model, model.get_env(), 2, return_episode_rewards=True) == (  # type: ignore[arg-type]
        [28.0, 28.0],
        [7, 7],
    )


@pytest.mark.parametrize(("gamma", "warns"), [(0.9, True), (0.81, False)])
def test_a_model_whose_discount_is_not_per_decision_is_warned_of(
    gamma: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        DiffusionPPO("policy", ActionChunkWrapper(CountEnv(), 2, gamma=0.9), gamma=gamma, **SMALL)
    assert ("belongs gamma=0.81" in caplog.text) is warns


# -- observation histories ---------------------------------------------------------------------


def test_a_history_holds_the_last_observations_and_begins_with_the_first() -> None:
    env = ObservationHistoryWrapper(CountEnv(), 3)
    assert env.observation_space == spaces.Box(-100, 100, (3, 1), np.float32)
    seen = [env.reset()[0], *(env.step(np.zeros(2))[0] for _ in range(4)), env.reset()[0]]
    expected = [[0, 0, 0], [0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 0, 0]]
    assert [list(obs[:, 0]) for obs in seen] == expected


def test_observations_within_a_chunk_reach_the_history() -> None:
    env = ActionChunkWrapper(ObservationHistoryWrapper(CountEnv(), 2), 3)
    env.reset()
    assert list(env.step(chunk_of(0, 3))[0][:, 0]) == [2, 3]
    with pytest.raises(ValueError, match="Put it inside"):
        ObservationHistoryWrapper(ActionChunkWrapper(CountEnv(), 3), 2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ObservationHistoryWrapper(CountEnv(), 0)


@pytest.mark.parametrize(
    ("shape", "stacked"), [((40, 36, 3), (40, 36, 6)), ((3, 40, 36), (6, 40, 36))]
)
def test_histories_of_images_are_images(shape: tuple[int, ...], stacked: tuple[int, ...]) -> None:
    image = spaces.Box(0, 255, shape, np.uint8)
    space = spaces.Dict({"camera": image, "state": spaces.Box(-9, 9, (4,), np.float32)})
    env = ObservationHistoryWrapper(CountEnv(space=space), 2)
    assert env.observation_space == spaces.Dict(
        {
            "camera": spaces.Box(0, 255, stacked, np.uint8),
            "state": spaces.Box(-9, 9, (2, 4), np.float32),
        }
    )
    env.reset()
    obs = env.step(np.zeros(2))[0]
    assert env.observation_space.contains(obs)
    channels = obs["camera"][0, 0] if shape[-1] == 3 else obs["camera"][:, 0, 0]
    assert list(channels) == [0, 0, 0, 1, 1, 1]
    model = DiffusionPPO("policy", env, **SMALL)
    assert env.action_space.contains(model.predict(obs)[0])


def test_each_copy_in_a_history_is_normalised_by_statistics_of_its_own() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal([3, -50], [0.5, 20], (500, 2)).astype(np.float32)
    demonstrations = Demonstrations.from_arrays(steps, np.zeros((500, 2)), [250, 500])
    env = ObservationHistoryWrapper(CountEnv(space=spaces.Box(-100, 100, (2,), np.float32)), 2)
    model = DiffusionPPO("policy", env, **SMALL)
    model.pretrain(demonstrations, gradient_steps=1, validation_fraction=0.0)
    standardizer = model.policy.actor.normalizer.standardizer()
    assert standardizer.mean.shape == (2, 2)
    for copy in range(2):
        np.testing.assert_allclose(standardizer.mean[copy], [3, -50], atol=2)
        np.testing.assert_allclose(standardizer.scale[copy], [2, 20], atol=1)  # the floor is 2


# -- kept with the model -----------------------------------------------------------------------


def chunked(env: gym.Env) -> gym.Env:
    return ActionChunkWrapper(ObservationHistoryWrapper(env, 2), 4, 2, start=1, gamma=0.9)


RECORD = [
    {"name": "ObservationHistoryWrapper", "arguments": {"n_observations": 2}},
    {
        "name": "ActionChunkWrapper",
        "arguments": {"horizon": 4, "n_executed": 2, "start": 1, "gamma": 0.9, "delay": 0},
    },
]


@pytest.fixture(scope="module")
def trained() -> DiffusionPPO:
    env = gym.wrappers.NormalizeReward(chunked(CountEnv()))  # other wrappers do not hide ours
    return DiffusionPPO("policy", env, gamma=0.81, **SMALL)


def test_a_model_knows_the_wrappers_it_was_trained_in(
    trained: DiffusionPPO, tmp_path: Path
) -> None:
    assert trained.env_wrappers == RECORD
    trained.save(tmp_path / "model")
    loaded = DiffusionPPO.load(tmp_path / "model")
    assert loaded.env_wrappers == RECORD
    env = rewrap(CountEnv(), loaded.env_wrappers)
    assert rewrap(env, loaded.env_wrappers) is env
    assert (env.observation_space, env.action_space) == (
        chunked(CountEnv()).observation_space,
        chunked(CountEnv()).action_space,
    )
    assert DiffusionPPO.load(tmp_path / "model", env=env).env_wrappers == RECORD
    loaded.set_env(env)

    mend = r"spaces do not match.*sb3_diffrl\.wrappers\.rewrap"
    with pytest.raises(ValueError, match=mend):
        DiffusionPPO.load(tmp_path / "model", env=CountEnv())
    with pytest.raises(ValueError, match=mend):
        loaded.set_env(CountEnv())
    with pytest.raises(ValueError, match=r"wrapped in .*Give the bare env"):
        rewrap(ActionChunkWrapper(CountEnv(), 2), loaded.env_wrappers)
    with pytest.raises(ValueError, match="unknown 'X'"):
        rewrap(CountEnv(), [{"name": "X", "arguments": {}}])


def test_another_way_to_execute_the_chunks_is_recorded_and_said(
    trained: DiffusionPPO, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained.save(tmp_path / "model")
    env = ActionChunkWrapper(ObservationHistoryWrapper(CountEnv(), 2), 4, 3, gamma=1.0)
    with caplog.at_level(logging.WARNING):
        model = DiffusionPPO.load(tmp_path / "model", env=env)
    assert "other than the one before" in caplog.text
    assert model.env_wrappers[1]["arguments"]["n_executed"] == 3


def test_a_shared_model_wraps_a_bare_env(trained: DiffusionPPO, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "rewrap(env, model.env_wrappers)" in card and "n_executed=2" in card
    assert DiffusionPPO.from_pretrained(tmp_path).env_wrappers == RECORD
    for env in (CountEnv(), chunked(CountEnv())):
        model = DiffusionPPO.from_pretrained(tmp_path, env=env)
        assert model.env_wrappers == RECORD
        model.learn(6)
    with pytest.raises(ValueError, match=r"sb3_diffrl\.wrappers\.rewrap"):
        DiffusionPPO.from_pretrained(tmp_path, env=DummyVecEnv([CountEnv]))

    config = json.loads((tmp_path / "config.json").read_text())
    for spoil, message in (
        ({"name": "os.system", "arguments": {}}, "env_wrappers: expected one of"),
        ({"name": "ObservationHistoryWrapper", "arguments": {"n_observations": "2"}}, "whole"),
        ({"name": "ObservationHistoryWrapper", "arguments": {}}, "missing"),
    ):
        config["env_wrappers"] = [spoil]
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            DiffusionPPO.from_pretrained(tmp_path)
    del config["env_wrappers"]  # as older versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert DiffusionPPO.from_pretrained(tmp_path).env_wrappers == []
    assert DiffusionPPO.from_pretrained(tmp_path, env=chunked(CountEnv())).env_wrappers == RECORD


# -- demonstrations in a wrapped env -----------------------------------------------------------


def step_wise(lengths: tuple[int, ...] = (5, 3)) -> Demonstrations:
    steps = np.arange(sum(lengths), dtype=np.float32)
    return Demonstrations.from_arrays(
        steps[:, None], np.stack([steps / 10, steps / 5], -1), np.cumsum(lengths), rewards=steps
    )


@pytest.mark.parametrize("norm_obs", [False, True])
def test_pretraining_cuts_demonstrations_into_the_decisions_of_the_env(norm_obs: bool) -> None:
    env = VecNormalize(DummyVecEnv([lambda: chunked(CountEnv())]), norm_obs=norm_obs)
    model = DiffusionPPO("policy", env, gamma=0.81, **SMALL)
    model.pretrain(step_wise(), gradient_steps=2)
    imitated = model.imitation_buffer.demonstrations
    assert imitated is not None
    windows = step_wise().windows(horizon=4, n_observations=2, start=1)
    np.testing.assert_array_equal(imitated.actions, windows.actions)
    if not norm_obs:
        np.testing.assert_array_equal(imitated.observations, windows.observations)
    model.set_demonstrations(windows)  # which are decisions already
    assert model.imitation_buffer.demonstrations is not None
    np.testing.assert_array_equal(model.imitation_buffer.demonstrations.actions, windows.actions)


def test_histories_alone_are_cut_too() -> None:
    model = DiffusionPPO("policy", ObservationHistoryWrapper(CountEnv(), 2), **SMALL)
    for demonstrations in (step_wise(), step_wise().windows(n_observations=2)):
        model.set_demonstrations(demonstrations)
        imitated = model.imitation_buffer.demonstrations
        assert imitated is not None and imitated.actions.shape == (8, 2)
        seen = np.asarray(imitated.observations)
        assert seen[:, :, 0].tolist()[4:7] == [[3, 4], [5, 5], [5, 6]]
