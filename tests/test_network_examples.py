"""The examples of networks run and end in something to see."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("network_*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_of_a_network_runs(example: Path, tmp_path: Path) -> None:
    assert len(example.read_text().splitlines()) < 60
    result = subprocess.run(
        [sys.executable, str(example)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    last = result.stdout.strip().splitlines()[-1]
    assert any(character.isdigit() for character in last)


def test_every_network_has_an_example() -> None:
    names = {example.stem.removeprefix("network_") for example in EXAMPLES}
    assert names >= {"mlp", "transformer", "images", "language", "own_module"}


def test_the_programs_in_the_docs_run() -> None:
    page = (Path(__file__).parents[1] / "docs/policies.md").read_text()
    names: dict[str, object] = {}
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(programs) >= 4
    for program in programs:
        exec(program, names)


def test_every_example_that_the_docs_name_exists() -> None:
    root = Path(__file__).parents[1]
    for name in re.findall(
        r"`((?:examples|benchmarks)/\w+\.py)`", (root / "docs/policies.md").read_text()
    ):
        assert (root / name).exists(), name
