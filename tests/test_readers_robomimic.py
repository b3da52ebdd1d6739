"""robomimic's HDF5 files, written in its layout."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from examples.sample_demonstrations import write_robomimic
from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations import robomimic
from sb3_diffrl.demonstrations.arrays import LazyArray

LENGTHS = (5, 3, 4)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_robomimic(tmp_path_factory.mktemp("robomimic") / "lift.hdf5", LENGTHS)


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "lift.hdf5"))


@pytest.mark.parametrize("memory", [0, 10**9])
def test_all_is_read(path: Path, memory: int) -> None:
    found = Demonstrations.from_robomimic(path, memory=memory)
    assert isinstance(found.actions, LazyArray) == (memory == 0)
    np.testing.assert_array_equal(np.diff(found.episode_ends, prepend=0), LENGTHS)
    assert found.successes is not None and found.successes.all()
    with h5py.File(path) as file:
        demos = [file[f"data/demo_{i}"] for i in range(3)]
        for key in ("robot0_eef_pos", "object", "agentview_image"):
            expected = np.concatenate([demo[f"obs/{key}"][:] for demo in demos])
            if key == "agentview_image":
                expected = expected.transpose(0, 3, 1, 2)
            array = found.observations[key]
            assert array.dtype == (np.uint8 if expected.ndim == 4 else np.float32)
            np.testing.assert_array_equal(array, expected.astype(array.dtype))
            np.testing.assert_array_equal(array[[7, 0, 7]], expected[[7, 0, 7]].astype(array.dtype))
        np.testing.assert_array_equal(
            found.actions, np.concatenate([d["actions"] for d in demos]).astype(np.float32)
        )
    assert found.rewards is not None
    np.testing.assert_array_equal(np.flatnonzero(found.rewards), found.episode_ends - 1)


def test_a_file_that_was_read_whole_can_be_written(path: Path) -> None:
    Demonstrations.load(path)
    with h5py.File(path, "a") as file:  # refused while this process has it open
        file["data/demo_0/actions"][0] = 0.25
    append = "import h5py, sys; h5py.File(sys.argv[1], 'a')['data/demo_0/actions'][0] = 0.5"
    lazy = Demonstrations.from_robomimic(path, "object", memory=0)
    np.testing.assert_array_equal(lazy.actions[0], np.full(7, 0.25, np.float32))
    Demonstrations.load(path)
    subprocess.run([sys.executable, "-c", append, str(path)], check=True)
    np.testing.assert_array_equal(lazy.actions[0], np.full(7, 0.5, np.float32))


def test_masks_and_order(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "a.hdf5", tuple(range(2, 14)))
    assert robomimic.masks(path) == {"train": 11, "valid": 1}
    train = Demonstrations.from_robomimic(path, "object", mask="train")
    np.testing.assert_array_equal(np.diff(train.episode_ends, prepend=0), range(2, 13))
    valid = Demonstrations.from_robomimic(path, "object", mask="valid")
    assert valid.n_decisions == 13
    with pytest.raises(ValueError, match=r"a\.hdf5: no mask/test; there are \['train', 'valid'\]"):
        Demonstrations.from_robomimic(path, mask="test")


@pytest.mark.parametrize("memory", [0, 10**9])
def test_choice_of_keys(path: Path, memory: int) -> None:
    keys = ("robot0_eef_pos", "object")
    apart: Any = Demonstrations.from_robomimic(path, keys, memory=memory).observations
    assert list(apart) == list(keys)
    joined: Any = Demonstrations.from_robomimic(
        path, keys, concatenate=True, memory=memory
    ).observations
    assert joined.shape == (12, 13)
    np.testing.assert_array_equal(joined[:, :3], apart["robot0_eef_pos"])
    np.testing.assert_array_equal(joined[:, 3:], apart["object"])
    alone: Any = Demonstrations.from_robomimic(path, "object", memory=memory).observations
    np.testing.assert_array_equal(alone, apart["object"])
    renamed: Any = Demonstrations.from_robomimic(path, {"object": "state"}).observations
    assert list(renamed) == ["state"]
    images: Any = Demonstrations.from_robomimic(
        path, "agentview_image", transpose_images=False
    ).observations
    assert images.shape == (12, 12, 12, 3)
    with pytest.raises(ValueError, match="are no vectors"):
        Demonstrations.from_robomimic(path, concatenate=True)
    with pytest.raises(ValueError, match=r"no observation \['pose'\]; there are \['agentview"):
        Demonstrations.from_robomimic(path, "pose")


def test_success_is_a_reward_reached(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["data/demo_1/rewards"][:] = 0.5
    assert Demonstrations.from_robomimic(path).successes.tolist() == [True, False, True]  # type: ignore[union-attr]
    assert Demonstrations.from_robomimic(path, success_reward=None).successes is None
    assert Demonstrations.from_robomimic(path, success_reward=0.5).successes.all()  # type: ignore[union-attr]


def replace(key: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]
        if values is not None:
            file[key] = values

    return change


def with_nan(file: h5py.File) -> None:
    file["data/demo_1/obs/object"][2, 4] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("data/demo_1/obs/object", None), r"'data/demo_1/obs/object' is missing"),
        (replace("data/demo_2/actions", None), r"'data/demo_2/actions' is missing"),
        (replace("data", None), r"lacks the group 'data', found \['mask'\]; expected robom"),
        (replace("data/demo_1/rewards", np.ones(2)), r"demo_1/rewards: 2 steps, expected 3"),
        (replace("data/demo_1/obs/object", np.ones((3, 9))), r"obs/object\[1\]: shape \(3, 9\)"),
        (
            replace("data/demo_0/actions", np.array([b"x"] * 5)),
            "demo_0/actions' has dtype .S1",
        ),
        (replace("data/demo_0/actions", np.ones((0, 7))), r"actions: shape \(0, 7\), expected"),
        (replace("mask/train", np.array([b"demo_7"])), "mask/train names demo_7, which data lacks"),
        (with_nan, r"data/demo_1/obs/object\[2, 4\] = nan, expected a finite number"),
    ],
)
def test_what_is_wrong_is_named(
    path: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match=message) as error:
        Demonstrations.from_robomimic(path, mask="train" if "mask/" in message else None)
    assert "lift.hdf5" in str(error.value)


def test_nan_in_lazy_data_is_named_when_read(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        with_nan(file)
    found = Demonstrations.from_robomimic(path, "object", memory=0)
    objects: Any = found.observations
    objects[:7]
    with pytest.raises(ValueError, match=r"demo_1/obs/object\[2, 4\] = nan"):
        objects[7]


def test_truncated_and_missing_files(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"lift\.hdf5"):
        Demonstrations.from_robomimic(path)
    with pytest.raises(ValueError, match=r"nothing\.hdf5"):
        Demonstrations.from_robomimic(path.with_name("nothing.hdf5"))
