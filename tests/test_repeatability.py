"""Same seeds, saving, loading and going on."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_diffrl import DiffusionPPO
from tests.envs import RISING, ScriptedEnv, TargetEnv, counted_demonstrations, counting, several
from tests.models import (
    POLICY_KWARGS,
    SMALL_DICTS,
    SMALL_IMAGES,
    Log,
    actor_after,
    assert_same_predictions,
    make_model,
    same_state,
    state_of,
    with_prior,
)


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
        np.random.seed(None)
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
        assert_same_predictions(model, loaded, observations)


def test_saved_and_loaded_with_images_and_dicts(tmp_path: Path) -> None:
    for kind, extra in (("image", SMALL_IMAGES), ("dict", SMALL_DICTS)):
        model = make_model(several(1, kind), policy_kwargs={**POLICY_KWARGS, **extra})
        model.learn(16)
        model.save(tmp_path / "model.zip")
        loaded = DiffusionPPO.load(tmp_path / "model.zip", env=several(1, kind))
        observation = TargetEnv(kind).reset(seed=0)[0]
        assert_same_predictions(model, loaded, observation)
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
        np.random.seed(None)
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
    np.random.seed(None)
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
