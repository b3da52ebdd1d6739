"""Demonstrations: construction, splitting, checking against spaces, and the file format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_diffrl.demonstrations import Demonstrations

LENGTHS = [3, 1, 4, 2]
OBSERVATION_SPACE = spaces.Box(-10, 10, (3,))
ACTION_SPACE = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32))
DICT_SPACE = spaces.Dict(
    {"image": spaces.Box(0, 255, (2, 2, 3), np.uint8), "state": spaces.Box(-1, 1, (4,))}
)


def episodes(seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Observations, actions and rewards of four episodes; observations hold (episode, step, _)."""
    rng = np.random.default_rng(seed)
    observations = [
        np.stack([np.full(n, i), np.arange(n), rng.standard_normal(n)], axis=1).astype(np.float32)
        for i, n in enumerate(LENGTHS)
    ]
    actions = [rng.uniform([-1, 0], [1, 5], (n, 2)).astype(np.float32) for n in LENGTHS]
    rewards = [np.arange(n, dtype=np.float32) for n in LENGTHS]
    return observations, actions, rewards


def vector(seed: int = 0) -> Demonstrations:
    observations, actions, rewards = episodes(seed)
    return Demonstrations.from_arrays(
        observations, actions, rewards=rewards, successes=[True, False, True, True]
    )


def dictionary() -> Demonstrations:
    rng = np.random.default_rng(1)
    m = sum(LENGTHS)
    return Demonstrations.from_arrays(
        {
            "image": rng.integers(0, 256, (m, 2, 2, 3), dtype=np.uint8),
            "state": rng.uniform(-1, 1, (m, 4)).astype(np.float32),
        },
        rng.uniform([-1, 0], [1, 5], (m, 2)),
        episode_ends=np.cumsum(LENGTHS),
    )


def replaced(demonstrations: Demonstrations, **fields: Any) -> Demonstrations:
    return Demonstrations(**{**vars(demonstrations), **fields})


def assert_same(a: Demonstrations, b: Demonstrations) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        if isinstance(value, dict):
            assert value.keys() == other.keys()
            for key in value:
                np.testing.assert_array_equal(value[key], other[key])
                assert value[key].dtype == other[key].dtype
        elif value is None:
            assert other is None
        else:
            np.testing.assert_array_equal(value, other)
            assert value.dtype == other.dtype


def test_lists_of_episodes_are_laid_end_to_end() -> None:
    observations, actions, rewards = episodes()
    d = vector()
    assert len(d) == 4
    assert d.n_decisions == 10
    assert d.episode_ends.dtype == np.int64
    assert d.episode_ends.tolist() == [3, 4, 8, 10]
    assert d.episode_starts.tolist() == [0, 3, 4, 8]
    flat = Demonstrations.from_arrays(
        np.concatenate(observations),
        np.concatenate(actions),
        [3, 4, 8, 10],
        np.concatenate(rewards),
        [True, False, True, True],
    )
    assert_same(d, flat)


def test_without_ends_all_is_one_episode() -> None:
    d = Demonstrations.from_arrays(np.zeros((5, 3)), np.zeros((5, 2)))
    assert d.episode_ends.tolist() == [5]
    assert d.rewards is None
    assert d.successes is None


def test_dictionaries_by_episode_and_by_key_agree() -> None:
    observations, actions, _ = episodes()
    by_episode = [{"a": o, "b": o[:, 0]} for o in observations]
    by_key = {"a": observations, "b": [o[:, 0] for o in observations]}
    flat = {"a": np.concatenate(observations), "b": np.concatenate(observations)[:, 0]}
    first = Demonstrations.from_arrays(by_episode, actions)
    assert_same(first, Demonstrations.from_arrays(by_key, actions))
    assert_same(first, Demonstrations.from_arrays(flat, np.concatenate(actions), [3, 4, 8, 10]))


def test_subset_keeps_the_order_asked_for() -> None:
    observations, actions, rewards = episodes()
    chosen = vector().subset([2, 1])
    np.testing.assert_array_equal(
        chosen.observations, np.concatenate([observations[2], observations[1]])
    )
    np.testing.assert_array_equal(chosen.actions, np.concatenate([actions[2], actions[1]]))
    assert chosen.rewards is not None
    np.testing.assert_array_equal(chosen.rewards, np.concatenate([rewards[2], rewards[1]]))
    assert chosen.episode_ends.tolist() == [4, 5]
    assert chosen.successes is not None
    assert chosen.successes.tolist() == [True, False]


def test_subset_by_mask_takes_the_successes() -> None:
    d = vector()
    assert d.successes is not None
    assert_same(d.subset(d.successes), d.subset([0, 2, 3]))
    with pytest.raises(ValueError, match="at least one episode"):
        d.subset([False] * 4)


@pytest.mark.parametrize(("fraction", "n_validation"), [(0.5, 2), (0.01, 1), (0.99, 3), (0.25, 1)])
def test_split_divides_the_episodes(fraction: float, n_validation: int) -> None:
    train, validation = vector().split(fraction, seed=3)
    assert len(validation) == n_validation
    both = [np.unique(part.observations[:, 0]) for part in (train, validation)]  # type: ignore[index]
    assert sorted(np.concatenate(both)) == [0, 1, 2, 3]
    assert_same(vector().split(fraction, seed=3)[0], train)


def test_split_depends_on_the_seed() -> None:
    splits = [vector().split(0.25, seed)[1] for seed in range(30)]
    first = {int(split.arrays()["observations"][0, 0]) for split in splits}
    assert first == {0, 1, 2, 3}


def test_split_refuses_what_it_cannot_split() -> None:
    with pytest.raises(ValueError, match="at least two episodes"):
        vector().subset([0]).split(0.5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        vector().split(1.0)


@pytest.mark.parametrize("make", [vector, dictionary])
def test_concatenate_undoes_taking_apart(make: Any) -> None:
    d = make()
    assert_same(Demonstrations.concatenate([d.subset([i]) for i in range(len(d))]), d)


def test_concatenate_drops_what_a_part_lacks() -> None:
    joined = Demonstrations.concatenate([vector(), replaced(vector(), rewards=None)])
    assert joined.rewards is None
    assert joined.successes is not None
    assert len(joined.successes) == 8


def test_concatenate_refuses_parts_that_differ() -> None:
    with pytest.raises(ValueError, match="needs the keys"):
        Demonstrations.concatenate([dictionary(), vector()])
    with pytest.raises(ValueError, match="some parts are dictionaries"):
        Demonstrations.concatenate([vector(), dictionary()])
    narrow = replaced(vector(), actions=vector().actions[:, :1])
    with pytest.raises(ValueError, match=re.escape("actions[1]: shape (10, 1)")):
        Demonstrations.concatenate([vector(), narrow])
    with pytest.raises(ValueError, match="at least one"):
        Demonstrations.concatenate([])


@pytest.mark.parametrize("make", [vector, dictionary])
def test_save_and_load_give_back_every_field(make: Any, tmp_path: Path) -> None:
    d = make()
    path = d.save(tmp_path / "new" / "demos")
    assert path == tmp_path / "new" / "demos.npz"
    assert_same(Demonstrations.load(path), d)
    assert_same(Demonstrations.load(tmp_path / "new" / "demos"), d)
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = vector().save(tmp_path / "demos.npz")

    def break_off(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", break_off)
    with pytest.raises(OSError, match="disk full"):
        vector(seed=1).save(path)
    assert_same(Demonstrations.load(path), vector())
    assert list(tmp_path.iterdir()) == [path]


def test_objects_are_neither_saved_nor_loaded(tmp_path: Path) -> None:
    d = vector()
    with pytest.raises(ValueError, match="actions: dtype object"):
        replaced(d, actions=np.asarray(d.actions).astype(object)).save(tmp_path / "a")
    np.savez(
        tmp_path / "b.npz",
        observations=np.asarray(d.actions).astype(object),
        actions=d.actions,
        episode_ends=d.episode_ends,
    )
    with pytest.raises(ValueError, match="allow_pickle"):
        Demonstrations.load(tmp_path / "b.npz")


def test_load_names_what_a_file_lacks(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", actions=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"lacks \['episode_ends', 'observations'\]"):
        Demonstrations.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"actions": np.zeros((0, 2))}, "actions: empty (shape (0, 2))"),
        ({"actions": np.zeros((9, 2))}, "observations: length 10 (shape (10, 3)), expected length"),
        ({"observations": {}}, "observations: the dictionary is empty"),
        ({"observations": {"a": np.zeros((9, 1))}}, "observations['a']: length 9"),
        ({"observations": np.float32(0)}, "observations: a scalar"),
        ({"rewards": np.zeros((10, 1))}, "rewards: shape (10, 1), expected (10,)"),
        ({"successes": np.ones(3)}, "successes: shape (3,), expected (4,)"),
        ({"episode_ends": [3, 4, 4, 10]}, "episode_ends[2] = 4 is not above its predecessor (4)"),
        ({"episode_ends": [0, 4, 8, 10]}, "episode_ends[0] = 0 is not above its predecessor (0)"),
        ({"episode_ends": [3, 4, 8, 9]}, "episode_ends[3] = 9, expected 10"),
        ({"episode_ends": [3.0, 10.0]}, "episode_ends: dtype float64, expected whole numbers"),
        ({"episode_ends": np.zeros(0, int)}, "episode_ends: shape (0,), expected (E,)"),
    ],
)
def test_inconsistent_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        replaced(vector(), **fields)


def test_inconsistent_lists_are_refused() -> None:
    observations, actions, _ = episodes()
    with pytest.raises(ValueError, match=re.escape("observations[1]: length 4")):
        Demonstrations.from_arrays([observations[0], observations[2], *observations[2:]], actions)
    with pytest.raises(ValueError, match=r"observations: 3, expected a list of 4 episodes"):
        Demonstrations.from_arrays(observations[:3], actions)
    with pytest.raises(ValueError, match=re.escape("actions[2]: shape (4, 1), expected")):
        Demonstrations.from_arrays(observations, [*actions[:2], actions[2][:, :1], actions[3]])
    with pytest.raises(ValueError, match="leave episode_ends out"):
        Demonstrations.from_arrays(observations, actions, episode_ends=[10])
    with pytest.raises(ValueError, match="actions: empty list"):
        Demonstrations.from_arrays([], [])


def test_good_demonstrations_are_valid() -> None:
    vector().validate(OBSERVATION_SPACE, ACTION_SPACE)
    dictionary().validate(DICT_SPACE, ACTION_SPACE)


def test_bounds_allow_rounding_but_no_more() -> None:
    d = vector()
    actions = np.asarray(d.actions)
    actions[4, 1] = 5 + 5e-7
    d.validate(OBSERVATION_SPACE, ACTION_SPACE)
    actions[4, 1] = 5 + 5e-6
    with pytest.raises(ValueError, match=re.escape("actions[4, 1] = 5")):
        d.validate(OBSERVATION_SPACE, ACTION_SPACE)


@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("actions", (6, 0), -1.5, "actions[6, 0] = -1.5, expected within [-1, 1]"),
        ("actions", (2, 1), -0.5, "actions[2, 1] = -0.5, expected within [0, 5]"),
        ("actions", (7, 1), np.nan, "actions[7, 1] = nan, expected a finite number"),
        ("observations", (5, 2), np.inf, "observations[5, 2] = inf, expected a finite number"),
        ("rewards", (8,), np.nan, "rewards[8] = nan"),
    ],
)
def test_the_first_bad_value_is_named(
    field: str, index: tuple[int, ...], value: float, message: str
) -> None:
    d = vector()
    array = getattr(d, field)
    array[index] = value
    array[9] = value  # a later fault must not be the one reported
    with pytest.raises(ValueError, match=re.escape(message)):
        d.validate(OBSERVATION_SPACE, ACTION_SPACE)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=re.escape("observations[0]: shape (3,), expected (4,)")):
        vector().validate(spaces.Box(-1, 1, (4,)), ACTION_SPACE)
    with pytest.raises(ValueError, match=re.escape("actions[0]: shape (2,), expected (1, 2)")):
        vector().validate(OBSERVATION_SPACE, spaces.Box(-1, 5, (1, 2)))
    with pytest.raises(ValueError, match=re.escape("actions: the action space is Discrete(3)")):
        vector().validate(OBSERVATION_SPACE, spaces.Discrete(3))
    channels_first = spaces.Dict({**DICT_SPACE.spaces, "image": spaces.Box(0, 1, (3, 2, 2))})
    message = "observations['image'][0]: shape (2, 2, 3), expected (3, 2, 2)"
    with pytest.raises(ValueError, match=re.escape(message)):
        dictionary().validate(channels_first, ACTION_SPACE)


def test_dictionary_and_space_must_agree() -> None:
    with pytest.raises(ValueError, match=r"expected a dictionary with the keys \['image', 'state'"):
        vector().validate(DICT_SPACE, ACTION_SPACE)
    with pytest.raises(ValueError, match="expected one array"):
        dictionary().validate(OBSERVATION_SPACE, ACTION_SPACE)
    other = spaces.Dict({"state": DICT_SPACE["state"], "depth": spaces.Box(0, 1, (2,))})
    with pytest.raises(ValueError, match=r"missing keys \['depth'\], unknown keys \['image'\]"):
        dictionary().validate(other, ACTION_SPACE)


@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_images_must_be_whole_numbers(dtype: Any) -> None:
    d = dictionary()
    images = np.asarray(d.arrays()["observations['image']"])
    d = d.with_observations({**d.observations, "image": images.astype(np.int64)})  # type: ignore[dict-item]
    d.validate(DICT_SPACE, ACTION_SPACE)
    scaled = (images / 255).astype(dtype)
    d = d.with_observations({**d.observations, "image": scaled})  # type: ignore[dict-item]
    message = r"observations\['image'\]: dtype \w+, expected integers from 0 to 255 .* multiply"
    with pytest.raises(ValueError, match=message):
        d.validate(DICT_SPACE, ACTION_SPACE)
    normalized = spaces.Dict({**DICT_SPACE.spaces, "image": spaces.Box(0, 1, (2, 2, 3))})
    d.validate(normalized, ACTION_SPACE)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.MultiDiscrete([2, 3]), "observations[1, 1] = 3, expected an integer from 0 to 2"),
        (
            spaces.MultiDiscrete([2, 3], start=[0, 1]),
            "observations[0, 1] = 0, expected an integer from 1 to 3",
        ),
        (spaces.MultiBinary(2), "observations[1, 1] = 3, expected an integer from 0 to 1"),
        (spaces.MultiDiscrete([2, 4]), None),
    ],
)
def test_discrete_values_lie_in_their_space(space: spaces.Space[Any], message: str | None) -> None:
    d = Demonstrations.from_arrays(np.array([[1, 0], [0, 3]]), np.zeros((2, 2)))
    if message is None:
        d.validate(space, ACTION_SPACE)
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        d.validate(space, ACTION_SPACE)


def test_values_that_are_not_numbers_are_refused() -> None:
    d = vector()
    with pytest.raises(ValueError, match="actions: dtype <U32, expected real numbers"):
        replaced(d, actions=np.asarray(d.actions).astype(str)).validate(
            OBSERVATION_SPACE, ACTION_SPACE
        )
