"""Demonstrations carried over to scenes in which things stand elsewhere."""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.bench.baselines import ClonedPPO
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.transport import Transport, carry_over
from sb3_diffrl.imitation import Imitation
from sb3_diffrl.wrappers import ActionChunkWrapper, ObservationHistoryWrapper

STEP = 0.05
TRANSPORT = Transport(hand=0, objects=(3, 6), goal=9, step=STEP)
Floats = NDArray[np.float32]


class CarryEnv(gym.Env[Floats, Floats]):
    """
    A hand fetches a thing and carries it to a goal; another thing stands about. Observed are hand,
    thing, other thing and goal, three entries each.

    :param reach: thing, other thing and goal are displaced by up to this
    """

    def __init__(self, reach: float = 0.0):
        self.reach = reach
        self.observation_space = spaces.Box(-np.inf, np.inf, (12,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Floats, dict]:
        super().reset(seed=seed)
        self.hand, self.held, self.t = np.zeros(3), False, 0
        shifts = self.np_random.uniform(-self.reach, self.reach, (3, 3)) * [1, 1, 0]
        places = np.array([[0.4, 0, -0.2], [0, -0.6, -0.2], [0.4, 0.5, 0]])
        self.thing, self.other, self.goal = places + shifts
        return self._observed(), {"is_success": False}

    def step(self, action: Floats) -> tuple[Floats, float, bool, bool, dict]:
        way = STEP * np.clip(action[:3], -1, 1)
        self.hand = self.hand + way
        if self.held:
            self.thing = self.thing + way
        self.held = self.held or bool(np.linalg.norm(self.hand - self.thing) < 0.06)
        success = bool(np.linalg.norm(self.thing - self.goal) < 0.08)
        self.t += 1
        return self._observed(), float(success), success, self.t == 60, {"is_success": success}

    def _observed(self) -> Floats:
        return np.concatenate([self.hand, self.thing, self.other, self.goal]).astype(np.float32)


def demonstrated(n_episodes: int = 4) -> Demonstrations:
    """Straight to the thing, then straight to the goal, at up to half of full speed."""
    env = CarryEnv(reach=0.02)
    episodes = []
    for seed in range(n_episodes):
        observation, _ = env.reset(seed=seed)
        observations, actions, done = [], [], False
        while not done:
            way = env.goal - env.thing if env.held else env.thing - env.hand
            action = np.zeros(4, np.float32)
            action[:3] = way / max(np.linalg.norm(way), STEP) / 2
            observations.append(observation)
            actions.append(action)
            observation, _, done, _, info = env.step(action)
        assert info["is_success"]
        episodes.append((np.array(observations), np.array(actions)))
    return Demonstrations.from_arrays([e[0] for e in episodes], [e[1] for e in episodes])


def episodes_of(demonstrations: Demonstrations) -> list[tuple[Floats, Floats]]:
    observations, actions = np.asarray(demonstrations.observations), demonstrations.actions
    ends = pairwise([0, *demonstrations.episode_ends])
    return [(observations[begin:end], np.asarray(actions[begin:end])) for begin, end in ends]


@pytest.fixture(scope="module")
def demonstration() -> tuple[Floats, Floats]:
    return episodes_of(demonstrated(1))[0]


def elsewhere(observation: Floats, thing: Any = 0.0, other: Any = 0.0, goal: Any = 0.0) -> Floats:
    shift = np.concatenate([np.broadcast_to(part, 3) for part in (0.0, thing, other, goal)])
    return (observation + shift).astype(np.float32)


def test_the_same_scene_gives_the_demonstration(demonstration: tuple[Floats, Floats]) -> None:
    observations, actions = TRANSPORT(*demonstration, demonstration[0][0])
    np.testing.assert_array_equal(observations, demonstration[0])
    np.testing.assert_array_equal(actions, demonstration[1])


@pytest.mark.parametrize("size", [0.05, 0.6])
def test_milestones(demonstration: tuple[Floats, Floats], size: float) -> None:
    """The hand's displacement: none, that of the thing when it is touched, that of the goal."""
    before, _ = demonstration
    thing, other, goal = size * np.array([[1, -1, 0.2], [0.5, 0.5, 0], [-1, 0.5, 0]])
    met = elsewhere(before[0], thing, other, goal)
    after, actions = TRANSPORT(*demonstration, met)
    np.testing.assert_allclose(after[0], met, atol=1e-6)
    np.testing.assert_allclose(after[:, 6:9], np.tile(met[6:9], (len(after), 1)), atol=1e-6)
    np.testing.assert_allclose(after[:, 9:12], np.tile(met[9:12], (len(after), 1)), atol=1e-6)

    def touched(observations: Floats) -> int:
        return int(np.flatnonzero((observations[:, 3:6] != observations[0, 3:6]).any(axis=1))[0])

    # Between two steps the stretched time falls between two of the demonstrated ones.
    tolerance = STEP * 0.5
    reach = after[touched(after) - 1, :3] - after[0, 3:6]
    np.testing.assert_allclose(
        reach, before[touched(before) - 1, :3] - before[0, 3:6], atol=tolerance
    )
    np.testing.assert_allclose(after[-1, :3], before[-1, :3] + goal, atol=tolerance)
    held = after[touched(after) :]
    np.testing.assert_allclose(
        held[:, 3:6] - held[:, :3], np.tile(held[0, 3:6] - held[0, :3], (len(held), 1)), atol=1e-5
    )
    assert np.abs(actions[:, :3]).max() <= 1 + 1e-6
    assert (len(after) > len(before)) == (size == 0.6)


@pytest.mark.parametrize("thing", [0.0, 0.45, 0.5, 0.55, *np.linspace(0.6, 1.2, 30)])
def test_time_is_stretched_around_all_decisions(thing: float) -> None:
    """The hand goes 0.495 at 0.9 of full speed; to go 0.55 beside it takes full speed."""
    observations, actions = np.zeros((12, 12), np.float32), np.zeros((12, 4), np.float32)
    observations[:, 0] = 0.9 * STEP * np.arange(12)
    observations[:, [3, 6, 9]] = observations[-1, 0]
    actions[:-1, 0], actions[:, 3] = 0.9, np.arange(12)
    transport = Transport(hand=0, objects=(3,), goal=9, step=STEP)
    met = elsewhere(observations[0], [0, thing, 0], goal=[0, thing, 0])
    after, acted = transport(observations, actions, met)
    assert set(acted[:, 3]) == {*range(12)} and (acted[:, 3] == 11).sum() == 1
    np.testing.assert_allclose(after[-1, :2], observations[-1, :2] + [0, thing], atol=1e-5)
    way = after[:, 0] / (0.9 * STEP) - acted[:, 3]  # since the demonstrated step began
    assert way.min() > -1e-3 and way.max() < 1
    assert thing > 0.55 or len(after) == 12


@pytest.mark.parametrize("seed", range(20))
def test_a_demonstration_carried_over_succeeds_there(seed: int) -> None:
    """Its actions, without looking, reach thing and goal; those demonstrated elsewhere do not."""
    env = CarryEnv(reach=0.3)
    demonstration = episodes_of(demonstrated(1))[0]

    def succeeds(actions: Floats, observations: Floats | None = None) -> bool:
        env.reset(seed=seed)
        for t, action in enumerate(actions):
            if observations is not None:
                np.testing.assert_allclose(env.hand, observations[t, :3], atol=1.1 * STEP)
            *_, success, _, _ = env.step(action)
        return success

    met, _ = env.reset(seed=seed)
    observations, actions = TRANSPORT(*demonstration, met)
    assert succeeds(actions, observations)
    assert not succeeds(demonstration[1])


def test_what_is_repeated_from_the_step_before() -> None:
    observations, actions = episodes_of(demonstrated(1))[0]
    twice = np.hstack([observations, np.vstack([observations[:1], observations[:-1]])])
    transport = Transport(hand=0, objects=(3,), goal=9, previous=12, step=STEP)
    shift = elsewhere(np.zeros(12, np.float32), 0.3)
    after, _ = transport(twice, actions, twice[0] + np.tile(shift, 2))
    np.testing.assert_array_equal(after[1:, 12:], after[:-1, :12])
    np.testing.assert_array_equal(after[0, 12:], after[0, :12])


def test_things_that_settle_are_not_touched(demonstration: tuple[Floats, Floats]) -> None:
    observations, actions = demonstration
    settled = observations.copy()
    settled[2:, 5] -= 0.005
    met = elsewhere(observations[0], [0.1, 0.1, 0])
    plain, settling = (TRANSPORT(each, actions, met)[0] for each in (observations, settled))
    np.testing.assert_allclose(settling[:, :3], plain[:, :3], atol=1e-6)


def test_other_units_make_no_difference(demonstration: tuple[Floats, Floats]) -> None:
    observations, actions = demonstration
    met = elsewhere(observations[0], [0.1, 0.05, 0])
    there, acted = TRANSPORT(observations, actions, met)
    lengths = {name: 1000 * getattr(TRANSPORT, name) for name in ("step", "moved", "lifted")}
    millimetres = dataclasses.replace(TRANSPORT, **lengths)
    in_millimetres, also_acted = millimetres(1000 * observations, actions, 1000 * met)
    np.testing.assert_allclose(in_millimetres, 1000 * there, atol=1e-2)
    np.testing.assert_allclose(also_acted, acted, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"hand": -1, "objects": (3,)},
        {"hand": 0, "objects": ()},
        {"hand": 0, "objects": (3,), "step": 0.0},
        {"hand": 0, "objects": (3,), "moved": -0.001},
        {"hand": 0, "objects": (3,), "lifted": 0.0},
        {"hand": 0, "objects": (3,), "goal": -3},
    ],
)
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected the entries of a hand"):
        Transport(**arguments)


def test_shapes_that_do_not_fit(demonstration: tuple[Floats, Floats]) -> None:
    observations, actions = demonstration
    with pytest.raises(ValueError, match=r"F of at least 12"):
        TRANSPORT(observations[:, :11], actions, observations[0, :11])
    with pytest.raises(ValueError, match=r"expected \(12,\), as demonstrated"):
        TRANSPORT(observations, actions, observations[0, :11])
    with pytest.raises(ValueError, match=r"\['state'\], expected one vector"):
        TRANSPORT({"state": observations}, actions, {"state": observations[0]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 3 actions"):
        TRANSPORT(observations, actions[:, :2], observations[0])


# -- in DiffusionPPO -----------------------------------------------------------------------------

MAPPING = {"hand": 0, "objects": [3, 6], "goal": 9, "step": STEP}


def make_model(
    wrap: Any = None, normalize: bool = False, weight: Any = 2.0, **imitation: Any
) -> DiffusionPPO:
    venv: Any = make_vec_env(lambda: CarryEnv(reach=0.3), n_envs=4, wrapper_class=wrap)
    arguments = {"context": weight, "transport": MAPPING, "batch_size": 32, **imitation}
    return DiffusionPPO(
        "policy",
        VecNormalize(venv) if normalize else venv,
        n_steps=32,
        batch_size=32,
        n_epochs=1,
        seed=0,
        beta=0.0,
        imitation=arguments,
        policy_kwargs={"net_arch": [64, 64], "noise_levels": 10, "denoising_steps": 4},
    )


def chunked(env: gym.Env) -> gym.Env:
    return ActionChunkWrapper(env, 2)


def history(env: gym.Env) -> gym.Env:
    return ObservationHistoryWrapper(env, 2)


class Begins(BaseCallback):
    """Keeps the first observations of episodes, as the policy sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[Floats] = []

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        self.met += list(buffer.observations[buffer.episode_starts.astype(bool)])

    def _on_step(self) -> bool:
        return True


def learn(model: DiffusionPPO, n_rollouts: int = 1) -> Floats:
    """Train, and return the first observations of the episodes begun."""
    begins = Begins()
    model.learn(4 * 32 * n_rollouts, begins)
    return np.array(begins.met)


@pytest.mark.parametrize(
    ("wrap", "normalize"),
    [(None, False), (chunked, False), (history, False), (None, True)],
    ids=["steps", "chunks", "history", "VecNormalize"],
)
def test_demonstrations_in_the_scenes_met(wrap: Any, normalize: bool) -> None:
    model = make_model(wrap, normalize)
    model.pretrain(demonstrated(), gradient_steps=10, warmup_steps=2, scale_floor=0.5)
    met = learn(model)
    kept: Any = model.imitation_buffer.batches("context", model.policy)
    observations, actions = kept.observations.numpy(), kept.actions.numpy()
    if wrap is history:
        observations, met = observations[:, -1], met[:, -1]
    # Every scene met is there from its first observation on, and no other.
    assert len(met) >= 4
    for first in met:
        assert np.abs(observations - first).max(axis=1).min() < 1e-5
    goals = np.unique(observations[:, 9:].round(4), axis=0)
    assert len(goals) == len(np.unique(met[:, 9:].round(4), axis=0))
    assert actions.shape[1] == (8 if wrap is chunked else 4)
    assert np.abs(actions).max() <= 1


class OtherEnv(CarryEnv):
    """
    Its observations are dictionaries, with an image beside what a hand does.

    :param place: of the thing, other than in the demonstrations
    """

    def __init__(self, place: float = 0.3):
        super().__init__()
        self.place, camera = place, spaces.Box(0, 255, (36, 36, 3), np.uint8)
        parts = {"state": self.observation_space, "camera": camera}
        self.observation_space = spaces.Dict(parts)  # type: ignore[assignment]

    def _observed(self) -> Any:
        self.thing[1] = self.place
        return {"state": super()._observed(), "camera": np.full((36, 36, 3), self.t, np.uint8)}


@pytest.mark.parametrize("wrap", [None, history], ids=["steps", "history"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_function_of_ones_own_gets_what_the_env_shows(wrap: Any, normalize: bool) -> None:
    """In dictionaries, and exactly, where the policy's own observations are normalised and cut."""
    met = []

    def own(observations: Any, actions: Floats, first: Any) -> tuple[Any, Floats]:
        met.append(first)
        return {**observations, "state": observations["state"] + 0 * first["state"]}, actions

    plain = demonstrated()
    camera = np.zeros((plain.n_decisions, 36, 36, 3), np.uint8)
    seen: Any = {"state": np.asarray(plain.observations), "camera": camera}
    env: Any = make_vec_env(OtherEnv, n_envs=2, wrapper_class=wrap)
    model = DiffusionPPO(
        "policy",
        VecNormalize(env, norm_obs_keys=["state"]) if normalize else env,
        n_steps=61,
        batch_size=61,
        n_epochs=1,
        beta=0.0,
        imitation={"context": 1.0, "transport": own, "batch_size": 8},
        policy_kwargs={"net_arch": [8], "features_extractor_kwargs": {"cnn_output_dim": 8}},
    )
    model.pretrain(plain.with_observations(seen), gradient_steps=2, warmup_steps=1)
    model.learn(2 * 61)
    expected = np.array([0, 0, 0, 0.4, 0.3, -0.2, 0, -0.6, -0.2, 0.4, 0.5, 0], np.float32)
    assert len(met) == 4  # of each env's first two episodes
    for first in met:
        np.testing.assert_array_equal(first["state"], expected)
        assert first["camera"].size == 36 * 36 * 3 and not first["camera"].any()
    assert model.imitation_buffer.batches("context", model.policy) is not None


def test_the_policy_learns_to_act_in_the_scenes_met() -> None:
    found = {}
    for weight in (0.0, 5.0):
        model = make_model(weight=weight, demonstrations=1.0, warmup_steps=300)
        model.critic_warmup = 3
        model.pretrain(demonstrated(), gradient_steps=300, warmup_steps=10, scale_floor=0.5)
        met = learn(model, 3)
        carried = model.imitation_buffer.carried_over(TRANSPORT, met)
        predicted, _ = model.predict(np.asarray(carried.observations))
        found[weight] = float(np.square(predicted - np.asarray(carried.actions)).mean())
    assert found[5.0] < 0.5 * found[0.0]


@pytest.mark.parametrize("wrap", [None, chunked])
def test_a_cloned_gaussian_learns_to_act_in_the_scenes_met(wrap: Any) -> None:
    """Where the diffusion policy's demonstrations are carried over, so are the baseline's."""
    found = {}
    for until in (0.0, 1.0):
        env = make_vec_env(lambda: CarryEnv(reach=0.3), 4, seed=0, wrapper_class=wrap)
        model = ClonedPPO(
            "MlpPolicy",
            env,
            n_steps=32,
            batch_size=64,
            n_epochs=1,
            critic_warmup=3,
            imitation_warmup_steps=300,
            context_until=until,
            transport={"hand": 0, "objects": [3, 6], "goal": 9, "step": STEP},
            learning_rate=1e-3,
            policy_kwargs={"net_arch": [64, 64]},
            seed=0,
            device="cpu",
        )
        model.pretrain(demonstrated(), gradient_steps=300, warmup_steps=10, scale_floor=0.5)
        model.learn(3 * 128)
        env.seed(9)
        met = np.concatenate([np.asarray(env.reset()) for _ in range(10)])
        carried = model._decisions(
            carry_over(demonstrated(), TRANSPORT, met, [i % 4 for i in range(len(met))])
        )
        predicted, _ = model.predict(np.asarray(carried.observations), deterministic=True)
        found[until] = float(np.square(predicted - np.asarray(carried.actions)).mean())
    assert found[1.0] < 0.5 * found[0.0]


def test_a_weight_of_zero_carries_nothing_over() -> None:
    model = make_model(weight="linear_1_0_0.3")
    model.pretrain(demonstrated(), gradient_steps=10, warmup_steps=2)
    learn(model, 2)
    before = model.imitation_buffer.batches("context", model.policy)
    learn(model, 4)
    assert before is not None
    fresh = make_model(weight=0.0, demonstrations=1.0)
    fresh.pretrain(demonstrated(), gradient_steps=10, warmup_steps=2)
    learn(fresh)
    assert fresh.imitation_buffer.batches("context", fresh.policy) is None


def test_capacity() -> None:
    model = make_model(capacity=40)
    model.pretrain(demonstrated(), gradient_steps=10, warmup_steps=2)
    learn(model, 3)
    kept = model.imitation_buffer.batches("context", model.policy)
    assert kept is not None and 0 < len(kept) <= 40


def test_decisions_cannot_be_carried_over() -> None:
    model = make_model(chunked)
    model.pretrain(demonstrated().windows(2), gradient_steps=10, warmup_steps=2)
    with pytest.raises(ValueError, match="transport carries over step-wise demonstrations"):
        learn(model)


def test_a_function_of_ones_own() -> None:
    def stay(observations: Floats, actions: Floats, met: Floats) -> tuple[Floats, Floats]:
        return np.tile(met, (3, 1)), np.zeros((3, 4), np.float32)

    model = make_model(transport=stay)
    model.pretrain(demonstrated(), gradient_steps=10, warmup_steps=2)
    met = learn(model)
    kept: Any = model.imitation_buffer.batches("context", model.policy)
    assert len(kept) == 3 * len(met) and not kept.actions.any()


def test_other_demonstrations_replace_those_carried_over() -> None:
    model = make_model()
    model.pretrain(demonstrated(), gradient_steps=10, warmup_steps=2)
    learn(model)
    model.set_demonstrations(demonstrated(2))
    assert model.imitation_buffer.batches("context", model.policy) is None


def test_repeats_bit_for_bit_and_resumes(tmp_path: Path) -> None:
    def weights(model: DiffusionPPO) -> list[Any]:
        return [p.detach().numpy().copy() for p in model.policy.parameters()]

    found = []
    for _ in range(2):
        model = make_model(successes=1.0)
        model.pretrain(demonstrated(), gradient_steps=10, warmup_steps=2)
        learn(model, 2)
        found.append(weights(model))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    model.save(tmp_path / "model.zip", include=["imitation_buffer"])
    loaded = DiffusionPPO.load(tmp_path / "model.zip", DummyVecEnv([CarryEnv] * 4))
    before, after = (m.imitation_buffer.batches("context", m.policy) for m in (model, loaded))
    assert before is not None and after is not None
    np.testing.assert_array_equal(before.take(np.arange(5))[1], after.take(np.arange(5))[1])  # type: ignore[arg-type]
    learn(loaded)


def test_shared_models_keep_it(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    loaded = DiffusionPPO.from_pretrained(tmp_path / "model")
    assert loaded.imitation.transport == TRANSPORT
    config = tmp_path / "model" / "config.json"
    older = json.loads(config.read_text())
    transport = older["hyperparameters"]["imitation"]["transport"]
    del transport["moved"], transport["lifted"]
    config.write_text(json.dumps(older))
    assert DiffusionPPO.from_pretrained(tmp_path / "model").imitation.transport == TRANSPORT
    model.imitation.transport = lambda *arguments: arguments[:2]
    with pytest.raises(ValueError, match="cannot be shared safely: expected a Transport"):
        model.save_pretrained(tmp_path / "other")


@pytest.mark.parametrize("spec", [{"hand": 0}, {"hand": 0, "objects": [3], "goals": 9}, 3, "hand"])
def test_what_is_no_transport(spec: Any) -> None:
    with pytest.raises(ValueError, match=r"transport=.*expected a function, or a mapping of hand"):
        Imitation.parse({"context": 1.0, "transport": spec})
