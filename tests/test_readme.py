"""The README's program runs as written, with fewer steps."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_program_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = gym.make("Pendulum-v1")
    env.observation_space.seed(0)
    env.action_space.seed(0)
    np.savez(
        "demonstrations.npz",
        observations=np.stack([env.observation_space.sample() for _ in range(40)]),
        actions=np.stack([env.action_space.sample() for _ in range(40)]),
        episode_ends=[20, 40],
    )
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    shortened = (
        program.replace("10_000", "5").replace("100_000", "1").replace("verbose=1", "n_steps=64")
    )
    assert shortened != program
    names: dict[str, object] = {}
    exec(shortened, names)
    assert env.action_space.contains(names["action"])
    assert (tmp_path / "prior.zip").exists() and (tmp_path / "finetuned.zip").exists()


def test_the_tree_in_the_readme_is_the_tree_on_disk() -> None:
    tree = README.read_text().split("## Where things are")[1]
    for name in re.findall(r"^  (\w+(?:\.py|/)) ", tree, re.MULTILINE):
        assert (README.parent / "sb3_diffrl" / name).exists(), name
    package = README.parent / "sb3_diffrl"
    modules = {p.name for p in package.glob("*.py")} - {"__init__.py"}
    assert modules <= set(re.findall(r"\w+\.py", tree))
