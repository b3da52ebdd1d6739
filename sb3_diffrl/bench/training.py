"""From hyperparameters in RL Zoo's format to models: building and pre-training."""

import ast
import dataclasses
import hashlib
import importlib
import io
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import sb3_diffrl_zoo_hook as zoo_hook
from sb3_diffrl.bench.tasks import Task, Wrap
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.files import Path, write_bytes, write_text
from sb3_diffrl.wrappers import ActionChunkWrapper
from sb3_diffrl.wrappers.records import find, recorded_wrappers
from sb3_diffrl.zoo import linear, load_demonstrations
from sb3_diffrl.zoo.algorithm import SAMPLING

if TYPE_CHECKING:
    from sb3_diffrl.bench.baselines import ClonedPPO
    from sb3_diffrl.bench.runs import Run

# Of a run's hyperparameters, what is not an argument of the algorithm.
OTHERS = (
    "n_envs",
    "n_timesteps",
    "policy",
    "demonstrations",
    "pretrain",
    "env_wrapper",
    "normalize",
)


class Prior(NamedTuple):
    """
    A pre-trained model.

    :param model: the bytes of its file
    :param wall_s: seconds that demonstrations and pre-training took
    """

    model: bytes
    wall_s: float

    def load(self) -> DiffusionPPO:
        """:return: the model"""
        return DiffusionPPO.load(io.BytesIO(self.model), device="cpu")


Builder = Callable[["Run", Prior | None], BaseAlgorithm]


def algorithm_arguments(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: an entry of RL Zoo's
    :return: those that are the algorithm's own, ``"lin_3.0e-4"`` made a schedule
    """
    arguments = {name: value for name, value in hyperparams.items() if name not in OTHERS}
    for name in ("learning_rate", "clip_range", "critic_learning_rate"):
        if name in arguments:
            arguments[name] = linear(arguments[name])
    return {"device": "cpu", **arguments}


def wrapping(hyperparams: Mapping[str, Any]) -> Wrap | None:
    """
    :param hyperparams: an entry of RL Zoo's
    :return: what its ``env_wrapper`` does to an env, None without one
    """
    zoo_hook.install()
    from rl_zoo3.utils import get_wrapper_class

    return get_wrapper_class(dict(hyperparams))


def actions_per_decision(task: Task, hyperparams: Mapping[str, Any]) -> int:
    """
    :param task: gives the environment that is wrapped
    :param hyperparams: an entry of RL Zoo's
    :return: environment steps of a decision, above 1 with action chunks
    """
    wrap = wrapping(hyperparams)
    if wrap is None:
        return 1
    env = task.make_env(None, 1, wrap)
    chunk = find(recorded_wrappers(env), ActionChunkWrapper.__name__)
    env.close()
    return 1 if chunk is None else chunk["n_executed"]


def training_env(task: Task, hyperparams: Mapping[str, Any], perturbation: str | None) -> VecEnv:
    """
    :param task: what is learned
    :param hyperparams: give ``n_envs`` and, if any, ``env_wrapper`` and ``normalize``
    :param perturbation: of the environment
    :return: monitored envs to train in
    """
    n_envs = hyperparams.get("n_envs", 1)
    env = task.make_env(perturbation, n_envs, wrapping(hyperparams))
    normalize = _normalization(hyperparams.get("normalize", False))
    if normalize is None:
        return env
    if hyperparams.get("pretrain") is not None:  # the policy normalises by the demonstrations
        normalize = {**normalize, "norm_obs": False}
    return VecNormalize(env, gamma=hyperparams.get("gamma", 0.99), **normalize)


def _normalization(value: bool | str | Mapping[str, Any]) -> dict[str, Any] | None:
    """The Zoo's ``normalize``, which may be a call ``dict(...)`` or a mapping in a string."""
    if isinstance(value, str):
        call = ast.parse(value, mode="eval").body
        if isinstance(call, ast.Call):
            return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        return dict(ast.literal_eval(value))
    if isinstance(value, Mapping):
        return dict(value)
    return {} if value else None


def prior_hyperparams(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: of a run
    :return: those that its prior depends on
    """
    names = ("policy", "policy_kwargs", "demonstrations", "pretrain", "env_wrapper")
    found = {name: hyperparams[name] for name in names if name in hyperparams}
    kwargs = found.get("policy_kwargs", {})
    return {**found, "policy_kwargs": {n: v for n, v in kwargs.items() if n not in SAMPLING}}


def prior_key(task: Task, hyperparams: Mapping[str, Any], seed: int) -> str:
    """
    :param task: what is learned
    :param hyperparams: see :func:`prior_hyperparams`
    :param seed: of the weights and minibatches
    :return: the same for the same prior
    """
    what = [seed, task.env_id, dict(task.env_kwargs), prior_hyperparams(hyperparams)]
    return short_hash(what)


def short_hash(what: Any, **kwargs: Any) -> str:
    """
    :param what: plain data
    :param kwargs: of ``json.dumps``
    :return: the same for the same
    """
    return hashlib.sha256(json.dumps(what, sort_keys=True, **kwargs).encode()).hexdigest()[:8]


def make_prior(
    folder: Path,
    task: Task,
    hyperparams: Mapping[str, Any],
    seed: int = 0,
    progress_bar: bool = False,
) -> Prior:
    """
    Demonstrations and pre-training, done once: what the folder holds for the same hyperparameters
    is taken from there.

    :param folder: where priors are kept
    :param task: what is learned
    :param hyperparams: see :func:`prior_hyperparams`
    :param seed: of the weights and minibatches
    :param progress_bar: whether to show one
    :return: the prior
    """
    path = pathlib.Path(folder, f"prior-{prior_key(task, hyperparams, seed)}.zip")
    record = path.with_suffix(".json")
    if not record.exists():
        start = time.perf_counter()
        hyperparams = prior_hyperparams(hyperparams)
        env = training_env(task, hyperparams, None)
        arguments = algorithm_arguments(hyperparams) | {"seed": seed}
        model = DiffusionPPO(hyperparams["policy"], env, **arguments)
        demonstrations = load_demonstrations(hyperparams["demonstrations"])
        result = model.pretrain(
            demonstrations, progress_bar=progress_bar, **hyperparams["pretrain"]
        )
        buffer = io.BytesIO()
        model.save(buffer)
        env.close()
        write_bytes(path, buffer.getvalue())
        wall_s = time.perf_counter() - start
        write_text(record, json.dumps({"wall_s": wall_s, **dataclasses.asdict(result)}))
    return Prior(path.read_bytes(), json.loads(record.read_text())["wall_s"])


def diffusion_ppo(run: "Run", prior: Prior | None) -> DiffusionPPO:
    """
    :param run: what is trained
    :param prior: to start from; None from scratch
    :return: the model, with its demonstrations where it has any
    """
    model = DiffusionPPO(
        run.hyperparams["policy"],
        run.training_env(),
        prior=None if prior is None else prior.load(),
        **(algorithm_arguments(run.hyperparams) | {"seed": run.seed}),
    )
    if run.hyperparams.get("demonstrations"):
        model.set_demonstrations(load_demonstrations(run.hyperparams["demonstrations"]))
    return model


def cloned_ppo(run: "Run", prior: Prior | None = None) -> "ClonedPPO":
    """
    :param run: what is trained
    :param prior: not used
    :return: a Gaussian policy that has imitated the run's demonstrations
    """
    from sb3_diffrl.bench.baselines import ClonedPPO

    arguments = algorithm_arguments(run.hyperparams) | {"seed": run.seed}
    model = ClonedPPO(run.hyperparams["policy"], run.training_env(), **arguments)
    demonstrations = load_demonstrations(run.hyperparams["demonstrations"])
    model.pretrain(demonstrations, **run.hyperparams["pretrain"])
    return model


def stable_baselines3(run: "Run", prior: Prior | None = None) -> BaseAlgorithm:
    """
    :param run: what is trained, by any algorithm that RL Zoo knows
    :param prior: not used
    :return: the model, untrained
    """
    zoo_hook.install()
    from rl_zoo3.utils import ALGOS

    arguments = algorithm_arguments(run.hyperparams) | {"seed": run.seed}
    algorithm: Any = ALGOS[run.algo]
    return algorithm(run.hyperparams["policy"], run.training_env(), **arguments)


OURS: dict[str, Builder] = {"diffppo": diffusion_ppo, "bc_ppo": cloned_ppo}


def builder(algo: str) -> Builder:
    """
    :param algo: ``diffppo``, ``bc_ppo``, another algorithm of RL Zoo's, or a function of one's own
        by its dotted name, ``package.module.function``, that is called as :func:`diffusion_ppo` is
    :return: what builds the model of a run
    :raises ValueError: where there is none
    """
    zoo_hook.install()
    from rl_zoo3.utils import ALGOS

    if algo in OURS:
        return OURS[algo]
    if algo in ALGOS:
        return stable_baselines3
    module, _, name = algo.rpartition(".")
    try:
        found: Builder = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{algo!r}: neither an algorithm of RL Zoo's ({', '.join(sorted(ALGOS))}) nor a "
            f"function, package.module.function ({error})"
        ) from error
    return found
