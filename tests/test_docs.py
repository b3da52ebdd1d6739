"""The commands of docs/zoo.md, each as written but for fewer steps, in the order of the page."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml

from sb3_diffrl import Demonstrations
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/zoo.md").read_text()

# What shortens a command, by what it starts with.
PENDULUM = "n_envs:2 n_steps:32 n_epochs:1 batch_size:64 policy_kwargs.net_arch:[8]"
AVOIDING = f"{PENDULUM} pretrain.gradient_steps:20 imitation.warmup_steps:2"
SHORTER = {
    "-m rl_zoo3.enjoy": "-n 50 --no-render",
    "-m rl_zoo3.record_video": "-n 20",
    "-m rl_zoo3.record_training": "-n 20",
    "-m rl_zoo3.push_to_hub": "-n 20",
    "-m rl_zoo3.benchmark": "-n 100 --test-mode",
    "benchmarks/zoo_experts.py": "--steps 512 --episodes 2",
}

RUNNER = """
import os, runpy, shlex, sys, time
start = time.monotonic()
for line in sys.argv[1:]:
    print("+", line, round(time.monotonic() - start), "s", flush=True)
    words = shlex.split(line)
    if words[1] == "-m":
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words[1:]
        runpy.run_path(words[1], run_name="__main__")
"""


def commands(page: str) -> list[str]:
    """The lines of the page's bash blocks that run Python, without comments."""
    text = "\n".join(re.findall(r"^ *```bash\n(.*?)```", page, re.DOTALL | re.MULTILINE))
    lines = (line.split("  #")[0].strip() for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if re.match(r"(\w+=\S+ )*python ", line) and " -c " not in line]


def shortened(line: str) -> str:
    words = line.replace("<you>", "alice")
    if "-m rl_zoo3.train" in words:
        tiny = PENDULUM if "Avoiding" not in words else AVOIDING
        found = re.search(r"-params (.*)", words)
        words = words.replace(f" {found[0]}", "") if found else words
        given = found[1] if found else ""
        words = re.sub(r" -n \d+| --eval-freq \d+", "", words)
        if "-optimize" in words:
            words = re.sub(r"--(n-trials|n-evaluations|eval-episodes) \d+", r"--\1 2", words)
            words += " -n 256 --pruner none"
        else:
            words += " -n 64 --eval-freq -1"
        words += f" -params {tiny} {given}"
    for start, more in SHORTER.items():
        words += f" {more}" if start in words else ""
    return words.replace("python benchmarks", f"python {ROOT}/benchmarks")


def run(lines: list[str], cwd: Path, **environment: str) -> str:
    """Run commands in one process, which imports PyTorch once."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUNNER, *lines],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def test_the_commands_of_the_page_run_in_its_order(tmp_path: Path) -> None:
    pytest.importorskip("plotly", reason="needs the extra `zoo`")
    lines = commands(PAGE)
    assert len(lines) >= 20
    with_environment = [line for line in lines if not line.startswith("python ")]
    assert [line.split("=")[0] for line in with_environment] == [
        "WANDB_MODE",
        "TRUST_REMOTE_CODE",
    ]
    todo = []
    for line in lines:
        short = shortened(line.removeprefix("TRUST_REMOTE_CODE=True "))
        if line.startswith("WANDB_MODE"):  # has a test of its own
            continue
        if "-conf" in line and "-f " in line:
            # The plots compare evaluations of two runs of each kind: here a reader trains twice.
            short = short.replace("--eval-freq -1", "--eval-freq 32 --eval-episodes 2")
            todo.append(short)
        todo.append(re.sub(r"--trial-id \d+", "--trial-id 0", short))
    with HubServer() as hub:
        text = run(
            todo,
            tmp_path,
            HF_ENDPOINT=hub.endpoint,
            HF_HOME=str(tmp_path / "hf"),
            HF_TOKEN="hf_alice",
            TRUST_REMOTE_CODE="True",
        )
    assert text.count("\n+ ") >= 20
    for made in (
        "logs/diffppo/Pendulum-v1_1/Pendulum-v1.zip",
        "demonstrations/Hopper-v5.npz",
        "downloaded/diffppo/Pendulum-v1_1/Pendulum-v1.zip",
        "benchmarks/results/study_avoiding_param_importances.png",
        "benchmarks/results/study_avoiding_param_importances.html",
    ):
        assert (tmp_path / made).stat().st_size > 0, made


def test_tracking_without_a_connection(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra `zoo`")
    (line,) = (line for line in commands(PAGE) if "WANDB_MODE" in line)
    environment, line = line.split(" ", 1)
    assert environment == "WANDB_MODE=offline"
    line = shortened(line).replace("-n 64 ", "-n 512 ")  # in which episodes end
    run([line], tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    (recorded,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = recorded.read_bytes()
    for name in (b"rollout/ep_rew_mean", b"train/clip_fraction", b"time/env_steps"):
        assert name in content, name


def test_an_entry_of_the_readers_own(tmp_path: Path) -> None:
    (entry,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert yaml.safe_load(entry)["MyEnv-v0"]["demonstrations"] == "my_demonstrations.npz"
    (tmp_path / "my.yml").write_text(entry)
    (tmp_path / "my_package.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('MyEnv-v0', 'gymnasium.envs.classic_control:PendulumEnv',"
        " max_episode_steps=20)\n"
    )
    env = gym.make("Pendulum-v1")
    env.reset(seed=0)
    observations = np.stack([env.observation_space.sample() for _ in range(40)])
    actions = np.stack([env.action_space.sample() for _ in range(40)])
    demonstrations = Demonstrations.from_arrays(observations, actions, [20, 40])
    demonstrations.save(tmp_path / "my_demonstrations.npz")
    (command,) = re.findall(r"# my\.yml, for: (.*)", PAGE)
    line = f"{command} -n 64 --eval-freq -1 -params {PENDULUM} pretrain.gradient_steps:5"
    run([line], tmp_path, PYTHONPATH=str(tmp_path))
    assert list(tmp_path.glob("logs/diffppo/MyEnv-v0_1/MyEnv-v0.zip"))


def test_shortening_leaves_the_rest_of_a_command_as_written() -> None:
    for line in commands(PAGE):
        kept = [w for w in shlex.split(line) if not w.isdigit() and w not in ("<you>", "python")]
        missing = set(kept) - set(shlex.split(shortened(line))) - {"-n", "--eval-freq"}
        assert all(word.startswith("benchmarks/") for word in missing), (line, missing)
