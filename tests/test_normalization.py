"""The observation normaliser: statistics, floors, what it leaves alone, contexts."""

from __future__ import annotations

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_diffrl.normalization import ObservationNormalizer, Standardizer

F32 = np.float32
LARGEST = float(np.finfo(F32).max)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


def columns(*stds: float, n: int = 2_000, mean: float = 0.0) -> np.ndarray:
    """``n`` rows whose columns have exactly these standard deviations and this mean."""
    pattern = np.where(np.arange(n) % 2, 1.0, -1.0)
    return (mean + pattern[:, None] * np.array(stds)).astype(F32)


def box(low: float | list[float], high: float | list[float], n: int) -> spaces.Box:
    shape = np.zeros(n, F32)
    return spaces.Box(shape + np.array(low, F32), shape + np.array(high, F32), dtype=F32)


# -- fitting -----------------------------------------------------------------------------------


def test_normalised_data_have_mean_0_and_deviation_1() -> None:
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((5_000, 3)) * [0.5, 2.0, 30.0] + [10.0, -5.0, 100.0]).astype(F32)
    normalizer = ObservationNormalizer(box(-1000, 1000, 3))

    normalizer.fit(data, scale_floor=1e-6, limit=100)
    out = normalizer(th.as_tensor(data))

    assert isinstance(out, th.Tensor)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out.std(0, correction=0), 1, rtol=1e-4)
    row = th.tensor([[11.0, -3.0, 130.0]])
    expected = (row.numpy() - data.astype(float).mean(0)) / data.astype(float).std(0)
    np.testing.assert_allclose(normalizer(row), expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 4)])
def test_every_entry_of_any_shape_has_statistics_of_its_own(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    data = rng.standard_normal((50, *shape)).astype(F32) + np.arange(
        int(np.prod(shape)), dtype=F32
    ).reshape(shape)
    normalizer = ObservationNormalizer(spaces.Box(-100, 100, shape, F32))

    normalizer.fit(data, scale_floor=0.0)
    out = normalizer(th.as_tensor(data))

    assert isinstance(out, th.Tensor)
    assert out.shape == (50, *shape)
    np.testing.assert_allclose(out.mean(0), np.zeros(shape), atol=1e-5)
    np.testing.assert_allclose(out.std(0, correction=0), np.ones(shape), rtol=1e-4)


def test_statistics_are_taken_in_double_precision() -> None:
    """A million steps a hair above a large offset: single-precision sums would lose them."""
    data = columns(0.25, n=1_000_000, mean=1000.0)
    standardizer = Standardizer(box(-np.inf, np.inf, 1))

    standardizer.fit(data, scale_floor=0.0, limit=5.0)

    assert float(standardizer.mean) == 1000.0
    assert float(standardizer.scale) == pytest.approx(0.25, rel=1e-6)


# -- floors ------------------------------------------------------------------------------------


def test_the_floor_in_a_bounded_space_is_a_fraction_of_half_the_range() -> None:
    """Half ranges 1, 10, 10; a floor of 2 % is 0.02, 0.2, 0.2."""
    standardizer = Standardizer(box([-1, -10, 0], [1, 10, 20], 3))

    standardizer.fit(columns(0.001, 0.001, 3.0), scale_floor=0.02, limit=5.0)

    np.testing.assert_allclose(standardizer.scale, [0.02, 0.2, 3.0], rtol=1e-5)
    assert standardizer.near_constant.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("low", "high"), [(-np.inf, np.inf), (0.0, np.inf), (-LARGEST, LARGEST), (-1e7, 1e7)]
)
def test_the_floor_in_an_unbounded_space_is_a_fraction_of_the_largest_deviation(
    low: float, high: float
) -> None:
    standardizer = Standardizer(box(low, high, 3))

    standardizer.fit(columns(0.0, 0.05, 4.0), scale_floor=0.02, limit=5.0)

    np.testing.assert_allclose(standardizer.scale, [0.08, 0.08, 4.0], rtol=1e-5)
    assert standardizer.near_constant.tolist() == [1, 1, 0]


def test_bounded_and_unbounded_entries_have_each_their_own_floor() -> None:
    standardizer = Standardizer(box([-1.0, -np.inf], [1.0, np.inf], 2))

    standardizer.fit(columns(0.0, 0.0), scale_floor=0.02, limit=5.0)
    np.testing.assert_allclose(standardizer.scale, [0.02, 0.02])  # nothing varies: 1 is typical
    standardizer.fit(columns(0.5, 0.0), scale_floor=0.02, limit=5.0)
    np.testing.assert_allclose(standardizer.scale, [0.5, 0.01], rtol=1e-5)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-np.inf, np.inf)])
def test_near_constant_entries_do_not_explode(low: float, high: float) -> None:
    """A scene moved by a few centimetres must not become a number beyond all others."""
    normalizer = ObservationNormalizer(box(low, high, 2))
    data = columns(0.5, 1e-7)
    data[:, 1] += 0.3
    normalizer.fit(data)

    moved = normalizer(th.tensor([[0.0, 0.31], [0.0, 0.4], [0.0, 1.0], [0.0, -1.0]]))

    assert isinstance(moved, th.Tensor)
    scale = 0.02 if high == 1 else 0.01
    expected = [0.01 / scale, min(0.1 / scale, 5.0), 5.0, -5.0]
    np.testing.assert_allclose(moved[:, 1], expected, rtol=1e-3)
    assert float(moved.abs().max()) <= 5.0


def test_no_floor_and_no_variation_still_divides_by_something() -> None:
    standardizer = Standardizer(box(-np.inf, np.inf, 2))

    standardizer.fit(np.full((5, 2), 3.0, F32), scale_floor=0.0, limit=5.0)

    assert standardizer.scale.tolist() == [1, 1]
    assert standardizer(th.tensor([[3.0, 4.0]])).tolist() == [[0, 1]]


def test_an_entry_whose_bounds_coincide_is_harmless() -> None:
    standardizer = Standardizer(box([-1.0, 2.0], [1.0, 2.0], 2))

    standardizer.fit(columns(0.5, 0.0) + np.array([0, 2], F32), scale_floor=0.02, limit=5.0)

    assert standardizer(th.tensor([[0.0, 2.0]])).tolist() == [[0, 0]]


def test_the_limit_bounds_what_comes_out() -> None:
    normalizer = ObservationNormalizer(box(-np.inf, np.inf, 1))
    normalizer.fit(columns(1.0), limit=3.0)

    out = normalizer(th.tensor([[2.5], [4.0], [-1e9]]))

    assert isinstance(out, th.Tensor)
    assert out.flatten().tolist() == [2.5, 3.0, -3.0]


# -- what is left alone ------------------------------------------------------------------------


def test_it_is_the_identity_until_fitted() -> None:
    normalizer = ObservationNormalizer(
        spaces.Dict({"a": box(-1, 1, 3), "b": box(-np.inf, np.inf, 2), "c": IMAGE})
    )
    obs = {"a": 1e6 * th.randn(4, 3), "b": 1e6 * th.randn(4, 2), "c": th.rand(4, 3, 36, 36)}

    out = normalizer(obs)

    assert isinstance(out, dict)
    assert out.keys() == obs.keys()
    assert all(th.equal(out[key], obs[key]) for key in obs)


def test_images_and_discrete_parts_of_a_dict_pass_unchanged() -> None:
    space = spaces.Dict(
        {
            "camera": IMAGE,
            "button": spaces.Discrete(3),
            "state": box(-10, 10, 2),
            "depth": spaces.Box(0, 1, (1, 36, 36), F32),  # an array of floats is no image
        }
    )
    normalizer = ObservationNormalizer(space)
    rng = np.random.default_rng(0)
    data: dict[str, np.ndarray] = {
        "camera": rng.integers(0, 256, (30, 3, 36, 36), dtype=np.uint8),
        "button": rng.integers(0, 3, 30),
        "state": columns(2.0, 0.5, n=30, mean=3.0),
        "depth": rng.random((30, 1, 36, 36)).astype(F32),
    }

    normalizer.fit(data)
    obs = {
        "camera": th.rand(4, 3, 36, 36),
        "button": th.eye(3)[[0, 1, 2, 0]],
        "state": th.tensor([[5.0, 3.5]]).expand(4, 2),
        "depth": th.rand(4, 1, 36, 36),
    }
    out = normalizer(obs)

    assert isinstance(out, dict)
    assert set(normalizer.standardizers) == {"obs_state", "obs_depth"}
    assert th.equal(out["camera"], obs["camera"])
    assert th.equal(out["button"], obs["button"])
    th.testing.assert_close(out["state"], th.ones(4, 2), rtol=1e-5, atol=1e-5)
    assert not th.equal(out["depth"], obs["depth"])


@pytest.mark.parametrize("space", [IMAGE, spaces.Discrete(4)])
def test_a_lone_image_or_discrete_observation_passes_unchanged(space: spaces.Space) -> None:
    normalizer = ObservationNormalizer(space)
    obs = th.rand(4, *(space.shape or (4,)))

    normalizer.fit(np.stack([space.sample() for _ in range(5)]))

    out = normalizer(obs)
    assert isinstance(out, th.Tensor)
    assert th.equal(out, obs)


def test_the_statistics_travel_in_the_state_dict() -> None:
    space = box(-10, 10, 2)
    fitted, other = ObservationNormalizer(space), ObservationNormalizer(space)
    fitted.fit(columns(2.0, 0.001, mean=3.0), limit=4.0)
    obs = 20 * th.randn(5, 2)

    other.load_state_dict(fitted.state_dict())

    assert th.equal(other(obs), fitted(obs))
    assert float(other(obs).abs().max()) == 4.0
    assert not list(fitted.parameters())


# -- contexts ----------------------------------------------------------------------------------


def test_replace_context_takes_the_near_constant_entries_alone() -> None:
    normalizer = ObservationNormalizer(box(-1, 1, 3))
    normalizer.fit(columns(0.5, 0.001, 0.0))
    obs, context = th.tensor([[1.0, 2, 3], [4, 5, 6]]), th.tensor([[10.0, 20, 30], [40, 50, 60]])

    replaced = normalizer.replace_context(obs, context)

    assert isinstance(replaced, th.Tensor)
    assert replaced.tolist() == [[1, 20, 30], [4, 50, 60]]
    assert obs[0].tolist() == [1, 2, 3]


def test_replace_context_of_a_dict_leaves_images_where_they_are() -> None:
    normalizer = ObservationNormalizer(
        spaces.Dict({"camera": IMAGE, "obstacles": box(-1, 1, 2), "state": box(-1, 1, 2)})
    )
    normalizer.fit({"obstacles": columns(0.0, 0.0), "state": columns(0.5, 0.5)})
    obs = {"camera": th.zeros(1, 3, 36, 36), "obstacles": th.zeros(1, 2), "state": th.zeros(1, 2)}
    context = {key: th.ones_like(part) for key, part in obs.items()}

    replaced = normalizer.replace_context(obs, context)

    assert isinstance(replaced, dict)
    assert {key: float(part.unique()) for key, part in replaced.items()} == {
        "camera": 0,
        "obstacles": 1,
        "state": 0,
    }


def test_before_fitting_there_is_no_context() -> None:
    normalizer = ObservationNormalizer(box(-1, 1, 3))
    obs = th.randn(2, 3)

    replaced = normalizer.replace_context(obs, th.randn(2, 3))

    assert isinstance(replaced, th.Tensor)
    assert th.equal(replaced, obs)
