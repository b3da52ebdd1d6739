"""
The command line: ``sb3-diffrl`` or ``python -m sb3_diffrl``.

A command is a function that is handed its parser and sets ``run`` among its defaults; add it to
:data:`COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import yaml

from sb3_diffrl.bench.commands import bench
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.formats import FORMATS

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

Command = Callable[[argparse.ArgumentParser], None]

_FORMAT_HELP = "format of the source, where the path does not tell it"


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command. Modules of the current directory are found, as by ``python -m``.

    :param arguments: of the command line; by default those of the process
    :return: exit code: 0, or 1 where something was wrong, which is said on standard error
    """
    if not {"", os.getcwd()} & {*sys.path}:
        sys.path.insert(0, os.getcwd())
    parser = argparse.ArgumentParser("sb3-diffrl", description="Tools beside the library.")
    _add(parser, COMMANDS)
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, ImportError, gym.error.Error) as error:
        print(f"sb3-diffrl: {error}", file=sys.stderr)
        return 1
    return 0


def demos(parser: argparse.ArgumentParser) -> None:
    """Inspect, convert and record demonstrations."""
    _add(parser, {"inspect": inspect, "convert": convert, "record": record})


def inspect(parser: argparse.ArgumentParser) -> None:
    """Say what demonstrations hold: counts, lengths, returns, success, ranges."""
    parser.add_argument("path", help="file, folder, or an id with --format")
    parser.add_argument("--format", choices=FORMATS, help=_FORMAT_HELP)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="histograms of the actions")
    parser.set_defaults(run=run_inspect)


def convert(parser: argparse.ArgumentParser) -> None:
    """Write demonstrations of any format as .npz or .demos."""
    parser.add_argument("source", help="file, folder, or an id with --format")
    parser.add_argument("dest", type=Path, help="file.npz, or folder.demos to be memory-mapped")
    parser.add_argument("--format", choices=FORMATS, help=_FORMAT_HELP)
    parser.set_defaults(run=run_convert)


def record(parser: argparse.ArgumentParser) -> None:
    """Record episodes of a policy. Models and statistics hold pickles: load only your own."""
    parser.add_argument(
        "--model", required=True, help="saved model (.zip), or package.module.function"
    )
    parser.add_argument("--algo", default="diffppo", help="class of a saved model, by Zoo's name")
    parser.add_argument(
        "--vecnormalize",
        type=Path,
        metavar="FILE.pkl",
        help="statistics by which the policy's observations are normalised, those recorded are "
        "not; by default ENV/vecnormalize.pkl, as RL Zoo saves it, or MODEL.vecnormalize.pkl "
        "beside the model. A pickle can run any code: load only files of your own",
    )
    parser.add_argument("--env", required=True, help="environment id")
    parser.add_argument(
        "--env-kwargs",
        type=_env_argument,
        nargs="+",
        default=[],
        metavar="NAME:VALUE",
        help="arguments of the environment, values in YAML",
    )
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--n-envs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stochastic", action="store_true", help="draw the model's actions")
    parser.add_argument("--output", type=Path, required=True, help="file.npz or folder.demos")
    parser.set_defaults(run=run_record)


COMMANDS: dict[str, Command] = {"bench": bench, "demos": demos}


def run_inspect(args: argparse.Namespace) -> None:
    """
    :param args: of :func:`inspect`
    """
    from rich.console import Console

    demonstrations = Demonstrations.load(args.path, args.format)
    _named(args.path, demonstrations.check_finite)
    tables = summary(args.path, demonstrations)
    needed = max(Console(width=10_000).measure(table).maximum for table in tables)
    console = Console(width=max(Console().width, needed))  # numbers are never cut
    for table in tables:
        console.print(table)
    if args.plot is not None:
        from sb3_diffrl.plots import action_figure

        action_figure(args.plot, demonstrations)
        console.print(f"Wrote {args.plot}")


def run_convert(args: argparse.Namespace) -> None:
    """
    :param args: of :func:`convert`
    """
    _check_dest(args.dest)
    demonstrations = Demonstrations.load(args.source, args.format)
    _named(args.source, demonstrations.check_finite)
    print(f"Wrote {demonstrations.save(args.dest, progress_bar=True)}: {demonstrations}")


def run_record(args: argparse.Namespace) -> None:
    """
    :param args: of :func:`record`
    """
    from stable_baselines3.common.env_util import make_vec_env

    _check_dest(args.output)
    path = _model_file(args.model)
    policy = _function(args.model) if path is None else _load(path, args.algo)
    statistics = args.vecnormalize or (path and _statistics(path, args.env))
    try:
        env = make_vec_env(args.env, args.n_envs, seed=args.seed, env_kwargs=dict(args.env_kwargs))
    except (gym.error.Error, TypeError) as error:
        raise ValueError(f"--env {args.env}: {error}") from error
    try:
        policy = _step_wise(policy, env)
        if statistics:
            env = _normalized(env, statistics)
        demonstrations = Demonstrations.from_rollouts(
            policy, env, args.episodes, not args.stochastic, args.seed, progress_bar=True
        )
    finally:
        env.close()
    print(f"Wrote {demonstrations.save(args.output, progress_bar=True)}: {demonstrations}")


def summary(path: str, demonstrations: Demonstrations) -> list[Any]:
    """
    :param path: shown as the title
    :param demonstrations: what to sum up; all is read once, in chunks
    :return: tables to print with rich: of the episodes, and of the fields
    """
    import rich.box
    from rich.table import Table

    style: Any = {"box": rich.box.SIMPLE_HEAD, "title_justify": "left", "padding": 0}
    episodes = Table(title=str(path), **style)
    for name in ("", "total", "mean", "smallest", "median", "largest"):
        episodes.add_column(name, justify="right" if name else "left")
    lengths = demonstrations.lengths

    def row(name: str, total: str, values: np.ndarray, digits: int) -> None:
        shown = (values.mean(), values.min(), np.median(values), values.max())
        episodes.add_row(name, total, *(f"{value:,.{digits}f}" for value in shown))

    row(f"{len(demonstrations):,} episodes: length", f"{lengths.sum():,}", lengths, 0)
    if demonstrations.rewards is not None:
        row("return", "", demonstrations.returns, 2)
    if demonstrations.successes is not None:
        successes = demonstrations.successes
        episodes.add_row("success", f"{successes.sum():,}", f"{100 * successes.mean():.1f} %")
    if demonstrations.weights is not None:
        row("weight", f"{demonstrations.weights.sum():,.2f}", demonstrations.weights, 2)

    fields = Table(**style)
    for name in ("field", "shape", "dtype", "smallest", "1 %", "mean", "std", "99 %", "largest"):
        fields.add_column(name, justify="left" if name in ("field", "shape") else "right")
    arrays = demonstrations.arrays()
    for name, found in demonstrations.statistics().items():
        numbers = (
            *(found.minimum.min(), found.low.min(), found.mean.mean()),
            *(found.std.mean(), found.high.max(), found.maximum.max()),
        )
        array = arrays[name]
        fields.add_row(
            name, str(array.shape[1:]), str(array.dtype), *(f"{number:.4g}" for number in numbers)
        )
    return [episodes, fields]


def _add(parser: argparse.ArgumentParser, commands: dict[str, Command]) -> None:
    subparsers = parser.add_subparsers(required=True, metavar="command")
    for name, command in commands.items():
        text = (command.__doc__ or "").strip()
        command(subparsers.add_parser(name, help=text, description=text))


def _named(source: str, check: Callable[[], None]) -> None:
    try:
        check()
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _check_dest(path: Path) -> None:
    if path.suffix not in (".npz", ".demos"):
        raise ValueError(f"{path}: expected a name that ends in .npz or .demos")


def _model_file(name: str) -> Path | None:
    return next((path for path in (Path(name), Path(f"{name}.zip")) if path.is_file()), None)


def _load(path: Path, algo: str) -> Any:
    from rl_zoo3.utils import ALGOS
    from stable_baselines3.common.save_util import load_from_zip_file

    from sb3_diffrl import DiffusionPPO

    algorithms: dict[str, Any] = {**ALGOS, "diffppo": DiffusionPPO}
    if algo not in algorithms:
        raise ValueError(f"--algo {algo}: expected one of {', '.join(sorted(algorithms))}")
    data, _, _ = load_from_zip_file(path, device="cpu")
    if not data:
        raise ValueError(f"--model {path}: expected a model that Stable-Baselines3 saved")
    policy: Any = data.get("policy_class")
    fitting = [name for name, each in algorithms.items() if policy in each.policy_aliases.values()]
    if fitting and algo not in fitting:
        raise ValueError(
            f"--model {path}: its policy is {policy.__name__}, expected one of --algo {algo}; name "
            f"the class of the model, --algo {' or '.join(sorted(fitting))}"
        )
    return algorithms[algo].load(path)


def _env_argument(text: str) -> tuple[str, Any]:
    """As of RL Zoo's ``--env-kwargs``, but that values are YAML and not Python."""
    name, colon, value = text.partition(":")
    try:
        if colon and name.isidentifier():
            return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: not a value in YAML ({error})") from error
    raise argparse.ArgumentTypeError(f"{text!r}: expected NAME:VALUE, such as task:push")


def _statistics(model: Path, env_id: str) -> Path | None:
    """What ``VecNormalize`` saved beside a model: by the benchmark, or by RL Zoo."""
    from huggingface_sb3 import EnvironmentName

    places = (
        model.with_suffix(".vecnormalize.pkl"),
        model.parent / EnvironmentName(env_id) / "vecnormalize.pkl",
    )
    return next((path for path in places if path.is_file()), None)


def _normalized(env: VecEnv, path: Path) -> VecEnv:
    from stable_baselines3.common.vec_env import VecNormalize

    try:
        normalized = VecNormalize.load(str(path), env)
    except OSError:
        raise
    except AssertionError as error:
        raise ValueError(
            f"{path}: statistics of other observations than the env's ({error}); choose the env's "
            "own by --vecnormalize, those of histories or stacked frames cannot be used here"
        ) from error
    except Exception as error:  # a pickle can raise anything
        raise ValueError(
            f"{path}: expected what VecNormalize.save writes, got {error!r}"
        ) from error
    normalized.training = normalized.norm_reward = False
    print(f"Observations normalised by {path}")
    return normalized


def _step_wise(policy: Any, env: VecEnv) -> Any:
    """The policy; of one that predicts chunks, their actions one at a time, for a bare env."""
    from sb3_diffrl.chunked_policy import ChunkedPolicies
    from sb3_diffrl.wrappers.records import recorded_wrappers

    if not getattr(policy, "env_wrappers", None) or recorded_wrappers(env):
        return policy
    return ChunkedPolicies(policy, env.num_envs)


def _function(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"--model {dotted}: neither a file nor a function, package.module.function ({error})"
        ) from error
