"""The examples and the page of action chunks run as written, the page's with fewer steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("example", "shown"),
    [
        ("action_chunks.py", r"fine-tuned: success [01]\.\d\d"),
        ("deploy_chunks.py", r"1 step of delay +success [01]\.\d\d"),
    ],
)
def test_the_examples_run(example: str, shown: str, tmp_path: Path) -> None:
    source = (ROOT / "examples" / example).read_text()
    assert source.count("\n") < 60
    short = source.replace("3_500", "50").replace("2_000", "500")
    assert short != source
    (tmp_path / example).write_text(short)
    process = subprocess.run(
        [sys.executable, example],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert re.search(shown, process.stdout), process.stdout


def test_the_programs_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/chunks.md").read_text()
    program = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    shortened = program.replace("10_000", "2").replace("50_000", "1").replace("200", "2")
    shortened = shortened.replace("beta=0.01", "beta=0.01, n_steps=8, batch_size=8")
    names: dict[str, object] = {}
    exec(shortened, names)
    assert getattr(names["action"], "shape", None) == (2,)
    for link in re.findall(r"\]\((\.\./[^)]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link
