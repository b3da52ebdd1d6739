"""
RL Zoo: ``python -m rl_zoo3.train --algo diffppo --env <id>``, and all of its other commands.

The Zoo has no plugins. :func:`extend` adds the algorithm, its tuning and its hyperparameters to the
Zoo's modules as they load, which ``sb3_diffrl_zoo_hook`` sees to; where that hook is not
installed, ``python -m sb3_diffrl.zoo train --algo diffppo ...`` does the same.
"""

from sb3_diffrl.zoo.algorithm import DiffusionPPO
from sb3_diffrl.zoo.extension import ALGO, extend
from sb3_diffrl.zoo.hyperparams import (
    find_experiment,
    linear,
    load_demonstrations,
    load_hyperparams,
    merge,
    read_yaml,
    shipped,
    shipped_names,
    undotted,
)
from sb3_diffrl.zoo.repairs import mend
from sb3_diffrl.zoo.tuning import convert_params, open_storage, sample_params

__all__ = [
    "ALGO",
    "DiffusionPPO",
    "convert_params",
    "extend",
    "find_experiment",
    "linear",
    "load_demonstrations",
    "load_hyperparams",
    "mend",
    "merge",
    "open_storage",
    "read_yaml",
    "sample_params",
    "shipped",
    "shipped_names",
    "undotted",
]
