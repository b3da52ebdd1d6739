"""The benchmark: tasks, methods, runs, results files, the grid on Ray, the command."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from rich.console import Console
from stable_baselines3 import PPO as StockPPO
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_diffrl import DiffusionPPO, cli
from sb3_diffrl.bench import provenance
from sb3_diffrl.bench.commands import planned
from sb3_diffrl.bench.grid import missing_runs, run_grid
from sb3_diffrl.bench.methods import ABLATIONS, LABELS, METHODS, Method, find_method
from sb3_diffrl.bench.provenance import command
from sb3_diffrl.bench.records import (
    EVAL_MODES,
    Evaluation,
    Point,
    Record,
    Successes,
    add_records,
    read_records,
)
from sb3_diffrl.bench.rows import ResultRow, add_rows, read_rows, results_table, rows_of
from sb3_diffrl.bench.runs import Run, execute, in_process, measure, plan_run
from sb3_diffrl.bench.tasks import Task, avoiding, find_tasks, from_yaml
from sb3_diffrl.bench.training import (
    Prior,
    actions_per_decision,
    algorithm_arguments,
    builder,
    training_env,
)
from sb3_diffrl.callbacks import SuccessCallback
from sb3_diffrl.envs.avoiding import AvoidingEnv, AvoidingVectorEnv
from sb3_diffrl.evaluation import evaluate
from sb3_diffrl.files import write_text
from sb3_diffrl.plots import quickstart_figure, record_trajectories
from sb3_diffrl.wrappers import GymVecEnv
from sb3_diffrl.zoo import merge

ROOT = Path(__file__).parent.parent
HEADER = (
    "task,method,perturbation,seed,eval_mode,n_episodes,env_steps,clean,perturbed_before,"
    "perturbed_after,steps_to_0.60,mode_entropy,wall_s,peak_rss_mb"
)
SMALL: dict[str, Any] = {"n_envs": 4, "n_steps": 10, "batch_size": 20, "n_epochs": 1}
PPO = SMALL | {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [8]}}
DIFFRL = SMALL | {
    "policy": "policy",
    "policy_kwargs": {"net_arch": [16], "denoising_steps": 2},
    "imitation": {"demonstrations": 1.0, "context": 1.0, "batch_size": 8},
    "demonstrations": {"sb3_diffrl.envs.avoiding.avoiding_demonstrations": {"n_episodes": 24}},
    "pretrain": {"gradient_steps": 20},
}
YAML = """
env: sb3_diffrl/Avoiding-v0
perturbations:
  half: {perturbation: episode, displacement: 0.05}
demonstrations:
  sb3_diffrl.envs.avoiding.avoiding_demonstrations: {n_episodes: 24}
pretrain: {gradient_steps: 7}
hyperparams:
  ppo: {n_envs: 3}
"""


def tiny_run(method: str = "diffrl", **arguments: Any) -> Run:
    how: dict[str, Any] = {
        "hyperparams": PPO if method == "ppo" else DIFFRL,
        "env_steps": 0 if method == "diffusion" else 120,
        "n_episodes": 10,
        "curve_interval": 80,
        "curve_episodes": 5,
    }
    algo = arguments.pop("algo", "ppo" if method == "ppo" else "diffppo")
    return Run(avoiding(), method, algo, "scene:1", **(how | arguments))


@pytest.fixture(scope="module")
def priors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("priors")


@pytest.fixture(scope="module")
def prior(priors: Path) -> Prior:
    return tiny_run().make_prior(priors)


def record(**fields: Any) -> Record:
    found = Evaluation(Successes(470, 500), Successes(200, 500), Successes(480, 500))
    values: dict[str, Any] = {
        "task": "avoiding",
        "method": "diffrl",
        "perturbation": "scene:0",
        "seed": 0,
        "env_steps": 100_000,
        "evaluations": dict.fromkeys(EVAL_MODES, found),
        "curve": [
            Point(0, Successes(20, 100), Successes(95, 100)),
            Point(100, Successes(60, 100), Successes(94, 100)),
            Point(200, Successes(50, 100), Successes(93, 100)),
        ],
        "mode_entropy": 0.5,
        "wall_s": 60.0,
        "peak_rss_mb": 400.0,
        "started": "2026-11-26T12:00:00+00:00",
        "commit": "abc",
        "command": "sb3-diffrl bench",
        "versions": {"numpy": "2.4.6"},
    }
    return Record(**(values | fields))


def row(**fields: Any) -> ResultRow:
    _, stochastic = rows_of(record())
    return dataclasses.replace(stochastic, **fields)


# -- tasks and methods -------------------------------------------------------------------------


def test_the_embedded_task_is_perturbed_by_name() -> None:
    task = avoiding()
    clean, moved = (task.make_env(name, 3).reset() for name in (None, "scene:4"))
    plain = GymVecEnv(AvoidingVectorEnv(3, perturbation="scene:4")).reset()
    np.testing.assert_array_equal(moved[:, 2:], plain[:, 2:])  # type: ignore[call-overload,index]
    assert (clean[:, 2:] != moved[:, 2:]).any()  # type: ignore[call-overload,index]
    with pytest.raises(ValueError, match="no perturbation 'moon', expected one of scene:0"):
        task.make_env("moon", 1)


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "task_mine.yml"
    path.write_text(YAML)
    (task,) = find_tasks(str(path))
    assert task == from_yaml(path) and task.name == "mine"
    layouts = np.asarray(task.make_env("half", 50).reset())[:, 2:]
    moved = np.abs(layouts - np.asarray(task.make_env(None, 1).reset())[:, 2:]).max()
    assert 0.03 < moved <= 0.05 + 1e-6
    assert task.hyperparams_of("ppo")["n_envs"] == 3
    assert task.hyperparams_of("diffppo")["pretrain"]["gradient_steps"] == 7
    assert task.hyperparams_of("diffppo", "no_kl")["beta"] == 0
    assert task.hyperparams_of("diffppo", "from_scratch")["pretrain"] is None


def test_experiments_change_what_a_task_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    own = "{beta: 0.5, mixing: 0.5, n_timesteps: 700, policy_kwargs: {exploration: chain}}"
    path.write_text(f"{YAML}  diffppo: {own}\n")
    task = from_yaml(path)
    assert task.hyperparams_of("diffppo", "diffrl")["beta"] == 0.5
    assert task.hyperparams_of("diffppo", "no_kl")["beta"] == 0
    assert task.hyperparams_of("diffppo", "no_mixing")["mixing"] == 1
    assert task.hyperparams_of("diffppo", "undirected")["policy_kwargs"]["exploration"] == "action"
    assert plan_run(task, METHODS["diffusion"], "half").env_steps == 0
    assert plan_run(task, METHODS["diffrl"], "half").env_steps == 700
    (tmp_path / "short.yml").write_text("base: mine_base.yml\nn_timesteps: 900\n")
    (tmp_path / "mine_base.yml").write_text("sb3_diffrl/Avoiding-v0: {pretrain: {}}\n")
    short = find_method(str(tmp_path / "short.yml"))
    assert plan_run(avoiding(), short, "episode").env_steps == 900
    with pytest.raises(ValueError, match=r"avoiding: no experiment 'nokl': .* no_kl, .*paper"):
        avoiding().hyperparams_of("diffppo", "nokl")


class MyEnv(gym.Env[np.ndarray, np.ndarray]):
    """Tells nothing of success."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(**kwargs)
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, True, False, {}


@pytest.fixture
def my_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A task whose environment a package of its own registers."""
    text = "import gymnasium\ngymnasium.register('Mine-v3', 'tests.test_bench:MyEnv')\n"
    (tmp_path / "my_package.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "my_task.yml"
    path.write_text("env: my_package:Mine-v3\nperturbations: {moved: {}}\n")
    yield path
    gym.registry.pop("Mine-v3", None)
    sys.modules.pop("my_package", None)


def test_every_method_knows_what_to_do_in_an_environment_of_ones_own(my_task: Path) -> None:
    text = my_task.read_text()
    my_task.write_text(text + "demonstrations: mine.npz\n")  # pre-trained by default
    task = from_yaml(my_task)
    runs = {name: plan_run(task, method, "moved") for name, method in METHODS.items()}
    assert {name for name, run in runs.items() if not run.knows_the_task} == {"ppo", "sac", "tqc"}
    my_task.write_text(text)
    with pytest.raises(ValueError, match="diffusion starts from demonstrations, and my_task has"):
        plan_run(from_yaml(my_task), METHODS["diffusion"], "moved")
    with pytest.raises(ValueError, match="no perturbation 'away', expected one of moved"):
        plan_run(task, METHODS["ppo"], "away")


def test_success_that_no_episode_tells_is_missed(my_task: Path) -> None:
    run = plan_run(from_yaml(my_task), METHODS["ppo"], "moved", n_episodes=3)
    model = StockPPO("MlpPolicy", MyEnv(), device="cpu")
    with pytest.raises(ValueError, match="must tell `is_success`"):
        measure(run, model, "moved")


def test_a_saved_model_has_what_it_normalises_by_beside_it(tmp_path: Path) -> None:
    run = tiny_run("ppo", hyperparams={**PPO, "normalize": True}, save_path=tmp_path / "model.zip")
    execute(run)
    model = StockPPO.load(tmp_path / "model.zip")
    env = VecNormalize.load(str(tmp_path / "model.vecnormalize.pkl"), run.training_env())
    statistics: Any = env.obs_rms
    assert statistics.count > 100 and model.observation_space == env.observation_space


def test_a_commit_is_of_this_repository_or_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["init"], ["commit", "--allow-empty", "-m", "theirs"]):
        identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)
    installed = tmp_path / "provenance.py"
    installed.write_bytes(Path(provenance.__file__).read_bytes())
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.commit() == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "--episodes: expected 1 or more, got 0"),
        (["--steps", "-5"], "--steps: expected 1 or more"),
        (["--curve-episodes", "0"], "--curve-episodes: expected 1 or more"),
        (["--jobs", "0"], "--jobs: expected 1 or more"),
        (["--seeds", "1000"], "--seeds: expected 0 to 899"),
        (["--perturbations", "scene:11"], "no perturbation 'scene:11'"),
        (["--seeds", "1", "1"], "are asked for twice, such as avoiding diffusion scene:0 1"),
    ],
)
def test_plans_that_make_no_sense(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments, "--output", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_runs_made_with_other_settings_are_not_taken_for_done(tmp_path: Path) -> None:
    run = tiny_run()
    made = record(perturbation="scene:1", settings=run.settings)
    add_records(tmp_path / "avoiding.jsonl", [made])
    assert missing_runs([run], tmp_path) == []
    longer = dataclasses.replace(run, env_steps=500, hyperparams={**DIFFRL, "beta": 0.3})
    with pytest.raises(ValueError, match=r"env_steps: 120, now 500; hyperparams: .* --output"):
        missing_runs([longer], tmp_path)


def test_two_writers_of_records_lose_none(tmp_path: Path) -> None:
    path = tmp_path / "avoiding.jsonl"
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(write_records, [path] * 2, [0, 20]):
            pass
    assert [each.seed for each in read_records(path)] == list(range(40))


def write_records(path: Path, first: int) -> None:
    for seed in range(first, first + 20):
        add_records(path, [record(seed=seed)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env: X-v0", "missing \\['perturbations'\\]"),
        (YAML + "moons: 3", "unknown \\['moons'\\]"),
        ("env: X-v0\nperturbations: 3", "expected arguments of the environment by name"),
        ("env: X-v0\nperturbations: {a: {}}\npretrain: {}", "without demonstrations"),
    ],
)
def test_a_task_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "task.yml").write_text(text)
    with pytest.raises(ValueError, match=message):
        from_yaml(tmp_path / "task.yml")


def test_shipped_tasks_are_found_by_name() -> None:
    shipped = sorted((ROOT / "zoo_configs").glob("task_*.yml"))
    assert shipped
    for path in shipped:
        (task,) = find_tasks(path.stem.removeprefix("task_"))
        for perturbation in (None, *task.perturbations):
            task.make_env(perturbation, 1).close()
    with pytest.raises(ValueError, match="no task 'moon': expected avoiding"):
        find_tasks("moon")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_builds_a_model(name: str) -> None:
    run = plan_run(avoiding(), METHODS[name], "episode")
    hyperparams = {**run.hyperparams, "n_envs": 2}
    if run.needs_prior:
        hyperparams |= {"demonstrations": None, "pretrain": None}
    elif "pretrain" in hyperparams:
        hyperparams["pretrain"] = {"gradient_steps": 2}
    model = builder(run.algo)(dataclasses.replace(run, hyperparams=hyperparams), None)
    assert model.n_envs == 2
    assert (run.env_steps == 0) == (name == "diffusion")


def own_method(run: Run, prior: Prior | None) -> StockPPO:
    assert prior is not None and prior.load().policy.has_prior
    return StockPPO("MlpPolicy", run.training_env(), n_steps=10, batch_size=20, device="cpu")


def test_methods_are_found_by_name_experiment_and_function(tmp_path: Path) -> None:
    assert find_method("diffrl") is METHODS["diffrl"]
    assert find_method("prior_kl") == Method("prior_kl", "prior_kl", "diffppo", "prior_kl")
    assert all(find_method(name).label == LABELS[name] for pair in ABLATIONS for name in pair[:2])
    own = find_method("tests.test_bench.own_method")
    for stem, called in (("mine", "mine"), ("diffrl", str(tmp_path / "diffrl.yml"))):
        (tmp_path / f"{stem}.yml").touch()
        assert find_method(str(tmp_path / f"{stem}.yml")).name == called
    assert (own.name, own.algo) == ("tests.test_bench.own_method", "tests.test_bench.own_method")
    with pytest.raises(ValueError, match="no method 'moon': expected one of diffusion"):
        find_method("moon")
    with pytest.raises(ValueError, match="no method 'task_avoiding_small_shift'"):
        find_method("task_avoiding_small_shift")


class Fussy(gym.Wrapper[Any, Any, Any, Any]):
    """Refuses every environment but Avoiding."""

    def __init__(self, env: gym.Env[Any, Any]):
        assert isinstance(env.unwrapped, AvoidingEnv)
        super().__init__(env)


def test_budgets_count_environment_steps() -> None:
    task, diffrl = avoiding(), METHODS["diffrl"]
    assert plan_run(task, diffrl, "scene:0").env_steps == 60_000
    assert plan_run(task, diffrl, "episode").env_steps == 200_000
    assert plan_run(task, METHODS["ppo"], "episode").env_steps == 1_000_000
    assert plan_run(task, METHODS["diffusion"], "episode", env_steps=99).env_steps == 0
    chunks = plan_run(task, find_method("chunks"), "scene:0")
    assert chunks.env_steps == 4 * chunks.hyperparams["n_timesteps"]
    assert actions_per_decision(task, chunks.hyperparams) == 4
    fussy = {"env_wrapper": "tests.test_bench.Fussy"}
    assert actions_per_decision(task, fussy) == 1


# -- building ----------------------------------------------------------------------------------


def test_linear_schedules_in_the_zoos_notation() -> None:
    arguments = algorithm_arguments({"n_envs": 3, "learning_rate": "lin_2.0e-4"})
    assert isinstance(arguments["learning_rate"], LinearSchedule)
    assert arguments["learning_rate"](0.5) == pytest.approx(1e-4)
    assert "n_envs" not in arguments


@pytest.mark.parametrize(
    "config",
    sorted(
        path
        for path in (ROOT / "zoo_configs").glob("*.yml")
        if path.stem != "ppo" and not path.stem.startswith("task_")
    ),
    ids=lambda p: p.stem,
)
def test_shipped_configs_build_a_model(config: Path) -> None:
    hyperparams = avoiding().hyperparams_of("diffppo", str(config))
    arguments = algorithm_arguments(hyperparams) | {"policy_kwargs": {"net_arch": [8]}}
    env = training_env(avoiding(), hyperparams, "episode")
    DiffusionPPO(hyperparams["policy"], env, **arguments)


@pytest.mark.parametrize(
    "normalize", [True, "dict(norm_obs=True, norm_reward=True)", "{'clip_obs': 10.0}"]
)
def test_the_zoos_normalisation(normalize: Any) -> None:
    def wrapped(**others: Any) -> VecEnv:
        hyperparams = {"n_envs": 2, "gamma": 0.9, "normalize": normalize, **others}
        return training_env(avoiding(), hyperparams, None)

    env, pretrained = wrapped(), wrapped(pretrain={"gradient_steps": 1})
    assert isinstance(env, VecNormalize) and env.norm_obs and env.gamma == 0.9
    assert isinstance(pretrained, VecNormalize) and not pretrained.norm_obs


def test_evaluation_normalises_as_training_did() -> None:
    env = VecNormalize(avoiding().make_env(None, 4))
    model = StockPPO("MlpPolicy", env, n_steps=64, batch_size=64, device="cpu", seed=0).learn(500)
    bare = evaluate(model, avoiding().make_env(None, 4), 8, seed=3)
    env.training = False
    whole = evaluate(model, env, 8, seed=3)
    np.testing.assert_array_equal(bare.lengths, whole.lengths)


def test_the_prior_is_made_once(prior: Prior, priors: Path) -> None:
    (path,) = priors.glob("*.zip")
    written = path.stat().st_mtime_ns
    assert tiny_run().make_prior(priors) == prior
    assert path.stat().st_mtime_ns == written
    longer = merge(DIFFRL, {"pretrain": {"gradient_steps": 21}})
    others = [tiny_run(hyperparams=longer), tiny_run(seed=1), tiny_run()]
    keys = {run.prior_key for run in others}
    assert len(keys) == 3
    sampled = merge(DIFFRL, {"beta": 1.0, "policy_kwargs": {"denoising_steps": 3, "eta": 0.0}})
    assert tiny_run(hyperparams=sampled).prior_key == others[2].prior_key


# -- running -----------------------------------------------------------------------------------


def test_a_run_is_measured_before_on_the_way_and_after(prior: Prior, tmp_path: Path) -> None:
    run = tiny_run(save_path=tmp_path / "deep/model.zip")
    found = execute(run, prior)
    assert found.key == run.key == ("avoiding", "diffrl", "scene:1", 0)
    assert list(found.evaluations) == list(EVAL_MODES)
    assert found.env_steps == 120
    assert [point.env_steps for point in found.curve] == [0, 80, 120]
    assert all(p.clean is not None and p.perturbed.n_episodes == 5 for p in found.curve)
    model = DiffusionPPO.load(tmp_path / "deep/model.zip")
    after = measure(run, model, "scene:1").successes
    assert after == found.evaluations["stochastic"].after
    assert {"python", "torch", "gymnasium"} <= found.versions.keys() and found.command
    assert Record.from_json(found.to_json()) == found


def test_a_run_of_the_prior_alone(prior: Prior) -> None:
    found = execute(tiny_run("diffusion"), prior)
    assert (found.curve, found.env_steps, found.wall_s) == ([], 0, round(prior.wall_s, 2))
    assert all(each.before == each.after for each in found.evaluations.values())


def test_a_run_from_scratch() -> None:
    found = execute(tiny_run("ppo"))
    assert all(each.before is None for each in found.evaluations.values())
    assert found.curve[-1].env_steps == 120 == found.env_steps
    assert all(point.clean is None for point in found.curve)  # nothing that it could forget


def test_a_run_with_chunks_counts_environment_steps(priors: Path) -> None:
    wrapper = {"sb3_diffrl.wrappers.ActionChunkWrapper": {"horizon": 3}}
    run = tiny_run(hyperparams=DIFFRL | {"env_wrapper": wrapper})
    found = execute(run, run.make_prior(priors))
    assert 40 < found.env_steps <= 120


def test_a_run_of_ones_own_method(prior: Prior) -> None:
    found = execute(tiny_run(algo="tests.test_bench.own_method"), prior)
    assert found.env_steps == 120 and found.evaluations["stochastic"].before is not None


def test_finetuning_asks_for_a_prior() -> None:
    with pytest.raises(ValueError, match="starts from a prior"):
        execute(tiny_run())


def test_success_reaches_the_episode_window(prior: Prior) -> None:
    model = builder("diffppo")(tiny_run(), prior).learn(600)
    assert isinstance(model, DiffusionPPO)
    assert model.ep_success_buffer and model.ep_info_buffer
    assert len(model.ep_success_buffer) == len(model.ep_info_buffer)
    assert model.imitation_buffer.demonstrations is not None


def test_measuring_success_leaves_training_untouched() -> None:
    env = AvoidingVectorEnv(2, perturbation="scene:1")
    callback = SuccessCallback(env, eval_freq_env_steps=40, n_episodes=2)
    watched, alone = (
        builder("ppo")(tiny_run("ppo"), None).learn(120, each) for each in (callback, None)
    )
    assert [steps for steps, _ in callback.curve] == [0, 40, 80, 120]
    for a, b in zip(watched.policy.parameters(), alone.policy.parameters(), strict=True):
        assert th.equal(a, b)


def test_a_process_of_its_own_keeps_to_one_core() -> None:
    assert in_process(th.get_num_threads) == 1


# -- results files -----------------------------------------------------------------------------


def test_records_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    scratch = Evaluation(Successes(0, 5), None, Successes(1, 5))
    other = record(seed=1, evaluations={"stochastic": scratch}, curve=[], mode_entropy=None)
    assert read_records(path) == []
    add_records(path, [record(), other])
    assert read_records(path) == [record(), other]
    add_records(path, [record(wall_s=1.0)])
    assert [r.wall_s for r in read_records(path)] == [1.0, 60.0]
    path.write_text(path.read_text() + '{"task": 3')
    with pytest.raises(ValueError, match=r"results\.jsonl, line 3: expected a record"):
        read_records(path)


def test_steps_to_a_success_rate() -> None:
    assert record().steps_to(0.6) == 100
    assert math.isnan(record().steps_to(0.9))


def test_rows_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.csv"
    rows = [row(steps_to_060=math.nan), row(eval_mode="deterministic", steps_to_060=20_000.0)]
    add_rows(path, rows[:1])
    add_rows(path, rows[1:])
    lines = path.read_text().splitlines()
    assert lines[0] == HEADER
    expected = "avoiding,diffrl,scene:0,0,stochastic,500,100000,0.94,0.4,0.96,,0.5,60.0,400.0"
    assert expected in lines
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
    labels = ["Diffusion only", "DiffRL", "PPO from scratch"]
    found = [line for line in lines if line.strip().startswith(tuple(labels))]
    assert [next(name for name in labels if name in line) for line in found] == labels
    assert "0.94 [0.92, 0.96]" in found[0]
    assert "–" in found[2] and "0.00 [0.00, 0.01]" in found[2]
    assert "100,000" in found[1] and "0.11" not in capture.get()
    narrow = Console(width=80)
    with narrow.capture() as capture:
        narrow.print(results_table(rows, width=80))
    assert "[0.92, 0.96]" in capture.get() and "0.94 [" not in capture.get()
    assert "entropy" in capture.get() and "…" not in capture.get()


# -- the grid ----------------------------------------------------------------------------------


def failing_method(run: Run, prior: Prior | None) -> StockPPO:
    if not Path(run.hyperparams["allowed"]).exists():
        raise RuntimeError("out of memory")
    return StockPPO("MlpPolicy", run.training_env(), n_steps=10, batch_size=20, device="cpu")


def test_the_grid_runs_what_is_missing_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    allowed = tmp_path / "allowed"
    failing = PPO | {"allowed": str(allowed)}
    task = Task("family/one", avoiding().env_id, avoiding().perturbations)
    runs = [
        tiny_run("diffusion"),
        tiny_run("own", algo="tests.test_bench.failing_method", hyperparams=failing),
        dataclasses.replace(tiny_run(), task=task),
    ]
    console = Console(record=True, width=200)
    folder = tmp_path / "results"
    assert run_grid(runs, folder, tmp_path / "priors", jobs=2, console=console) == 1
    assert {path.name for path in folder.glob("*.jsonl")} == {"avoiding.jsonl", "family.jsonl"}
    assert len(list((tmp_path / "priors").glob("*.zip"))) == 1  # shared by both that need one
    assert [run.method for run in missing_runs(runs, folder)] == ["own"]
    assert "out of memory" in console.export_text()
    allowed.touch()
    assert run_grid(runs, folder, tmp_path / "priors", jobs=1, console=console) == 0
    assert not missing_runs(runs, folder)
    assert run_grid(runs, folder, tmp_path / "priors", jobs=1, console=console) == 0
    assert "0 runs to do, 3 done before" in console.export_text()
    for found in read_records(folder / "avoiding.jsonl"):
        assert found.peak_rss_mb > 50 and found.wall_s > 0
        assert found.command == command() and "pytest" in found.command  # not the worker's


def test_the_grid_runs_on_a_cluster(tmp_path: Path) -> None:
    """Two nodes of one core: the prior is made on one, and the runs go where there is room."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        runs = [*(tiny_run(seed=seed) for seed in range(2)), tiny_run("ppo")]
        arguments = (tmp_path / "results", tmp_path / "priors")
        assert run_grid(runs, *arguments, address=cluster.address, console=Console(quiet=True)) == 0
        assert not missing_runs(runs, tmp_path / "results")
    finally:
        cluster.shutdown()


def test_the_command_runs_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tmp_path / "task_tiny.yml"
    task.write_text(
        YAML + "  diffppo: {n_envs: 4, n_steps: 10, batch_size: 20, n_epochs: 1, critic_warmup: 0}"
    )
    command = ["bench", "--tasks", str(task), "--methods", "diffusion", "diffrl", "--seeds", "0"]
    command += ["--steps", "80", "--episodes", "4", "--curve-episodes", "4", "--jobs", "2"]
    folders = [tmp_path / name for name in ("results", "priors", "models")]
    for name, folder in zip(("--output", "--priors", "--models"), folders, strict=True):
        command += [name, str(folder)]
    assert cli.main(command) == 0
    found = read_records(folders[0] / "tiny.jsonl")
    assert [(r.method, r.perturbation) for r in found] == [
        ("diffrl", "half"),
        ("diffusion", "half"),
    ]
    assert DiffusionPPO.load(folders[2] / "tiny-diffrl-half-0.zip").policy.has_prior
    assert "| DiffRL | half |" in (folders[0] / "tiny.md").read_text().replace("all", "half")
    elsewhere = tmp_path / "elsewhere"
    file = str(folders[0] / "tiny.jsonl")
    assert cli.main(["bench", "report", file, "--output", str(elsewhere)]) == 0
    assert (elsewhere / "tiny.csv").read_bytes() == (folders[0] / "tiny.csv").read_bytes()
    assert cli.main(["bench", "--tasks", "moon"]) == 1
    assert "no task 'moon'" in capsys.readouterr().err


def test_the_protocol_of_the_shipped_tasks() -> None:
    keys = planned(Path("avoiding.jsonl"))
    assert keys is not None and len(keys) == len(set(keys)) == len(METHODS) * 11 * 3
    keys = planned(Path("metaworld.jsonl"))
    assert keys is not None and len(keys) == len(METHODS) * 20 * 3
    assert ("metaworld/assembly", "diffrl", "positions", 0) in keys
    assert planned(Path("mine.jsonl")) is None


def test_metaworld_is_learned_by_its_own_demonstrations() -> None:
    (task,) = find_tasks("metaworld/sweep")
    source = "sb3_diffrl.envs.metaworld.metaworld_demonstrations"
    for algo in ("diffppo", "bc_ppo"):
        assert task.hyperparams_of(algo)["demonstrations"][source]["task"] == "sweep"
    assert task.hyperparams_of("diffppo", "from_scratch")["demonstrations"] is None
    run = plan_run(task, METHODS["diffrl"], "positions")
    assert (run.env_steps, run.curve_interval, run.curve_episodes) == (160_000, 10_000, 30)
    assert run.evaluation_env(None, 50).num_envs == 10


# -- figures -----------------------------------------------------------------------------------


def test_recorded_episodes_end_where_they_should(prior: Prior) -> None:
    trajectories = record_trajectories(prior.load(), "episode", 8)
    assert len(trajectories) == 8
    for t in trajectories:
        assert abs(t.positions[0, 0]) <= 0.05 and t.positions[0, 1] == 0
        assert np.abs(np.diff(t.positions, axis=0)).max() < 0.0301
        if t.way >= 0:
            assert t.positions[-1, 1] >= 0.95
        elif len(t.positions) < 121:
            assert np.linalg.norm(t.obstacles - t.positions[-1], axis=1).min() < 0.0901


def test_the_quickstarts_figure_is_drawn(prior: Prior, tmp_path: Path) -> None:
    episodes = record_trajectories(prior.load(), "scene:1", 4)
    path = tmp_path / "figure.png"
    curve = [(0, 0.4), (100, 0.9)]
    quickstart_figure(path, {"a": episodes, "b": episodes, "c": episodes}, {"x": curve}, 50, 0.4)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_example_of_a_method_of_ones_own(prior: Prior) -> None:
    method = find_method("examples.benchmark_method.crossq")
    run = tiny_run(method.name, algo=method.algo, n_episodes=2, curve_episodes=2)
    found = execute(run, prior)
    assert (found.method, found.env_steps) == (method.name, 120)
