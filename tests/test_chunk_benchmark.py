"""The benchmark of action chunks: equal terms for all, runs that resume, intervals."""

from pathlib import Path

import numpy as np
import pytest
from sb3_diffrl.experiments import TASK, read_rows, task_env, training_env, wrapping

from benchmarks import avoiding, chunks
from sb3_diffrl.wrappers import ActionChunkWrapper
from sb3_diffrl.zoo import load_hyperparams

TINY = """
sb3_diffrl/Avoiding-v0:
  policy: policy
  n_envs: 4
  n_steps: 8
  batch_size: 16
  n_epochs: 1
  gamma: 0.9
  policy_kwargs: {net_arch: [16], denoising_steps: 2}
  demonstrations:
    sb3_diffrl.envs.avoiding.avoiding_demonstrations: {n_episodes: 24}
  pretrain: {patience: null}
"""


def test_all_methods_see_as_many_environment_steps_and_discount_them_alike() -> None:
    base = load_hyperparams(avoiding.HYPERPARAMS, TASK)
    for _, chunk in chunks.METHODS.values():
        hyperparams = chunks.hyperparams_for(base, chunk)
        n = 1 if chunk is None else chunk["n_executed"]
        assert hyperparams["n_steps"] * n == base["n_steps"]
        assert hyperparams["gamma"] == pytest.approx(base["gamma"] ** n)
        assert hyperparams["n_steps"] / hyperparams["batch_size"] == pytest.approx(
            base["n_steps"] / base["batch_size"]
        )
        env = training_env(hyperparams, "episode")
        assert env.action_space.shape == ((2,) if chunk is None else (chunk["horizon"], 2))
        assert env.num_envs == base["n_envs"]


def test_wrapped_tasks_are_perturbed_and_measured_in_environment_steps() -> None:
    wrap = wrapping({"env_wrapper": {"sb3_diffrl.wrappers.ActionChunkWrapper": {"horizon": 3}}})
    assert wrap is not None and wrapping({}) is None
    env = task_env(2, "scene:3", wrap)
    single = task_env(1, "scene:3")
    np.testing.assert_array_equal(env.reset()[0][2:], single.reset()[0][2:])  # type: ignore[index]
    assert env.env_is_wrapped(ActionChunkWrapper) == [True, True]
    chunk = np.zeros((2, 3, 2), np.float32)
    infos = [env.step(chunk)[3] for _ in range(40)][-1]
    assert infos[0]["episode"]["l"] == 120


def test_runs_are_made_once_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yml").write_text(TINY)
    output = tmp_path / "chunks.csv"
    command = ["chunks", "--config", str(tmp_path / "tiny.yml"), "--output", str(output)]
    command += ["--methods", "chunks_8_4", "--seeds", "0", "--steps", "256", "--episodes", "4"]
    command += ["--priors", str(tmp_path), "--pretraining-steps", "5", "--jobs", "1"]
    monkeypatch.setattr("sys.argv", command)
    for module in (chunks, avoiding):  # in this process, which has imported all
        monkeypatch.setattr(module, "in_process", lambda function, *args: function(*args))
    assert chunks.main() == 0
    rows = read_rows(output)
    assert {(row.method, row.seed, row.eval_mode) for row in rows} == {
        ("chunks_8_4", 0, "stochastic"),
        ("chunks_8_4", 0, "deterministic"),
    }
    assert 64 < rows[0].env_steps <= 256
    assert "8 predicted, 4 executed" in output.with_suffix(".md").read_text()
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert chunks.main() == 0
    assert "0 runs to do" in capsys.readouterr().out


def test_intervals_are_students_over_seeds() -> None:
    curves = [[(0, 0.2), (100, 0.4)], [(0, 0.4), (100, 0.6)], [(0, 0.3), (90, 0.5)]]
    steps, low, mean, high = chunks.band(curves)
    assert list(steps) == [0, 90]
    # Half of the width: t of 97.5 % at two degrees of freedom, times s / sqrt(3).
    half = 4.30 * 0.1 / np.sqrt(3)
    assert mean[0] == pytest.approx(0.3)
    assert (low[0], high[0]) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))
    _, low, mean, high = chunks.band(curves[:1])
    assert low[0] < 0.2 < high[0]
