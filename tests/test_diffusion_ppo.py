"""The algorithm, used as an SB3 user would: rollouts, updates, knobs, logging, saving."""

import copy
import io
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
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from torch import nn

from sb3_diffrl import Demonstrations, DiffusionPPO
from sb3_diffrl.batches import TensorBatches
from sb3_diffrl.callbacks import MixingCallback
from sb3_diffrl.diffusion import MlpDenoiser
from tests.envs import (
    ASYMMETRIC,
    MATRIX,
    UNIT,
    ContextEnv,
    CountingEnv,
    RewardOneEnv,
    ScriptedEnv,
    TargetEnv,
    counting,
    demonstrations,
    several,
)

POLICY_KWARGS: dict[str, Any] = {"net_arch": [32, 32], "denoising_steps": 3}


class Log(KVWriter):
    """Keeps what the algorithm logs."""

    def __init__(self, model: DiffusionPPO):
        self.rows: list[dict[str, Any]] = []
        self.logger = Logger(None, [self])
        model.set_logger(self.logger)

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        """Nothing to close."""

    def __getitem__(self, key: str) -> list[float]:
        rows = [*self.rows, self.logger.name_to_value]  # the last update is logged after the dump
        return [float(row[key]) for row in rows if key in row]

    def names(self) -> set[str]:
        return set().union(*self.rows, self.logger.name_to_value)


def make_model(
    env: gym.Env[Any, Any] | VecEnv | None = None, policy: Any = "policy", **kwargs: Any
) -> DiffusionPPO:
    arguments: dict[str, Any] = {
        "n_steps": 16,
        "batch_size": 16,
        "n_epochs": 2,
        "policy_kwargs": POLICY_KWARGS,
        "seed": 0,
        "device": "cpu",
        **kwargs,
    }
    return DiffusionPPO(policy, env if env is not None else TargetEnv(), **arguments)


def perturb(module: nn.Module, scale: float = 0.1) -> None:
    with th.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * th.randn_like(parameter))


def with_prior(model: DiffusionPPO, scale: float = 0.1) -> DiffusionPPO:
    """Freeze the prior and move the policy away from it."""
    model.policy.freeze_prior()
    perturb(model.policy.actor, scale)
    return model


def always(denoiser: nn.Module, action: float) -> None:
    """Make a denoiser predict such noise that the clean action is clipped to 1 or -1."""
    assert isinstance(denoiser, MlpDenoiser) and abs(action) == 1
    with th.no_grad():
        assert isinstance(denoiser.output_layer, nn.Linear)
        denoiser.output_layer.weight.zero_()
        denoiser.output_layer.bias.fill_(-100 * action)


def state_of(module: nn.Module) -> dict[str, th.Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def same_state(a: dict[str, th.Tensor], b: dict[str, th.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(th.equal(a[key], b[key]) for key in a)


def collect(model: DiffusionPPO) -> None:
    """Fill the rollout buffer once, without an update."""
    _, callback = model._setup_learn(model.n_steps * model.n_envs)
    assert model.env is not None
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)


def actor_after(n_steps: int, model: DiffusionPPO) -> dict[str, th.Tensor]:
    model.learn(n_steps)
    return state_of(model.policy.actor)


# -- the likelihood ratio ----------------------------------------------------------------------

SMALL_IMAGES = {"features_extractor_kwargs": {"features_dim": 16}}
SMALL_DICTS = {"features_extractor_kwargs": {"cnn_output_dim": 16}}
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
    model = make_model(n_steps=32, batch_size=8, n_epochs=3, critic_warmup=1)
    log = Log(model)
    model.learn(32)  # the actor stays as it was, so that every ratio is 1
    assert log["train/ratio_mean"] == [pytest.approx(1, abs=1e-5)]
    assert log["train/ratio_max"] == [pytest.approx(1, abs=1e-5)]
    assert log["train/clip_fraction"] == [0.0]
    assert log["train/approx_kl"] == [pytest.approx(0, abs=1e-5)]
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
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
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
    model = with_prior(make_model(beta=0.1, critic_warmup=1))
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


# -- VecNormalize, envs, parameters ------------------------------------------------------------


def statistics(env: VecNormalize) -> Any:
    """Of the observations; SB3 types them as those of a Dict space, too."""
    return env.obs_rms


@pytest.mark.parametrize(("obs", "reward"), [(True, False), (False, True), (True, True)])
def test_vec_normalize(obs: bool, reward: bool, tmp_path: Path) -> None:
    def env() -> VecEnv:
        return several(2, reward_scale=50.0)

    normalized = VecNormalize(env(), norm_obs=obs, norm_reward=reward)
    model = make_model(normalized)
    model.learn(64)
    assert model.get_vec_normalize_env() is normalized
    if obs:
        assert abs(statistics(normalized).mean[2] - 0.5) < 1e-2
    assert (np.abs(model.rollout_buffer.rewards).max() < 15) == reward
    assert (np.abs(model.rollout_buffer.observations[:, 2]).max() < 0.4) == obs
    model.save(tmp_path / "model.zip")
    normalized.save(str(tmp_path / "env.pkl"))
    again = VecNormalize.load(str(tmp_path / "env.pkl"), env())
    loaded = DiffusionPPO.load(tmp_path / "model.zip", env=again)
    raw = np.array([[0.3, 0.1, 0.5]], np.float32)
    for one, other in ((model, normalized), (loaded, again)):
        action = one.predict(other.normalize_obs(raw), deterministic=True)[0]
        np.testing.assert_array_equal(
            action, model.predict(normalized.normalize_obs(raw), deterministic=True)[0]
        )
    loaded.learn(32)


def test_pretraining_sets_and_holds_the_observation_statistics(tmp_path: Path) -> None:
    data = demonstrations()
    env = VecNormalize(several(2), norm_reward=False)
    model = make_model(env, beta=0.1, imitation=0.1)
    model.pretrain(data, gradient_steps=20)
    assert isinstance(data.observations, np.ndarray)
    mean, var = data.observations.mean(axis=0), data.observations.var(axis=0)
    var = np.maximum(var, 0.02**2)  # the floor of the near-constant third entry
    prior = state_of(model.policy.prior)
    model.learn(64)
    env.save(str(tmp_path / "env.pkl"))
    again = VecNormalize.load(str(tmp_path / "env.pkl"), several(2))
    model.set_env(again)
    model.learn(32)
    for normalized in (env, again):
        np.testing.assert_allclose(statistics(normalized).mean, mean, rtol=1e-5)
        np.testing.assert_allclose(statistics(normalized).var, var, rtol=1e-4, atol=1e-9)
    assert same_state(prior, state_of(model.policy.prior))


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_vec_normalize_does_not_change_what_is_learned(kind: str) -> None:
    """The same prior as without it, which sees raw observations."""
    extra = SMALL_DICTS if kind == "dict" else {}
    data = demonstrations(TargetEnv(kind), n_episodes=4)
    kwargs: dict[str, Any] = {"beta": 0.1, "policy_kwargs": {**POLICY_KWARGS, **extra}}
    keys = ["state"] if kind == "dict" else None
    env = VecNormalize(several(2, kind), norm_reward=False, norm_obs_keys=keys)
    models = make_model(several(2, kind), **kwargs), make_model(env, **kwargs)
    for model in models:
        th.manual_seed(3)
        model.pretrain(data, gradient_steps=20, warmup_steps=2, validation_fraction=0)
    raw: Any = TargetEnv(kind).reset(seed=5)[0]
    noises = []
    for model, seen in zip(models, (raw, env.normalize_obs(raw)), strict=True):
        policy = model.policy
        with th.no_grad():
            condition = policy.prior.condition(policy.preprocess(policy.obs_to_tensor(seen)[0]))
            noises.append(policy.prior.denoiser(th.zeros(1, 2), th.tensor([1]), condition))
    assert float(noises[0].abs().min()) > 0.01
    th.testing.assert_close(noises[0], noises[1], rtol=0, atol=1e-4)
    models[1].learn(32)


def test_demonstrations_are_seen_as_the_env_shows_them() -> None:
    data = demonstrations()
    env = VecNormalize(several(2), norm_reward=False)
    model = make_model(env, beta=0.1)
    model.pretrain(data, gradient_steps=5)
    kept = model.imitation_buffer.demonstrations
    assert kept is not None
    assert isinstance(data.observations, np.ndarray) and isinstance(kept.observations, np.ndarray)
    seen = env.normalize_obs(data.observations)
    assert isinstance(seen, np.ndarray)
    np.testing.assert_allclose(kept.observations, seen)
    assert np.abs(kept.observations - data.observations).max() > 0.1
    model.set_demonstrations(data)
    again = model.imitation_buffer.demonstrations
    assert again is not None and isinstance(again.observations, np.ndarray)
    np.testing.assert_allclose(again.observations, kept.observations)
    assert kept is not again


def test_set_env_and_get_env() -> None:
    model = make_model(several(2))
    model.learn(32)
    other = several(2, reward_scale=0.0)
    model.set_env(other)
    assert model.get_env() is other
    model.learn(32)
    assert model.num_timesteps == 32
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(several(2, action_space=ASYMMETRIC))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        model.set_env(several(2, "dict"))


def test_load_with_another_number_of_envs(tmp_path: Path) -> None:
    model = make_model(counting(1), imitation={"successes": 0.1})
    model.learn(16)
    model.save(tmp_path / "model.zip")
    loaded = DiffusionPPO.load(tmp_path / "model.zip", env=counting(3))
    loaded.learn(48)
    assert loaded.n_envs == 3 and loaded.num_timesteps == 48


def test_parameters_are_got_and_set() -> None:
    model = with_prior(make_model(beta=0.1))
    model.learn(16)
    before: Any = copy.deepcopy(model.get_parameters())
    assert set(before) == {"policy", "policy.optimizer", "policy.critic_optimizer"}
    kept = state_of(model.policy)
    model.learn(32)
    assert not same_state(kept, state_of(model.policy))
    other = make_model(beta=0.1, seed=1)
    for each in (model, other):
        each.set_parameters(before)
        assert same_state(kept, state_of(each.policy))
    assert other.policy.has_prior
    part: Any = {"policy": before["policy"]}
    unknown: Any = {"no": {}}
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters(part)
    model.set_parameters(part, exact_match=False)
    with pytest.raises(ValueError, match="invalid object name"):
        model.set_parameters(unknown, exact_match=False)


# -- the prior ---------------------------------------------------------------------------------

OTHER_KWARGS: dict[str, Any] = {"net_arch": [24], "denoising_steps": 2, "sigma_min": 0.2}


@pytest.mark.parametrize("form", ["model", "policy", "str", "path"])
def test_prior_gives_the_architecture(form: str, tmp_path: Path) -> None:
    source = make_model(policy_kwargs=OTHER_KWARGS, seed=3)
    file = tmp_path / "source.zip"
    source.save(file)
    forms = {"model": source, "policy": source.policy, "str": str(file), "path": file}
    prior: Any = forms[form]
    model = DiffusionPPO(
        "policy", TargetEnv(), prior=prior, beta=0.1, n_steps=16, batch_size=16, device="cpu"
    )
    assert model.policy.process.denoising_steps == 2
    assert model.policy.net_arch == [24]
    check_prior(model, source)


@pytest.mark.parametrize("form", ["model", "policy", "str", "path"])
def test_prior_with_the_architecture_given(form: str, tmp_path: Path) -> None:
    source = make_model(seed=3)
    file = tmp_path / "source.zip"
    source.save(file)
    forms = {"model": source, "policy": source.policy, "str": str(file), "path": file}
    prior: Any = forms[form]
    # The number of steps of the sampler is no part of what was learned.
    kwargs = {**POLICY_KWARGS, "denoising_steps": 4, "sigma_min": 0.15}
    model = make_model(prior=prior, beta=0.1, policy_kwargs=kwargs)
    assert model.policy.process.denoising_steps == 4
    check_prior(model, source)


def check_prior(model: DiffusionPPO, source: DiffusionPPO) -> None:
    kept = state_of(source.policy)
    learned = state_of(source.policy.actor)
    assert model.policy.has_prior and not source.policy.has_prior
    assert same_state(learned, state_of(model.policy.actor))
    assert same_state(learned, state_of(model.policy.prior))
    log = Log(model)
    model.learn(48)
    assert same_state(learned, state_of(model.policy.prior))
    assert not same_state(learned, state_of(model.policy.actor))
    assert same_state(kept, state_of(source.policy))
    kl = log["train/prior_kl"]
    assert min(kl) > 0  # the policy has left the prior, which stayed


def test_starting_from_a_file_is_starting_from_the_model(tmp_path: Path) -> None:
    source = make_model(seed=3)
    source.learn(16)
    source.save(tmp_path / "source.zip")
    states = [
        actor_after(32, make_model(prior=prior, beta=0.1))
        for prior in (source, source.policy, tmp_path / "source.zip")
    ]
    assert same_state(states[0], states[1])
    assert same_state(states[0], states[2])


@pytest.mark.parametrize(
    ("what", "kwargs"),
    [
        ("net_arch", {"net_arch": [32]}),
        ("activation", {"net_arch": []}),
        ("noise_levels", {"noise_levels": 10}),
        ("noise_schedule", {"noise_schedule": "linear"}),
    ],
)
def test_prior_that_does_not_fit(what: str, kwargs: dict[str, Any]) -> None:
    source = make_model()
    with pytest.raises(ValueError, match="prior does not fit this policy"):
        make_model(prior=source, policy_kwargs={**POLICY_KWARGS, **kwargs})


def test_prior_of_other_spaces_does_not_fit() -> None:
    with pytest.raises(ValueError, match="prior does not fit this policy"):
        make_model(TargetEnv(action_space=MATRIX), prior=make_model())
    with pytest.raises(ValueError, match="prior does not fit this policy"):
        make_model(TargetEnv("discrete"), prior=make_model())


def test_prior_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        make_model(prior=tmp_path / "nothing.zip")


def test_from_scratch_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_model()  # adaptive beta by default: there is nothing to adapt
        log = Log(model)
        model.learn(32)
    assert any(
        "from scratch" in record.getMessage() and record.name.startswith("sb3_diffrl")
        for record in caplog.records
    )
    assert "train/prior_kl" not in log.names()
    assert log["train/beta"] == [0.0, 0.0]
    caplog.clear()
    make_model(prior=model, beta=0.1).learn(16)
    assert not any("from scratch" in record.getMessage() for record in caplog.records)


# -- beta --------------------------------------------------------------------------------------


def trained_beside(prior_seed: int, **kwargs: Any) -> dict[str, th.Tensor]:
    """The actor after training from the same weights beside the prior of another seed."""
    model = make_model(**kwargs)
    start = state_of(model.policy.actor)
    model.set_prior(make_model(seed=prior_seed).policy)
    model.policy.actor.load_state_dict(start)
    set_random_seed(0)
    return actor_after(48, model)


def test_beta_zero_is_independent_of_the_prior() -> None:
    assert same_state(trained_beside(1, beta=0), trained_beside(2, beta=0))


def test_beta_above_zero_is_not() -> None:
    assert not same_state(trained_beside(1, beta=0.1), trained_beside(2, beta=0.1))


def test_mixing_one_acts_by_the_policy_alone() -> None:
    assert not same_state(
        trained_beside(1, beta=0, mixing=0.5), trained_beside(2, beta=0, mixing=0.5)
    )
    assert same_state(trained_beside(1, beta=0, mixing=1), trained_beside(1, beta=0))


@pytest.mark.parametrize(
    ("beta", "expected"),
    [(0, [0, 0, 0, 0]), (0.3, [0.3] * 4), ("0.2", [0.2] * 4), ("linear_0.4", [0.3, 0.2, 0.1, 0])],
)
def test_fixed_and_scheduled_beta(beta: Any, expected: list[float]) -> None:
    model = with_prior(make_model(beta=beta))
    log = Log(model)
    model.learn(64)
    assert log["train/beta"] == pytest.approx(expected)
    assert len(log["train/prior_kl"]) == 4  # logged also where it has no weight


def test_large_beta_holds_the_policy_at_the_prior() -> None:
    divergences = {}
    for beta in (0, 10):
        model = make_model(several(2), beta=beta, n_steps=32, n_epochs=4, learning_rate=1e-3)
        model.policy.freeze_prior()
        log = Log(model)
        model.learn(64 * 5)
        divergences[beta] = log["train/prior_kl"][-1]
    assert divergences[10] < 0.2 * divergences[0]


def test_kl_controller_raises_and_lowers_beta() -> None:
    for target, factor in ((1e-9, 1.1), (1e9, 0.9)):
        beta = {"kind": "kl_controller", "initial": 0.1, "target": target, "gain": 0.5}
        model = with_prior(make_model(beta=beta))
        log = Log(model)
        model.learn(48)
        assert log["train/beta"] == pytest.approx([0.1, 0.1 * factor, 0.1 * factor**2])


RISING = [1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]  # four episodes in each rollout


def test_adaptive_beta_follows_the_success_rate() -> None:
    model = make_model(ScriptedEnv(RISING), beta="adaptive_0.1", stats_window_size=4)
    model.policy.freeze_prior()
    log = Log(model)
    model.learn(64)
    assert log["rollout/success_rate"] == [0.25, 0.5, 0.75, 1.0]
    # The prior acts in the first rollout; the target is a success rate of 1.
    improvement = np.array([0, 1 / 3, 2 / 3, 1])
    assert log["rollout/improvement"] == pytest.approx(improvement)
    assert log["train/beta"] == pytest.approx(0.1 * np.maximum(0.1, 1 - improvement))


def test_adaptive_beta_with_a_warm_up_measures_the_prior_for_longer() -> None:
    model = make_model(
        ScriptedEnv(RISING), beta="adaptive_0.1", stats_window_size=4, critic_warmup=1
    )
    model.policy.freeze_prior()
    log = Log(model)
    model.learn(64)
    assert log["rollout/improvement"] == pytest.approx([0, 0, 0.5, 1])


def test_adaptive_beta_with_returns_and_a_target() -> None:
    env = ScriptedEnv([1.0] * 4 + [2.0] * 4 + [5.0] * 4, reports_success=False)
    model = make_model(env, beta="adaptive_0.1", stats_window_size=4, performance_target=5.0)
    model.policy.freeze_prior()
    log = Log(model)
    model.learn(48)
    assert log["rollout/improvement"] == pytest.approx([0, 0.25, 1])
    assert log["train/beta"] == pytest.approx([0.1, 0.075, 0.01])


@pytest.mark.parametrize("knob", ["beta", "mixing", "imitation", "imitation_successes"])
def test_adaptive_schedules_need_a_target_for_returns(knob: str) -> None:
    knobs: dict[str, dict[str, Any]] = {
        "beta": {"beta": "adaptive_0.1"},
        "mixing": {"beta": 0.1, "mixing": "gated_0.5"},
        "imitation": {"beta": 0.1, "imitation": "adaptive_0.5"},
        "imitation_successes": {"beta": 0.1, "imitation": {"successes": "adaptive_0.5"}},
    }
    kwargs = knobs[knob]
    model = with_prior(make_model(**kwargs))
    model.set_demonstrations(demonstrations())
    with pytest.raises(ValueError, match="performance_target"):
        model.learn(32)
    model = with_prior(make_model(performance_target=10.0, **kwargs))
    model.set_demonstrations(demonstrations())
    model.learn(32)


def test_schedules_start_anew_with_each_run() -> None:
    model = with_prior(make_model(beta="linear_0.4", mixing="linear_0.5"))
    log = Log(model)
    model.learn(32)
    model.learn(32)
    assert log["rollout/mixing"] == pytest.approx([0.5, 0.75, 0.5, 0.75])
    model.learn(64, reset_num_timesteps=False)  # 32 of 96 done
    assert log["rollout/mixing"][4:] == pytest.approx([0.5 + 0.5 * i / 6 for i in (2, 3, 4, 5)])


def test_schedules_do_not_overshoot() -> None:
    """The last rollout goes beyond the steps that were asked for."""
    model = with_prior(make_model(n_steps=18, batch_size=9, beta="linear_0.4", mixing="linear_0.5"))
    log = Log(model)
    model.learn(40)
    assert log["train/beta"] == pytest.approx([0.4 * (1 - 18 / 40), 0.4 * (1 - 36 / 40), 0])
    model.learn(40)
    assert log["rollout/mixing"][:3] == pytest.approx([0.5, 0.5 + 0.5 * 18 / 40, 0.95])


def test_bad_knobs_are_named() -> None:
    bad: list[tuple[str, Any]] = [
        ("beta", "adaptive_much"),
        ("beta", -0.1),
        ("mixing", 0.0),
        ("mixing", "adaptive_0.5"),
        ("imitation", None),
        ("imitation", {"demos": 1.0}),
        ("imitation", {"batch_size": 0}),
    ]
    for name, value in bad:
        with pytest.raises(ValueError, match=f"{name}="):
            make_model(**{name: value})


# -- mixing ------------------------------------------------------------------------------------


def test_mixing_callback_drives_mixing(tmp_path: Path) -> None:
    model = with_prior(make_model(beta=0.1))
    log = Log(model)
    model.learn(64, callback=MixingCallback("linear_0.5"))
    assert log["rollout/mixing"] == pytest.approx([0.5, 0.625, 0.75, 0.875])
    direct = with_prior(make_model(beta=0.1, mixing="linear_0.5"))
    assert model.mixing == direct.mixing
    model.save(tmp_path / "model.zip")
    loaded = DiffusionPPO.load(tmp_path / "model.zip", env=TargetEnv())
    assert loaded.mixing == model.mixing
    assert float(loaded.policy.mixing) == 0.875


def test_mixing_gated_by_performance() -> None:
    model = make_model(ScriptedEnv(RISING), beta=0.1, mixing="gated_0.4", stats_window_size=4)
    model.policy.freeze_prior()
    log = Log(model)
    model.learn(80)
    expected = [0.4, 0.4, 0.4 + 0.6 / 3, 0.4 + 0.6 * 2 / 3, 1.0]
    assert log["rollout/mixing"] == pytest.approx(expected)


def test_mixing_callback_refuses_other_algorithms() -> None:
    model = PPO("MlpPolicy", TargetEnv(), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match=r"MixingCallback drives DiffusionPPO, got PPO"):
        model.learn(8, callback=MixingCallback())


def test_mixing_is_saved_and_used_in_predict(tmp_path: Path) -> None:
    model = make_model(mixing=0.3, beta=0.1, learning_rate=0.0)
    always(model.policy.actor.denoiser, -1)
    model.policy.freeze_prior()
    always(model.policy.actor.denoiser, 1)
    model.learn(16)
    model.save(tmp_path / "model.zip")
    loaded = DiffusionPPO.load(tmp_path / "model.zip")
    observations = np.zeros((3000, 3), np.float32)
    for each in (model, loaded):
        actions, _ = each.predict(observations)
        assert float((actions > 0).mean()) == pytest.approx(0.3, abs=0.03)
        assert np.all(each.predict(observations, deterministic=True)[0] == -1)


def test_no_mixing_without_a_prior() -> None:
    model = make_model(mixing=0.5)
    log = Log(model)
    model.learn(16)
    assert log["rollout/mixing"] == [1.0]


# -- imitation ---------------------------------------------------------------------------------


def disagreement(model: DiffusionPPO, seen: np.ndarray, by_prior: np.ndarray) -> float:
    """Mean squared difference between the policy's noise prediction and the prior's."""
    policy = model.policy
    generator = th.Generator().manual_seed(0)
    n, levels = len(seen), policy.process.levels
    level = levels[th.randint(len(levels), (n,), generator=generator)]
    # Near the data, where the demonstrations are.
    actions = th.zeros(n, policy.action_dim)
    noisy = policy.process.diffuse(actions, level, th.randn(n, 2, generator=generator))
    with th.no_grad():
        predictions = [
            actor.denoiser(noisy, level, actor.condition(th.as_tensor(obs)))
            for actor, obs in ((policy.actor, seen), (policy.prior, by_prior))
        ]
    return float((predictions[0] - predictions[1]).square().mean())


def imitating(env: gym.Env[Any, Any] | VecEnv, imitation: Any, **kwargs: Any) -> DiffusionPPO:
    arguments: dict[str, Any] = {"learning_rate": 2e-3, "n_epochs": 10, "beta": 0, **kwargs}
    return make_model(env, imitation=imitation, **arguments)


@pytest.mark.parametrize("imitation", [2.0, "2", {"demonstrations": 2.0, "batch_size": 128}])
def test_imitation_of_demonstrations(imitation: Any) -> None:
    data = demonstrations()
    assert isinstance(data.observations, np.ndarray)
    found = {}
    for weight in (0.0, imitation):
        model = with_prior(imitating(TargetEnv(reward_scale=0.0), weight))
        model.set_demonstrations(data)
        log = Log(model)
        before = disagreement(model, data.observations, data.observations)
        model.learn(64)
        found[str(weight)] = disagreement(model, data.observations, data.observations) / before
        losses = log["train/imitation_demonstrations"]
        assert len(losses) == (4 if weight else 0)
    assert losses[-1] < 0.5 * losses[0]
    assert found[str(imitation)] < 0.3 < 0.6 < found["0.0"]


def test_imitation_without_a_prior_learns_the_demonstrations() -> None:
    data = demonstrations()
    model = imitating(TargetEnv(reward_scale=0.0), {"demonstrations": 2.0}, n_epochs=40)
    model.set_demonstrations(data)
    log = Log(model)
    model.learn(64)
    losses = log["train/imitation_demonstrations"]
    assert losses[-1] < 0.7 * losses[0]
    assert "train/prior_kl" not in log.names()


def test_imitation_in_the_contexts_met() -> None:
    """What the prior does in the demonstrated context is carried over to the one met online."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (400, 1)).astype(np.float32)
    there, here = (np.hstack([x, np.full_like(x, context)]) for context in (0.1, 0.8))
    data = Demonstrations.from_arrays(there, np.hstack([x, -x]), episode_ends=[200, 400])
    found = {}
    for term in ("context", "demonstrations"):
        model = imitating(ContextEnv(0.8), {term: 2.0})
        model.pretrain(data, gradient_steps=100, warmup_steps=10)
        with th.no_grad():  # the context matters to the networks
            for actor in (model.policy.actor, model.policy.prior):
                actor.denoiser.features_layer.weight[:, 1] += 0.3  # type: ignore[index, operator, union-attr]
        log = Log(model)
        before = disagreement(model, here, there)
        model.learn(64)
        found[term] = disagreement(model, here, there) / before
        losses = log[f"train/imitation_{term}"]
        assert len(losses) == 4
        if term == "context":
            assert losses[-1] < 0.5 * losses[0]
    assert found["context"] < 0.3 < 0.6 < found["demonstrations"]


def test_imitation_of_own_successes() -> None:
    found = []
    for weight in (1e-9, 2.0):
        model = imitating(counting(2), {"successes": weight})
        log = Log(model)
        model.learn(32 * 5)
        losses = log["train/imitation_successes"]
        assert len(losses) >= 4
        found.append(losses[-1] / losses[0])
    assert found[1] < 0.9 * found[0]


class Record(BaseCallback):
    """Keeps each env's episodes: observations, actions, and whether they succeeded."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[np.ndarray, np.ndarray, bool]] = []
        self.pending: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def _on_step(self) -> bool:
        seen = self.model._last_obs
        assert isinstance(seen, np.ndarray)
        for i, info in enumerate(self.locals["infos"]):
            step = seen[i].copy(), self.locals["clipped_actions"][i].copy()
            self.pending.setdefault(i, []).append(step)
            if self.locals["dones"][i]:
                observations, actions = zip(*self.pending.pop(i), strict=True)
                self.episodes.append(
                    (np.stack(observations), np.stack(actions), info["is_success"])
                )
        return True

    def successes(self) -> np.ndarray:
        """Decisions of the successful episodes, (observation, action) in rows that are sorted."""
        rows = [np.hstack([seen, done]) for seen, done, success in self.episodes if success]
        return sort_rows(np.concatenate(rows))


def sort_rows(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T[::-1])]


def kept_successes(model: DiffusionPPO) -> np.ndarray:
    kept = model.imitation_buffer.batches("successes", model.policy)
    if kept is None:
        return np.zeros((0, 5))
    assert isinstance(kept, TensorBatches)
    observations, actions = kept.observations, kept.actions
    assert isinstance(observations, th.Tensor)
    return sort_rows(np.hstack([observations.numpy(), actions.numpy()]))


def test_successes_are_exactly_the_successful_episodes() -> None:
    """Also of those that a border between rollouts, or between runs, cuts."""
    model = make_model(
        counting(3), n_steps=7, batch_size=21, imitation={"successes": 0.1, "batch_size": 8}
    )
    record = Record()
    model.learn(21 * 3, callback=record)
    model.learn(21 * 4, callback=record, reset_num_timesteps=False)
    assert sum(success for _, _, success in record.episodes) >= 8
    np.testing.assert_allclose(kept_successes(model), record.successes(), atol=1e-6)
    assert model.imitation_buffer.n_successes == len(record.successes())


def test_aborted_episodes_are_not_imitated() -> None:
    model = make_model(CountingEnv(), n_steps=2, batch_size=2, imitation={"successes": 0.1})
    model.learn(2)  # two of the three decisions of the first episode; then a reset
    record = Record()
    model.learn(24, callback=record)
    np.testing.assert_allclose(kept_successes(model), record.successes(), atol=1e-6)
    model.set_env(CountingEnv())  # the episode under way ends unseen
    model.learn(4, callback=Record())
    model.learn(2, callback=Record())
    kept = {tuple(row[:3]) for row in kept_successes(model)}
    assert not any(episode % 2 == 0 for _, episode, _ in kept)


def test_a_stopped_rollout_leaves_no_half_episode() -> None:
    model = make_model(counting(1), n_steps=4, batch_size=4, imitation={"successes": 0.1})
    calls = 0

    def stop(_locals: Any, _globals: Any) -> bool:
        nonlocal calls
        calls += 1
        return calls != 6

    model.learn(16, callback=stop)
    model.learn(24, reset_num_timesteps=False)
    episodes: dict[float, list[float]] = {}
    for _, episode, step, *_ in kept_successes(model):
        episodes.setdefault(episode, []).append(step)
    assert len(episodes) >= 2
    for episode, steps in episodes.items():
        env = CountingEnv()
        env.episode = int(episode)
        assert env.succeeds and steps == list(range(env.length))


def test_oldest_successes_leave_first() -> None:
    imitation = {"successes": 0.1, "capacity": 12, "batch_size": 8}
    model = make_model(counting(2), imitation=imitation)
    record = Record()
    model.learn(32 * 3, callback=record)
    assert 0 < model.imitation_buffer.n_successes <= 12
    kept = kept_successes(model)
    assert kept[:, 1].min() > record.successes()[:, 1].min()
    assert {tuple(row) for row in kept.round(4)} <= {
        tuple(row) for row in record.successes().round(4).astype(np.float32)
    }


@pytest.mark.parametrize("kind", ["discrete", "image", "dict"])
def test_imitation_of_other_observations(kind: str) -> None:
    env = several(2, kind, success=True, action_space=ASYMMETRIC)
    extra = {"image": SMALL_IMAGES, "dict": SMALL_DICTS}.get(kind, {})
    imitation = {"demonstrations": 0.1, "context": 0.1, "successes": 0.1, "batch_size": 8}
    model = make_model(env, imitation=imitation, beta=0.1, policy_kwargs={**POLICY_KWARGS, **extra})
    data = demonstrations(TargetEnv(kind, action_space=ASYMMETRIC), n_episodes=3)
    model.pretrain(data, gradient_steps=3, batch_size=8)
    log = Log(model)
    model.learn(64)
    for term in ("demonstrations", "context", "successes"):
        assert len(log[f"train/imitation_{term}"]) == 2
    kept = model.imitation_buffer.batches("successes", model.policy)
    assert isinstance(kept, TensorBatches) and kept.actions.shape == (64, 2)
    assert float(kept.actions.abs().max()) <= 1


@pytest.mark.parametrize("imitation", [0.5, "linear_1", {"context": 0.1}])
def test_missing_demonstrations(imitation: Any) -> None:
    model = make_model(imitation=imitation)
    with pytest.raises(ValueError, match=r"no demonstrations to imitate.*set_demonstrations"):
        model.learn(16)
    model.set_demonstrations(demonstrations())
    model.learn(16)


def test_demonstrations_that_do_not_fit() -> None:
    data = demonstrations()
    wrong = Demonstrations(data.observations, 3 * np.asarray(data.actions), data.episode_ends)
    model = make_model(imitation=0.5)
    with pytest.raises(ValueError, match=r"actions\[\d+, \d\].*expected within \[-1, 1\]"):
        model.set_demonstrations(wrong)
    with pytest.raises(ValueError, match="no demonstrations"):
        model.learn(16)


def test_imitation_buffer_is_saved_on_request(tmp_path: Path) -> None:
    model = make_model(
        counting(2), imitation={"demonstrations": 0.1, "successes": 0.1}, n_steps=7, batch_size=14
    )
    model.set_demonstrations(counted_demonstrations())
    model.learn(42)
    assert model.imitation_buffer.n_successes > 0
    model.save(tmp_path / "without.zip")
    model.save(tmp_path / "with.zip", include=["imitation_buffer"])
    loaded = DiffusionPPO.load(tmp_path / "without.zip", env=counting(2))
    assert loaded.imitation_buffer.n_successes == 0
    with pytest.raises(ValueError, match="no demonstrations"):
        loaded.learn(14)
    loaded = DiffusionPPO.load(tmp_path / "with.zip", env=counting(2))
    np.testing.assert_array_equal(kept_successes(loaded), kept_successes(model))
    loaded.learn(14)
    assert loaded.imitation_buffer.demonstrations is not None


def test_capacity_survives_saving(tmp_path: Path) -> None:
    model = make_model(counting(2), imitation={"successes": 0.1, "capacity": 12})
    model.save(tmp_path / "model.zip")
    loaded = DiffusionPPO.load(tmp_path / "model.zip", env=counting(2))
    loaded.learn(96)
    assert 0 < loaded.imitation_buffer.n_successes <= 12


def counted_demonstrations() -> Demonstrations:
    rng = np.random.default_rng(0)
    observations = np.stack([np.tile([0, 1], 20), np.arange(40) // 4, np.arange(40) % 4], axis=1)
    return Demonstrations.from_arrays(
        observations.astype(np.float32),
        rng.uniform(-1, 1, (40, 2)).astype(np.float32),
        episode_ends=np.arange(4, 41, 4),
    )


# -- critic warm-up ----------------------------------------------------------------------------


def test_critic_warmup_leaves_the_actor_untouched() -> None:
    model = with_prior(make_model(critic_warmup=2, beta=0.1, imitation=0.5))
    model.set_demonstrations(demonstrations())
    actor, critic = state_of(model.policy.actor), state_of(model.policy.value_net)
    for _ in range(2):
        model.learn(16, reset_num_timesteps=False)
        assert same_state(actor, state_of(model.policy.actor))
        assert not same_state(critic, state_of(model.policy.value_net))
        critic = state_of(model.policy.value_net)
    model.learn(16, reset_num_timesteps=False)
    assert not same_state(actor, state_of(model.policy.actor))


def test_imitation_may_train_the_actor_in_the_warmup() -> None:
    imitation = {"demonstrations": 1.0, "warmup_steps": 60, "warmup_learning_rate": 3e-3}
    model = with_prior(make_model(critic_warmup=1, beta=0.1, imitation=imitation))
    data = demonstrations()
    assert isinstance(data.observations, np.ndarray)
    model.set_demonstrations(data)
    before = disagreement(model, data.observations, data.observations)
    model.learn(16)
    assert disagreement(model, data.observations, data.observations) < 0.5 * before


def test_critic_warmup_of_a_new_prior_starts_anew() -> None:
    model = make_model(critic_warmup=1, beta=0.1)
    model.learn(32)
    model.set_prior(make_model(seed=1).policy)
    actor = state_of(model.policy.actor)
    model.learn(16)
    assert same_state(actor, state_of(model.policy.actor))


# -- repeatability -----------------------------------------------------------------------------


def everything(env: VecEnv | None = None, **kwargs: Any) -> DiffusionPPO:
    """All knobs in use."""
    arguments: dict[str, Any] = {
        "beta": {"kind": "kl_controller", "initial": 0.1, "target": 0.05},
        "mixing": "linear_0.5",
        "imitation": {"demonstrations": 0.1, "context": 0.1, "successes": 0.1, "batch_size": 16},
        "n_steps": 9,
        "batch_size": 6,
        **kwargs,
    }
    model = make_model(env if env is not None else counting(2), **arguments)
    model.pretrain(counted_demonstrations(), gradient_steps=10, warmup_steps=2)
    return model


def plain(env: VecEnv | None = None, **kwargs: Any) -> DiffusionPPO:
    return make_model(env if env is not None else several(2), **{"batch_size": 8, **kwargs})


def normalized(env: VecEnv | None = None, **kwargs: Any) -> DiffusionPPO:
    return make_model(env if env is not None else VecNormalize(several(2)), **kwargs)


def adaptive(env: VecEnv | None = None, **kwargs: Any) -> DiffusionPPO:
    env = env if env is not None else counting(2)
    arguments = {"beta": "adaptive_0.5", "mixing": "gated_0.5", "critic_warmup": 1, **kwargs}
    return with_prior(make_model(env, **arguments))


BUILDERS: dict[str, Callable[..., DiffusionPPO]] = {
    "plain": plain,
    "everything": everything,
    "normalized": normalized,
    "adaptive": adaptive,
}


def assert_same_models(a: DiffusionPPO, b: DiffusionPPO) -> None:
    assert same_state(state_of(a.policy), state_of(b.policy))
    for name in ("optimizer", "critic_optimizer"):
        one, other = (getattr(each.policy, name).state_dict()["state"] for each in (a, b))
        assert one.keys() == other.keys()
        for key in one:
            assert all(th.equal(one[key][part], other[key][part]) for part in one[key])
    assert a.beta == b.beta and a.mixing == b.mixing and a.improvement == b.improvement
    assert (a.num_timesteps, a.env_steps, a._n_updates) == (
        b.num_timesteps,
        b.env_steps,
        b._n_updates,
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_same_seed_repeats_bit_for_bit(name: str) -> None:
    models, logs = [], []
    for _ in range(2):
        np.random.seed(None)  # noqa: NPY002  (whatever came before must not matter)
        th.seed()
        model = BUILDERS[name]()
        logs.append(Log(model))
        models.append(model.learn(96))
    assert_same_models(*models)
    for key in logs[0].names() - {"time/fps", "time/time_elapsed"}:
        assert logs[0][key] == pytest.approx(logs[1][key], rel=0, abs=0), key
    other = BUILDERS[name](seed=1).learn(96)
    assert not same_state(state_of(models[0].policy), state_of(other.policy))


@pytest.mark.parametrize("name", BUILDERS)
def test_saved_and_loaded_predicts_the_same(name: str, tmp_path: Path) -> None:
    model = BUILDERS[name]()
    model.learn(48)
    model.save(tmp_path / "model.zip")
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (20, 3)).astype(np.float32)
    for loaded in (
        DiffusionPPO.load(tmp_path / "model.zip"),
        DiffusionPPO.load(str(tmp_path / "model"), device="cpu"),
        DiffusionPPO.load(file, env=model.get_env()),
    ):
        assert_same_models(model, loaded)
        for deterministic in (True, False):
            th.manual_seed(1)
            expected, _ = model.predict(observations, deterministic=deterministic)
            th.manual_seed(1)
            found, _ = loaded.predict(observations, deterministic=deterministic)
            np.testing.assert_array_equal(found, expected)


def test_saved_and_loaded_with_images_and_dicts(tmp_path: Path) -> None:
    for kind, extra in (("image", SMALL_IMAGES), ("dict", SMALL_DICTS)):
        model = make_model(several(1, kind), policy_kwargs={**POLICY_KWARGS, **extra})
        model.learn(16)
        model.save(tmp_path / "model.zip")
        loaded = DiffusionPPO.load(tmp_path / "model.zip", env=several(1, kind))
        observation = TargetEnv(kind).reset(seed=0)[0]
        for deterministic in (True, False):
            th.manual_seed(1)
            expected, _ = model.predict(observation, deterministic=deterministic)
            th.manual_seed(1)
            found, _ = loaded.predict(observation, deterministic=deterministic)
            np.testing.assert_array_equal(found, expected)
        loaded.learn(16)


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_two_loads_continue_identically(name: str, seed: int | None, tmp_path: Path) -> None:
    model = BUILDERS[name]()
    model.learn(48)
    model.save(tmp_path / "model.zip", include=["imitation_buffer"])
    given = {} if seed is None else {"seed": seed}
    loaded = []
    for _ in range(2):
        np.random.seed(None)  # noqa: NPY002
        th.seed()
        env = several(2) if name == "plain" else counting(2)
        loaded.append(DiffusionPPO.load(tmp_path / "model.zip", env=env, **given).learn(48))
    assert_same_models(*loaded)
    assert not same_state(state_of(model.policy), state_of(loaded[0].policy))


def test_loads_with_different_seeds_differ(tmp_path: Path) -> None:
    model = plain()
    model.save(tmp_path / "model.zip")
    states = [
        actor_after(32, DiffusionPPO.load(tmp_path / "model.zip", env=several(2), seed=seed))
        for seed in (1, 2)
    ]
    assert not same_state(*states)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_saved_run_goes_on_as_if_it_had_never_stopped(name: str, tmp_path: Path) -> None:
    whole = BUILDERS[name]()
    whole.learn(54)
    whole.learn(54, reset_num_timesteps=False)

    first = BUILDERS[name]()
    first.learn(54)
    first.save(tmp_path / "model.zip", include=["imitation_buffer"])
    env = first.get_env()
    np.random.seed(None)  # noqa: NPY002
    th.seed()
    second = DiffusionPPO.load(tmp_path / "model.zip", env=env, force_reset=False)
    second.learn(54, reset_num_timesteps=False)
    assert second.num_timesteps == whole.num_timesteps >= 108
    assert_same_models(whole, second)
    assert whole.imitation_buffer.n_successes == second.imitation_buffer.n_successes


def test_knobs_can_be_set_when_loading(tmp_path: Path) -> None:
    model = with_prior(make_model(ScriptedEnv(RISING), beta=0.1))
    model.save(tmp_path / "model.zip")
    knobs: dict[str, Any] = {
        "beta": "linear_0.4",
        "mixing": "linear_0.5",
        "imitation": {"successes": 0.1},
    }
    for kwargs in (knobs, {"custom_objects": knobs}):
        loaded = DiffusionPPO.load(tmp_path / "model.zip", env=ScriptedEnv(RISING), **kwargs)
        log = Log(loaded)
        loaded.learn(32)
        assert log["train/beta"] == pytest.approx([0.2, 0])
        assert log["rollout/mixing"] == pytest.approx([0.5, 0.75])
        assert len(log["train/imitation_successes"]) >= 1


def test_performance_target_can_be_set_when_loading(tmp_path: Path) -> None:
    env = ScriptedEnv([1.0] * 4 + [2.0] * 4, reports_success=False)
    make_model(env, beta=0.1, stats_window_size=4).save(tmp_path / "model.zip")
    loaded = DiffusionPPO.load(
        tmp_path / "model.zip", env=env, beta="adaptive_0.1", performance_target=5.0
    )
    loaded.policy.freeze_prior()
    log = Log(loaded)
    loaded.learn(32)
    assert log["rollout/improvement"] == pytest.approx([0, 0.25])


def test_learning_rates_can_be_set_when_loading(tmp_path: Path) -> None:
    make_model().save(tmp_path / "model.zip")
    loaded = DiffusionPPO.load(
        tmp_path / "model.zip",
        env=TargetEnv(),
        learning_rate=2e-5,
        critic_learning_rate=3e-5,
        clip_range=0.5,
    )
    log = Log(loaded)
    loaded.learn(16)
    assert loaded.policy.optimizer.param_groups[0]["lr"] == pytest.approx(2e-5)
    assert loaded.policy.critic_optimizer.param_groups[0]["lr"] == pytest.approx(3e-5)
    assert log["train/clip_range"] == [0.5]


def test_saving_leaves_training_as_it_was(tmp_path: Path) -> None:
    class Save(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % 10 == 0:
                self.model.save(tmp_path / "model.zip")
            return True

    assert_same_models(everything().learn(54), everything().learn(54, callback=Save()))
