"""The command line, called as a function and once as a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sb3_diffrl import Demonstrations
from sb3_diffrl.cli import main
from sb3_diffrl.envs.avoiding import avoiding_demonstrations


def test_inspect_shows_counts_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    path = avoiding_demonstrations(6).save(tmp_path / "d.demos")
    assert main(["demos", "inspect", str(path), "--plot", str(tmp_path / "a.png")]) == 0
    shown = capsys.readouterr().out
    assert "6 episodes" in shown and "return" in shown and "observations" in shown
    assert Image.open(tmp_path / "a.png").width > 100


def test_convert_there_and_back(tmp_path: Path) -> None:
    made = avoiding_demonstrations(3)
    source = made.save(tmp_path / "d.npz")
    for dest in ("e.demos", "f.npz"):
        assert main(["demos", "convert", str(source), str(tmp_path / dest)]) == 0
        np.testing.assert_array_equal(Demonstrations.load(tmp_path / dest).actions, made.actions)


def test_record_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def act(obs):\n    return 0 * obs[:, :1]\n")
    monkeypatch.syspath_prepend(tmp_path)
    output = tmp_path / "r.npz"
    arguments = ["demos", "record", "--model", "mine.act", "--env", "Pendulum-v1"]
    assert main([*arguments, "--episodes", "2", "--output", str(output)]) == 0
    assert Demonstrations.load(output).lengths.tolist() == [200, 200]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere.npz"], "nowhere.npz: there is no such file"),
        (["convert", "nowhere.npz", "x.txt"], "ends in .npz or .demos"),
        (["record", "--model", "no.such", "--env", "Pendulum-v1", "--output", "x"], "neither"),
        (["record", "--model", "os.getpid", "--env", "No-v9", "--output", "x"], "No"),
    ],
)
def test_errors_are_sentences(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demos", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_missing_value_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = avoiding_demonstrations(2)
    actions = np.array(made.actions)
    actions[4, 1] = np.nan
    path = Demonstrations(made.observations, actions, made.episode_ends).save(tmp_path / "d")
    assert main(["demos", "convert", str(path), str(tmp_path / "e.demos")]) == 1
    assert f"{path}: actions[4, 1] = nan" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_as_a_program() -> None:
    command = [sys.executable, "-m", "sb3_diffrl", "demos", "inspect", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr and "nowhere" in result.stderr
