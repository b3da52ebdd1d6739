"""RLBench's folders, written in their layout."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.sample_demonstrations import write_rlbench, write_rlbench_pickle
from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations import rlbench
from sb3_diffrl.demonstrations.arrays import LazyArray
from sb3_diffrl.demonstrations.safe_pickle import UnsafePickleError

EPISODES, LENGTH = 11, 4
KEYS = ("joint_positions", "gripper_open")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rlbench(tmp_path_factory.mktemp("rlbench") / "reach_target", EPISODES, LENGTH)


@pytest.fixture
def task(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "reach_target"))


def steps(task: Path, episode: int) -> list[Any]:
    return rlbench._load(task / f"variation0/episodes/episode{episode}")


def test_the_state_of_the_environments(original: Path) -> None:
    found = Demonstrations.from_rlbench(original)
    seen: Any = found.observations
    assert list(seen) == list(rlbench.STATE)
    np.testing.assert_array_equal(found.episode_ends, LENGTH * np.arange(1, EPISODES + 1))
    assert found.successes is not None and found.successes.all()
    for episode in (2, 10):  # in the order of their numbers
        rows = slice(episode * LENGTH, (episode + 1) * LENGTH)
        expected = [step.joint_positions for step in steps(original, episode)[:-1]]
        np.testing.assert_allclose(seen["joint_positions"][rows], expected, rtol=1e-6)
    assert seen["gripper_open"].shape == (EPISODES * LENGTH, 1)
    joined: Any = Demonstrations.from_rlbench(original, KEYS, concatenate=True).observations
    np.testing.assert_array_equal(joined[:, 7:], seen["gripper_open"])


def test_actions_reach_the_recorded_targets(original: Path) -> None:
    found = Demonstrations.from_rlbench(original, "joint_positions")
    joints: Any = found.observations
    recorded = np.stack(
        [s.misc["joint_position_action"] for e in range(EPISODES) for s in steps(original, e)[1:]]
    )
    actions = np.asarray(found.actions)
    assert actions.shape == (EPISODES * LENGTH, 8) and actions.dtype == np.float32
    np.testing.assert_allclose(joints + actions[:, :7], recorded[:, :7], atol=1e-6)
    np.testing.assert_array_equal(actions[:, 7], recorded[:, 7])
    targets = Demonstrations.from_rlbench(original, "joint_positions", actions="joint_positions")
    np.testing.assert_allclose(targets.actions, recorded, rtol=1e-6)


def change(task: Path, episode: int, edit: Callable[[list[Any]], None]) -> None:
    """Write a demonstration again."""
    found = steps(task, episode)
    edit(found)
    path = task / f"variation0/episodes/episode{episode}/low_dim_obs.pkl"
    write_rlbench_pickle(path, [vars(step) for step in found])


def test_joint_differences_where_nothing_was_recorded(task: Path) -> None:
    def edit(found: list[Any]) -> None:
        for t, step in enumerate(found):
            step.misc = {}
            step.joint_positions = np.full(7, 0.3 * t if t > 2 else 0.05 * t)

    change(task, 0, edit)
    with pytest.warns(UserWarning, match=r"5% of the joints' changes were beyond ±0.1"):
        actions = np.asarray(Demonstrations.from_rlbench(task, KEYS).actions)
    np.testing.assert_allclose(actions[:4, 0], [0.05, 0.05, 0.1, 0.1], rtol=1e-5)
    np.testing.assert_array_equal(actions[:4, 7], [1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("memory", [0, 10**9])
def test_cameras(original: Path, memory: int) -> None:
    found = Demonstrations.from_rlbench(original, ("front_rgb", "gripper_pose"), memory=memory)
    seen: Any = found.observations
    assert isinstance(seen["front_rgb"], LazyArray) == (memory == 0)
    assert seen["front_rgb"].shape == (EPISODES * LENGTH, 3, 16, 16)
    np.testing.assert_array_equal(seen["front_rgb"][:, 1, 2, 3][[0, 5, 42]], [0, 11, 102])


def test_instructions(original: Path) -> None:
    assert rlbench.instructions(original) == ["reach the red target"] * EPISODES
    found = Demonstrations.from_rlbench(
        original, "gripper_pose", language=lambda sentences: np.full((len(sentences), 3), 2.0)
    )
    seen: Any = found.observations
    np.testing.assert_array_equal(seen["language"], np.full((EPISODES * LENGTH, 3), 2))


class Attack:
    def __reduce__(self) -> Any:
        return eval, ("1",)


def test_an_unsafe_pickle_is_refused(task: Path) -> None:
    path = task / "variation0/episodes/episode3/low_dim_obs.pkl"
    path.write_bytes(pickle.dumps([Attack()]))
    with pytest.raises(UnsafePickleError, match=r"episode3/low_dim_obs\.pkl: .*builtins\.eval"):
        Demonstrations.from_rlbench(task)
    (task / "variation0/variation_descriptions.pkl").write_bytes(pickle.dumps([Attack()]))
    with pytest.raises(UnsafePickleError, match=r"descriptions\.pkl: .*builtins\.eval"):
        rlbench.instructions(task)


def set_at(t: int, **values: Any) -> Any:
    def edit(found: list[Any]) -> None:
        for key, value in values.items():
            setattr(found[t], key, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_at(2, gripper_pose=None), r"gripper_pose\[2\] is missing"),
        (set_at(2, gripper_pose=np.ones(6)), r"gripper_pose\[2\]: shape \(6,\), expected \(7,\)"),
        (set_at(2, gripper_pose=np.full(7, np.nan)), r"gripper_pose\[2, 0\] = nan"),
        (set_at(2, gripper_pose=np.array(["a"] * 7)), r"gripper_pose: dtype <U32"),
        (
            set_at(1, misc={"joint_position_action": np.ones(3)}),
            r"misc\['joint_position_action'\] of step 1: shape \(3,\), expected \(8,\)",
        ),
        (lambda found: found.clear(), "0 observations, expected two or more"),
    ],
)
def test_what_is_wrong_is_named(task: Path, edit: Any, message: str) -> None:
    change(task, 7, edit)
    with pytest.raises(ValueError, match=message) as error:
        Demonstrations.from_rlbench(task)
    assert "episode7/low_dim_obs.pkl" in str(error.value)


def test_other_widths_in_another_variation(task: Path) -> None:
    write_rlbench(task.parent / "other", 1, LENGTH)
    shutil.move(task.parent / "other/variation0", task / "variation1")
    assert len(Demonstrations.from_rlbench(task)) == EPISODES + 1
    assert len(Demonstrations.from_rlbench(task / "variation1")) == 1

    def edit(found: list[Any]) -> None:
        for step in found:
            step.task_low_dim_state = np.ones(2)

    change(task, 10, edit)
    with pytest.raises(ValueError, match=r"episode10/.*task_low_dim_state has shape \(2,\), expe"):
        Demonstrations.from_rlbench(task)
    assert len(Demonstrations.from_rlbench(task, KEYS)) == EPISODES + 1


def test_missing_and_truncated_files(task: Path) -> None:
    episode = task / "variation0/episodes/episode5"
    with pytest.raises(ValueError, match=r"no observation \['wrist_rgb'\]; there are \['front_rgb"):
        Demonstrations.from_rlbench(task, "wrist_rgb")
    image = episode / "front_rgb/2.png"
    image.write_bytes(image.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"episode5/front_rgb/2\.png: no image that can be read"):
        Demonstrations.from_rlbench(task, "front_rgb")
    image.unlink()
    with pytest.raises(ValueError, match=r"episode5/front_rgb/2\.png"):
        Demonstrations.from_rlbench(task, "front_rgb")
    file = episode / "low_dim_obs.pkl"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"episode5/low_dim_obs\.pkl: truncated or corrupt"):
        Demonstrations.from_rlbench(task)
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"low_dim_obs\.pkl: dict, expected a Demo"):
        Demonstrations.from_rlbench(task)
    with pytest.raises(ValueError, match="no such folder"):
        Demonstrations.from_rlbench(task / "nothing")
    with pytest.raises(ValueError, match=r"no low_dim_obs\.pkl anywhere below"):
        Demonstrations.from_rlbench(episode / "front_rgb")
    with pytest.raises(ValueError, match=r"actions: 'velocities', expected one of"):
        Demonstrations.from_rlbench(task, actions="velocities")
