"""One run of the benchmark: a method learns a task under a perturbation and is measured."""

import multiprocessing
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple, TypeVar

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffrl.bench import records
from sb3_diffrl.bench.methods import LABELS, Method
from sb3_diffrl.bench.provenance import command, commit, peak_rss_mb, versions
from sb3_diffrl.bench.records import EVAL_MODES, Point, Record, Successes
from sb3_diffrl.bench.tasks import PRETRAINED, Task
from sb3_diffrl.bench.training import (
    Prior,
    actions_per_decision,
    builder,
    make_prior,
    prior_key,
    short_hash,
    training_env,
    wrapping,
)
from sb3_diffrl.callbacks import SuccessCallback
from sb3_diffrl.envs.avoiding import mode_entropy
from sb3_diffrl.evaluation import evaluate
from sb3_diffrl.files import Path

EVALUATION_SEED = 1000  # starts and layouts other than those of training
Result = TypeVar("Result")


@dataclass(frozen=True)
class Run:
    """
    What is trained on what; picklable.

    :param task: what is learned
    :param method: name of the method
    :param algo: see :class:`~sb3_diffrl.bench.methods.Method`
    :param perturbation: of the environment that is trained and measured in
    :param hyperparams: in RL Zoo's format, see :meth:`Task.hyperparams_of`
    :param env_steps: environment steps to train for; 0 measures the prior
    :param seed: of training, and of its prior, see :attr:`prior_seed`
    :param n_episodes: evaluation episodes of each success rate
    :param curve_interval: environment steps between points of the learning curve
    :param curve_episodes: evaluation episodes of each point
    :param save_path: where to save the trained model, if anywhere; what it normalises by is beside
        it, ``.vecnormalize.pkl``
    :param progress_bar: whether to show one
    """

    task: Task
    method: str
    algo: str
    perturbation: str
    hyperparams: dict[str, Any]
    env_steps: int
    seed: int = 0
    n_episodes: int = 500
    curve_interval: int = 5000
    curve_episodes: int = 100
    save_path: Path | None = None
    progress_bar: bool = False

    @property
    def key(self) -> records.Key:
        """Key of the record that it gives."""
        return self.task.name, self.method, self.perturbation, self.seed

    @property
    def needs_prior(self) -> bool:
        """Whether it starts from a diffusion prior: DiffusionPPO and functions of one's own."""
        ours = self.algo == "diffppo" or "." in self.algo
        return ours and self.knows_the_task

    @property
    def knows_the_task(self) -> bool:
        """Whether it is pre-trained on demonstrations."""
        return self.hyperparams.get("pretrain") is not None

    @property
    def prior_seed(self) -> int:
        """Seed of its prior: each seed of training has a prior of its own."""
        return self.seed + 1

    @property
    def prior_key(self) -> str:
        """The same for runs that start from the same prior."""
        return prior_key(self.task, self.hyperparams, self.prior_seed)

    @property
    def settings(self) -> dict[str, Any]:
        """What its record depends on beside its key; of the hyperparameters a hash."""
        return {
            "env_steps": self.env_steps,
            "n_episodes": self.n_episodes,
            "curve_interval": self.curve_interval,
            "curve_episodes": self.curve_episodes,
            "hyperparams": short_hash(self.hyperparams, default=str),
        }

    def make_prior(self, folder: Path, progress_bar: bool = False) -> Prior:
        """
        :param folder: where priors are kept
        :param progress_bar: whether to show one
        :return: its prior
        """
        return make_prior(folder, self.task, self.hyperparams, self.prior_seed, progress_bar)

    def training_env(self) -> VecEnv:
        """:return: the environments that it trains in"""
        return training_env(self.task, self.hyperparams, self.perturbation)

    def evaluation_env(self, perturbation: str | None, n_episodes: int) -> VecEnv:
        """
        :param perturbation: None for the clean environment
        :param n_episodes: that are to be made
        :return: environments to evaluate in
        """
        n_envs = min(n_episodes, 100 if self.task.vectorised else 10)
        return self.task.make_env(perturbation, n_envs, wrapping(self.hyperparams))


def plan_run(
    task: Task,
    method: Method,
    perturbation: str,
    seed: int = 0,
    env_steps: int | None = None,
    **arguments: Any,
) -> Run:
    """
    :param task: what is learned
    :param method: how
    :param perturbation: of the environment
    :param seed: of training
    :param env_steps: environment steps of training; by default those of the hyperparameters
    :param arguments: others of :class:`Run`
    :return: the run
    :raises ValueError: for an unknown perturbation, and a method that needs demonstrations where
        the task has none
    """
    task.perturbed(perturbation)
    hyperparams = task.hyperparams_of(method.algo, method.config, perturbation)
    if method.name in LABELS and method.algo in PRETRAINED and hyperparams.get("pretrain") is None:
        raise ValueError(
            f"{method.name} starts from demonstrations, and {task.name} has none: give the task "
            "`demonstrations`, or choose --methods from scratch."
        )
    steps = round(hyperparams.get("n_timesteps", 0)) * actions_per_decision(task, hyperparams)
    if steps and env_steps is not None:
        steps = env_steps
    cheap = task.vectorised  # in a simulator points of the curve would cost more than training
    defaults = {
        "curve_interval": max(5_000, steps // (40 if cheap else 16)),
        "curve_episodes": 100 if cheap else 30,
    }
    return Run(
        task,
        method.name,
        method.algo,
        perturbation,
        hyperparams,
        steps,
        seed,
        **(defaults | arguments),
    )


class Measurement(NamedTuple):
    """
    What evaluation episodes gave.

    :param successes: how many succeeded
    :param mode_entropy: evenness of the ways used, 0 to 1; None where the task tells no ways apart
    """

    successes: Successes
    mode_entropy: float | None


def measure(
    run: Run, model: BaseAlgorithm, perturbation: str | None, deterministic: bool = False
) -> Measurement:
    """
    :param run: gives task and number of episodes
    :param model: what acts
    :param perturbation: None for the clean environment
    :param deterministic: how the model predicts
    :return: successes and mode entropy
    """
    env = run.evaluation_env(perturbation, run.n_episodes)
    result = evaluate(model, env, run.n_episodes, deterministic, EVALUATION_SEED)
    env.close()
    if not any("is_success" in info for info in result.infos):
        raise ValueError(
            f"{run.task.name}: the last `info` of an episode must tell `is_success`, and no "
            f"episode's did; found {', '.join(map(repr, result.infos[0]))}."
        )
    ways = [info["way"] for info in result.infos if "way" in info]
    successes = Successes(int(result.successes.sum()), len(result.successes))
    return Measurement(successes, mode_entropy(ways) if ways else None)


class LearningCurve:
    """
    The callbacks that measure a run as it trains: in the perturbed environment and, where the run
    knows the task before RL and can forget it, in the clean one.

    :param run: what is trained
    """

    def __init__(self, run: Run) -> None:
        self._episodes = run.curve_episodes
        measured: dict[str, str | None] = {"perturbed": run.perturbation}
        if run.knows_the_task:
            measured["clean"] = None
        self.callbacks = [  # to hand to ``learn``
            SuccessCallback(
                run.evaluation_env(perturbation, run.curve_episodes),
                run.curve_interval,
                run.curve_episodes,
                EVALUATION_SEED,
                name=f"{name}_success_rate",
            )
            for name, perturbation in measured.items()
        ]

    @property
    def env_steps(self) -> int:
        """Environment steps so far; 0 where the callbacks were not used."""
        perturbed = self.callbacks[0]
        return perturbed.env_steps if perturbed.curve else 0

    @property
    def points(self) -> list[Point]:
        """The curve."""
        curves = [
            [Successes(round(rate * self._episodes), self._episodes) for _, rate in callback.curve]
            for callback in self.callbacks
        ]
        steps = [steps for steps, _ in self.callbacks[0].curve]
        return [Point(*point) for point in zip(steps, *curves, strict=True)]

    def close(self) -> None:
        """Close its environments."""
        for callback in self.callbacks:
            callback.env.close()


def execute(run: Run, prior: Prior | None = None) -> Record:
    """
    Train and measure, before and after.

    :param run: what to do
    :param prior: see :meth:`Run.make_prior`, for a run that needs one
    :return: what it gave
    :raises ValueError: where the prior is missing
    """
    if run.needs_prior and prior is None:
        raise ValueError(f"{run.method} starts from a prior: hand over what run.make_prior gives.")
    started, code = datetime.now(timezone.utc).isoformat(timespec="seconds"), commit()
    start = time.perf_counter()
    model = builder(run.algo)(run, prior)
    before = {
        mode: measure(run, model, run.perturbation, deterministic).successes
        if run.knows_the_task
        else None
        for mode, deterministic in EVAL_MODES.items()
    }
    wall_s, points, env_steps = time.perf_counter() - start, [], 0
    if run.env_steps:
        curve = LearningCurve(run)
        start = time.perf_counter()
        decisions = run.env_steps // actions_per_decision(run.task, run.hyperparams)
        callbacks = CallbackList([*curve.callbacks])
        model.learn(decisions, callbacks, progress_bar=run.progress_bar)
        wall_s, points, env_steps = time.perf_counter() - start, curve.points, curve.env_steps
        curve.close()
    elif prior is not None:
        wall_s = prior.wall_s
    if run.save_path is not None:
        path = pathlib.Path(run.save_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
        if (statistics := model.get_vec_normalize_env()) is not None:
            statistics.save(str(path.with_suffix(".vecnormalize.pkl")))
    evaluations, entropies = {}, {}
    for mode, deterministic in EVAL_MODES.items():
        clean = measure(run, model, None, deterministic)
        after = before[mode]
        if run.env_steps or after is None:
            after = measure(run, model, run.perturbation, deterministic).successes
        evaluations[mode] = records.Evaluation(clean.successes, before[mode], after)
        entropies[mode] = clean.mode_entropy
    return Record(
        *run.key,
        env_steps=env_steps,
        evaluations=evaluations,
        curve=points,
        mode_entropy=entropies["stochastic"],
        wall_s=round(wall_s, 2),
        peak_rss_mb=round(peak_rss_mb(), 1),
        started=started,
        commit=code,
        command=command(),
        versions=versions(),
        settings=run.settings,
    )


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
