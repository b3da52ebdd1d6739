"""Imitation beside PPO: of demonstrations, in the contexts met, of one's own successes."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffrl import Demonstrations, DiffusionPPO
from sb3_diffrl.batches import TensorBatches
from tests.envs import (
    ASYMMETRIC,
    ContextEnv,
    CountingEnv,
    TargetEnv,
    counted_demonstrations,
    counting,
    demonstrations,
    several,
)
from tests.models import POLICY_KWARGS, SMALL_DICTS, SMALL_IMAGES, Log, make_model, with_prior


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


@pytest.mark.parametrize(
    ("action_range", "clip_sample", "largest"),
    [(None, None, 1), ([[-0.5], [0.5]], None, 2), ([[-0.5], [0.5]], 1.5, 1.5)],
)
def test_imitated_are_the_actions_that_are_executed(
    action_range: Any, clip_sample: float | None, largest: float
) -> None:
    """Of a range, as that of mean and deviation, the network's actions may go beyond 1."""
    kwargs = {**POLICY_KWARGS, "action_range": action_range, "clip_sample": clip_sample}
    model = make_model(counting(1), policy_kwargs=kwargs)
    actions = np.tile(np.array([[1, -1], [0.25, 0]], np.float32), (4, 1))
    model.set_demonstrations(Demonstrations.from_arrays(np.zeros((8, 3), np.float32), actions, [8]))
    buffer, policy = model.imitation_buffer, model.policy
    carried = buffer.carried_over(lambda *given: given[:2], np.zeros((1, 3), np.float32))
    buffer.add_carried_over(carried, policy, 100)
    scaled = np.full((3, 1, 2), [9, -0.5], np.float32)
    begins, outcomes = np.array([[1], [0], [0]]), np.array([[0], [0], [2]])
    buffer.add_rollout(np.zeros((3, 1, 3), np.float32), scaled, begins, outcomes, 100)
    given = {"context": policy.scale_action(actions), "successes": scaled[:, 0]}
    for term in given:
        kept = buffer.batches(term, policy)
        assert isinstance(kept, TensorBatches)
        assert float(kept.actions.abs().max()) == largest
        executed = policy.unscale_action(kept.actions.numpy())
        np.testing.assert_allclose(executed, policy.unscale_action(given[term]))


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


def test_imitation_may_train_the_actor_in_the_warmup() -> None:
    imitation = {"demonstrations": 1.0, "warmup_steps": 60, "warmup_learning_rate": 3e-3}
    model = with_prior(make_model(critic_warmup=1, beta=0.1, imitation=imitation))
    data = demonstrations()
    assert isinstance(data.observations, np.ndarray)
    model.set_demonstrations(data)
    before = disagreement(model, data.observations, data.observations)
    model.learn(16)
    assert disagreement(model, data.observations, data.observations) < 0.5 * before
