"""Step-wise demonstrations as decisions of chunks and histories."""

from typing import Any

import numpy as np
import pytest

from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations.windows import lay_out_history, window_indices

LENGTHS = (5, 1, 3)
ENDS = np.cumsum(LENGTHS)


def brute_force(steps: np.ndarray, offsets: range) -> np.ndarray:
    """The definition: step by step, and kept within the episode."""
    rows = []
    for episode in np.split(steps, ENDS[:-1]):
        last = len(episode) - 1
        rows += [
            [episode[min(max(t + offset, 0), last)] for offset in offsets]
            for t in range(len(episode))
        ]
    return np.array(rows)


@pytest.mark.parametrize("offsets", [range(4), range(-2, 3), range(-3, 1), range(9)])
def test_windows_stay_within_their_episode(offsets: range) -> None:
    steps = np.arange(ENDS[-1])
    np.testing.assert_array_equal(window_indices(ENDS, offsets), brute_force(steps, offsets))


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("as_dict", [False, True])
def test_decisions_are_chunks_on_histories(start: int, as_dict: bool) -> None:
    rng = np.random.default_rng(0)
    state, actions = rng.normal(size=(9, 3)), rng.normal(size=(9, 2))
    demonstrations = Demonstrations.from_arrays(
        {"state": state} if as_dict else state,
        actions,
        ENDS,
        rewards=np.ones(9),
        successes=[True, False, True],
    )
    windows = demonstrations.windows(horizon=4, n_observations=2, start=start)
    seen: Any = windows.observations
    np.testing.assert_array_equal(
        seen["state"] if as_dict else seen, brute_force(state, range(-1, 1))
    )
    np.testing.assert_array_equal(windows.actions, brute_force(actions, range(-start, 4 - start)))
    # The action of the step itself stands at `start`.
    np.testing.assert_array_equal(windows.actions[:, start], actions)
    assert windows.rewards is None
    np.testing.assert_array_equal(windows.successes, demonstrations.successes)
    np.testing.assert_array_equal(windows.episode_ends, ENDS)


def test_without_sizes_steps_stay_single() -> None:
    state = np.arange(9.0)[:, None]
    demonstrations = Demonstrations.from_arrays(state, state, ENDS)
    assert demonstrations.windows(horizon=2).observations.shape == (9, 1)  # type: ignore[union-attr]
    assert demonstrations.windows(n_observations=1).actions.shape == (9, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "horizon: 0, expected at least 1"),
        ({"n_observations": 0}, "n_observations: 0, expected at least 1"),
        ({"horizon": 2, "start": 2}, "start: 2, expected 0 to 1"),
        ({"start": 1}, "start: 1, expected 0 to 0"),
    ],
)
def test_bad_windows(arguments: dict[str, int], message: str) -> None:
    demonstrations = Demonstrations.from_arrays(np.zeros((9, 1)), np.zeros((9, 1)), ENDS)
    with pytest.raises(ValueError, match=message):
        demonstrations.windows(**arguments)


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_histories_of_images_lie_side_by_side(batch: tuple[int, ...], channels_first: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (*batch, 3, 7, 6, 2), np.uint8)
    expected = np.concatenate([images[..., i, :, :, :] for i in range(3)], axis=-1)
    if channels_first:
        images, expected = np.moveaxis(images, -1, -3), np.moveaxis(expected, -1, -3)
    np.testing.assert_array_equal(lay_out_history(images, axis=len(batch)), expected)
    floats = images.astype(np.float32)
    assert lay_out_history(floats, axis=len(batch)) is floats
