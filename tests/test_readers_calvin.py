"""CALVIN's folders, written in their layout."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.sample_demonstrations import write_calvin
from sb3_diffrl import Demonstrations
from sb3_diffrl.demonstrations import calvin
from sb3_diffrl.demonstrations.arrays import LazyArray

FIRST = 100
SEGMENTS = [(102, 117), (120, 129), (125, 139)]  # the second number is exclusive
PLAY = [(100, 120), (120, 140)]
NOTES = "lang_annotations/auto_lang_ann.npy"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_calvin(tmp_path_factory.mktemp("calvin") / "training", FIRST)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "training"))


def stored(folder: Path, key: str, segments: list[tuple[int, int]]) -> np.ndarray:
    frames = [frame for start, stop in segments for frame in range(start, stop)]
    return np.stack([np.load(folder / f"episode_{frame:07d}.npz")[key] for frame in frames])


@pytest.mark.parametrize("memory", [0, 10**9])
def test_annotated_segments(original: Path, memory: int) -> None:
    found = Demonstrations.from_calvin(original, memory=memory)
    seen: Any = found.observations
    assert isinstance(found.actions, LazyArray) == (memory == 0)
    np.testing.assert_array_equal(found.episode_ends, [15, 24, 38])
    for key in ("robot_obs", "scene_obs"):
        expected = stored(original, key, SEGMENTS).astype(np.float32)
        np.testing.assert_array_equal(seen[key], expected)
        np.testing.assert_array_equal(seen[key][[20, 3, 20]], expected[[20, 3, 20]])
    np.testing.assert_array_equal(
        found.actions, stored(original, "rel_actions", SEGMENTS).astype(np.float32)
    )
    emb = np.load(original / NOTES, allow_pickle=True).item()["language"]["emb"][:, 0]
    np.testing.assert_array_equal(seen["language"], np.repeat(emb, [15, 9, 14], axis=0))
    assert found.rewards is None and found.successes is None


def test_play_with_the_last_frame_of_each_episode(original: Path) -> None:
    found = Demonstrations.from_calvin(original, "scene_obs", annotated=False, action_key="actions")
    np.testing.assert_array_equal(found.episode_ends, [20, 40])
    np.testing.assert_array_equal(
        found.observations, stored(original, "scene_obs", PLAY).astype(np.float32)
    )
    np.testing.assert_array_equal(
        found.actions, stored(original, "actions", PLAY).astype(np.float32)
    )


def test_tasks_sentences_and_ones_own_embedding(original: Path) -> None:
    assert calvin.tasks_of(original) == ["open_drawer", "push_red_block_left", "open_drawer"]
    assert calvin.instructions(original) == [
        "open the drawer",
        "push the red block left",
        "pull the handle",
    ]
    asked: list[list[str]] = []

    def embed(sentences: list[str]) -> np.ndarray:
        asked.append(sentences)
        return np.array([[len(sentence), 1.0] for sentence in sentences])

    found = Demonstrations.from_calvin(original, tasks=["open_drawer"], language=embed)
    seen: Any = found.observations
    np.testing.assert_array_equal(found.episode_ends, [15, 29])
    np.testing.assert_array_equal(seen["language"][:, 0], [15] * 29)  # both sentences: 15 letters
    assert asked == [["open the drawer", "pull the handle"]]
    with pytest.raises(ValueError, match=r"no task \['sing'\]; there are \['open_drawer'"):
        Demonstrations.from_calvin(original, tasks=["sing"])
    with pytest.raises(ValueError, match="need annotated=True"):
        Demonstrations.from_calvin(original, tasks=["open_drawer"], annotated=False)
    with pytest.raises(ValueError, match=r"language: shape \(1, 2\), expected \(3, d\)"):
        Demonstrations.from_calvin(original, language=lambda sentences: np.ones((1, 2)))


def test_images_and_vectors(original: Path) -> None:
    seen: Any = Demonstrations.from_calvin(
        original, ("rgb_static", "depth_static"), annotated=False, memory=0
    ).observations
    pixels = stored(original, "rgb_static", PLAY)
    np.testing.assert_array_equal(seen["rgb_static"], pixels.transpose(0, 3, 1, 2))
    assert seen["depth_static"].shape == (40, 20, 20)
    joined: Any = Demonstrations.from_calvin(original, concatenate=True).observations
    assert joined.shape == (38, 15 + 24 + 8)


def test_each_frame_is_opened_once_for_all_keys(
    original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    real = calvin._opened

    def counted(path: Path) -> Any:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(calvin, "_opened", counted)
    Demonstrations.from_calvin(original)
    assert len(opened) <= len(set(opened)) + 1  # the first one also tells the keys


def rewrite(path: Path, **changes: Any) -> None:
    with np.load(path) as file:
        values = {**file, **changes}
    np.savez_compressed(path, **{k: v for k, v in values.items() if v is not None})


def frame(folder: Path, number: int) -> Path:
    return folder / f"episode_{number:07d}.npz"


def test_broken_frames_are_named(folder: Path) -> None:
    name = r"episode_0000105\.npz"
    rewrite(frame(folder, 105), robot_obs=np.append(np.zeros(14), np.nan))
    with pytest.raises(ValueError, match=rf"{name}: robot_obs\[0, 14\] = nan"):
        Demonstrations.from_calvin(folder)
    rewrite(frame(folder, 105), robot_obs=np.zeros(14))
    with pytest.raises(ValueError, match=rf"{name}: shape \(14,\), expected \(15,\)"):
        Demonstrations.from_calvin(folder)
    rewrite(frame(folder, 105), robot_obs=None)
    with pytest.raises(ValueError, match=rf"{name}: no key 'robot_obs'; found \['actions'"):
        Demonstrations.from_calvin(folder)
    rewrite(frame(folder, 105), robot_obs=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=rf"{name}: robot_obs: truncated or corrupt .*pickle"):
        Demonstrations.from_calvin(folder)
    whole = frame(folder, 105).read_bytes()
    for cut in (0, 300, len(whole) - 30):
        frame(folder, 105).write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=name):
            Demonstrations.from_calvin(folder)
    frame(folder, 105).unlink()
    lazy = Demonstrations.from_calvin(folder, memory=0)
    with pytest.raises(ValueError, match=rf"{name}: no such file, though an episode contains it"):
        lazy.actions[:10]
    frame(folder, 139).unlink()
    with pytest.raises(ValueError, match=r"episode_0000139\.npz: no such file, though episode 1"):
        Demonstrations.from_calvin(folder, annotated=False)


def test_broken_indices_and_annotations(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"ep_start_end_ids\.npy: no such file; expected the fold"):
        Demonstrations.from_calvin(folder.parent)
    ids = folder / "ep_start_end_ids.npy"
    for values, message in (
        (np.ones((2, 3), int), r"ids\.npy: shape \(2, 3\) of int64, expected \(E, 2\)"),
        (np.ones((2, 2)), r"ids\.npy: shape \(2, 2\) of float64"),
        (np.array([[110, 105]]), "episode 0 goes from frame 110 to 106"),
    ):
        np.save(ids, values)
        with pytest.raises(ValueError, match=message):
            Demonstrations.from_calvin(folder, annotated=False)
    np.save(ids, np.array([[100, 119]]))

    notes = folder / NOTES
    good: Any = np.load(notes, allow_pickle=True).item()
    for change, message in (
        ({"info": {"indx": [(102, 110)]}}, r"info/indx has shape \(1, 2\), expected \(3, 2\)"),
        ({"info": {}}, r"KeyError\('indx'\); expected"),
        ({"language": {**good["language"], "task": ["x"]}}, "3 sentences, 1 tasks and 3 embedd"),
        ({"language": {**good["language"], "emb": np.full((3, 1, 8), np.nan)}}, r"language/emb\["),
        ({"info": {"indx": [(102, 90)] * 3}}, "episode 0 goes from frame 102 to 90"),
        ({"more": print}, r"auto_lang_ann\.npy: the pickle refers to builtins\.print"),
    ):
        np.save(notes, {**good, **change}, allow_pickle=True)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            Demonstrations.from_calvin(folder)
    notes.unlink()
    with pytest.raises(ValueError, match=r"auto_lang_ann\.npy: no such file; annotated=False"):
        Demonstrations.from_calvin(folder)
