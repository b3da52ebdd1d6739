"""Experiments: hyperparameters, runs, results files, tables, figures and the benchmark's resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from rich.console import Console
from stable_baselines3.common.utils import LinearSchedule

from benchmarks import avoiding
from sb3_diffrl import DiffusionPPO
from sb3_diffrl.callbacks import SuccessCallback
from sb3_diffrl.envs.avoiding import AvoidingVectorEnv
from sb3_diffrl.experiments import (
    EVAL_MODES,
    TASK,
    Outcome,
    Prior,
    ResultRow,
    Run,
    add_rows,
    algorithm_arguments,
    execute,
    finetune,
    in_process,
    make_prior,
    measure,
    read_rows,
    results_table,
    steps_to,
    train_ppo,
    training_env,
    write_text,
)
from sb3_diffrl.plots import quickstart_figure, record_trajectories
from sb3_diffrl.zoo import load_hyperparams, merge

ROOT = Path(__file__).parent.parent
HEADER = (
    "task,method,perturbation,seed,eval_mode,n_episodes,env_steps,clean,perturbed_before,"
    "perturbed_after,steps_to_0.60,mode_entropy,wall_s,peak_rss_mb"
)
PPO = {"policy": "MlpPolicy", "n_envs": 4, "n_steps": 10, "batch_size": 20, "n_epochs": 1}
DIFFRL = PPO | {
    "policy": "policy",
    "policy_kwargs": {"net_arch": [16], "denoising_steps": 2},
    "imitation": {"demonstrations": 1.0, "context": 1.0, "batch_size": 8},
    "demonstrations": {"sb3_diffrl.envs.avoiding.avoiding_demonstrations": {"n_episodes": 24}},
    "pretrain": {"gradient_steps": 20},
}


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    return make_prior(tmp_path_factory.mktemp("prior"), DIFFRL)


def tiny_run(method: str, prior: Prior | None, **arguments: Any) -> Run:
    how: dict[str, Any] = {
        "hyperparams": PPO if method == "ppo" else DIFFRL,
        "n_timesteps": 0 if method == "diffusion" else 120,
        "n_episodes": 10,
        "curve_interval": 80,
        "curve_episodes": 5,
    }
    return Run(method, "scene:1", prior=prior, **(how | arguments))


def row(**fields: Any) -> ResultRow:
    values: dict[str, Any] = {
        "task": TASK,
        "method": "diffrl",
        "perturbation": "scene:0",
        "seed": 0,
        "eval_mode": "stochastic",
        "n_episodes": 500,
        "env_steps": 100_000,
        "clean": 0.94,
        "perturbed_before": 0.4,
        "perturbed_after": 0.96,
        "steps_to_060": math.nan,
        "mode_entropy": 0.5,
        "wall_s": 60.0,
        "peak_rss_mb": 400.0,
    }
    return ResultRow(**(values | fields))


# -- hyperparameters ---------------------------------------------------------------------------


def test_linear_schedules_in_the_zoos_notation() -> None:
    arguments = algorithm_arguments({"n_envs": 3, "learning_rate": "lin_2.0e-4"})
    assert isinstance(arguments["learning_rate"], LinearSchedule)
    assert arguments["learning_rate"](0.5) == pytest.approx(1e-4)
    assert "n_envs" not in arguments


@pytest.mark.parametrize(
    "config",
    sorted(set((ROOT / "zoo_configs").glob("*.yml")) - {ROOT / "zoo_configs/ppo.yml"}),
    ids=lambda p: p.stem,
)
def test_shipped_configs_build_a_model(config: Path) -> None:
    hyperparams = load_hyperparams(config, TASK)
    arguments = algorithm_arguments(hyperparams) | {"policy_kwargs": {"net_arch": [8]}}
    DiffusionPPO(hyperparams["policy"], training_env(hyperparams, "episode"), **arguments)


# -- running -----------------------------------------------------------------------------------


def test_the_prior_is_made_once(prior: Prior) -> None:
    written = prior.path.stat().st_mtime_ns
    assert make_prior(prior.path.parent, DIFFRL) == prior
    assert prior.path.stat().st_mtime_ns == written
    other = make_prior(prior.path.parent, merge(DIFFRL, {"pretrain": {"gradient_steps": 21}}))
    assert other.path != prior.path


def test_success_reaches_the_episode_window(prior: Prior) -> None:
    model = finetune(prior.path, None, DIFFRL, 600)
    assert model.ep_success_buffer and model.ep_info_buffer
    assert len(model.ep_success_buffer) == len(model.ep_info_buffer)
    assert model.imitation_buffer.demonstrations is not None


def test_a_run_gives_a_row_for_each_evaluation_mode(prior: Prior, tmp_path: Path) -> None:
    save_path = tmp_path / "model.zip"
    rows, curve = execute(tiny_run("diffrl", prior, save_path=save_path))
    assert [r.eval_mode for r in rows] == list(EVAL_MODES)
    assert {r.env_steps for r in rows} == {120}
    assert [steps for steps, _ in curve] == [0, 80, 120]
    assert rows[0].mode_entropy == rows[1].mode_entropy
    model = DiffusionPPO.load(save_path)
    assert measure(model, "scene:1", 10).success == rows[0].perturbed_after


def test_a_run_of_the_prior_alone(prior: Prior) -> None:
    rows, curve = execute(tiny_run("diffusion", prior))
    assert curve == []
    for r in rows:
        assert (r.env_steps, r.wall_s) == (0, prior.wall_s)
        assert r.perturbed_before == r.perturbed_after


def test_a_run_from_scratch() -> None:
    rows, curve = execute(tiny_run("ppo", None))
    assert all(math.isnan(r.perturbed_before) for r in rows)
    assert curve[-1][0] == 120 == rows[0].env_steps


def test_finetuning_asks_for_a_prior() -> None:
    with pytest.raises(ValueError, match="starts from a prior"):
        execute(tiny_run("diffrl", None))


def test_measuring_success_leaves_training_untouched() -> None:
    env = AvoidingVectorEnv(2, perturbation="scene:1")
    callback = SuccessCallback(env, eval_freq_env_steps=40, n_episodes=2)
    watched, alone = train_ppo("scene:1", PPO, 120, 0, callback), train_ppo("scene:1", PPO, 120, 0)
    assert [steps for steps, _ in callback.curve] == [0, 40, 80, 120]
    for a, b in zip(watched.policy.parameters(), alone.policy.parameters(), strict=True):
        assert th.equal(a, b)


def test_a_process_of_its_own_keeps_to_one_core() -> None:
    assert in_process(th.get_num_threads) == 1


# -- results files -----------------------------------------------------------------------------


def test_rows_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.csv"
    rows = [row(), row(eval_mode="deterministic", steps_to_060=20_000.0)]
    add_rows(path, rows[:1])
    add_rows(path, rows[1:])
    lines = path.read_text().splitlines()
    assert lines[0] == HEADER
    assert f"{TASK},diffrl,scene:0,0,stochastic,500,100000,0.94,0.4,0.96,,0.5,60.0,400.0" in lines
    assert {repr(r) for r in read_rows(path)} == {repr(r) for r in rows}
    assert [p.name for p in path.parent.iterdir()] == ["results.csv"]


def test_a_row_replaces_that_with_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    add_rows(path, [row(clean=0.5), row(seed=1)])
    add_rows(path, [row(clean=0.9)])
    assert [(r.seed, r.clean) for r in read_rows(path)] == [(0, 0.9), (1, 0.94)]


def test_a_failed_write_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.csv"
    write_text(path, "old")

    def crash(*_: object) -> None:
        raise OSError

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(OSError):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_steps_to_a_success_rate() -> None:
    curve = [(0, 0.2), (100, 0.6), (200, 0.5)]
    assert steps_to(curve, 0.6) == 100
    assert math.isnan(steps_to(curve, 0.9))


def test_the_table_shows_intervals() -> None:
    rows = [
        row(perturbed_after=0.96),
        row(method="ppo", clean=0.0, perturbed_before=math.nan, perturbed_after=0.0),
        row(method="diffusion", env_steps=0),
        row(eval_mode="deterministic", clean=0.11),
    ]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(results_table(rows))
    lines = capture.get().splitlines()
    labels = ["Diffusion only", "PPO from scratch", "DiffRL"]
    found = [line for line in lines if line.strip().startswith(tuple(labels))]
    assert [next(name for name in labels if name in line) for line in found] == labels
    assert "0.94 [0.92, 0.96]" in found[0]
    assert "–" in found[1] and "0.00 [0.00, 0.01]" in found[1]
    assert "100,000" in found[2] and "0.11" not in capture.get()
    narrow = Console(width=80)
    with narrow.capture() as capture:
        narrow.print(results_table(rows, width=80))
    assert "[0.92, 0.96]" in capture.get() and "0.94 [" not in capture.get()
    assert "entropy" in capture.get() and "…" not in capture.get()


# -- figures -----------------------------------------------------------------------------------


def test_recorded_episodes_end_where_they_should(prior: Prior) -> None:
    model = DiffusionPPO.load(prior.path)
    trajectories = record_trajectories(model, "episode", 8)
    assert len(trajectories) == 8
    for t in trajectories:
        assert abs(t.positions[0, 0]) <= 0.05 and t.positions[0, 1] == 0
        assert np.abs(np.diff(t.positions, axis=0)).max() < 0.0301
        if t.way >= 0:
            assert t.positions[-1, 1] >= 0.95
        elif len(t.positions) < 121:
            assert np.linalg.norm(t.obstacles - t.positions[-1], axis=1).min() < 0.0901


def test_the_quickstarts_figure_is_drawn(prior: Prior, tmp_path: Path) -> None:
    episodes = record_trajectories(DiffusionPPO.load(prior.path), "scene:1", 4)
    path = tmp_path / "figure.png"
    curve = [(0, 0.4), (100, 0.9)]
    quickstart_figure(path, {"a": episodes, "b": episodes, "c": episodes}, {"x": curve}, 50, 0.4)
    assert path.read_bytes().startswith(b"\x89PNG")


# -- the benchmark -----------------------------------------------------------------------------


def test_the_benchmark_skips_what_it_has(
    prior: Prior,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    executed = []

    def here(function: Any, run: Run) -> Outcome:
        executed.append(run.method)
        if run.method == "ppo" and len(executed) < 3:
            raise RuntimeError("out of memory")
        outcome: Outcome = function(run)
        return outcome

    monkeypatch.setattr(avoiding, "in_process", here)
    output = tmp_path / "avoiding.csv"
    runs = [tiny_run(method, prior) for method in ("diffusion", "ppo", "diffrl")]
    assert avoiding.run_all(runs, output, jobs=1) == 1
    assert avoiding.run_all(runs, output, jobs=1) == 0
    assert avoiding.run_all(runs, output, jobs=1) == 0
    assert executed == ["diffusion", "ppo", "diffrl", "ppo"]
    assert "0 runs to do" in capsys.readouterr().out
    assert set(avoiding.read_curves(tmp_path / "avoiding_curves.json")) == {
        ("ppo", "scene:1", 0),
        ("diffrl", "scene:1", 0),
    }

    text = avoiding.report(output)
    assert (tmp_path / "avoiding.md").read_text() == text + "\n"
    assert (tmp_path / "avoiding.png").exists()


def test_the_summary_gives_means_intervals_and_drops(tmp_path: Path) -> None:
    output = tmp_path / "avoiding.csv"
    for scene, clean, after in ((0, 0.9, 1.0), (1, 0.8, 0.9)):
        name = f"scene:{scene}"
        add_rows(output, [row(perturbation=name, clean=clean, perturbed_after=after)])
        add_rows(output, [row(perturbation=name, method="diffusion", mode_entropy=0.6)])
    lines = avoiding.report(output).splitlines()
    diffrl = next(line for line in lines if line.startswith("| DiffRL | scene | 2 × 500 |"))
    assert "| 0.85 [0.21, 1.00] |" in diffrl  # t-interval: 0.85 ± 12.71 * 0.0707 / sqrt(2)
    assert "| 0.95 [0.31, 1.00] |" in diffrl
    assert "| +0.14 | +0.10 |" in diffrl


def test_the_benchmarks_plan() -> None:
    parse = avoiding.parser().parse_args
    runs = avoiding.plan(parse([]))
    count = {m: len([r for r in runs if r.method == m]) for m in ("diffusion", "ppo", "diffrl")}
    assert count == {"diffusion": 11, "ppo": 3, "diffrl": 13}
    assert {r.n_timesteps for r in runs if r.method == "ppo"} == {1_000_000}
    config = str(ROOT / "zoo_configs/no_context.yml")
    (run,) = avoiding.plan(parse(["--config", config, "--scenes", "4", "--steps", "50"]))
    assert (run.method, run.perturbation, run.n_timesteps) == ("no_context", "scene:4", 50)
    assert run.hyperparams["imitation"]["context"] == 0
