"""The examples that read demonstrations run and train a policy; so do the programs in the docs."""

import importlib
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from examples.sample_demonstrations import FIXTURES, write_calvin, write_rlbench, write_robomimic
from sb3_diffrl import Demonstrations

DOCS = Path(__file__).parents[1] / "docs/demonstrations_robotics.md"
EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = [
    f"demonstrations_{of}" for of in ("calvin", "imitation", "lerobot", "rlbench", "robomimic")
]


@pytest.mark.parametrize("name", NAMES)
def test_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [name])
    importlib.import_module(f"examples.{name}").main()
    shown = capsys.readouterr().out
    assert "Demonstrations(episodes=" in shown and "denoising loss 0." in shown


def test_the_programs_in_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_robomimic(Path("lift.hdf5"))
    shutil.copytree(FIXTURES / "lerobot_v3.0", "blocks")
    shutil.copytree(FIXTURES / "imitation", "trajectories")
    write_calvin(Path("training"))
    write_rlbench(Path("reach_target"))
    programs = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(programs) == 5
    for program in programs:
        names: dict[str, Any] = {}
        exec(program, names)
        assert any(isinstance(value, Demonstrations) for value in names.values())
