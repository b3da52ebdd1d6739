"""The examples that read demonstrations run, and end in a trained policy."""

import importlib
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(file.stem for file in EXAMPLES.glob("demonstrations_*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [name])
    importlib.import_module(f"examples.{name}").main()
    shown = capsys.readouterr().out
    assert "Demonstrations(episodes=" in shown and "denoising loss 0." in shown
