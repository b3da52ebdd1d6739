"""Where the algorithm starts from and what holds it there: prior, beta, mixing, warm-up."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.callbacks import MixingCallback
from tests.envs import MATRIX, RISING, ScriptedEnv, TargetEnv, demonstrations, several
from tests.models import (
    POLICY_KWARGS,
    Log,
    actor_after,
    always,
    make_model,
    perturb,
    same_state,
    state_of,
    with_prior,
)

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


def test_a_knob_of_the_policy_leaves_the_rest_of_the_prior() -> None:
    kwargs = {"net_arch": [24], "activation_fn": nn.Tanh, "denoising_steps": 4}
    source = make_model(policy_kwargs=kwargs)
    model = make_model(prior=source, policy_kwargs={"sigma_min": 0.3})
    assert model.policy.architecture() == source.policy.architecture() | {"sigma_min": 0.3}
    with pytest.raises(ValueError, match=r"its activation_fn is .*Tanh.*, the policy's is .*ReLU"):
        make_model(prior=source, policy_kwargs={"activation_fn": nn.ReLU})


@pytest.mark.parametrize("trained_under", [False, True], ids=["plain", "VecNormalize"])
def test_observations_stay_as_the_prior_knows_them(trained_under: bool) -> None:
    """The actor is not trained: what it does must stay the same."""
    data = demonstrations()
    env = VecNormalize(several(2), norm_reward=False)
    source = make_model(env if trained_under else several(2))
    source.pretrain(data, gradient_steps=50, warmup_steps=1)
    other = VecNormalize(several(2), norm_reward=False)
    if trained_under:
        other.obs_rms = copy.deepcopy(env.obs_rms)
    model = make_model(other, prior=source, critic_warmup=99)
    assert isinstance(data.observations, np.ndarray)
    raw = data.observations[:20]

    def acts(model: DiffusionPPO) -> np.ndarray:
        normalizer = model.get_vec_normalize_env()
        seen = raw if normalizer is None else normalizer.normalize_obs(raw)
        return model.predict(seen, deterministic=True)[0]

    expected = acts(source)
    model.learn(64)
    np.testing.assert_allclose(acts(model), expected, atol=1e-5)


def test_a_loaded_prior_keeps_its_statistics(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = demonstrations()
    assert isinstance(data.observations, np.ndarray)
    raw = data.observations[:20]
    source = make_model(several(2))
    source.pretrain(data, gradient_steps=50, warmup_steps=1)
    perturb(source.policy.actor)  # as RL would: the prior is to stay what it is
    expected = source.predict(raw, deterministic=True)[0]
    source.save(tmp_path / "bare.zip")
    env = VecNormalize(several(2), norm_reward=False)
    loaded = DiffusionPPO.load(tmp_path / "bare.zip", env=env)
    actions = loaded.predict(env.normalize_obs(raw), deterministic=True)[0]
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    for mine, theirs in zip(
        loaded.policy.prior.denoiser.parameters(),
        source.policy.prior.denoiser.parameters(),
        strict=True,
    ):
        assert th.equal(mine, theirs)
    assert not caplog.text
    loaded.save(tmp_path / "normalized.zip")
    with caplog.at_level(logging.WARNING):
        DiffusionPPO.load(tmp_path / "normalized.zip", env=several(2))
    assert "those of the VecNormalize that it was trained under" in caplog.text


def test_a_prior_without_statistics_needs_those_of_an_env(caplog: pytest.LogCaptureFixture) -> None:
    source = make_model(VecNormalize(several(2)))
    source.pretrain(demonstrations(), gradient_steps=2)
    with caplog.at_level(logging.WARNING):
        make_model(VecNormalize(several(2)), prior=source)
    assert "those of the VecNormalize that it was trained under" in caplog.text


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


def test_target_kl_does_not_stop_the_critics_warmup() -> None:
    """Though imitation moves the actor away from what acted."""
    imitation = {"demonstrations": 1.0, "warmup_steps": 60, "warmup_learning_rate": 3e-3}
    critics = []
    for target_kl in (None, 1e-9):
        model = with_prior(
            make_model(beta=0.1, critic_warmup=1, imitation=imitation, target_kl=target_kl)
        )
        model.set_demonstrations(demonstrations())
        log = Log(model)
        model.learn(16)
        critics.append(state_of(model.policy.value_net))
        assert "train/value_loss" in log.names() and "train/prior_kl" not in log.names()
    assert same_state(*critics)


def test_kl_controller_waits_for_the_critics_warmup() -> None:
    controller = {"kind": "kl_controller", "initial": 0.1, "target": 0.05}
    model = with_prior(make_model(critic_warmup=3, beta=controller), scale=0.0)
    log = Log(model)
    model.learn(64)
    assert log["train/beta"] == [0.1] * 4


def test_critic_warmup_of_a_new_prior_starts_anew() -> None:
    model = make_model(critic_warmup=1, beta=0.1)
    model.learn(32)
    model.set_prior(make_model(seed=1).policy)
    actor = state_of(model.policy.actor)
    model.learn(16)
    assert same_state(actor, state_of(model.policy.actor))
