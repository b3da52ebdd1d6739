"""RL Zoo: its commands as users type them, with ``diffppo``; tuning; the hook at start-up."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import site
import socket
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import optuna
import pytest
import torch as th
import yaml
from stable_baselines3.common.utils import LinearSchedule

import sb3_diffrl
import sb3_diffrl_zoo_hook as zoo_hook
from sb3_diffrl import Demonstrations, zoo
from sb3_diffrl.bench.training import wrapping
from sb3_diffrl.bench.zoo_commands import zoo_hyperparams, zoo_load
from sb3_diffrl.envs.avoiding import avoiding_demonstrations
from tests.hub_server import HubServer

ROOT = Path(__file__).parent.parent
TASK = "sb3_diffrl/AvoidingPerturbed-v0"
NAME = "sb3_diffrl-AvoidingPerturbed-v0"
TINY = [
    *("pretrain.gradient_steps:20", "imitation.warmup_steps:2", "imitation.batch_size:8"),
    *("policy_kwargs.net_arch:[16]", "n_envs:2", "n_steps:32", "batch_size:64", "n_epochs:1"),
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "offline"}


def start(*command: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert "sb3-diffrl: no diffppo" not in text
    return text


def run(*command: str, cwd: Path, **environment: str) -> str:
    return output(start(*command, cwd=cwd, **environment))


def run_all(*lines: str, cwd: Path, **environment: str) -> str:
    """Run scripts of the Zoo one after another in one process, which imports PyTorch once."""
    program = (
        "import runpy, shlex, sys\n"
        "for line in sys.argv[1:]:\n"
        "    print('+', line, flush=True)\n"
        "    sys.argv = shlex.split(line)\n"
        "    runpy.run_module('rl_zoo3.' + sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    return run("-W", "ignore", "-c", program, *lines, cwd=cwd, **environment)


# -- the commands ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``train`` ran, both phases, with nothing but a name given for the rest."""
    cwd = tmp_path_factory.mktemp("zoo")
    command = ["-m", "rl_zoo3.train", "--algo", "diffppo", "--env", TASK, "-conf", "fixed_beta"]
    arguments = ["-n", "128", "--eval-freq", "-1", "-tb", "tb", "--vec-env", "subproc"]
    run(*command, *arguments, "--seed", "1", "-params", *TINY, cwd=cwd)
    return cwd


def test_train_does_both_phases(trained: Path) -> None:
    folder = trained / "logs/diffppo" / f"{NAME}_1"
    config = yaml.unsafe_load((folder / NAME / "config.yml").read_text())
    assert config["beta"] == 0.001 and config["mixing"] == "linear_0.5_1_0.5"
    assert config["n_epochs"] == 1 and config["gamma"] == 0.9955
    model = sb3_diffrl.DiffusionPPO.load(folder / f"{NAME}.zip")
    assert bool(model.policy.has_prior) and model.num_timesteps == 128
    assert model.policy.net_arch == [16]
    assert model.policy.process.noise_levels == 20  # the entry's, beside what was overwritten
    events = {path.parent.name for path in (trained / "tb").rglob("events.*")}
    assert events == {"DiffusionPPO_pretrain_1", "DiffusionPPO_1"}


def test_training_continues_and_the_agent_is_enjoyed(trained: Path) -> None:
    """Without the hook in one command, by the Zoo's console script in the other."""
    model = f"logs/diffppo/{NAME}_1/{NAME}.zip"
    without_hook = (
        "import runpy, sys; import sb3_diffrl_zoo_hook as zoo_hook;"
        "sys.meta_path[:] = [f for f in sys.meta_path if not zoo_hook.is_ours(f)];"
        "runpy.run_module('sb3_diffrl.zoo', run_name='__main__', alter_sys=True)"
    )
    train = ["train", "--algo", "diffppo", "--env", TASK, "-i", model, "-f", "more", "-n", "64"]
    continued = start(
        *("-c", without_hook, *train, "--eval-freq", "-1", "-params", *TINY, "beta:0.5"),
        cwd=trained,
    )
    enjoy = ["enjoy", "--algo", "diffppo", "--env", TASK, "-f", "logs", "-n", "100", "--no-render"]
    console_script = shutil.which("rl_zoo3", path=os.path.dirname(sys.executable))
    assert console_script is not None
    assert "Episodes" in run(console_script, *enjoy, cwd=trained)
    assert "Pre-training" not in output(continued)
    before = sb3_diffrl.DiffusionPPO.load(trained / model)
    after = sb3_diffrl.DiffusionPPO.load(trained / f"more/diffppo/{NAME}_1/{NAME}.zip")
    assert after.beta == sb3_diffrl.schedules.Constant(0.5)
    for name, tensor in before.policy.prior.state_dict().items():
        assert th.equal(tensor, after.policy.prior.state_dict()[name])
    assert not all(
        th.equal(a, b)
        for a, b in zip(
            before.policy.value_net.parameters(), after.policy.value_net.parameters(), strict=True
        )
    )


def test_chunks_are_trained_continued_and_enjoyed(tmp_path: Path) -> None:
    wrappers = (
        "env_wrapper:[{'sb3_diffrl.wrappers.ObservationHistoryWrapper':{'n_observations':2}},"
        "{'sb3_diffrl.wrappers.ActionChunkWrapper':{'horizon':6,'n_executed':4,'start':1}}]"
    )
    model = f"logs/diffppo/{NAME}_1/{NAME}.zip"
    common = f"--algo diffppo --env {TASK}"
    train = f"train {common} -conf chunks -n 128 --eval-freq 40 --eval-episodes 2 -params"
    tiny = shlex.join(TINY)
    text = run_all(
        f"{train} {tiny}",
        f'{train} {tiny} "{wrappers}" -f histories',
        f"{train.replace('-params', f'-f more -i {model} -params')} {tiny}",
        f"enjoy {common} -f logs -n 60 --no-render --stochastic",
        f"enjoy {common} -f histories -n 60 --no-render --stochastic",
        cwd=tmp_path,
    )
    assert text.count("Pre-training") == 2 and text.count("Mean episode length") == 2
    trained = sb3_diffrl.DiffusionPPO.load(tmp_path / model)
    assert trained.num_timesteps == 128 < trained.env_steps <= 4 * 128
    assert trained.action_space.shape == (4, 2) and trained.gamma == 0.96
    # The Zoo puts its Monitor inside: figures of episodes are those of the environment.
    evaluations = np.load(tmp_path / f"logs/diffppo/{NAME}_1/evaluations.npz")
    assert evaluations["ep_lengths"].max() > 30  # which is the time limit in decisions
    (with_history,) = (tmp_path / "histories").rglob(f"{NAME}.zip")
    loaded = sb3_diffrl.DiffusionPPO.load(with_history)
    assert [each["name"] for each in loaded.env_wrappers] == [
        "ObservationHistoryWrapper",
        "ActionChunkWrapper",
    ]
    assert loaded.env_wrappers[1]["arguments"]["start"] == 1
    assert loaded.observation_space.shape == (2, 14)
    (continued,) = (tmp_path / "more").rglob(f"{NAME}.zip")
    assert sb3_diffrl.DiffusionPPO.load(continued).env_wrappers == trained.env_wrappers


def test_benchmark_and_videos(trained: Path) -> None:
    """``benchmark`` calls ``enjoy.py``, ``record_training`` calls ``python`` and ``ffmpeg``."""
    benchmark = start(
        *("-m", "rl_zoo3.benchmark", "--log-dir", "logs", "--benchmark-dir", "bench"),
        *("-n", "200", "--no-hub", "--test-mode"),
        cwd=trained,
    )
    record_training = ["-m", "rl_zoo3.record_training", "--algo", "diffppo", "--env", TASK]
    run(*record_training, "-f", "logs", "-n", "5", "--gif", cwd=trained, PATH=site.PREFIXES[0])
    videos = trained / "logs/diffppo" / f"{NAME}_1" / "videos"
    assert (videos / "training.mp4").stat().st_size > 0
    assert (videos / "training.gif").stat().st_size > 0
    assert "-m rl_zoo3.enjoy" in output(benchmark)
    assert f"|diffppo|{NAME}|" in (trained / "bench/benchmark.md").read_text()


def test_models_go_to_the_hub_twice_and_come_back(trained: Path, tmp_path: Path) -> None:
    push = f"push_to_hub --algo diffppo --env {TASK} -f logs -orga alice -n 30 -m Model"
    with HubServer() as hub:
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": "hf_alice",
            "TRUST_REMOTE_CODE": "True",
        }
        run_all(push, push, cwd=trained, **environment)
        said = run_all(
            f"load_from_hub --algo diffppo --env {TASK} -f downloaded -orga alice",
            f"enjoy --algo diffppo --env {TASK} -f downloaded -n 40 --no-render",
            f"train --algo diffppo --env {TASK} -f resumed -n 64 --eval-freq -1 -i"
            f" downloaded/diffppo/{NAME}_1/{NAME}.zip -params {' '.join(TINY)}",
            cwd=trained,
            **environment,
        )
    assert "Pre-training" not in said
    files = [
        folder / "diffppo" / f"{NAME}_1" / f"{NAME}.zip"
        for folder in (trained / "logs", trained / "downloaded", trained / "resumed")
    ]
    kept, back, resumed = (sb3_diffrl.DiffusionPPO.load(file) for file in files)
    obs = kept.observation_space.sample()
    actions = [model.predict(obs, deterministic=True)[0] for model in (kept, back)]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert resumed.n_iterations == kept.n_iterations + 1


def test_plots(trained: Path) -> None:
    for number in (1, 2):
        folder = trained / "evaluated/diffppo" / f"{NAME}_{number}"
        folder.mkdir(parents=True)
        evaluations = {"timesteps": np.array([50, 100]), "results": np.full((2, 3), number / 4)}
        np.savez(folder / "evaluations.npz", **evaluations)  # type: ignore[arg-type]
    text = run_all(
        f"plots.all_plots -a diffppo -e {NAME} -f evaluated -o results --no-million",
        "plots.plot_from_file -i results -o figure --format png -b",
        f"plots.plot_train -a diffppo -e {NAME} -f logs -w 2",
        cwd=trained,
    )
    assert f"|{NAME}|" in text and "DIFFPPO" in text
    assert (trained / "results.pkl").exists()


def test_what_the_zoo_tests_of_itself(tmp_path: Path) -> None:
    """The cases of its tests of train, tuning and load, with diffppo instead of ppo."""
    entry = {"policy": "policy", "n_timesteps": 200, "n_envs": 2, "n_steps": 32, "n_epochs": 1}
    entry |= {"policy_kwargs": {"net_arch": [8]}, "batch_size": 64}
    (tmp_path / "default.yml").write_text(yaml.safe_dump({"default": entry}))
    custom = entry | {"policy": "sb3_diffrl.policies.DiffusionMlpPolicy"}
    (tmp_path / "config.py").write_text(f"hyperparams = {{'Pendulum-v1': {custom!r}}}\n")
    params = "-params n_envs:2 n_steps:32 n_epochs:1 batch_size:64 policy_kwargs.net_arch:[8]"
    algo = "--algo diffppo --env Pendulum-v1"
    train = f"train {algo} -n 100"
    kwargs = "--env-kwargs g:8.0 --eval-env-kwargs g:5.0"
    enjoy = f"enjoy {algo} -n 20 -f logs --no-render"
    optimize = "-optimize --n-trials 1 --n-evaluations 2 --eval-episodes 1 --no-optim-plots"
    search = "--sampler random --pruner halving --optimization-log-path opt"
    monitor = """-params monitor_kwargs:'dict(info_keywords=("TimeLimit.truncated",))'"""
    text = run_all(
        f"{train} --eval-freq 50 --eval-episodes 1 --save-freq 50 -P {kwargs} {params}",
        f"{enjoy} --load-best -P",
        f"{enjoy} --load-checkpoint 50",
        f"{enjoy} --load-last-checkpoint --stochastic",
        f"{train} -conf default.yml --eval-freq -1 {monitor}",
        f"{train} -conf config.py --eval-freq -1",
        f"train {algo} -n 2000 {optimize} {search} -conf default.yml -params n_envs:16",
        cwd=tmp_path,
    )
    assert "Using 'default' hyperparameters" in text
    assert (tmp_path / "opt/trial_0/evaluations.npz").exists()
    assert len(list((tmp_path / "logs/diffppo").glob("Pendulum-v1_*/Pendulum-v1.zip"))) == 3
    (tmp_path / "lacks.yml").write_text(yaml.safe_dump({"MyEnv-v0": entry}))
    failing = start("-m", "rl_zoo3.train", *algo.split(), "-conf", "lacks.yml", cwd=tmp_path)
    assert "Hyperparameters not found for diffppo-Pendulum-v1" in failing.communicate()[0]
    assert failing.returncode == 1


# -- tuning ------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


STUDY = ["-optimize", "--n-evaluations", "2", "--eval-episodes", "2", "--no-optim-plots"]


def tune(storage: str, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    command = ["-m", "rl_zoo3.train", "--algo", "diffppo", "--env", TASK, "-conf", "tune", *STUDY]
    study = ["--storage", storage, "--study-name", "study", "-n", "600", *arguments]
    return start(*command, *study, "-params", *TINY, "n_envs:16", cwd=cwd)


def test_two_processes_tune_on_one_journal_and_a_trial_is_trained(tmp_path: Path) -> None:
    storage = "study.log"
    arguments = ["--n-trials", "1", "--pruner", "none"]
    processes = [tune(storage, tmp_path, *arguments) for _ in range(2)]
    for process in processes:
        output(process)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / storage))
    study = optuna.load_study(study_name="study", storage=optuna.storages.JournalStorage(backend))
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 2
    train = ["-m", "rl_zoo3.train", "--algo", "diffppo", "--env", TASK, "--eval-freq", "-1"]
    trial = ["--storage", storage, "--study-name", "study", "--trial-id", "0", "-n", "64"]
    run(*train, *trial, "-params", *TINY, cwd=tmp_path)
    (config,) = (tmp_path / "logs/diffppo").glob(f"{NAME}_*/{NAME}/config.yml")
    hyperparams = yaml.unsafe_load(config.read_text())
    params = study.trials[0].params
    assert hyperparams["clip_range"] == params["clip_range"]
    assert hyperparams["policy_kwargs.sigma_min"] == params["sigma_min"]
    (model,) = (tmp_path / "logs/diffppo").glob(f"{NAME}_*/{NAME}.zip")
    policy = sb3_diffrl.DiffusionPPO.load(model).policy
    assert policy.process.denoising_steps == params["denoising_steps"]
    assert policy.net_arch == [16]


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """URL of a database on a server that runs for the test."""
    initdb = shutil.which("initdb") or next(
        map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None
    )
    if initdb is None:
        pytest.skip("needs PostgreSQL's initdb (Debian's package postgresql)")
    pytest.importorskip("psycopg")
    programs = Path(initdb).resolve().parent
    port = free_port()
    data = Path("/tmp", f"sb3-diffrl-postgresql-{os.getpid()}")
    data.mkdir(mode=0o700)
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        import pwd

        account = pwd.getpwnam("postgres")
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        os.chown(data, account.pw_uid, account.pw_gid)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
    quiet: dict[str, Any] = {"cwd": "/", "stdout": subprocess.DEVNULL, **user}
    try:
        init = [str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "optuna"]
        subprocess.run([*init, "--no-sync"], check=True, **quiet)
        control = [str(programs / "pg_ctl"), "-D", str(data), "-w"]
        log = str(data / "log")
        subprocess.run([*control, "-l", log, "-o", options, "start"], check=True, **quiet)
        yield f"postgresql+psycopg://optuna@127.0.0.1:{port}/postgres"
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, **quiet)
    finally:
        shutil.rmtree(data)


def test_studies_in_postgresql_and_pruning(postgresql: str, tmp_path: Path) -> None:
    """Beside ten trials that cannot be reached, new ones are pruned at their first evaluation."""
    study = optuna.create_study(storage=postgresql, study_name="study", direction="maximize")
    for _ in range(10):
        study.add_trial(optuna.trial.create_trial(value=2.0, intermediate_values={1: 2.0, 2: 2.0}))
    arguments = ["--n-trials", "2", "--n-jobs", "2", "--n-startup-trials", "2"]
    output(tune(postgresql, tmp_path, *arguments))
    new = study.get_trials()[10:]
    assert [trial.state.name for trial in new] == ["PRUNED"] * 2
    assert all(list(trial.intermediate_values) == [1] for trial in new)


@pytest.fixture
def redis() -> Iterator[str]:
    """URL of a Redis server that runs for the test."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server (Debian's package of that name)")
    client = pytest.importorskip("redis", reason="needs the extra `redis`")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}"
    try:
        retry = client.retry.Retry(client.backoff.ConstantBackoff(0.1), 100)
        client.Redis.from_url(url, retry=retry).ping()
        yield url
    finally:
        server.terminate()
        server.wait()


def test_a_study_in_redis(redis: str, tmp_path: Path) -> None:
    """Two processes, one journal, as with a file."""
    for process in [tune(redis, tmp_path, "--n-trials", "1") for _ in range(2)]:
        output(process)
    storage = zoo.open_storage(optuna.storages.get_storage, redis)
    study = optuna.load_study(study_name="study", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2


def test_studies_behind_the_grpc_proxy() -> None:
    port = free_port()
    storage = optuna.storages.InMemoryStorage()
    server = threading.Thread(
        target=optuna.storages.run_grpc_proxy_server,
        args=(storage,),
        kwargs={"host": "127.0.0.1", "port": port},
        daemon=True,
    )
    server.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        proxy = zoo.open_storage(optuna.storages.get_storage, f"grpc://127.0.0.1:{port}")
    assert isinstance(proxy, optuna.storages.GrpcStorageProxy)
    proxy.wait_server_ready(timeout=20)
    optuna.create_study(storage=proxy, study_name="far")
    assert [study.study_name for study in storage.get_all_studies()] == ["far"]


def test_other_storages_are_left_to_optuna() -> None:
    asked: list[Any] = []
    for storage in (None, "sqlite:///study.db", "postgresql://host/db"):
        zoo.open_storage(asked.append, storage)
    assert asked == [None, "sqlite:///study.db", "postgresql://host/db"]


@pytest.mark.parametrize("n_envs", [1, 8, 50])
def test_sampled_hyperparameters_are_bounded_and_build_a_model(n_envs: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    env = gym.make(TASK)
    for _ in range(8):
        trial = study.ask()
        hyperparams = zoo.sample_params(trial, 2, n_envs, {})
        assert hyperparams == zoo.convert_params(trial.params)
        assert 500 <= hyperparams["n_steps"] * n_envs <= 6400 * 2
        model = zoo.DiffusionPPO(
            "policy", env, policy_kwargs={"net_arch": [8]}, device="cpu", **hyperparams
        )
        assert model.policy.net_arch == [8]
        assert model.policy.process.denoising_steps == trial.params["denoising_steps"]
        study.tell(trial, 0.0)


def test_trials_share_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_diffrl.zoo.algorithm._PRIORS", {})
    source = {"sb3_diffrl.envs.avoiding.avoiding_demonstrations": {"n_episodes": 4}}

    def prior(seed: int = 0, precision: str = "float32", **kwargs: Any) -> dict[str, th.Tensor]:
        model = zoo.DiffusionPPO(
            *("policy", gym.make(TASK)),
            demonstrations=source,
            pretrain={"gradient_steps": 5},
            policy_kwargs={"net_arch": [8], **kwargs},
            imitation=1.0,
            seed=seed,
            precision=precision,
        )
        model.learn(0)
        assert model.imitation_buffer.demonstrations is not None
        return {k: v.clone() for k, v in model.policy.prior.state_dict().items()}

    first, other_steps = prior(), prior(denoising_steps=3, sigma_min=0.2)
    assert all(th.equal(first[name], other_steps[name]) for name in first)
    others = (
        {"noise_levels": 10},
        {"prediction_type": "v"},
        {"seed": 1},
        {"precision": "bfloat16"},
    )
    for number, other in enumerate(others, start=2):
        trained = prior(**other)  # type: ignore[arg-type]
        assert not all(th.equal(first[k], v) for k, v in trained.items() if k in first), other
        assert len(zoo.algorithm._PRIORS) == number


# -- hyperparameters ---------------------------------------------------------------------------


def test_overrides_are_merged_into_mappings() -> None:
    base = {"beta": 0.1, "imitation": {"demonstrations": 1.0, "context": 0.5}, "n_envs": 2}
    merged = zoo.merge(base, {"imitation": {"context": 0.0}, "beta": "adaptive_0.1"})
    assert merged == {
        "beta": "adaptive_0.1",
        "imitation": {"demonstrations": 1.0, "context": 0.0},
        "n_envs": 2,
    }
    assert zoo.merge(base, {"imitation": 0.0})["imitation"] == 0.0
    assert base["imitation"] == {"demonstrations": 1.0, "context": 0.5}


def test_a_schedule_replaces_a_schedule() -> None:
    base = {"beta": {"kind": "linear", "initial": 0.1, "final": 0.0}}
    override = {"beta": {"kind": "adaptive", "initial": 0.2}}
    assert zoo.merge(base, override) == override


def test_names_with_dots_set_one_entry() -> None:
    hyperparams = {"policy_kwargs.a.b": 1, "policy_kwargs": {"a": {"c": 2}}, "gamma": 0.9}
    assert zoo.undotted(hyperparams) == {"policy_kwargs": {"a": {"b": 1, "c": 2}}, "gamma": 0.9}
    assert zoo.undotted({"pretrain.steps": 5, "pretrain": None}) == {"pretrain": {"steps": 5}}


def test_an_experiment_changes_its_base(tmp_path: Path) -> None:
    (tmp_path / "algo.yml").write_text("default:\n  gamma: 0.9\nMine-v0:\n  gamma: 0.8\n  n: 7\n")
    (tmp_path / "wide.yml").write_text("# a comment\nbase: algo.yml\nn: 8\n")
    (tmp_path / "wider.yml").write_text("base: wide.yml\nn: 9\n")
    assert zoo.load_hyperparams(tmp_path / "algo.yml", "Mine-v0") == {"gamma": 0.8, "n": 7}
    assert zoo.load_hyperparams(tmp_path / "algo.yml", "Other-v0") == {"gamma": 0.9}
    assert zoo.load_hyperparams(tmp_path / "wide.yml", "Mine-v0") == {"gamma": 0.8, "n": 8}
    assert zoo.load_hyperparams(tmp_path / "wider.yml", "Other-v0") == {"gamma": 0.9, "n": 9}


def test_a_base_may_be_a_shipped_experiment(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    for name in ("no_kl", "no_kl.yml"):
        path.write_text(f"base: {name}\ngamma: 0.5\n")
        entry = zoo.load_hyperparams(path, TASK)
        assert entry["beta"] == 0.0 and entry["gamma"] == 0.5
    (tmp_path / "no_kl.yml").write_text("default:\n  beta: 7\n")  # what lies beside goes first
    assert zoo.load_hyperparams(path, TASK) == {"beta": 7, "gamma": 0.5}
    path.write_text("base: nokl\n")
    with pytest.raises(ValueError, match=r"mine\.yml: base: 'nokl' is no file.*no_kl, .*paper"):
        zoo.load_hyperparams(path, TASK)


def test_configs_are_files_shipped_names_or_modules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    zoo_hook.install()
    from rl_zoo3.exp_manager import ExperimentManager

    def found(config: str) -> str:
        arguments = argparse.Namespace()
        return str(ExperimentManager(arguments, "diffppo", TASK, "logs", config=config).config)

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "paper").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "mine.yml").touch()
    (tmp_path / "module.py").touch()
    assert Path(found("paper")) == zoo.shipped("zoo_configs") / "paper.yml"
    for config in ("mine.yml", "module", "package.module"):
        assert found(config) == config
    for config in ("nokl", "folder"):
        with pytest.raises(ValueError, match=rf"-conf {config}: there is no such.*no_kl, .*paper"):
            found(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Mine-v0:\n  n: 7\n", r"no entry 'Other-v0', found 'Mine-v0'"),
        ("- 7\n", r"expected a mapping, got \[7\]"),
        ("default: 7\n", r"'Other-v0' is 7, expected hyperparameters"),
    ],
)
def test_bad_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "algo.yml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        zoo.load_hyperparams(path, "Other-v0")
    assert str(path) in str(caught.value)


ENTRIES = zoo.read_yaml(ROOT / "hyperparams/diffppo.yml")


@pytest.mark.parametrize("env_id", ENTRIES)
@pytest.mark.parametrize("experiment", ["diffrl", "paper", "from_scratch", "chunks"])
def test_shipped_entries_build_a_model(env_id: str, experiment: str) -> None:
    try:
        env = gym.make("Pendulum-v1" if env_id == "default" else env_id)
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    entry = zoo.load_hyperparams(ROOT / f"zoo_configs/{experiment}.yml", env_id)
    wrap = wrapping(entry)
    env = env if wrap is None else wrap(env)
    of_the_zoo = ("n_envs", "n_timesteps", "normalize", "learning_rate", "env_wrapper")
    arguments = {name: value for name, value in entry.items() if name not in of_the_zoo}
    model = zoo.DiffusionPPO(env=env, **arguments)
    assert (model.demonstrations is None) == (
        experiment == "from_scratch" or env_id in ("default", "Pendulum-v1")
    )


def test_a_rate_in_the_zoos_notation() -> None:
    model = zoo.DiffusionPPO("policy", gym.make(TASK), critic_learning_rate="lin_2.0e-3")
    assert model.critic_lr_schedule(0.5) == pytest.approx(1e-3)
    assert isinstance(zoo.linear("lin_2.0e-3"), LinearSchedule)
    assert zoo.linear(0.1) == 0.1


def test_older_versions_of_the_zoos_entries_stand_in() -> None:
    assert zoo_hyperparams("ppo", "Hopper-v5") == zoo_hyperparams("ppo", "Hopper-v4")
    assert zoo_hyperparams("ppo", "Hopper-v5")["batch_size"] == 32
    assert zoo_hyperparams("ppo", "Nowhere-v3") == zoo_hyperparams("ppo", "Elsewhere-v0")


# -- demonstrations ----------------------------------------------------------------------------


def test_demonstrations_from_a_file_and_from_a_function(tmp_path: Path) -> None:
    made = avoiding_demonstrations(4, seed=3)
    planner = "sb3_diffrl.envs.avoiding.avoiding_demonstrations"
    for source in (str(made.save(tmp_path / "d")), {planner: {"n_episodes": 4, "seed": 3}}):
        loaded = zoo.load_demonstrations(source)
        assert np.array_equal(loaded.actions, made.actions)


def test_demonstrations_from_minari(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari = pytest.importorskip("minari")
    pytest.importorskip("jax", reason="Minari's collector needs it, and our extra does without")
    env = gym.wrappers.TimeLimit(gym.make("Pendulum-v1").unwrapped, 5)
    collector = minari.DataCollector(env, record_infos=False)
    for episode in range(2):
        collector.reset(seed=episode)
        for _ in range(5):
            collector.step(collector.action_space.sample())
    collector.create_dataset(dataset_id="test/pendulum-v0", eval_env=None, expert_policy=None)
    loaded = zoo.load_demonstrations("test/pendulum-v0")
    assert isinstance(loaded, Demonstrations)
    assert loaded.episode_ends.tolist() == [5, 10] and loaded.rewards is not None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.npz", r"nowhere\.npz: there is no such file.*zoo_experts"),
        (7, r"demonstrations: 7: expected the path"),
        ("what?", r"expected the path of an \.npz file or"),
        ("math.nan", r"not callable|returned"),
        ("os.getpid", r"os\.getpid returned a int, expected Demonstrations"),
    ],
)
def test_other_demonstrations_are_refused(source: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        zoo.load_demonstrations(source)


def test_recorded_episodes(trained: Path) -> None:
    model, env = zoo_load("diffppo", TASK, trained / f"logs/diffppo/{NAME}_1", seed=0)
    episodes = Demonstrations.from_rollouts(model, env, 2)
    assert len(episodes) == 2 and episodes.rewards is not None
    episodes.validate(model.observation_space, model.action_space)


# -- repairs -----------------------------------------------------------------------------------


def test_the_hubs_functions_are_those_that_the_zoo_calls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    zoo_hook.install()
    import huggingface_sb3
    import rl_zoo3.push_to_hub as push_to_hub
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    _, metadata = push_to_hub.generate_model_card(
        "diffppo", "DiffusionPPO", "me", TASK, 0.5, 0.1, hyperparams={}, env_kwargs={}
    )
    assert metadata["library_name"] == "stable-baselines3"
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == TASK
    assert "renamed" in capsys.readouterr().err
    card = ModelCard(f"---\n{yaml.safe_dump(metadata)}---\n")
    assert card.data.to_dict()["model-index"] == metadata["model-index"]

    def missing(**_: object) -> str:
        raise EntryNotFoundError("404: vec_normalize.pkl")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUST_REMOTE_CODE", "True")
        patch.setattr("huggingface_hub.hf_hub_download", missing)
        with pytest.raises(HTTPError, match=r"vec_normalize\.pkl"):
            huggingface_sb3.load_from_hub("me/model", "vec_normalize.pkl")


# -- the hook ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and laid out as an installer does."""
    folder = tmp_path_factory.mktemp("wheel")
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_hook_and_hyperparameters(installed: Path) -> None:
    modules = {path.relative_to(ROOT) for path in (ROOT / "sb3_diffrl").rglob("*.py")}
    assert modules == {p.relative_to(installed) for p in (installed / "sb3_diffrl").rglob("*.py")}
    names = ["sb3_diffrl_zoo.pth", "sb3_diffrl_zoo.start", "sb3_diffrl_zoo_hook.py"]
    names += ["sb3_diffrl/hyperparams/diffppo.yml", "sb3_diffrl/zoo_configs/tune.yml"]
    (recorded,) = installed.glob("*.dist-info/RECORD")
    listed = recorded.read_text()
    for name in names:  # what is recorded is removed when the package is
        assert (installed / name).is_file() and f"{name}," in listed
    entry = zoo.load_hyperparams(installed / "sb3_diffrl/zoo_configs/no_kl.yml", TASK)
    assert entry["beta"] == 0.0 and entry["n_timesteps"] == 40_000


def test_the_hook_is_light_and_silent_without_the_zoo(installed: Path) -> None:
    program = (
        "import site, sys\n"
        "before = set(sys.modules)\n"
        f"site.addsitedir({str(installed)!r})\n"
        "print(*set(sys.modules) - before)\n"
        "assert type(sys.meta_path[0]).__name__ == 'ZooFinder'\n"
        "try:\n    import rl_zoo3\n"
        "except ModuleNotFoundError as error:\n    assert error.name == 'rl_zoo3'\n"
        "else:\n    raise AssertionError\n"
    )
    # One small module, and nothing that it would import.
    assert run("-I", "-S", "-c", program, cwd=installed).split() == ["sb3_diffrl_zoo_hook"]


def test_the_zoo_goes_on_where_the_plugin_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(zoo, "extend", fail)
    with pytest.warns(UserWarning, match=r"no diffppo in the RL Zoo: RuntimeError\('broken'\)"):
        zoo_hook.call("extend", None)


def test_one_hook_is_enough() -> None:
    zoo_hook.install()
    zoo_hook.install()
    assert sum(map(zoo_hook.is_ours, sys.meta_path)) == 1


def test_scripts_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    from sb3_diffrl.zoo.__main__ import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["zoo"])
        with pytest.raises(SystemExit, match=r"usage: python -m sb3_diffrl\.zoo SCRIPT"):
            main()
