"""LeRobot datasets of both formats, written by LeRobot (`fixtures/make_lerobot.py`)."""

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations import lerobot
from sb3_diffrl.demonstrations.arrays import LazyArray
from sb3_diffrl.demonstrations.parquet import Block, ParquetArray
from sb3_diffrl.demonstrations.videos import Clip, VideoArray

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = ("v2.1", "v3.0")
LENGTHS = (5, 4, 6)
TASKS = ["push the block", "open the drawer", "push the block"]
EPISODE = np.repeat(np.arange(3), LENGTHS)
T = np.concatenate([np.arange(n) for n in LENGTHS])
WRIST = "observation.images.wrist"


@pytest.fixture(params=VERSIONS)
def original(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / f"lerobot_{request.param}"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / original.name))


@pytest.mark.parametrize("memory", [0, 10**9])
def test_all_is_read(original: Path, memory: int) -> None:
    found = Demonstrations.from_lerobot(original, memory=memory)
    seen: Any = found.observations
    assert list(seen) == ["state", "images_top"]
    assert isinstance(found.actions, LazyArray) == (memory == 0)
    np.testing.assert_array_equal(found.episode_ends, np.cumsum(LENGTHS))
    state = np.stack([EPISODE, T, np.full(15, 0.5)], axis=1).astype(np.float32)
    np.testing.assert_array_equal(seen["state"], state)
    np.testing.assert_array_equal(seen["state"][[12, 3, 12]], state[[12, 3, 12]])
    images = np.broadcast_to((10 * EPISODE + T)[:, None, None, None], (15, 3, 8, 8))
    np.testing.assert_array_equal(seen["images_top"], images)
    np.testing.assert_array_equal(seen["images_top"][[14, 0, 7]], images[[14, 0, 7]])
    np.testing.assert_allclose(found.actions, np.stack([0.1 * T, -0.1 * EPISODE], 1), rtol=1e-6)
    last = np.isin(np.arange(15), found.episode_ends - 1)
    np.testing.assert_array_equal(found.rewards, last.astype(np.float32))
    np.testing.assert_array_equal(found.successes, [True, False, True])


def test_instructions(original: Path) -> None:
    assert lerobot.instructions(original) == TASKS
    assert lerobot.instructions(original, [1]) == TASKS[1:2]
    found = Demonstrations.from_lerobot(
        original,
        "observation.state",
        language=lambda sentences: np.array([[len(s)] for s in sentences]),
    )
    seen: Any = found.observations
    lengths = np.array([len(task) for task in TASKS])
    np.testing.assert_array_equal(seen["language"][:, 0], lengths[EPISODE])


@pytest.mark.parametrize("memory", [0, 10**9])
def test_chosen_episodes_keys_and_names(original: Path, memory: int) -> None:
    whole = Demonstrations.from_lerobot(original)
    some = Demonstrations.from_lerobot(
        original, {"observation.state": "robot"}, episodes=[2, 0], memory=memory
    )
    rows = np.concatenate([np.arange(9, 15), np.arange(5)])
    state: Any = some.observations
    assert list(state) == ["robot"]
    np.testing.assert_array_equal(state["robot"], np.asarray(whole.observations["state"])[rows])
    np.testing.assert_array_equal(some.actions, np.asarray(whole.actions)[rows])
    np.testing.assert_array_equal(some.episode_ends, [6, 11])
    np.testing.assert_array_equal(some.successes, [True, True])
    joined: Any = Demonstrations.from_lerobot(
        original, ["observation.state", "next.reward"], concatenate=True, memory=memory
    ).observations
    np.testing.assert_array_equal(joined[:, 3], whole.rewards)
    with pytest.raises(ValueError, match=r"episodes \[7\] are not there, of 3"):
        Demonstrations.from_lerobot(original, episodes=[0, 7])
    with pytest.raises(ValueError, match=r"info\.json: no observation \['state'\]; there are"):
        Demonstrations.from_lerobot(original, "state")
    with pytest.raises(ValueError, match=r"info\.json: no feature 'act'; found \['action'"):
        Demonstrations.from_lerobot(original, action_key="act")


def test_two_features_cannot_have_one_name(folder: Path) -> None:
    info = folder / "meta/info.json"
    described = json.loads(info.read_text())
    described["features"]["observation.images_top"] = described["features"]["observation.state"]
    info.write_text(json.dumps(described))
    for keys, name in (({"observation.state": "x", "action": "x"}, "x"), (None, "images_top")):
        with pytest.raises(ValueError, match=rf"info\.json: .* are both to be named '{name}'"):
            Demonstrations.from_lerobot(folder, keys)


@pytest.mark.parametrize("name", ["copy.demos", "copy.npz"])
def test_lazy_data_are_saved_and_mapped(original: Path, tmp_path: Path, name: str) -> None:
    lazy = Demonstrations.from_lerobot(original, memory=0)
    lazy.save(tmp_path / name)
    found: Any = Demonstrations.load(tmp_path / name).observations
    expected: Any = Demonstrations.from_lerobot(original).observations
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


def test_videos_are_decoded_where_they_are_asked_for(original: Path) -> None:
    found = Demonstrations.from_lerobot(original, WRIST, memory=0)
    frames: Any = found.observations
    brightness = 60 * EPISODE + 10 * T
    assert frames.shape == (15, 3, 64, 64)
    for rows in (np.arange(15), [14, 2, 2, 8, 0], [11]):
        np.testing.assert_allclose(
            frames[rows].mean(axis=(1, 2, 3)), brightness[rows], atol=3, err_msg=str(rows)
        )
    chosen: Any = Demonstrations.from_lerobot(original, WRIST, episodes=[1]).observations
    np.testing.assert_allclose(chosen.mean(axis=(1, 2, 3)), brightness[5:9], atol=3)


def test_a_video_that_is_missing_or_truncated(folder: Path) -> None:
    for video in folder.rglob("*.mp4"):
        video.write_bytes(video.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"\.mp4: no video that can be decoded"):
        Demonstrations.from_lerobot(folder, WRIST)
    for video in folder.rglob("*.mp4"):
        video.unlink()
    with pytest.raises(ValueError, match=r"\.mp4: no such file, though the metadata names it"):
        Demonstrations.from_lerobot(folder, WRIST)


def test_a_frame_that_is_missing_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gap.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        for t in (0, 1, 2, 5, 6):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
            frame.pts, frame.time_base = t, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = VideoArray([Clip(path, 0.0, 10.0, 7)])
    assert frames[[0, 2, 5, 6]].shape == (4, 64, 64, 3)
    message = r"gap\.mp4: frame 3 .*expected at 0\.300 s, the next one is at 0\.500 s"
    for rows in (slice(None), [3]):
        with pytest.raises(ValueError, match=message):
            frames[rows]


def test_without_the_package_that_decodes_videos(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"read with av: pip install 'sb3-diffrl\[video\]'"):
        Demonstrations.from_lerobot(original, WRIST)


def table_of_last_episode(folder: Path) -> Path:
    return sorted((folder / "data").rglob("*.parquet"))[-1]


def with_column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        return table.set_column(place, name, values(table) if callable(values) else values)

    return change


STATES = [[2.0, float(t), 0.5] for t in range(6)]
WITH_NAN = [0.0, np.nan, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_column("observation.state", pa.array([*STATES[:2], WITH_NAN, *STATES[3:]])),
            r"observation\.state\[2, 1\] = nan, expected a finite number",
        ),
        (
            with_column("observation.state", pa.array([*STATES[:4], [1.0], STATES[5]])),
            r"observation\.state\[4\]: 1 numbers, expected 3",
        ),
        (
            with_column("observation.state", pa.array([*STATES[:3], [1.0], [1.0] * 5, STATES[5]])),
            r"observation\.state\[3\]: 1 numbers, expected 3",
        ),
        (
            with_column("observation.state", pa.array([*STATES[:4], None, STATES[5]])),
            r"observation\.state\[4\] is missing",
        ),
        (
            with_column("observation.state", pa.array([*STATES[:4], [1.0, None, 2.0], STATES[5]])),
            r"observation\.state\[4, 1\] is missing",
        ),
        (with_column("action", pa.array([["a", "b"]] * 6)), "action: dtype object, expected real"),
        (lambda table: table.drop_columns(["action"]), "no column 'action'; found"),
        (lambda table: table.slice(0, 4), "4 rows, expected 6|13 frames, expected 15"),
        (
            with_column("observation.images.top", pa.array([{"bytes": b"GIF"}] * 6)),
            r"observation\.images\.top.*\[0\]: no image that can be read",
        ),
        (
            with_column("observation.images.top", pa.array([{"bytes": None, "path": "x"}] * 6)),
            r"observation\.images\.top.*\[0\]: no bytes; images kept in files of their own",
        ),
    ],
)
def test_broken_tables_are_named(
    folder: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    path = table_of_last_episode(folder)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(ValueError, match=message) as error:
        Demonstrations.from_lerobot(folder)
    assert path.name in str(error.value) or "frames" in str(error.value)


def test_lists_of_lists_have_the_shape_that_the_metadata_says(tmp_path: Path) -> None:
    def read(rows: Any) -> np.ndarray:
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"x": rows}), path)
        return ParquetArray("x", [Block(path, None, len(rows))], (2, 2))[:]

    values = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    fixed = pa.list_(pa.list_(pa.int64(), 2), 2)
    for rows in (pa.array(values), pa.array(values, fixed), pa.array([[1, 2, 3, 4], [5, 6, 7, 8]])):
        np.testing.assert_array_equal(read(rows), values)
    with pytest.raises(ValueError, match=r"x\[1, 0\]: 3 numbers, expected 2"):
        read(pa.array([values[0], [[5, 6, 7], [8]]]))


def test_truncated_and_missing_tables(folder: Path) -> None:
    path = table_of_last_episode(folder)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{path.name}: no parquet file that can be read"):
        Demonstrations.from_lerobot(folder)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name}: no such file, though the metadata"):
        Demonstrations.from_lerobot(folder)


def test_broken_metadata(folder: Path) -> None:
    info = folder / "meta/info.json"
    good = json.loads(info.read_text())
    for change, message in (
        ({"codebase_version": "v4.0"}, r"codebase_version v4\.0, expected 2\.x or 3\.x"),
        ({"codebase_version": None}, r"lacks 'codebase_version'"),
        ({"features": None}, r"lacks 'features'"),
        ({"features": {"action": {"dtype": "float32"}}}, "feature 'action' lacks dtype or shape"),
    ):
        values = {k: v for k, v in {**good, **change}.items() if v is not None}
        info.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=r"info\.json: " + message):
            Demonstrations.from_lerobot(folder)
    info.write_text(json.dumps(good))
    if good["codebase_version"] == "v2.1":
        episodes = folder / "meta/episodes.jsonl"
        text = episodes.read_text()
        episodes.write_text(text + '{"episode_index": 3}\n')
        with pytest.raises(ValueError, match=r"episodes\.jsonl, line 4: KeyError\('length'\)"):
            Demonstrations.from_lerobot(folder)
        episodes.write_text("")
    else:
        (episodes,) = (folder / "meta/episodes").rglob("*.parquet")
        table = pq.read_table(episodes)
        pq.write_table(with_column("length", pa.array([5, 4, 7]))(table), episodes)
        with pytest.raises(ValueError, match="episode 2 has length 7 and the rows 9 to 15"):
            Demonstrations.from_lerobot(folder)
        pq.write_table(table.drop_columns(["data/file_index"]), episodes)
        with pytest.raises(ValueError, match=r"lacks a value: KeyError\('data/file_index'\)"):
            Demonstrations.from_lerobot(folder)
        pq.write_table(table.slice(0, 0), episodes)
    with pytest.raises(ValueError, match="no episodes"):
        Demonstrations.from_lerobot(folder)
    info.write_text("{")
    with pytest.raises(ValueError, match=r"info\.json: truncated or no JSON"):
        Demonstrations.from_lerobot(folder)
    info.unlink()
    with pytest.raises(ValueError, match=r"info\.json: no such file; expected the folder of a"):
        Demonstrations.from_lerobot(folder)


def in_one_file(folder: Path, episodes: list[int]) -> Path:
    """Format 3 puts many episodes in a file; its row groups need not end where episodes do."""
    shutil.copytree(FIXTURES / "lerobot_v3.0", folder)
    files = sorted((folder / "data").rglob("*.parquet"))
    whole = pa.concat_tables([pq.read_table(file) for file in files])
    for file in files[1:]:
        file.unlink()
    pq.write_table(whole, files[0], row_group_size=4)
    (meta,) = (folder / "meta/episodes").rglob("*.parquet")
    change = with_column("data/file_index", pa.array([0, 0, 0]))
    pq.write_table(change(pq.read_table(meta)).take(episodes), meta)
    return folder


def test_row_groups_of_one_file(tmp_path: Path) -> None:
    found = Demonstrations.from_lerobot(in_one_file(tmp_path / "data", [0, 1, 2]), memory=0)
    expected = Demonstrations.from_lerobot(FIXTURES / "lerobot_v3.0")
    seen: Any = found.observations
    for name, array in expected.observations.items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(seen[name], array)
    np.testing.assert_array_equal(found.actions[[13, 1]], np.asarray(expected.actions)[[13, 1]])


def test_rows_of_no_episode_are_left_out(tmp_path: Path) -> None:
    found = Demonstrations.from_lerobot(in_one_file(tmp_path / "data", [0, 2]), "observation.state")
    states: Any = found.observations
    np.testing.assert_array_equal(states[:, 0], EPISODE[EPISODE != 1])
