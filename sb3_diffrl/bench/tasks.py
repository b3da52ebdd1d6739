"""
The tasks of the benchmark: an environment, clean and perturbed, and how methods learn it.

``avoiding``, ``metaworld/<task>`` and any environment with demonstrations of one's own, described
by a YAML file of a few lines (see ``zoo_configs/task_avoiding_small_shift.yml``).
"""

import importlib
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from sb3_diffrl.bench.zoo_commands import zoo_hyperparams
from sb3_diffrl.envs.metaworld import LEVELS, TASKS
from sb3_diffrl.wrappers import GymVecEnv
from sb3_diffrl.zoo import (
    find_experiment,
    load_hyperparams,
    merge,
    read_yaml,
    shipped,
    shipped_names,
)

Wrap = Callable[[gym.Env], gym.Env]

METAWORLD = "metaworld"
FAMILIES = ("avoiding", METAWORLD)  # of tasks that ship with the package
PRETRAINED = ("diffppo", "bc_ppo")  # algorithms that start from demonstrations


@dataclass(frozen=True)
class Task:
    """
    What is to be learned; picklable.

    :param name: in commands and results
    :param env_id: of gymnasium; ``module:id`` imports the module that registers it
    :param perturbations: arguments of the perturbed environment by name of the perturbation
    :param env_kwargs: arguments of every environment
    :param hyperparams: by algorithm, what is merged over its hyperparameters
    :param n_timesteps: budget of methods that start from demonstrations, by perturbation, where it
        is not that of the hyperparameters
    :param protocol: perturbations that the benchmark runs unless told otherwise; by default all
    """

    name: str
    env_id: str
    perturbations: Mapping[str, Mapping[str, Any]]
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    hyperparams: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    n_timesteps: Mapping[str, int] = field(default_factory=dict)
    protocol: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", self.protocol or tuple(self.perturbations))

    def make_env(self, perturbation: str | None, n_envs: int, wrap: Wrap | None = None) -> VecEnv:
        """
        :param perturbation: name of one, None for the clean environment
        :param n_envs: number of environments
        :param wrap: what is to be put around each, which are then stepped one by one
        :return: monitored environments
        :raises ValueError: for an unknown perturbation
        """
        kwargs = {**self.env_kwargs, **self.perturbed(perturbation)}
        if wrap is None and self.vectorised:
            mode = "vector_entry_point"
            envs = gym.make_vec(self.env_id, n_envs, vectorization_mode=mode, **kwargs)
            return VecMonitor(GymVecEnv(envs))

        def make() -> gym.Env:
            env = Monitor(gym.make(self.env_id, **kwargs))
            return env if wrap is None else wrap(env)

        return DummyVecEnv([make] * n_envs)

    @property
    def vectorised(self) -> bool:
        """Whether many environments cost little more than one."""
        module, _, env_id = self.env_id.rpartition(":")
        if module:
            importlib.import_module(module)
        return gym.spec(env_id).vector_entry_point is not None

    def hyperparams_of(
        self, algo: str, config: str | None = None, perturbation: str | None = None
    ) -> dict[str, Any]:
        """
        :param algo: algorithm, by its name in RL Zoo; a function of one's own is handed those of
            DiffusionPPO
        :param config: named experiment: a path, or a name of ``zoo_configs/``
        :param perturbation: that is trained under
        :return: the shipped hyperparameters of the environment, RL Zoo's own where there are none;
            with the task's own merged over them, and over these what the experiment changes
        :raises ValueError: where there are none
        """
        algo = "diffppo" if "." in algo else algo  # a function of one's own
        env_id = self.env_id.rpartition(":")[2]
        own = dict(self.hyperparams.get(algo, {}))
        if algo in PRETRAINED and (steps := self.n_timesteps.get(perturbation or "")):
            own["n_timesteps"] = steps
        path = shipped("hyperparams") / f"{algo}.yml"
        if config is not None:
            experiment = find_experiment(config)
            if experiment is None:
                raise ValueError(
                    f"{self.name}: no experiment {config!r}: expected the path of a file, or one "
                    f"of {shipped_names()}"
                )
            return load_hyperparams(experiment, env_id, own)
        if path.exists() and {env_id, "default"} & read_yaml(path).keys():
            return load_hyperparams(path, env_id, own)
        return merge(zoo_hyperparams(algo, env_id), own)

    def perturbed(self, perturbation: str | None) -> Mapping[str, Any]:
        """
        :param perturbation: name of one, None for the clean environment
        :return: what it adds to the environment's arguments
        :raises ValueError: for an unknown one
        """
        if perturbation is None:
            return {}
        if perturbation not in self.perturbations:
            raise ValueError(
                f"{self.name}: no perturbation {perturbation!r}, expected one of "
                f"{', '.join(self.perturbations)}"
            )
        return self.perturbations[perturbation]


def avoiding() -> Task:
    """:return: the embedded task, in ten displaced scenes and displaced anew in every episode"""
    names = [*(f"scene:{n}" for n in range(10)), "episode"]
    return Task(
        name="avoiding",
        env_id="sb3_diffrl/Avoiding-v0",
        perturbations={name: {"perturbation": name} for name in names},
        n_timesteps={"episode": 200_000},
    )


def metaworld(task: str) -> Task:
    """
    :param task: name in Meta-World, such as ``assembly``
    :return: the task under every level of :data:`~sb3_diffrl.envs.metaworld.LEVELS`; the protocol
        is that of displaced objects and goals
    """
    demonstrations = {
        "demonstrations": {
            "sb3_diffrl.envs.metaworld.metaworld_demonstrations": {"task": task},
        }
    }
    return Task(
        name=f"{METAWORLD}/{task}",
        env_id="sb3_diffrl/MetaWorld-v0",
        perturbations={level: {"perturbation": level} for level in LEVELS},
        env_kwargs={"task": task},
        hyperparams=dict.fromkeys(PRETRAINED, demonstrations),
        protocol=("positions",),
    )


def from_yaml(path: str | pathlib.Path) -> Task:
    """
    A task of one's own::

        env: my_package:MyEnv-v0
        env_kwargs: {}
        perturbations:
          moved: {displacement: 0.1}
        demonstrations: my_demonstrations.npz
        pretrain: {gradient_steps: 10000}
        hyperparams:
          diffppo: {n_envs: 8}

    The environment's ``info`` tells ``is_success`` at the end of an episode. Without
    ``demonstrations`` there are methods from scratch alone; without ``pretrain`` its defaults hold.

    :param path: a YAML file; its stem, without ``task_``, names the task
    :return: the task
    :raises ValueError: where something is missing or unknown
    """
    path = pathlib.Path(path)
    content = read_yaml(path)
    shared = {name: content.pop(name) for name in ("demonstrations", "pretrain") if name in content}
    missing = {"env", "perturbations"} - content.keys()
    unknown = content.keys() - {"env", "env_kwargs", "perturbations", "hyperparams"}
    if missing or unknown:
        raise ValueError(
            f"{path}: missing {sorted(missing)}, unknown {sorted(unknown)}. Expected env and "
            "perturbations, and any of env_kwargs, demonstrations, pretrain, hyperparams."
        )
    if "pretrain" in shared and "demonstrations" not in shared:
        raise ValueError(f"{path}: pretrain: without demonstrations there is nothing to imitate")
    if "demonstrations" in shared:
        shared["pretrain"] = shared.get("pretrain") or {}
    if path.stem.removeprefix("task_") in FAMILIES:
        raise ValueError(f"{path}: the name of a task that there is; call the file otherwise")
    if not isinstance(content["perturbations"], dict) or not content["perturbations"]:
        raise ValueError(f"{path}: perturbations: expected arguments of the environment by name")
    return Task(
        name=path.stem.removeprefix("task_"),
        env_id=content["env"],
        perturbations={name: kwargs or {} for name, kwargs in content["perturbations"].items()},
        env_kwargs=content.get("env_kwargs") or {},
        hyperparams=merge(content.get("hyperparams") or {}, dict.fromkeys(PRETRAINED, shared)),
    )


def find_tasks(name: str) -> list[Task]:
    """
    :param name: ``avoiding``, ``metaworld`` (the twenty), ``metaworld/<task>``, the path of a YAML
        file, or the name of one of ``zoo_configs/task_*.yml``
    :return: the tasks of that name
    :raises ValueError: where there is none
    """
    if name == "avoiding":
        return [avoiding()]
    if name == METAWORLD:
        return [metaworld(task) for task in TASKS]
    if name.startswith(f"{METAWORLD}/"):
        return [metaworld(name.removeprefix(f"{METAWORLD}/"))]
    named = shipped("zoo_configs") / f"task_{name}.yml"
    if named.exists() or name.endswith((".yml", ".yaml")):
        return [from_yaml(named if named.exists() else name)]
    own = sorted(file.stem.removeprefix("task_") for file in named.parent.glob("task_*.yml"))
    raise ValueError(
        f"no task {name!r}: expected avoiding, {METAWORLD}, {METAWORLD}/<task>, "
        f"{', '.join(own)}, or the path of a YAML file that describes one"
    )
