"""The algorithm, used as an SB3 user would: rollouts, updates, logging."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from sb3_diffrl import Demonstrations, DiffusionPPO
from tests.envs import MATRIX, UNIT, RewardOneEnv, ScriptedEnv, TargetEnv, counting, several
from tests.models import (
    POLICY_KWARGS,
    SMALL_DICTS,
    SMALL_IMAGES,
    Log,
    collect,
    make_model,
    same_state,
    state_of,
    with_prior,
)

# -- the likelihood ratio ----------------------------------------------------------------------

CASES: dict[str, tuple[Callable[[], VecEnv], dict[str, Any], float]] = {
    "plain": (lambda: several(1), {}, 1.0),
    "envs": (lambda: several(3), {}, 1.0),
    "one_step": (lambda: several(2), {"denoising_steps": 1}, 1.0),
    "one_level": (lambda: several(2), {"denoising_steps": 1, "noise_levels": 1}, 1.0),
    "ddpm": (lambda: several(2), {"denoising_steps": 8, "noise_levels": 8}, 1.0),
    "ode_with_floor": (lambda: several(2), {"eta": 0.0}, 1.0),
    "matrix": (lambda: several(2, action_space=MATRIX), {}, 1.0),
    "discrete": (lambda: several(2, "discrete"), {}, 1.0),
    "image": (lambda: several(2, "image"), SMALL_IMAGES, 1.0),
    "dict": (lambda: several(2, "dict"), SMALL_DICTS, 1.0),
    "mixing": (lambda: several(3), {}, 0.6),
    "mixing_little": (lambda: several(3), {"denoising_steps": 5}, 0.02),
    "mixing_one_step": (lambda: several(3), {"denoising_steps": 1}, 0.5),
    "mixing_matrix": (lambda: several(2, action_space=MATRIX), {}, 0.5),
    "mixing_image": (lambda: several(2, "image"), SMALL_IMAGES, 0.5),
    "mixing_dict": (
        lambda: several(2, "dict"),
        {**SMALL_DICTS, "share_features_extractor": True},
        0.3,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_ratio_is_one_on_a_fresh_buffer(case: str) -> None:
    env, policy_kwargs, mixing = CASES[case]
    model = make_model(
        env(), policy_kwargs={**POLICY_KWARGS, **policy_kwargs}, mixing=mixing, beta=0.1
    )
    if mixing < 1:
        with_prior(model, 0.05)
    collect(model)
    model.policy.set_training_mode(True)
    n = 0
    for batch in model.rollout_buffer.get(7):  # another batch size than that of the rollout
        with th.no_grad():
            _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        assert batch.old_log_prob.shape == log_prob.shape
        assert log_prob.shape[1] == model.policy.process.denoising_steps
        ratio = (log_prob - batch.old_log_prob).exp()
        assert float((ratio - 1).abs().max()) < 1e-5
        assert float(batch.old_log_prob.std()) > 0.01
        n += len(log_prob)
    assert n == model.n_steps * model.n_envs
    if mixing < 1:  # and it is the mixture whose likelihood is stored
        assert float(model.policy.mixing) == pytest.approx(mixing)
        model.policy.set_mixing(1.0)
        batch = next(model.rollout_buffer.get(None))
        with th.no_grad():
            _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        assert float((log_prob - batch.old_log_prob).abs().max()) > 1e-3


def test_ratio_statistics_are_of_all_steps_and_minibatches() -> None:
    model = make_model(n_steps=32, batch_size=8, n_epochs=3, learning_rate=0.0)
    log = Log(model)
    model.learn(32)  # the actor stays as it was, so that every ratio is 1
    assert log["train/ratio_mean"] == [pytest.approx(1, abs=1e-5)]
    assert log["train/ratio_max"] == [pytest.approx(1, abs=1e-5)]
    assert log["train/clip_fraction"] == [0.0]
    assert log["train/approx_kl"] == [pytest.approx(0, abs=1e-5)]
    model.lr_schedule = FloatSchedule(3e-4)
    model.learn(32, reset_num_timesteps=False)  # now it moves
    assert log["train/ratio_max"][-1] > 1.001
    assert log["train/approx_kl"][-1] > 1e-5


# -- rollouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("time_limit", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_advantages_in_closed_form(time_limit: bool, steps: int) -> None:
    """A critic that says ``c`` everywhere, a reward of 1, episodes of 4 in a rollout of 10."""
    gamma, gae_lambda, c = 0.9, 0.8, 3.0
    model = make_model(
        RewardOneEnv(4, time_limit),
        n_steps=10,
        batch_size=10,
        gamma=gamma,
        gae_lambda=gae_lambda,
        policy_kwargs={**POLICY_KWARGS, "denoising_steps": steps},
    )
    with th.no_grad():
        for parameter in model.policy.value_net.parameters():
            parameter.zero_()
        list(model.policy.value_net.parameters())[-1].fill_(c)  # the bias
    collect(model)

    delta = 1 + gamma * c - c
    last = delta if time_limit else 1 - c
    advantages = []
    for to_go in (3, 2, 1, 0):
        inner = sum((gamma * gae_lambda) ** i * delta for i in range(to_go))
        advantages.append(inner + (gamma * gae_lambda) ** to_go * last)
    # The third episode goes on beyond the rollout, whose last value is bootstrapped.
    expected = [*advantages, *advantages, delta + gamma * gae_lambda * delta, delta]
    buffer = model.rollout_buffer
    assert buffer.advantages.shape == buffer.returns.shape == (10, 1)
    np.testing.assert_allclose(buffer.advantages[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(buffer.returns[:, 0], np.array(expected) + c, rtol=1e-5)


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_truncation_bootstraps_from_the_terminal_observation(kind: str) -> None:
    extra = SMALL_DICTS if kind == "dict" else {}
    env = several(2, kind, reward_scale=0.0, episode_length=5)
    model = make_model(env, gamma=0.7, policy_kwargs={**POLICY_KWARGS, **extra})
    terminal: list[tuple[int, int, Any]] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            for i, info in enumerate(self.locals["infos"]):
                if self.locals["dones"][i]:
                    terminal.append((self.locals["n_steps"], i, info["terminal_observation"]))
            return True

        def _on_rollout_end(self) -> None:
            rewards = self.locals["rollout_buffer"].rewards
            expected = np.zeros_like(rewards)
            for step, i, observation in terminal:
                tensor = model.policy.obs_to_tensor(observation)[0]
                with th.no_grad():
                    expected[step, i] = 0.7 * float(model.policy.predict_values(tensor))
            assert len(terminal) == 6 and np.abs(expected).max() > 1e-3
            np.testing.assert_allclose(rewards, expected, atol=1e-6)

    model.learn(32, callback=Watch())


def test_the_smallest_of_everything() -> None:
    """One denoising step, noise level, env, minibatch and epoch; rollouts of one step."""
    space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    model = make_model(
        TargetEnv(action_space=space),
        n_steps=1,
        batch_size=1,
        n_epochs=1,
        normalize_advantage=False,
        beta=0.1,
        mixing=0.5,
        policy_kwargs={"net_arch": [], "denoising_steps": 1, "noise_levels": 1},
    )
    with_prior(model)
    before = state_of(model.policy)
    log = Log(model)
    model.learn(5)
    assert model.num_timesteps == 5
    assert not same_state(before, state_of(model.policy))
    assert all(np.isfinite(value) for value in log["train/loss"])
    assert all(th.isfinite(p).all() for p in model.policy.parameters())


def test_one_minibatch_of_all_and_a_rest() -> None:
    for batch_size in (32, 24, 5):  # the last minibatch is smaller
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SB3 says so, too
            model = make_model(several(2), batch_size=batch_size)
        model.learn(32)
        assert th.isfinite(th.cat([p.flatten() for p in model.policy.parameters()])).all()


# -- SB3's manners -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["id", "env", "vec_env"])
def test_env_in_any_form(form: str) -> None:
    env: Any = "Pendulum-v1"
    if form == "env":
        env = gym.make(env)
    if form == "vec_env":
        env = DummyVecEnv([lambda: gym.make("Pendulum-v1")] * 2)
    model = DiffusionPPO("policy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(16)
    assert isinstance(model, DiffusionPPO)
    assert model.num_timesteps == 16
    action, _ = model.predict(np.zeros(3, np.float32))
    assert action.shape == (1,) and gym.make("Pendulum-v1").action_space.contains(action)


def test_counts_of_consecutive_runs() -> None:
    model = make_model(several(2))
    model.learn(32)
    assert (model.num_timesteps, model.env_steps) == (32, 32)
    model.learn(33, reset_num_timesteps=False)  # rounded up to whole rollouts
    assert (model.num_timesteps, model.env_steps) == (96, 96)
    model.learn(32)
    assert model.num_timesteps == 32


def test_env_steps_start_anew_with_the_decisions() -> None:
    model = make_model()
    model.learn(16)
    model.learn(32)
    assert (model.num_timesteps, model.env_steps) == (32, 32)


def test_env_steps_of_decisions_that_take_several() -> None:
    model = make_model(counting(2, env_steps=4))
    log = Log(model)
    model.learn(64)
    assert log["time/decisions"] == [32, 64]
    assert log["time/env_steps"] == [128, 256]


def test_callbacks(tmp_path: Path) -> None:
    steps, rollouts = [], []

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            steps.append(self.num_timesteps)
            return True

        def _on_rollout_end(self) -> None:
            rollouts.append(self.num_timesteps)

    model = make_model(VecMonitor(several(2)))
    evaluation = EvalCallback(
        VecMonitor(several(1)),
        eval_freq=16,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    checkpoints = CheckpointCallback(16, str(tmp_path), name_prefix="at")
    model.learn(64, callback=[Count(), evaluation, checkpoints])
    assert steps == list(range(2, 65, 2))
    assert rollouts == [32, 64]
    assert evaluation.n_eval_episodes == 2 and np.isfinite(evaluation.last_mean_reward)
    assert {path.name for path in tmp_path.glob("*.zip")} >= {
        "best_model.zip",
        "at_32_steps.zip",
        "at_64_steps.zip",
    }
    # The second checkpoint was made within the second rollout, hence after one update.
    assert DiffusionPPO.load(tmp_path / "at_64_steps.zip").num_timesteps == 64


def test_callbacks_stop_training() -> None:
    model = make_model(TargetEnv(episode_length=4), n_steps=16)
    before = state_of(model.policy)
    model.learn(64, callback=lambda _locals, _globals: False)
    assert model.num_timesteps == 1
    assert same_state(before, state_of(model.policy))
    model.learn(64, callback=StopTrainingOnMaxEpisodes(2))
    assert model.num_timesteps == 8


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    make_model().learn(32, progress_bar=True)
    assert "32/32" in capsys.readouterr().out


def scalars(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    accumulator = EventAccumulator(str(folder)).Reload()
    return {
        tag: [event.value for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard(tmp_path: Path) -> None:
    env = ScriptedEnv([0, 1])
    model = make_model(env, tensorboard_log=str(tmp_path), beta=0.1)
    data = Demonstrations.from_arrays(np.zeros((20, 2), np.float32), np.zeros((20, 2), np.float32))
    model.pretrain(data, gradient_steps=4, validation_interval=2)
    model.learn(48)
    model.learn(16, reset_num_timesteps=False)
    assert {path.name for path in tmp_path.iterdir()} == {
        "DiffusionPPO_pretrain_1",
        "DiffusionPPO_1",
    }
    model.learn(16, tb_log_name="other")
    model.learn(16)
    assert {path.name for path in tmp_path.iterdir()} == {
        "DiffusionPPO_pretrain_1",
        "DiffusionPPO_1",
        "other_1",
        "DiffusionPPO_2",
    }
    assert len(scalars(tmp_path / "DiffusionPPO_pretrain_1")["pretrain/loss"]) == 2
    logged = scalars(tmp_path / "DiffusionPPO_1")
    assert set(logged) >= {"train/prior_kl", "train/beta", "time/env_steps", "rollout/mixing"}
    assert logged["time/env_steps"] == [16, 32, 48, 64]


NAMES = {
    "rollout/ep_len_mean",
    "rollout/ep_rew_mean",
    "rollout/improvement",
    "rollout/mixing",
    "rollout/success_rate",
    "time/decisions",
    "time/env_steps",
    "time/fps",
    "train/approx_kl",
    "train/beta",
    "train/clip_fraction",
    "train/clip_range",
    "train/explained_variance",
    "train/learning_rate",
    "train/loss",
    "train/n_updates",
    "train/policy_gradient_loss",
    "train/prior_kl",
    "train/ratio_max",
    "train/ratio_mean",
    "train/value_loss",
}


def test_logged_names_and_ranges() -> None:
    model = with_prior(make_model(ScriptedEnv([0, 1, 0]), mixing=0.5))
    log = Log(model)
    model.learn(64)
    assert log.names() >= NAMES
    assert not any(name.startswith("train/imitation") for name in log.names())
    assert all(np.isfinite(log[name]).all() for name in NAMES)
    assert all(kl > 0 for kl in log["train/prior_kl"])
    assert all(0 <= fraction <= 1 for fraction in log["train/clip_fraction"])
    assert all(ratio >= 1 for ratio in log["train/ratio_max"])
    assert log["train/n_updates"] == [2, 4, 6, 8]


def test_prior_kl_is_logged_in_nats_per_decision() -> None:
    """Without an update of the actor it is the mean over the rollout, by the formula."""
    model = with_prior(make_model(beta=0.1, learning_rate=0.0))
    log = Log(model)
    model.learn(16)
    policy, process = model.policy, model.policy.process
    batch = next(model.rollout_buffer.get(None))
    chain = batch.actions.view(16, 4, 2)
    expected = th.zeros(16)
    with th.no_grad():
        for i in range(3):
            means = [
                process.transition_mean(
                    chain[:, i],
                    actor.denoiser(
                        chain[:, i], process.levels[i], actor.condition(batch.observations)
                    ),
                    i,
                )
                for actor in (policy.actor, policy.prior)
            ]
            squared = (means[0] - means[1]).square().sum(dim=1)
            expected += squared / (2 * process.std[i] ** 2)
    assert log["train/prior_kl"] == [pytest.approx(float(expected.mean()), rel=1e-4)]


def test_target_kl_stops_the_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    kwargs: dict[str, Any] = {"learning_rate": 0.01, "n_epochs": 10, "verbose": 1}
    free, held = make_model(**kwargs), make_model(target_kl=0.01, **kwargs)
    logs = Log(free), Log(held)
    free.learn(16)
    assert "Early stopping" not in capsys.readouterr().out
    held.learn(16)
    assert "Early stopping at step" in capsys.readouterr().out
    assert logs[0]["train/n_updates"] == [10]
    assert 1 < logs[1]["train/n_updates"][0] < 10
    assert logs[1]["train/approx_kl"][0] < logs[0]["train/approx_kl"][0]


def test_schedules_of_learning_rates_and_clip_ranges() -> None:
    model = make_model(
        learning_rate=lambda remaining: 1e-3 * (1 + remaining),
        critic_learning_rate=lambda remaining: 2e-3 * (1 + 2 * remaining),
        clip_range=lambda remaining: 0.1 + 0.2 * remaining,
        clip_range_vf=lambda remaining: 1 + remaining,
    )
    log = Log(model)
    model.learn(32)
    assert log["train/learning_rate"] == pytest.approx([1.5e-3, 1e-3])
    assert log["train/clip_range"] == pytest.approx([0.2, 0.1])
    assert log["train/clip_range_vf"] == pytest.approx([1.5, 1.0])
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert model.policy.critic_optimizer.param_groups[0]["lr"] == pytest.approx(2e-3)
    model.learn(32, callback=StopTrainingOnMaxEpisodes(3))  # one update, then stopped
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1.5e-3)
    assert model.policy.critic_optimizer.param_groups[0]["lr"] == pytest.approx(4e-3)


def test_learning_rate_zero_and_the_critics_own() -> None:
    model = make_model(learning_rate=0.0, critic_learning_rate=1e-2)
    actor, critic = state_of(model.policy.actor), state_of(model.policy.value_net)
    model.learn(16)
    assert same_state(actor, state_of(model.policy.actor))
    assert not same_state(critic, state_of(model.policy.value_net))
    model = make_model(learning_rate=1e-2, critic_learning_rate=0.0)
    actor, critic = state_of(model.policy.actor), state_of(model.policy.value_net)
    model.learn(16)
    assert not same_state(actor, state_of(model.policy.actor))
    assert same_state(critic, state_of(model.policy.value_net))


def test_clip_range_bounds_the_ratio() -> None:
    kwargs: dict[str, Any] = {"learning_rate": 3e-3, "n_epochs": 8}
    fractions, ratios = [], []
    for clip_range in (1e-3, 0.2, 1e6):
        model = make_model(clip_range=clip_range, **kwargs)
        log = Log(model)
        model.learn(16)
        fractions.append(log["train/clip_fraction"][0])
        ratios.append(log["train/ratio_max"][0])
    assert fractions[0] > fractions[1] > fractions[2] == 0
    assert ratios[0] < ratios[2]


def test_clip_range_vf_stops_the_critic() -> None:
    """Once predictions have moved by more than the range, plain gradient descent moves no more."""

    def critic(n_epochs: int, clip_range_vf: float | None) -> th.Tensor:
        kwargs = {**POLICY_KWARGS, "optimizer_class": th.optim.SGD}
        model = make_model(n_epochs=n_epochs, clip_range_vf=clip_range_vf, policy_kwargs=kwargs)
        model.learn(16)
        return th.cat([p.detach().flatten() for p in model.policy.value_net.parameters()])

    th.testing.assert_close(critic(8, 1e-9), critic(1, 1e-9), rtol=0, atol=1e-7)
    assert float((critic(8, None) - critic(1, None)).abs().max()) > 1e-5
    th.testing.assert_close(critic(8, 1e9), critic(8, None), rtol=0, atol=1e-6)


@pytest.mark.parametrize("value", [-0.2, 0])
def test_clip_range_vf_must_be_positive(value: float) -> None:
    with pytest.raises(AssertionError, match="clip_range_vf"):
        make_model(clip_range_vf=value)


def test_learning_makes_progress() -> None:
    """From scratch, the return rises on a task that tells the right action."""
    kwargs: dict[str, Any] = {"n_steps": 64, "batch_size": 128, "n_epochs": 5, "gamma": 0.0}
    model = make_model(VecMonitor(several(4)), learning_rate=1e-3, **kwargs)
    log = Log(model)
    model.learn(256 * 10)
    rewards = log["rollout/ep_rew_mean"]
    assert rewards[-1] > rewards[0] + 0.2 * (8 - rewards[0])


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 2)])
def test_actions_of_any_shape(shape: tuple[int, ...]) -> None:
    class Checked(TargetEnv):
        def step(self, action: np.ndarray) -> Any:
            assert np.shape(action) == shape
            return super().step(np.asarray(action, np.float32))

    model = make_model(Checked(action_space=spaces.Box(-1.0, 1.0, shape)))
    model.learn(16)
    observation = np.zeros(3, np.float32)
    assert model.predict(observation)[0].shape == shape
    assert model.predict(observation[None])[0].shape == (1, *shape)


class SampledEnv(gym.Env[Any, np.ndarray]):
    """Observes whatever a space holds."""

    def __init__(self, space: spaces.Space[Any]):
        self.observation_space, self.action_space = space, UNIT

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiBinary(4),
        spaces.MultiDiscrete([3, 4]),
        spaces.Discrete(5),
        spaces.Box(-1.0, 1.0, (3,), np.float64),
        spaces.Box(0, 5, (3,), np.int64),
        spaces.Box(-1.0, 1.0, (3, 4), np.float32),
        spaces.Box(-np.inf, np.inf, (2,), np.float32),
    ],
    ids=str,
)
def test_observations_of_other_spaces(space: spaces.Space[Any]) -> None:
    model = make_model(SampledEnv(space), beta=0.1, imitation={"demonstrations": 0.1})
    space.seed(0)
    observations = np.stack([space.sample() for _ in range(40)])
    data = Demonstrations.from_arrays(observations, np.zeros((40, 2), np.float32), [20, 40])
    model.pretrain(data, gradient_steps=3)
    model.learn(32)
    assert all(th.isfinite(p).all() for p in model.policy.parameters())
    assert model.predict(observations[:3])[0].shape == (3, 2)


def test_entropy_bonus_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ent_coef=0.01: the entropy of a chain's action has no"):
        make_model(ent_coef=0.01)


@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        (lambda: several(1), {"beta": "adaptive_0.1"}, "the env has no Monitor"),
        (TargetEnv, {"imitation": {"successes": 1.0}, "beta": 0.1}, "the env reports no"),
        (lambda: ScriptedEnv([1]), {"performance_target": 300}, "compared with success rates"),
    ],
)
def test_signals_that_never_come_are_told_of_once(
    env: Callable[[], Any], kwargs: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = with_prior(make_model(env(), **kwargs))
    with caplog.at_level(logging.WARNING):
        model.learn(64)
    assert caplog.text.count(message) == 1


def test_callbacks_see_all_environment_steps() -> None:
    seen: list[tuple[int, int]] = []
    begun: list[BaseCallback] = []

    class Steps(BaseCallback):
        def _init_callback(self) -> None:
            seen.clear()
            begun.append(self)

        def _on_step(self) -> bool:
            assert isinstance(self.model, DiffusionPPO)
            seen.append((self.model.num_timesteps, self.model.env_steps))
            return self.num_timesteps < 30

    model = make_model(several(3))
    model.learn(48, Steps())
    assert seen == [(n, n) for n in range(3, 31, 3)]
    assert model.env_steps == model.num_timesteps == 30
    assert len(begun) == 1
    model.learn(48, lambda locals_, globals_: False)
    assert model.env_steps == model.num_timesteps == 3
