"""The benchmark of action chunks: equal terms for all, runs that resume, intervals."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import chunks, variants
from sb3_diffrl.bench.records import Point, Successes, read_records
from sb3_diffrl.bench.tasks import avoiding
from sb3_diffrl.bench.training import actions_per_decision, training_env, wrapping
from sb3_diffrl.wrappers import ActionChunkWrapper

TINY = """
policy: policy
n_envs: 4
n_steps: 8
batch_size: 16
n_epochs: 1
gamma: 0.9
n_timesteps: 100
policy_kwargs: {net_arch: [16], denoising_steps: 2}
demonstrations:
  sb3_diffrl.envs.avoiding.avoiding_demonstrations: {n_episodes: 24}
pretrain: {patience: null}
"""


def test_all_variants_see_as_many_environment_steps_and_discount_them_alike() -> None:
    base = avoiding().hyperparams_of("diffppo")
    for _, chunk in chunks.CHUNKS.values():
        hyperparams = chunks.hyperparams_for(base, chunk)
        n = actions_per_decision(avoiding(), hyperparams)
        assert n == (1 if chunk is None else chunk["n_executed"])
        assert hyperparams["n_steps"] * n == base["n_steps"]
        assert hyperparams["gamma"] == pytest.approx(base["gamma"] ** n)
        assert hyperparams["n_steps"] / hyperparams["batch_size"] == pytest.approx(
            base["n_steps"] / base["batch_size"]
        )
        env = training_env(avoiding(), hyperparams, "episode")
        assert env.action_space.shape == ((2,) if chunk is None else (chunk["horizon"], 2))
        assert env.num_envs == base["n_envs"]


def test_wrapped_tasks_are_perturbed_and_measured_in_environment_steps() -> None:
    wrap = wrapping({"env_wrapper": {"sb3_diffrl.wrappers.ActionChunkWrapper": {"horizon": 3}}})
    assert wrap is not None and wrapping({}) is None
    env, single = avoiding().make_env("scene:3", 2, wrap), avoiding().make_env("scene:3", 1)
    np.testing.assert_array_equal(env.reset()[0][2:], single.reset()[0][2:])  # type: ignore[index]
    assert env.env_is_wrapped(ActionChunkWrapper) == [True, True]
    chunk = np.zeros((2, 3, 2), np.float32)
    infos = [env.step(chunk)[3] for _ in range(40)][-1]
    assert infos[0]["episode"]["l"] == 120


def test_runs_are_made_once_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yml"
    config.write_text(
        "sb3_diffrl/Avoiding-v0:\n" + "".join(f"  {line}\n" for line in TINY.splitlines())
    )
    output = tmp_path / "results"
    command = ["chunks", "--method", str(config), "--output", str(output)]
    command += ["--variants", "chunks_8_4", "--seeds", "0", "--steps", "256", "--episodes", "4"]
    command += ["--priors", str(tmp_path), "--pretraining-steps", "5", "--jobs", "1"]
    monkeypatch.setattr("sys.argv", command)
    assert chunks.main() == 0
    (record,) = read_records(output / "avoiding.jsonl")
    assert record.key == ("avoiding", "chunks_8_4-tiny", "episode", 0)
    assert 64 < record.env_steps <= 256
    assert "8 predicted, 4 executed, tiny" in (output / "avoiding.md").read_text()
    assert (output / "avoiding.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert chunks.main() == 0
    assert "0 runs to do" in capsys.readouterr().out


def curve(*points: tuple[int, int]) -> list[Point]:
    return [Point(steps, Successes(n, 100)) for steps, n in points]


def test_intervals_are_students_over_seeds() -> None:
    curves = [curve((0, 20), (100, 40)), curve((0, 40), (100, 60)), curve((0, 30), (90, 50))]
    steps, low, mean, high = variants.band(curves)
    assert list(steps) == [0, 90]
    # Half of the width: t of 97.5 % at two degrees of freedom, times s / sqrt(3).
    half = 4.3027 * 0.1 / np.sqrt(3)
    assert mean[0] == pytest.approx(0.3)
    assert (low[0], high[0]) == (
        pytest.approx(0.3 - half, abs=1e-4),
        pytest.approx(0.3 + half, abs=1e-4),
    )
    assert variants.at_steps(curves[0], 50).rate == pytest.approx(0.3)
    assert variants.interval([Successes(1, 2), None]) == "–"
    _, low, mean, high = variants.band(curves[:1])
    assert low[0] < 0.2 < high[0]
