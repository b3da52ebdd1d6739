"""The examples of imported policies and of the U-Net run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "arguments", "printed"),
    [
        ("import_lerobot.py", (), "256 environment steps"),
        ("import_dppo.py", (), "took the weights 'finetuned'"),
        ("network_unet.py", ("waves.png", "2"), "mean distance to the wave"),
    ],
)
def test_an_example(name: str, arguments: tuple[str, ...], printed: str, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )
    assert result.returncode == 0, result.stderr
    assert printed in result.stdout + result.stderr
    assert (tmp_path / "waves.png").exists() == (name == "network_unet.py")
    assert len((EXAMPLES / name).read_text().splitlines()) < 60
