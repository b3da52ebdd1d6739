"""imitation's trajectories: a folder that imitation wrote, and objects."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations.arrays import LazyArray

FIXTURE = Path(__file__).parent / "fixtures/imitation"


def trajectory(episode: int, length: int, **changes: Any) -> SimpleNamespace:
    """As `fixtures/make_imitation.py` makes them."""
    t = np.arange(length + 1)
    values: dict[str, Any] = {
        "obs": np.stack([t, np.full_like(t, episode), 0.5 * t], axis=1).astype(np.float32),
        "acts": np.stack([0.1 * t[:-1], -0.1 * t[:-1]], axis=1).astype(np.float32),
        "rews": t[1:].astype(np.float32),
        "terminal": episode == 0,
        "infos": [{"is_success": episode == 0 and i == length - 1} for i in range(length)],
    }
    return SimpleNamespace(**{**values, **changes})


def same(a: Demonstrations, b: Demonstrations) -> None:
    np.testing.assert_array_equal(a.observations, b.observations)
    np.testing.assert_array_equal(a.actions, b.actions)
    np.testing.assert_array_equal(a.rewards, b.rewards)
    np.testing.assert_array_equal(a.successes, b.successes)
    np.testing.assert_array_equal(a.episode_ends, b.episode_ends)


@pytest.mark.parametrize("memory", [0, 10**9])
def test_the_folder_holds_what_the_objects_hold(memory: int) -> None:
    found = Demonstrations.from_imitation(FIXTURE, memory=memory)
    assert isinstance(found.actions, LazyArray) == (memory == 0)
    t = np.array([0, 1, 2, 3, 4, 0, 1, 2])
    observations: Any = found.observations
    np.testing.assert_allclose(observations[:, 0], t)
    np.testing.assert_allclose(found.actions[:, 1], -0.1 * t, rtol=1e-6)
    np.testing.assert_array_equal(found.episode_ends, [5, 8])
    np.testing.assert_array_equal(found.rewards, t + 1)
    np.testing.assert_array_equal(found.successes, [True, False])
    same(found, Demonstrations.from_imitation([trajectory(0, 5), trajectory(1, 3)]))


def test_dictionaries_images_and_unknown_fields() -> None:
    obs = {"state": np.ones((4, 2)), "camera": np.zeros((4, 8, 8, 3), np.uint8)}
    wrapped = SimpleNamespace(items=obs.items)  # as imitation's DictObs
    found = Demonstrations.from_imitation([trajectory(0, 3, obs=wrapped, rews=None, infos=None)])
    seen: Any = found.observations
    assert seen["state"].shape == (3, 2) and seen["camera"].shape == (3, 3, 8, 8)
    assert found.rewards is None and found.successes is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": np.ones((3, 3))}, "trajectory 1: obs has 3 rows, expected 4"),
        ({"rews": np.ones(2)}, r"trajectory 1: rews has shape \(2,\), expected \(3,\)"),
        ({"rews": None}, "trajectory 1: some trajectories have rews"),
        ({"acts": np.ones((3, 5))}, r"acts\[1\]: shape \(3, 5\)"),
        ({"acts": np.ones((0, 2)), "obs": np.ones((1, 3))}, "trajectory 1: acts is empty"),
        ({"acts": np.full((3, 2), np.inf)}, r"trajectory 1: acts\[0, 0\] = inf"),
        ({"acts": np.array(["a", "b", "c"])}, "trajectory 1: acts: dtype <U1"),
        ({"obs": {"x": np.ones((4, 1))}}, r"trajectory 1: obs has the keys \['x'\]"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Demonstrations.from_imitation([trajectory(0, 5), trajectory(1, 3, **changes)])


def test_no_trajectories() -> None:
    with pytest.raises(ValueError, match="no trajectories"):
        Demonstrations.from_imitation([])
    with pytest.raises(ValueError, match=r"trajectory 0: int has no \['obs', 'acts'\]"):
        Demonstrations.from_imitation([3])


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"state\.json: no such file; expected a folder"):
        Demonstrations.from_imitation(tmp_path)
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "copy"))
    (arrow,) = folder.glob("*.arrow")
    whole = arrow.read_bytes()
    for cut in (0, 100, 1200, 1600):
        arrow.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=arrow.name):
            Demonstrations.from_imitation(folder)
    arrow.unlink()
    with pytest.raises(ValueError, match=rf"{arrow.name}: no such file, though state\.json"):
        Demonstrations.from_imitation(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json: truncated"):
        Demonstrations.from_imitation(folder)


def test_infos_are_not_decoded_to_objects(tmp_path: Path) -> None:
    """jsonpickle would call what an info names."""
    import pyarrow as pa

    folder = Path(shutil.copytree(FIXTURE, tmp_path / "copy"))
    (arrow,) = folder.glob("*.arrow")
    table = pa.ipc.open_stream(arrow.read_bytes()).read_all()
    marker = tmp_path / "ran"
    info = f'{{"is_success": {{"py/reduce": [{{"py/function": "os.mkdir"}}, ["{marker}"]]}}}}'
    infos = pa.array([[info] * 5, [info] * 3])
    table = table.set_column(table.column_names.index("infos"), "infos", infos)
    with pa.OSFile(str(arrow), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    found = Demonstrations.from_imitation(folder)
    assert found.successes is None and not marker.exists()


def test_ragged_rows(tmp_path: Path) -> None:
    import pyarrow as pa

    folder = Path(shutil.copytree(FIXTURE, tmp_path / "copy"))
    (arrow,) = folder.glob("*.arrow")
    table = pa.table({"obs": [[[1.0, 2.0], [3.0]]], "acts": [[[1.0]]], "terminal": [True]})
    with pa.OSFile(str(arrow), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"trajectories' obs are ragged: entries of lengths"):
        Demonstrations.from_imitation(folder)
