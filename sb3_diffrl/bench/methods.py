"""The methods that the benchmark compares."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """
    One method.

    :param name: in commands and results
    :param label: in tables and figures
    :param algo: algorithm by its name in RL Zoo, or a function that builds the model, by its
        dotted name (see :func:`~sb3_diffrl.bench.training.builder`)
    :param config: named experiment of ``zoo_configs/``; None for the algorithm's hyperparameters
    """

    name: str
    label: str
    algo: str
    config: str | None = None


_GRID = (
    Method("diffusion", "Diffusion only", "diffppo", "diffusion_only"),
    Method("diffrl", "DiffRL", "diffppo", "diffrl"),
    Method("paper", "DiffRL, all parts", "diffppo", "paper"),
    Method("no_kl", "NoKL", "diffppo", "no_kl"),
    Method("fixed_beta", "FixedBeta", "diffppo", "fixed_beta"),
    Method("no_mixing", "NoMixing", "diffppo", "no_mixing"),
    Method("no_imitation", "NoImitation", "diffppo", "no_imitation"),
    Method("no_context", "NoContext", "diffppo", "no_context"),
    Method("undirected", "Undirected noise", "diffppo", "undirected"),
    Method("bc_ppo", "Gaussian cloning + PPO", "bc_ppo"),
    Method("ppo", "PPO from scratch", "ppo"),
    Method("sac", "SAC from scratch", "sac"),
    Method("tqc", "TQC from scratch", "tqc"),
)
# What ablations compare with as well, not in the grid unless asked for.
_OTHERS = (
    Method("kl_alone", "KL in the place of imitation", "diffppo", "kl_alone"),
    Method("imitation_only", "Imitation only", "diffppo", "imitation_only"),
)
# An experiment that leaves something out; the method that has it; and what it is.
ABLATIONS = (
    ("no_kl", "paper", "prior KL"),
    ("fixed_beta", "paper", "adaptive weight of the KL"),
    ("no_mixing", "paper", "mixing"),
    ("no_imitation", "kl_alone", "prior KL, where nothing is imitated"),
    ("no_imitation", "diffrl", "imitation during RL"),
    ("no_context", "diffrl", "demonstrations in the scenes met"),
    ("imitation_only", "diffrl", "policy gradients"),
)
METHODS = {method.name: method for method in _GRID}
_NAMED = {method.name: method for method in (*_GRID, *_OTHERS)}
LABELS = {name: method.label for name, method in _NAMED.items()}


def find_method(name: str) -> Method:
    """
    :param name: one of :data:`METHODS`; another name of ``zoo_configs/`` or the path of such a
        file, an experiment with DiffusionPPO; or a function by its dotted name
    :return: the method, which results call by that name, a file by its stem
    :raises ValueError: where there is none
    """
    from sb3_diffrl.bench.training import builder
    from sb3_diffrl.zoo import find_experiment

    if name in _NAMED:
        return _NAMED[name]
    if (file := find_experiment(name)) is not None:
        called = name if file.stem in _NAMED else file.stem  # not by another method's name
        return Method(called, called, "diffppo", name)
    try:
        builder(name)
    except ValueError as error:
        raise ValueError(
            f"no method {name!r}: expected one of {', '.join(METHODS)}, a named experiment of "
            "zoo_configs/ or the path of one, or a function that builds a model, "
            "package.module.function"
        ) from error
    return Method(name, name, name)
