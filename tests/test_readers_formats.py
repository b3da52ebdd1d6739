"""The formats of robotics are told by what lies at a path."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.sample_demonstrations import FIXTURES, write_calvin, write_rlbench, write_robomimic
from sb3_diffrl.demonstrations.formats import format_of, read


def copied(name: str) -> Callable[[Path], Path]:
    return lambda path: Path(shutil.copytree(FIXTURES / name, path))


@pytest.mark.parametrize(
    ("format", "write", "episodes"),
    [
        ("robomimic", write_robomimic, 4),
        ("lerobot", copied("lerobot_v2.1"), 3),
        ("lerobot", copied("lerobot_v3.0"), 3),
        ("imitation", copied("imitation"), 2),
        ("calvin", write_calvin, 3),
        ("rlbench", write_rlbench, 3),
        ("rlbench", lambda path: write_rlbench(path) / "variation0", 3),
        ("rlbench", lambda path: write_rlbench(path) / "variation0/episodes/episode1", 1),
    ],
)
def test_formats(tmp_path: Path, format: str, write: Callable[[Path], Path], episodes: int) -> None:
    path = write(tmp_path / "data")
    assert format_of(path) == format
    assert len(read(path)) == episodes
