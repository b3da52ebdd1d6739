"""Hyperparameters in the Zoo's format, named experiments with a base, demonstrations by name."""

import importlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml
from stable_baselines3.common.utils import LinearSchedule

from sb3_diffrl.demonstrations import Demonstrations

Path = str | pathlib.Path


def shipped(folder: str) -> pathlib.Path:
    """
    :param folder: ``"hyperparams"`` or ``"zoo_configs"``
    :return: where it is: in the installed package, or beside it in a checkout
    """
    package = pathlib.Path(__file__).parent.parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def load_hyperparams(
    path: Path, env_id: str, own: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    Read an environment's entry of a file in the Zoo's format.

    A named experiment is a file whose ``base`` names another file, relative to itself, or else one
    of the shipped experiments, with or without ``.yml``: what else it says is merged over that
    file's entry, whichever the environment.

    :param path: YAML file of entries by environment id; ``default`` stands in for a missing one
    :param env_id: which entry
    :param own: what a task changes of the entry, before a named experiment changes it
    :return: hyperparameters by name
    :raises ValueError: where the file has no such entry, or its base does not exist
    """
    entries = read_yaml(path)
    if "base" in entries:
        base = _base(path, str(entries.pop("base")))
        return merge(load_hyperparams(base, env_id, own), entries)
    if env_id not in entries and "default" not in entries:
        raise ValueError(
            f"{path}: no entry {env_id!r}, found {', '.join(map(repr, entries)) or 'none'}. Add "
            "one, or an entry 'default'; a file that changes another one names it as its 'base'."
        )
    entry = entries.get(env_id, entries.get("default"))
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {env_id!r} is {entry!r}, expected hyperparameters by name")
    return merge(entry, own or {})


def _base(path: Path, name: str) -> pathlib.Path:
    folder = pathlib.Path(path).parent
    base = find_experiment(name, folder)
    if base is None:
        raise ValueError(
            f"{path}: base: {name!r} is no file in {folder.resolve()} and no shipped "
            f"experiment. Expected a path relative to {path}, or one of {shipped_names()}."
        )
    return base


def find_experiment(name: str, folder: Path = ".") -> pathlib.Path | None:
    """
    :param name: of a file, or else of a shipped experiment, with or without ``.yml``
    :param folder: that the file is named relative to
    :return: the file; None where there is none
    """
    file = pathlib.Path(folder) / name
    return file if file.is_file() else _shipped_experiments().get(name.removesuffix(".yml"))


def shipped_names() -> str:
    """:return: the names of the shipped experiments, for messages"""
    return ", ".join(sorted(_shipped_experiments()))


def _shipped_experiments() -> dict[str, pathlib.Path]:
    paths = shipped("zoo_configs").glob("*.yml")
    return {path.stem: path for path in paths if not path.stem.startswith("task_")}


def read_yaml(path: Path) -> dict[str, Any]:
    """
    :param path: YAML file of a mapping
    :return: the mapping
    """
    content = yaml.safe_load(pathlib.Path(path).read_text()) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping, got {content!r}")
    return content


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param base: hyperparameters
    :param overrides: replace those of the same name; mappings are merged in turn, unless they name
        a ``kind`` of schedule
    :return: the hyperparameters with the overrides
    """
    merged = dict(base)
    for name, value in overrides.items():
        old = merged.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and "kind" not in value:
            value = merge(old, value)
        merged[name] = value
    return merged


def undotted(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: ``{"policy_kwargs.sigma_min": 0.2}`` sets one entry of ``policy_kwargs`` and
        leaves the others, as ``-params`` and studies want to
    :return: the same without dots in names
    """
    plain = {name: value for name, value in hyperparams.items() if "." not in name}
    for name, value in hyperparams.items():
        for part in reversed(name.split(".")[1:]):
            value = {part: value}
        if "." in name:
            plain = merge(plain, {name.split(".")[0]: value})
    return plain


def linear(value: Any) -> Any:
    """
    :param value: a learning rate; ``"lin_3.0e-4"`` is the Zoo's notation for one that falls to 0
    :return: the schedule, or the value as it is
    """
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return value


def load_demonstrations(source: Any) -> Demonstrations:
    """
    What an entry's ``demonstrations:`` stands for.

    :param source: a path of any format that :meth:`Demonstrations.load` knows; a Minari id,
        ``mujoco/hopper/medium-v0``; a function by its dotted name, ``package.module.function``; or
        a mapping of a path, an id or that name to the arguments of the reader (``format`` among
        them) or of the function
    :return: the demonstrations
    :raises ValueError: where it is none of these
    """
    arguments: Mapping[str, Any] = {}
    if isinstance(source, Mapping) and len(source) == 1:
        ((source, arguments),) = source.items()
    if isinstance(source, str | pathlib.Path):
        text = str(source)
        if pathlib.Path(text).exists() or "format" in (arguments or {}):
            return Demonstrations.load(text, **(arguments or {}))
        if pathlib.Path(text).suffix in (".npz", ".demos", ".hdf5", ".h5"):
            raise ValueError(
                f"demonstrations: {text}: there is no such file in {pathlib.Path.cwd()}. Make "
                "it there (`python benchmarks/zoo_experts.py --env <id>` makes those of the "
                "shipped hyperparameters), or name another: -params "
                "demonstrations:\"'mine.npz'\""
            )
        if re.fullmatch(r"[\w/.-]+-v\d+", text):
            return Demonstrations.from_minari(text, **(arguments or {}))
        if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", text):
            module, _, name = text.rpartition(".")
            made = getattr(importlib.import_module(module), name)(**(arguments or {}))
            if isinstance(made, Demonstrations):
                return made
            raise ValueError(
                f"demonstrations: {text} returned a {type(made).__name__}, expected Demonstrations"
            )
    raise ValueError(
        f"demonstrations: {source!r}: expected the path of an .npz file or of another format, a "
        "Minari id (ends in -v0), a function (package.module.function), or one of them with "
        "arguments ({package.module.function: {n_episodes: 20}}, {path: {format: d4rl}})"
    )
