"""The command line, called as a function and once as a program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffrl import Demonstrations, DiffusionPPO
from sb3_diffrl.cli import main
from sb3_diffrl.envs.avoiding import avoiding_demonstrations
from sb3_diffrl.wrappers import ActionChunkWrapper, ObservationHistoryWrapper

RECORD = ["demos", "record", "--env", "Pendulum-v1", "--episodes", "2"]


def test_inspect_shows_counts_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = avoiding_demonstrations(6).save(tmp_path / "d.demos")
    assert main(["demos", "inspect", str(path), "--plot", str(tmp_path / "a.png")]) == 0
    shown = capsys.readouterr().out
    assert "6 episodes" in shown and "return" in shown and "observations" in shown
    assert Image.open(tmp_path / "a.png").width > 100


def test_numbers_are_whole_in_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    made = Demonstrations.from_arrays(
        {"a camera of the wrist": [np.full((3, 4, 5), -1.23456e-7)]},
        [np.full((3, 2), -7.654e-5)],
        rewards=[np.full(3, -4e11)],
    )
    assert main(["demos", "inspect", str(made.save(tmp_path / "d.npz"))]) == 0
    shown = capsys.readouterr().out
    assert shown.count("-1.235e-07") == 5 and shown.count("-7.654e-05") == 5
    assert shown.count("-1,200,000,") == 4 and "…" not in shown


def test_convert_there_and_back(tmp_path: Path) -> None:
    made = avoiding_demonstrations(3)
    source = made.save(tmp_path / "d.npz")
    for dest in ("e.demos", "f.npz"):
        assert main(["demos", "convert", str(source), str(tmp_path / dest)]) == 0
        np.testing.assert_array_equal(Demonstrations.load(tmp_path / dest).actions, made.actions)


def test_record_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def act(obs):\n    return 0 * obs[:, :1]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    for _ in range(2):
        assert main([*RECORD, "--model", "mine.act", "--output", "r.npz"]) == 0
    assert Demonstrations.load("r.npz").lengths.tolist() == [200, 200]
    assert sys.path[0] == os.getcwd() and sys.path.count(os.getcwd()) == 1


def test_record_in_an_env_with_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rest.py").write_text("def act(obs):\n    return 0 * obs[:, :1]\n")
    monkeypatch.chdir(tmp_path)
    made = {}
    for gravity in ("10.0", "0.5"):
        kwargs = ["--env-kwargs", f"g:{gravity}", "render_mode:null"]
        assert main([*RECORD, *kwargs, "--model", "rest.act", "--output", f"{gravity}.npz"]) == 0
        made[gravity] = Demonstrations.load(f"{gravity}.npz")
    first, second = (np.array(each.observations)[:2] for each in made.values())
    np.testing.assert_array_equal(first[0], second[0])
    sine, speed = first[0, 1:]  # the pendulum falls by 3 g / (2 l) · sine · dt
    fallen = speed + 0.075 * sine * np.array([10, 0.5])
    np.testing.assert_allclose([first[1, 2], second[1, 2]], fallen, rtol=1e-5)


@pytest.mark.parametrize("text", ["g", "g-force:1", "g:[1"])
def test_arguments_of_an_env_are_checked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*RECORD, "--model", "os.getpid", "--output", "x.npz", "--env-kwargs", text])
    assert f"argument --env-kwargs: {text!r}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "place", ["Pendulum-v1/vecnormalize.pkl", "best_model.vecnormalize.pkl", "mine.pkl"]
)
def test_record_a_model_that_saw_normalised_observations(place: str, tmp_path: Path) -> None:
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    statistics: Any = env.obs_rms
    statistics.mean[:], statistics.var[:] = 2, 0.01
    model = PPO("MlpPolicy", env)
    model.save(tmp_path / "best_model")
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    env.save(str(path))
    arguments = [*RECORD, "--algo", "ppo", "--model", str(tmp_path / "best_model")]
    given = ["--vecnormalize", str(path)] if place == "mine.pkl" else []
    assert main([*arguments, *given, "--output", str(tmp_path / "r.npz")]) == 0
    made = Demonstrations.load(tmp_path / "r.npz")
    seen = np.array(made.observations)
    np.testing.assert_allclose(np.square(seen[:, :2]).sum(1), 1, rtol=1e-5)  # cosine and sine
    expected, _ = model.predict(env.normalize_obs(seen), deterministic=True)
    np.testing.assert_allclose(made.actions, expected, atol=1e-5)
    assert made.returns.max() < -100  # not normalised


@pytest.mark.parametrize("n_observations", [None, 2])
def test_record_the_actions_of_chunks(n_observations: int | None, tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1")
    seen = env if n_observations is None else ObservationHistoryWrapper(env, n_observations)
    chunks = ActionChunkWrapper(seen, 4, 3)
    model = DiffusionPPO("policy", chunks, policy_kwargs={"net_arch": [8]})
    model.save(tmp_path / "m.zip")
    arguments = [*RECORD, "--n-envs", "2", "--model", str(tmp_path / "m.zip")]
    assert main([*arguments, "--output", str(tmp_path / "r.npz")]) == 0
    made = Demonstrations.load(tmp_path / "r.npz")
    made.validate(env.observation_space, env.action_space)
    assert made.lengths.tolist() == [200, 200]
    cut = made.windows(4, n_observations)  # decisions at every step, of which every third is made
    decided = np.concatenate([np.arange(0, 198, 3), np.arange(200, 398, 3)])
    expected, _ = model.predict(np.asarray(cut.observations)[decided], deterministic=True)
    np.testing.assert_allclose(cut.actions[decided][:, :3], expected[:, :3], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere.npz"], "nowhere.npz: there is no such file"),
        (["convert", "nowhere.npz", "x.txt"], "ends in .npz or .demos"),
        (["record", "--model", "no.such", "--env", "Pendulum-v1", "--output", "x.npz"], "neither"),
        (["record", "--model", "../no.such", "--env", "No-v9", "--output", "x.npz"], "neither"),
        (["record", "--model", "os.getpid", "--env", "No-v9", "--output", "x.npz"], "No"),
        (["record", "--model", "os.getpid", "--env", "No-v9", "--output", "x.hdf5"], "ends in"),
        ([*RECORD[1:], "--model", "os.getpid", "--output", "x.npz", "--env-kwargs", "h:1"], "'h'"),
    ],
)
def test_errors_are_sentences(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demos", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_the_class_of_a_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ppo.zip"
    PPO("MlpPolicy", "Pendulum-v1").save(path)
    assert main([*RECORD, "--model", str(path), "--output", "x.npz"]) == 1
    message = capsys.readouterr().err
    assert "its policy is ActorCriticPolicy, expected one of --algo diffppo" in message
    assert "--algo a2c or ppo or trpo" in message


def test_statistics_that_do_not_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "v.pkl"
    arguments = [*RECORD, "--model", "os.getpid", "--vecnormalize", str(path), "--output", "x.npz"]
    VecNormalize(make_vec_env("MountainCarContinuous-v0")).save(str(path))
    assert main(arguments) == 1
    assert f"{path}: statistics of other observations" in capsys.readouterr().err
    path.write_text("no pickle")
    assert main(arguments) == 1
    assert f"{path}: expected what VecNormalize.save writes" in capsys.readouterr().err


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
