"""Folders, Minari, D4RL, rollouts, filters and statistics of demonstrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffrl import DiffusionMlpPolicy, DiffusionPPO
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.arrays import ConvertedArray
from sb3_diffrl.demonstrations.statistics import Statistics
from sb3_diffrl.normalization import Standardizer

LENGTHS = np.array([3, 1, 4, 2])
ENDS = np.cumsum(LENGTHS)
SPACES = (spaces.Box(-10, 10, (3,)), spaces.Box(-1, 1, (2,)))


def vector() -> Demonstrations:
    rng = np.random.default_rng(0)
    return Demonstrations(
        rng.normal(size=(10, 3)).astype(np.float32),
        rng.uniform(-1, 1, (10, 2)).astype(np.float32),
        ENDS,
        rng.normal(size=10).astype(np.float32),
        np.array([True, False, True, True]),
        np.array([1.0, 0.0, 2.0, 1.0]),
    )


def dictionary() -> Demonstrations:
    made = vector()
    images = np.random.default_rng(1).integers(0, 256, (10, 40, 40, 3), dtype=np.uint8)
    return made.with_observations({"state": made.arrays()["observations"], "a/b": images})


def assert_same(one: Demonstrations, other: Demonstrations) -> None:
    assert one.episode_ends.tolist() == other.episode_ends.tolist()
    for name, array in one.arrays().items():
        found = other.arrays()[name]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(array), np.asarray(found))
    np.testing.assert_array_equal(one.successes, other.successes)
    np.testing.assert_array_equal(one.weights, other.weights)


@pytest.mark.parametrize("make", [vector, dictionary])
def test_a_folder_gives_back_every_field_without_reading(make: Any, tmp_path: Path) -> None:
    made = make()
    lazy = made.with_observations(
        {k: ConvertedArray(v, lambda x: x) for k, v in made.observations.items()}
        if isinstance(made.observations, dict)
        else ConvertedArray(made.observations, lambda x: x)
    )
    path = lazy.save(tmp_path / "x.demos")
    loaded = Demonstrations.load(path)
    assert loaded.is_lazy and isinstance(loaded.actions, np.memmap)
    assert_same(loaded, made)
    assert_same(loaded.subset([2, 0]), made.subset([2, 0]))
    assert_same(loaded.in_memory(), made)
    assert not loaded.in_memory().is_lazy
    assert_same(Demonstrations.load(made.subset([1, 2]).save(path)), made.subset([1, 2]))
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_was_not_finished_is_not_there(tmp_path: Path) -> None:
    def fail(rows: np.ndarray) -> np.ndarray:
        if len(rows) > 1:
            raise OSError("gone")
        return rows

    made = vector()
    broken = made.with_observations(ConvertedArray(made.arrays()["observations"], fail))
    path = made.save(tmp_path / "x.demos")
    with pytest.raises(OSError, match="gone"):
        broken.save(path)
    assert_same(Demonstrations.load(path), made)
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = vector().save(tmp_path / "x.demos")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        vector().subset([0]).save(path)
    assert_same(Demonstrations.load(path), vector())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["npz", "demos"])
def test_what_a_link_points_to_is_replaced(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / f"x.{suffix}"
    link.symlink_to(f"disk/{suffix}")
    for episodes in ([0, 1], [2]):
        assert vector().subset(episodes).save(link) == link
        assert_same(Demonstrations.load(link), vector().subset(episodes))
    assert link.is_symlink()
    assert list((tmp_path / "disk").iterdir()) == [tmp_path / "disk" / suffix]


def test_neither_a_file_nor_a_folder_takes_the_place_of_the_other(tmp_path: Path) -> None:
    (tmp_path / "x.demos").write_text("mine")
    with pytest.raises(ValueError, match=r"x\.demos: there is a file .*expected none or a folder"):
        vector().save(tmp_path / "x.demos")
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(ValueError, match=r"x\.npz: there is a folder .*expected none or a file"):
        vector().save(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.demos", "x.npz"]


def cut(path: Path) -> None:
    (path / "actions.npy").write_bytes((path / "actions.npy").read_bytes()[:-8])


def drop(path: Path) -> None:
    (path / "rewards.npy").unlink()


def newer(path: Path) -> None:
    file = path / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 99}))


def other_dtype(path: Path) -> None:
    np.save(path / "actions.npy", np.zeros((10, 2)))


def pickled(path: Path) -> None:
    np.save(path / "actions.npy", np.array([{}] * 10), allow_pickle=True)


def garbled(path: Path) -> None:
    (path / "metadata.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"actions\.npy: missing, truncated or corrupt"),
        (drop, r"rewards\.npy: missing, truncated"),
        (newer, r"format_version 99, expected 1"),
        (other_dtype, r"'actions' has shape \(10, 2\) and dtype <f8, expected"),
        (pickled, r"actions\.npy: missing, truncated or corrupt"),
        (garbled, r"metadata\.json: not the metadata"),
    ],
)
def test_damage_to_a_folder_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    path = vector().save(tmp_path / "x.demos")
    damage(path)
    with pytest.raises(ValueError, match=message):
        Demonstrations.load(path)


def test_a_truncated_npz_and_unknown_paths_are_named(tmp_path: Path) -> None:
    path = vector().save(tmp_path / "x")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"x\.npz cannot be read: truncated"):
        Demonstrations.load(path)
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"none of the known formats.*minari"):
        Demonstrations.load(tmp_path / "x.txt")
    with pytest.raises(ValueError, match="no such file or folder"):
        Demonstrations.load(tmp_path / "y")


# -- Minari ------------------------------------------------------------------------------------


@pytest.mark.parametrize("jpeg", [False, True])
def test_minari_gives_back_what_was_written(
    jpeg: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    made = dictionary().weighted(None)
    images = spaces.Box(0, 255, (40, 40, 3), np.uint8)
    written: dict[str, spaces.Space[Any]] = {"state": SPACES[0], "image": images}
    assert isinstance(made.observations, dict)
    made = made.with_observations(
        {"state": made.observations["state"], "image": made.observations["a/b"]}
    )
    found = made.to_minari(
        "test/x-v0",
        observation_space=spaces.Dict(written),
        action_space=SPACES[1],
        jpeg_encoding=jpeg,
    )
    for source in (found, "test/x-v0", tmp_path / "test/x-v0"):
        loaded = Demonstrations.from_minari(source)
        assert loaded.is_lazy
        if jpeg:
            assert loaded.arrays()["observations['image']"].shape == (10, 40, 40, 3)
            loaded = loaded.with_observations(made.observations)
        assert_same(loaded, made)
    assert len(Demonstrations.load(tmp_path / "test/x-v0")) == 4
    with pytest.raises(ValueError, match="choose another id"):
        made.to_minari("test/x-v0")


def test_minari_refuses_what_does_not_fit_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"observations\[0\]: shape"):
        vector().to_minari("x-v0", observation_space=SPACES[1], action_space=SPACES[1])
    assert not (tmp_path / "x-v0").exists()
    vector().to_minari("x-v0", observation_space=SPACES[0], action_space=SPACES[1])
    with h5py.File(tmp_path / "x-v0/data/main_data.hdf5", "a") as file:
        del file["episode_2/actions"]
    with pytest.raises(ValueError, match=r"main_data\.hdf5: 'episode_2/actions' is missing"):
        Demonstrations.from_minari("x-v0")
    with pytest.raises(ValueError, match="y-v0: no Minari dataset"):
        Demonstrations.from_minari("y-v0", download=False)


# -- D4RL --------------------------------------------------------------------------------------


def d4rl() -> dict[str, np.ndarray]:
    made = vector()
    ended = np.zeros(10, bool)
    ended[ENDS - 1] = True
    first = np.arange(10) < 5
    return {
        **{name: np.asarray(array) for name, array in made.arrays().items()},
        "terminals": ended & first,
        "timeouts": ended & ~first & (np.arange(10) < 9),
        "infos/success": np.repeat([True, False, True, True], LENGTHS),
    }


def written(arrays: dict[str, np.ndarray], kind: str, folder: Path) -> Any:
    if kind == "dictionary":
        return arrays
    path = folder / f"x.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]
    else:
        with h5py.File(path, "w") as file:
            for key, array in arrays.items():
                file[key] = array
    return path


@pytest.mark.parametrize("kind", ["dictionary", "npz", "hdf5"])
def test_d4rl_in_each_form(kind: str, tmp_path: Path) -> None:
    source = written(d4rl(), kind, tmp_path)
    loaded = Demonstrations.from_d4rl(source)
    assert_same(loaded, vector().weighted(None))
    assert loaded.is_lazy == (kind == "hdf5")
    if kind != "dictionary":
        assert_same(Demonstrations.load(source), loaded)


@pytest.mark.parametrize("kind", ["dictionary", "hdf5"])
def test_d4rl_with_columns(kind: str, tmp_path: Path) -> None:
    flat = d4rl()
    columns = {name: x[:, None] if x.ndim == 1 else x for name, x in flat.items()}
    loaded = Demonstrations.from_d4rl(written(columns, kind, tmp_path))
    assert_same(loaded, Demonstrations.from_d4rl(flat))


@pytest.mark.parametrize("kind", ["dictionary", "npz", "hdf5"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": None}, r"lacks \['actions'\]"),
        ({"observations": np.zeros((9, 3))}, "observations: length 9"),
        ({"terminals": np.zeros(9)}, r"'terminals' has shape \(9,\)"),
        ({"terminals": np.full(10, 2)}, r"terminals\[0\] = 2"),
    ],
)
def test_d4rl_names_what_is_wrong(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    arrays = {k: v for k, v in {**d4rl(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        Demonstrations.from_d4rl(written(arrays, kind, tmp_path))


def test_a_truncated_hdf5_is_named(tmp_path: Path) -> None:
    path = written(d4rl(), "hdf5", tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"x\.hdf5: truncated, corrupt"):
        Demonstrations.from_d4rl(path)


# -- rollouts ----------------------------------------------------------------------------------


class Counter(gym.Env[np.ndarray, np.ndarray]):
    """Counts up; episodes of env ``i`` take ``i + 2`` steps, and succeed where that is even."""

    observation_space = spaces.Box(-100, 100, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, length: int):
        self.length, self.t = length, 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        done = self.t == self.length
        info = {"is_success": self.length % 2 == 0} if done else {}
        return np.full(1, self.t, np.float32), float(self.t), done, False, info


@pytest.mark.parametrize("normalize", [False, True])
def test_rollouts_of_a_function(normalize: bool) -> None:
    env: Any = make_vec_env(lambda: Counter(2), 1)
    env.envs.append(make_vec_env(lambda: Counter(3), 1).envs[0])  # type: ignore[attr-defined]
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: Counter(2), lambda: Counter(3)])
    if normalize:
        env = VecNormalize(env)
    made = Demonstrations.from_rollouts(lambda obs: np.full((2, 1), 0.5), env, 5)
    assert sorted(made.lengths.tolist()) in ([2, 2, 2, 3, 3], [2, 2, 3, 3, 3])
    for i in range(5):
        episode = made.subset([i])
        n = episode.n_decisions
        assert np.asarray(episode.observations).ravel().tolist() == list(range(n))
        assert np.asarray(episode.rewards).tolist() == list(range(1, n + 1))
        assert np.all(np.asarray(episode.actions) == 0.5)
        assert episode.successes is not None and episode.successes[0] == (n == 2)


def test_rollouts_of_a_model() -> None:
    env = make_vec_env("Pendulum-v1", 2, seed=0)
    model = PPO("MlpPolicy", env, n_steps=16, seed=0)
    made = Demonstrations.from_rollouts(model, env, 3, seed=5)
    assert len(made) == 3 and made.successes is None and made.lengths.tolist() == [200] * 3
    expected = model.predict(np.asarray(made.observations[:4]), deterministic=True)[0]  # type: ignore[index]
    np.testing.assert_allclose(made.actions[:4], expected, atol=1e-6)
    with pytest.raises(ValueError, match="expected a model or a function"):
        Demonstrations.from_rollouts(3, env, 1)  # type: ignore[arg-type]


# -- choosing ----------------------------------------------------------------------------------


def test_filters_choose_episodes() -> None:
    made = vector()
    assert made.successful().lengths.tolist() == [3, 4, 2]
    returns = [float(np.sum(made.rewards[a:b])) for a, b in zip(ENDS - LENGTHS, ENDS, strict=True)]  # type: ignore[index]
    np.testing.assert_allclose(made.returns, returns, rtol=1e-6)
    best = np.sort(np.argsort(returns)[-2:])
    for chosen in (made.top_returns(2), made.top_returns(0.5)):
        assert_same(chosen, made.subset(best))
    assert_same(made.filter(lambda e: e.n_decisions > 2), made.filter(LENGTHS > 2))
    for wrong in (0, 5, 0.0, 1.5):
        with pytest.raises(ValueError, match="best"):
            made.top_returns(wrong)
    with pytest.raises(ValueError, match="none of the 4"):
        made.filter(np.zeros(4, bool))
    with pytest.raises(ValueError, match=r"weights\[1\] = -1"):
        made.weighted([1, -1, 1, 1])
    with pytest.raises(ValueError, match=r"observations\[3, 1\] = nan"):
        values = np.array(made.observations)
        values[3, 1] = np.nan
        made.with_observations(values).check_finite()


# -- statistics --------------------------------------------------------------------------------


def test_statistics_in_chunks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.random.default_rng(0).normal(1e3, [1, 5, 0], (997, 3)).astype(np.float32)
    monkeypatch.setattr("sb3_diffrl.demonstrations.arrays.chunks.__defaults__", (12 * 50,))
    found = Statistics.of(data)
    exact = data.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, exact.std(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal([found.minimum, found.maximum], [data.min(0), data.max(0)])
    np.testing.assert_allclose([found.low, found.high], np.quantile(data, [0.01, 0.99], axis=0))


def test_statistics_of_flags_are_those_of_zeros_and_ones() -> None:
    flags = np.random.default_rng(0).random((50, 2)) < 0.3
    found, expected = vars(Statistics.of(flags)), vars(Statistics.of(flags.astype(np.float64)))
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], err_msg=name)


def test_normalisations_map_their_bounds_to_one() -> None:
    data = np.random.default_rng(0).normal([3, 0, 7], [2, 5, 0], (500, 3)).astype(np.float32)
    bounds: dict[str, Any] = {
        "min_max": (data.min(0), data.max(0)),
        "quantile": np.quantile(data, [0.01, 0.99], 0),
    }
    for name, (low, high) in bounds.items():
        standardizer = Standardizer(spaces.Box(-np.inf, np.inf, (3,)))
        standardizer.fit(data, 0.02, 5.0, name)
        for bound, expected in ((low, [-1, -1, 0]), (high, [1, 1, 0])):
            out = standardizer(th.as_tensor(np.asarray(bound, np.float32))[None])
            np.testing.assert_allclose(out[0], expected, atol=1e-5)
        assert standardizer.near_constant.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="expected one of"):
        standardizer.fit(data, 0.02, 5.0, "other")


# -- pre-training ------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_pretraining_is_the_same_in_memory_and_not(weighted: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = Demonstrations(
        rng.normal(size=(400, 3)).astype(np.float32),
        rng.uniform(-1, 1, (400, 1)).astype(np.float32),
        np.arange(1, 11) * 40,
        weights=rng.random(10) if weighted else None,
    )
    mapped = Demonstrations.load(made.save(tmp_path / "x.demos"))
    results = []
    for data, memory_bytes in ((made, 0), (mapped, 10**9), (mapped, 0)):
        model = DiffusionPPO(
            DiffusionMlpPolicy,
            gym.make("Pendulum-v1"),
            policy_kwargs={"net_arch": [16]},
            seed=0,
        )
        result = model.pretrain(data, gradient_steps=20, batch_size=32, memory_bytes=memory_bytes)
        results.append((result, model.policy.actor.state_dict()))
    for result, state in results[1:]:
        assert result == results[0][0]
        assert all(th.equal(state[key], value) for key, value in results[0][1].items())


def test_weights_are_frequencies() -> None:
    from sb3_diffrl.batches import TensorBatches

    weights = np.repeat([3.0, 0.0, 1.0], [10, 20, 30])
    th.manual_seed(0)
    rows, _ = TensorBatches(th.arange(60), th.zeros(60, 1), weights).draw(40_000)
    assert isinstance(rows, th.Tensor)
    share = [float((rows < 10).float().mean()), float((rows >= 30).float().mean())]
    np.testing.assert_allclose(share, [0.5, 0.5], atol=0.01)
    assert not ((rows >= 10) & (rows < 30)).any()
