"""
Experiments on the Avoiding task: what the quickstart and the benchmark are made of.

A :class:`Run` says what is trained on what; :func:`execute` trains and measures it and gives rows
of a results file. A run can be sent to a process of its own by :func:`in_process`.
"""

import csv
import dataclasses
import hashlib
import importlib.util
import io
import json
import math
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import gymnasium as gym
import rich.box
import torch as th
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

import sb3_diffrl_zoo_hook as zoo_hook
from sb3_diffrl.callbacks import SuccessCallback
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.envs.avoiding import AvoidingVectorEnv, mode_entropy
from sb3_diffrl.evaluation import evaluate, wilson_interval
from sb3_diffrl.wrappers import GymVecEnv
from sb3_diffrl.zoo import linear, load_demonstrations, read_yaml

TASK = "sb3_diffrl/Avoiding-v0"
PRIOR_SEED = 1  # of pre-training; how far priors of other seeds fail when perturbed varies much
EVALUATION_SEED = 1000  # starts and layouts other than those of training
THRESHOLD = 0.60  # success rate of `steps_to_0.60`

Path = str | pathlib.Path
Result = TypeVar("Result")

# -- hyperparameters ---------------------------------------------------------------------------


def algorithm_arguments(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: an entry of RL Zoo's
    :return: those that are the algorithm's own, ``"lin_3.0e-4"`` made a schedule
    """
    others = ("n_envs", "n_timesteps", "policy", "demonstrations", "pretrain", "env_wrapper")
    arguments = {name: value for name, value in hyperparams.items() if name not in others}
    for name in ("learning_rate", "clip_range", "critic_learning_rate"):
        if name in arguments:
            arguments[name] = linear(arguments[name])
    return {"device": "cpu", **arguments}


# -- building blocks ---------------------------------------------------------------------------


Wrap = Callable[[gym.Env], gym.Env]


def wrapping(hyperparams: Mapping[str, Any]) -> Wrap | None:
    """
    :param hyperparams: an entry of RL Zoo's
    :return: what its ``env_wrapper`` does to an env, None without one
    """
    zoo_hook.install()
    from rl_zoo3.utils import get_wrapper_class

    return get_wrapper_class(dict(hyperparams))


def task_env(n_envs: int, perturbation: str | None, wrap: Wrap | None = None) -> VecEnv:
    """
    :param n_envs: number of envs
    :param perturbation: see :class:`~sb3_diffrl.envs.avoiding.AvoidingEnv`
    :param wrap: see :func:`wrapping`; wrapped envs are stepped one by one
    :return: monitored envs
    """
    if wrap is None:
        return VecMonitor(GymVecEnv(AvoidingVectorEnv(n_envs, perturbation=perturbation)))

    def make() -> gym.Env:
        return wrap(Monitor(gym.make(TASK, perturbation=perturbation)))

    return DummyVecEnv([make] * n_envs)


def training_env(hyperparams: Mapping[str, Any], perturbation: str | None) -> VecEnv:
    """
    :param hyperparams: give ``n_envs`` and, if any, ``env_wrapper``
    :param perturbation: see :class:`~sb3_diffrl.envs.avoiding.AvoidingEnv`
    :return: monitored envs to train in
    """
    return task_env(hyperparams.get("n_envs", 1), perturbation, wrapping(hyperparams))


def demonstrations(hyperparams: Mapping[str, Any]) -> Demonstrations:
    """
    :param hyperparams: their ``demonstrations`` name the planner and its arguments
    :return: the planner's episodes
    """
    return load_demonstrations(hyperparams["demonstrations"])


class Prior(NamedTuple):
    """
    A pre-trained model on disk.

    :param path: where it was saved
    :param wall_s: seconds that pre-training took
    """

    path: pathlib.Path
    wall_s: float


def make_prior(
    folder: Path, hyperparams: Mapping[str, Any], seed: int = PRIOR_SEED, progress_bar: bool = False
) -> Prior:
    """
    Demonstrations and pre-training, done once: what the folder holds for the same hyperparameters
    is taken from there.

    :param folder: where priors are kept
    :param hyperparams: ``policy``, ``policy_kwargs``, ``demonstrations``, ``pretrain`` and
        ``env_wrapper`` count
    :param seed: of the weights and minibatches
    :param progress_bar: whether to show one
    :return: the prior
    """
    names = ("policy", "policy_kwargs", "demonstrations", "pretrain")
    wrapped = [hyperparams[name] for name in ("env_wrapper",) if name in hyperparams]
    what = json.dumps([seed, *map(hyperparams.get, names), *wrapped], sort_keys=True)
    key = hashlib.sha256(what.encode()).hexdigest()[:8]
    path, record = (pathlib.Path(folder, f"prior-{key}{suffix}") for suffix in (".zip", ".json"))
    if not record.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        arguments = algorithm_arguments(hyperparams) | {"seed": seed}
        model = DiffusionPPO(hyperparams["policy"], training_env(hyperparams, None), **arguments)
        result = model.pretrain(
            demonstrations(hyperparams), progress_bar=progress_bar, **hyperparams["pretrain"]
        )
        model.save(path)
        wall_s = time.perf_counter() - start
        write_text(record, json.dumps({"wall_s": wall_s, **dataclasses.asdict(result)}))
    return Prior(path, json.loads(record.read_text())["wall_s"])


def finetune(
    prior: Path,
    perturbation: str | None,
    hyperparams: Mapping[str, Any],
    n_timesteps: int,
    seed: int = 0,
    callback: BaseCallback | None = None,
    progress_bar: bool = False,
) -> DiffusionPPO:
    """
    Train a pre-trained model online.

    :param prior: path of the pre-trained model
    :param perturbation: of the task trained on
    :param hyperparams: of the algorithm
    :param n_timesteps: number of decisions
    :param seed: of envs and policy
    :param callback: called at every step
    :param progress_bar: whether to show one
    :return: the trained model
    """
    model = DiffusionPPO(
        hyperparams["policy"],
        training_env(hyperparams, perturbation),
        prior=prior,
        **(algorithm_arguments(hyperparams) | {"seed": seed}),
    )
    model.set_demonstrations(demonstrations(hyperparams))
    return model.learn(n_timesteps, callback, progress_bar=progress_bar)


def train_ppo(
    perturbation: str | None,
    hyperparams: Mapping[str, Any],
    n_timesteps: int,
    seed: int = 0,
    callback: BaseCallback | None = None,
    progress_bar: bool = False,
) -> PPO:
    """
    Train SB3's PPO from scratch; parameters as in :func:`finetune`.

    :param perturbation: of the task trained on
    :param hyperparams: of the algorithm
    :param n_timesteps: number of steps
    :param seed: of envs and policy
    :param callback: called at every step
    :param progress_bar: whether to show one
    :return: the trained model
    """
    model = PPO(
        hyperparams["policy"],
        training_env(hyperparams, perturbation),
        **(algorithm_arguments(hyperparams) | {"seed": seed}),
    )
    return model.learn(n_timesteps, callback, progress_bar=progress_bar)


class Measurement(NamedTuple):
    """
    What evaluation episodes gave.

    :param success: success rate
    :param mode_entropy: evenness of the ways used, 0 to 1
    """

    success: float
    mode_entropy: float


def measure(
    model: BaseAlgorithm,
    perturbation: str | None,
    n_episodes: int = 500,
    deterministic: bool = False,
    seed: int = EVALUATION_SEED,
    wrap: Wrap | None = None,
) -> Measurement:
    """
    :param model: what acts
    :param perturbation: of the task measured on
    :param n_episodes: number of episodes
    :param deterministic: how the model predicts
    :param seed: of the episodes
    :param wrap: see :func:`wrapping`, as in training
    :return: success rate and mode entropy
    """
    env = task_env(min(n_episodes, 100), perturbation, wrap)
    result = evaluate(model, env, n_episodes, deterministic, seed)
    return Measurement(result.success_rate, mode_entropy([info["way"] for info in result.infos]))


# -- rows of a results file --------------------------------------------------------------------


@dataclass
class ResultRow:
    """
    One line of a results file.

    :param task: environment id
    :param method: ``diffusion`` (the prior itself), ``ppo`` (from scratch), ``diffrl``, or the name
        of an ablation
    :param perturbation: ``scene:<n>`` or ``episode``: what was trained and measured on
    :param seed: of training
    :param eval_mode: ``stochastic`` or ``deterministic``
    :param n_episodes: evaluation episodes of each success rate
    :param env_steps: environment steps of training
    :param clean: success rate on the clean task, after training
    :param perturbed_before: success rate under the perturbation, before training; NaN from scratch
    :param perturbed_after: the same after training
    :param steps_to_060: environment steps until the learning curve reached 0.60; NaN where it never
        did
    :param mode_entropy: on the clean task after training, of the stochastic policy in both modes
    :param wall_s: seconds of training with its learning curve; of pre-training for ``diffusion``
    :param peak_rss_mb: largest memory of the process so far
    """

    task: str
    method: str
    perturbation: str
    seed: int
    eval_mode: str
    n_episodes: int
    env_steps: int
    clean: float
    perturbed_before: float
    perturbed_after: float
    steps_to_060: float = field(metadata={"column": "steps_to_0.60"})
    mode_entropy: float
    wall_s: float
    peak_rss_mb: float

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells this row from the others of a file."""
        return self.method, self.perturbation, self.seed, self.eval_mode


FIELDS = dataclasses.fields(ResultRow)
COLUMNS = [f.metadata.get("column", f.name) for f in FIELDS]


def read_rows(path: Path) -> list[ResultRow]:
    """
    :param path: a results file, which may be missing
    :return: its rows
    """
    if not pathlib.Path(path).exists():
        return []
    with open(path, newline="") as file:
        return [
            ResultRow(*(_parse(f.type, line[c]) for f, c in zip(FIELDS, COLUMNS, strict=True)))
            for line in csv.DictReader(file)
        ]


def _parse(kind: Any, text: str) -> Any:
    return math.nan if kind is float and not text else kind(text)


def add_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """
    Write rows into a results file, in place of rows with the same key.

    :param path: the file, made where it is missing; never left half written
    :param rows: what to add
    """
    merged = {row.key: row for row in [*read_rows(path), *rows]}
    write_rows(path, sorted(merged.values(), key=lambda row: row.key))


def write_rows(path: Path, rows: Iterable[ResultRow]) -> None:
    """
    Write a results file anew.

    :param path: the file; never left half written
    :param rows: its lines, in this order
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow(_format(value) for value in dataclasses.astuple(row))
    write_text(path, text.getvalue())


def _format(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else round(value, 4)


def write_text(path: Path, text: str) -> None:
    """
    Write a file under a temporary name, then put it in its place: it is never there by half.

    :param path: where; its folder is made
    :param text: what
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


# -- runs --------------------------------------------------------------------------------------

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """
    What is trained on what; picklable.

    :param method: ``diffusion``, ``ppo``, or a name for fine-tuning with these hyperparameters
    :param perturbation: ``scene:<n>`` or ``episode``
    :param hyperparams: of the algorithm, see :func:`load_hyperparams`
    :param n_timesteps: number of decisions to train for
    :param seed: of training
    :param prior: the pre-trained model, not needed from scratch
    :param n_episodes: evaluation episodes of each success rate
    :param curve_interval: environment steps between points of the learning curve
    :param curve_episodes: evaluation episodes of each point
    :param save_path: where to save the trained model, if anywhere
    :param progress_bar: whether to show one
    """

    method: str
    perturbation: str
    hyperparams: dict[str, Any]
    n_timesteps: int
    seed: int = 0
    prior: Prior | None = None
    n_episodes: int = 500
    curve_interval: int = 5000
    curve_episodes: int = 100
    save_path: Path | None = None
    progress_bar: bool = False

    @property
    def keys(self) -> list[tuple[str, str, int, str]]:
        """Keys of the rows that it gives."""
        return [(self.method, self.perturbation, self.seed, mode) for mode in EVAL_MODES]


class Outcome(NamedTuple):
    """
    What a run gave.

    :param rows: one for each evaluation mode
    :param curve: environment steps and success rate under the perturbation (stochastic)
    """

    rows: list[ResultRow]
    curve: Curve


EVAL_MODES = {"stochastic": False, "deterministic": True}


def execute(run: Run) -> Outcome:
    """
    Train and measure, before and after.

    :param run: what to do
    :return: rows and learning curve
    """
    start = time.perf_counter()
    prior = None if run.prior is None else DiffusionPPO.load(run.prior.path, device="cpu")
    wrap = wrapping(run.hyperparams)
    env = task_env(min(run.curve_episodes, 100), run.perturbation, wrap)
    curve = SuccessCallback(env, run.curve_interval, run.curve_episodes, EVALUATION_SEED)
    how = (run.perturbation, run.hyperparams, run.n_timesteps, run.seed, curve, run.progress_bar)
    model: BaseAlgorithm
    if run.method == "ppo":
        model = train_ppo(*how)
    elif run.prior is None or prior is None:
        raise ValueError(f"{run.method} starts from a prior: build one by make_prior.")
    else:
        model = prior if run.method == "diffusion" else finetune(run.prior.path, *how)
    trained_s = time.perf_counter() - start
    if run.save_path is not None:
        model.save(run.save_path)

    rows = []
    clean = measure(model, None, run.n_episodes, wrap=wrap)
    entropy = clean.mode_entropy
    for mode, deterministic in EVAL_MODES.items():
        if deterministic:
            clean = measure(model, None, run.n_episodes, deterministic, wrap=wrap)
        after = measure(model, run.perturbation, run.n_episodes, deterministic, wrap=wrap)
        before = Measurement(math.nan, math.nan)
        if model is prior:
            before = after
        elif run.method != "ppo" and prior is not None:
            before = measure(prior, run.perturbation, run.n_episodes, deterministic, wrap=wrap)
        rows.append(
            ResultRow(
                task=TASK,
                method=run.method,
                perturbation=run.perturbation,
                seed=run.seed,
                eval_mode=mode,
                n_episodes=run.n_episodes,
                env_steps=0 if model is prior else curve.env_steps,
                clean=clean.success,
                perturbed_before=before.success,
                perturbed_after=after.success,
                steps_to_060=steps_to(curve.curve, THRESHOLD),
                mode_entropy=entropy,
                wall_s=run.prior.wall_s if run.prior and model is prior else trained_s,
                peak_rss_mb=peak_rss_mb(),
            )
        )
    return Outcome(rows, curve.curve)


def steps_to(curve: Curve, success_rate: float) -> float:
    """
    :param curve: environment steps and success rates
    :param success_rate: the rate to reach
    :return: environment steps at which it first was, NaN where it never was
    """
    return next((float(steps) for steps, rate in curve if rate >= success_rate), math.nan)


def peak_rss_mb() -> float:
    """:return: largest resident memory of this process so far, MB"""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that this one was forked from
        entries = dict(line.split(":", 1) for line in status.read_text().splitlines())
        if "VmHWM" in entries:
            return int(entries["VmHWM"].split()[0]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def in_process(function: Callable[..., Result], *args: Any) -> Result:
    """
    Call a function in a fresh process that keeps to one core.

    :param function: importable from there, as are its arguments
    :param args: its arguments
    :return: what it returns
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=th.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(function, *args).result()


# -- runs of RL Zoo's own commands -------------------------------------------------------------


def zoo_hyperparams(algo: str, env_id: str) -> dict[str, Any]:
    """
    RL Zoo's own entry for an environment.

    :param algo: name of the algorithm in the Zoo
    :param env_id: an environment; where the Zoo knows only an older version, that one's entry
    :return: hyperparameters by name
    """
    spec = importlib.util.find_spec("rl_zoo3")
    assert spec is not None and spec.submodule_search_locations
    entries = read_yaml(
        pathlib.Path(spec.submodule_search_locations[0], "hyperparams", f"{algo}.yml")
    )
    name, _, version = env_id.rpartition("-v")
    known = (f"{name}-v{older}" for older in range(int(version), -1, -1))
    return entries[next((env for env in known if env in entries), "default")]


def zoo_train(algo: str, env_id: str, folder: Path, *arguments: str) -> pathlib.Path:
    """
    Train by RL Zoo's command, in a process that keeps to one core.

    :param algo: name of the algorithm in the Zoo
    :param env_id: environment
    :param folder: of the logs; what it holds of the same algorithm is removed first
    :param arguments: further arguments of the command
    :return: folder of the run, with the model and its evaluations
    """
    shutil.rmtree(pathlib.Path(folder, algo), ignore_errors=True)
    command = ["train", "--algo", algo, "--env", env_id, "-f", str(folder), *arguments]
    subprocess.run(
        [sys.executable, "-m", "sb3_diffrl.zoo", *command],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    (run,) = pathlib.Path(folder, algo).glob("*_1")
    return run


def zoo_load(algo: str, env_id: str, run: Path, seed: int) -> tuple[BaseAlgorithm, VecEnv]:
    """
    :param algo: name of the algorithm in the Zoo
    :param env_id: environment
    :param run: folder of a run, see :func:`zoo_train`
    :param seed: of the environment
    :return: the trained model and one environment to evaluate it in, returns not normalised
    """
    zoo_hook.install()
    from huggingface_sb3 import EnvironmentName  # type: ignore[import-untyped]
    from rl_zoo3.utils import ALGOS, create_test_env, get_saved_hyperparams

    name = EnvironmentName(env_id)
    hyperparams, stats = get_saved_hyperparams(str(pathlib.Path(run, name)), test_mode=True)
    env = create_test_env(
        env_id,
        stats_path=stats,
        seed=seed,
        should_render=False,
        hyperparams=hyperparams,
        env_kwargs=hyperparams.get("env_kwargs"),
    )
    return ALGOS[algo].load(pathlib.Path(run, f"{name}.zip"), device="cpu"), env


# -- tables ------------------------------------------------------------------------------------

LABELS = {"diffusion": "Diffusion only", "ppo": "PPO from scratch", "diffrl": "DiffRL"}


def results_table(
    rows: Iterable[ResultRow], eval_mode: str = "stochastic", width: int = 100
) -> Table:
    """
    One line for each row, success rates with their 95 % intervals.

    :param rows: of one perturbation
    :param eval_mode: which rows
    :param width: of the terminal; where it is narrow, intervals stand below their rates
    :return: a table to print with rich
    """
    rows = [row for row in rows if row.eval_mode == eval_mode]
    gap = " " if width >= 97 else "\n"
    order = [*LABELS, *(row.method for row in rows)]
    title = ", ".join(dict.fromkeys(f"{row.task}, {row.perturbation}" for row in rows))
    table = Table(
        title=title, box=rich.box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("", no_wrap=True)
    for name in ("clean", "perturbed\nbefore RL", "perturbed\nafter RL"):
        table.add_column(name, justify="center", no_wrap=True)
    for name in ("environment\nsteps", "mode\nentropy"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: order.index(row.method)):
        rates = (row.clean, row.perturbed_before, row.perturbed_after)
        table.add_row(
            LABELS.get(row.method, row.method),
            *(format_rate(rate, row.n_episodes).replace(" [", gap + "[") for rate in rates),
            f"{row.env_steps:,}",
            f"{row.mode_entropy:.2f}",
        )
    return table


def format_rate(rate: float, n_episodes: int) -> str:
    """
    :param rate: success rate
    :param n_episodes: episodes that it is the mean of
    :return: ``0.94 [0.92, 0.96]``, a dash for NaN
    """
    if math.isnan(rate):
        return "–"
    low, high = wilson_interval(round(rate * n_episodes), n_episodes)
    return f"{rate:.2f} [{low:.2f}, {high:.2f}]"
