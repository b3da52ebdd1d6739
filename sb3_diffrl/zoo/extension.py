"""What is added to the Zoo's modules as they load."""

import functools
import importlib.util
import os
import pathlib
import tempfile
from types import ModuleType
from typing import Any

import yaml

from sb3_diffrl.zoo.algorithm import DiffusionPPO
from sb3_diffrl.zoo.hyperparams import (
    find_experiment,
    load_hyperparams,
    read_yaml,
    shipped,
    shipped_names,
)
from sb3_diffrl.zoo.repairs import mend_hub_client, named_without_slashes
from sb3_diffrl.zoo.tuning import convert_params, open_storage, sample_params

ALGO = "diffppo"


def extend(module: ModuleType) -> None:
    """
    Add ``diffppo`` to one of the Zoo's modules.

    :param module: ``rl_zoo3.utils``, ``.hyperparams_opt`` or ``.exp_manager``, just loaded
    """
    {
        "utils": _extend_utils,
        "hyperparams_opt": _extend_hyperparams_opt,
        "exp_manager": _extend_exp_manager,
    }[module.__name__.rpartition(".")[2]](module)


def _extend_utils(module: Any) -> None:
    module.ALGOS[ALGO] = DiffusionPPO
    module.get_trained_models = named_without_slashes(module.get_trained_models)
    mend_hub_client()


def _extend_hyperparams_opt(module: Any) -> None:
    module.HYPERPARAMS_SAMPLER[ALGO] = sample_params
    module.HYPERPARAMS_CONVERTER[ALGO] = convert_params


class _Zero(int):
    """The number of the first trial; the Zoo takes 0 for none given."""

    def __bool__(self) -> bool:
        return True


def _file_or_module(config: str) -> str:
    """
    :param config: as given to ``-conf``
    :return: what the Zoo understands: the file of a shipped experiment for its name
    :raises ValueError: for a name that is none of them
    """
    if (experiment := find_experiment(config)) is not None:
        return str(experiment)
    if "." not in config and not _is_module(config):
        raise ValueError(
            f"-conf {config}: there is no such file, module or shipped experiment. Expected the "
            f"path of a file (mine.yml), or one of {shipped_names()}."
        )
    return config


def _is_module(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # a mere folder has none


def _extend_exp_manager(module: Any) -> None:
    from optuna import storages

    storages.get_storage = functools.partial(open_storage, storages.get_storage)
    manager = module.ExperimentManager
    init, read_hyperparameters = manager.__init__, manager.read_hyperparameters

    @functools.wraps(init)
    def find_config(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        config = kwargs.get("config")
        if config:
            self.config = _file_or_module(config)
        elif self.algo == ALGO:
            self.config = str(shipped("hyperparams") / f"{ALGO}.yml")
        if self.algo == ALGO:  # as `predict` recommends
            self.deterministic_eval = False
        if self.trial_id == 0:
            self.trial_id = _Zero()

    @functools.wraps(read_hyperparameters)
    def read_experiment(self: Any) -> Any:
        config = self.config
        if not config.endswith((".yml", ".yaml")) or "base" not in read_yaml(config):
            return read_hyperparameters(self)
        env_id = self.env_name.gym_id
        with tempfile.TemporaryDirectory() as folder:
            name = pathlib.Path(config).name
            print(f"Experiment {config}, with its base:")
            self.config = os.path.join(folder, name)
            entry = {env_id: load_hyperparams(config, env_id)}
            pathlib.Path(self.config).write_text(yaml.safe_dump(entry))
            try:
                return read_hyperparameters(self)
            finally:
                self.config = config

    manager.__init__, manager.read_hyperparameters = find_config, read_experiment
