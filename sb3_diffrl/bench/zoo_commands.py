"""Runs of RL Zoo's own commands, and its own hyperparameters."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

import sb3_diffrl_zoo_hook as zoo_hook
from sb3_diffrl.files import Path
from sb3_diffrl.zoo import read_yaml


def zoo_hyperparams(algo: str, env_id: str) -> dict[str, Any]:
    """
    RL Zoo's own entry for an environment.

    :param algo: name of the algorithm in the Zoo
    :param env_id: an environment; where the Zoo knows only an older version, that one's entry
    :return: hyperparameters by name
    :raises ValueError: where the Zoo has none
    """
    spec = importlib.util.find_spec("rl_zoo3")
    assert spec is not None and spec.submodule_search_locations
    path = pathlib.Path(spec.submodule_search_locations[0], "hyperparams", f"{algo}.yml")
    entries = read_yaml(path) if path.exists() else {}
    name, _, version = env_id.rpartition("-v")
    older = range(int(version), -1, -1) if version.isdecimal() else ()
    known = (env_id, *(f"{name}-v{number}" for number in older), "default")
    found = next((env for env in known if env in entries), None)
    if found is None:
        raise ValueError(f"RL Zoo has no hyperparameters of {algo!r} for {env_id!r}.")
    return entries[found]


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
    from huggingface_sb3 import EnvironmentName
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
