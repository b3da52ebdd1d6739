"""The examples of the readers run, offline."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(ROOT.glob("examples/demonstrations_*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    assert len(example.read_text().splitlines()) < 60
    result = subprocess.run(
        [sys.executable, example], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
    assert not list(tmp_path.iterdir())


def test_the_benchmark_runs_small_within_its_limit(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.demonstrations", "--sizes", "0.03"]
    command += ["--folder", str(tmp_path / "data"), "--gradient-steps", "4"]
    subprocess.run([*command, "--output", str(tmp_path)], cwd=ROOT, check=True, timeout=120)
    mapped, in_memory = json.loads((tmp_path / "demonstrations.json").read_text())
    assert (mapped["form"], in_memory["form"]) == ("mapped", "in memory")
    assert mapped["anonymous_mib"] < 2e9 / 2**20 and mapped["steps_per_s"] > 0
    assert (tmp_path / "demonstrations.png").exists() and not list((tmp_path / "data").iterdir())
