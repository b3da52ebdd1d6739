"""
RL Zoo: ``python -m rl_zoo3.train --algo diffppo --env <id>``, and all of its other commands.

The Zoo has no plugins. :func:`extend` adds the algorithm, its tuning and its hyperparameters to the
Zoo's modules as they load, which ``sb3_diffrl_zoo_hook`` sees to; where that hook is not
installed, ``python -m sb3_diffrl.zoo train --algo diffppo ...`` does the same.
"""

import atexit
import contextlib
import copy
import functools
import importlib
import math
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

import torch as th
import yaml
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import LinearSchedule

import sb3_diffrl_zoo_hook as zoo_hook
from sb3_diffrl import diffusion_ppo
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.policies import DiffusionActorCriticPolicy

ALGO = "diffppo"

Path = str | pathlib.Path
Self = TypeVar("Self", bound="DiffusionPPO")

# -- hyperparameters ---------------------------------------------------------------------------


def shipped(folder: str) -> pathlib.Path:
    """
    :param folder: ``"hyperparams"`` or ``"zoo_configs"``
    :return: where it is: in the installed package, or beside it in a checkout
    """
    package = pathlib.Path(__file__).parent
    return package / folder if (package / folder).is_dir() else package.parent / folder


def load_hyperparams(path: Path, env_id: str) -> dict[str, Any]:
    """
    Read an environment's entry of a file in the Zoo's format.

    A named experiment is a file whose ``base`` names another file, relative to itself: what else it
    says is merged over that file's entry, whichever the environment.

    :param path: YAML file of entries by environment id; ``default`` stands in for a missing one
    :param env_id: which entry
    :return: hyperparameters by name
    :raises ValueError: where the file has no such entry
    """
    entries = read_yaml(path)
    if "base" in entries:
        base = entries.pop("base")
        return merge(load_hyperparams(pathlib.Path(path).parent / base, env_id), entries)
    if env_id not in entries and "default" not in entries:
        raise ValueError(
            f"{path}: no entry {env_id!r}, found {', '.join(map(repr, entries)) or 'none'}. Add "
            "one, or an entry 'default'; a file that changes another one names it as its 'base'."
        )
    entry = entries.get(env_id, entries.get("default"))
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {env_id!r} is {entry!r}, expected hyperparameters by name")
    return entry


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
        nested = isinstance(value, Mapping) and isinstance(old, Mapping) and "kind" not in value
        merged[name] = merge(old, value) if nested else value  # type: ignore[arg-type]  # Mapping
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


# -- demonstrations ----------------------------------------------------------------------------


def load_demonstrations(source: Any) -> Demonstrations:
    """
    What an entry's ``demonstrations:`` stands for.

    :param source: path of an ``.npz`` file that :meth:`Demonstrations.save` wrote; a Minari id,
        ``mujoco/hopper/medium-v0``; a function by its dotted name, ``package.module.function``; or
        a mapping of that name to the function's arguments
    :return: the demonstrations
    :raises ValueError: where it is none of these
    """
    arguments: Mapping[str, Any] = {}
    if isinstance(source, Mapping) and len(source) == 1:
        ((source, arguments),) = source.items()
    if isinstance(source, str | pathlib.Path):
        text = str(source)
        if text.endswith(".npz"):
            if not pathlib.Path(text).is_file():
                raise ValueError(
                    f"demonstrations: {text}: there is no such file in {pathlib.Path.cwd()}. Make "
                    "it there (`python benchmarks/zoo_experts.py --env <id>` makes those of the "
                    "shipped hyperparameters), or name another: -params "
                    "demonstrations:\"'mine.npz'\""
                )
            return Demonstrations.load(text)
        if re.fullmatch(r"[\w/.-]+-v\d+", text):
            return minari_demonstrations(text)
        if re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", text):
            module, _, name = text.rpartition(".")
            made = getattr(importlib.import_module(module), name)(**(arguments or {}))
            if isinstance(made, Demonstrations):
                return made
            raise ValueError(
                f"demonstrations: {text} returned a {type(made).__name__}, expected Demonstrations"
            )
    raise ValueError(
        f"demonstrations: {source!r}: expected the path of an .npz file, a Minari id "
        "(ends in -v0), a function (package.module.function), or one function with its arguments "
        "({package.module.function: {n_episodes: 20}})"
    )


def minari_demonstrations(dataset_id: str) -> Demonstrations:
    """
    :param dataset_id: id of a Minari dataset, which is downloaded where it is missing
    :return: its episodes
    """
    try:
        minari = importlib.import_module("minari")
    except ImportError as error:
        raise ImportError(
            f"demonstrations: {dataset_id} is a Minari id: pip install 'sb3-diffrl[minari]'"
        ) from error
    episodes = list(minari.load_dataset(dataset_id, download=True).iterate_episodes())

    def without_last(observations: Any) -> Any:  # of the state after the last action
        if isinstance(observations, dict):
            return {key: without_last(value) for key, value in observations.items()}
        return observations[:-1]

    return Demonstrations.from_arrays(
        [without_last(episode.observations) for episode in episodes],
        [episode.actions for episode in episodes],
        rewards=[episode.rewards for episode in episodes],
    )


# -- the algorithm -----------------------------------------------------------------------------

# Actors trained in this process, by what they were trained with: the trials of a study differ in
# what comes after, and would each train the same one.
_PRIORS: dict[str, dict[str, th.Tensor]] = {}
_PRIORS_LOCK = threading.Lock()  # trials run in threads (--n-jobs)


def own_arguments(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param hyperparams: as they stand in an entry
    :return: as :class:`DiffusionPPO` keeps them: without dots, learning rates as schedules,
        ``pretrain`` (which is a method) by another name
    """
    arguments = undotted(hyperparams)
    if "pretrain" in arguments:
        arguments["pretrain_arguments"] = dict(arguments.pop("pretrain") or {})
    if "critic_learning_rate" in arguments:
        arguments["critic_learning_rate"] = linear(arguments["critic_learning_rate"])
    return arguments


class DiffusionPPO(diffusion_ppo.DiffusionPPO):
    """
    DiffusionPPO whose hyperparameters include what comes before RL, so that one ``train`` does
    both.

    A name with a dot sets one entry of a mapping, see :func:`undotted`.

    :param policy: as in :class:`sb3_diffrl.DiffusionPPO`
    :param env: as in there
    :param args: as in there
    :param demonstrations: see :func:`load_demonstrations`; None for none
    :param pretrain: arguments of ``pretrain``, which is called when training starts, unless the
        model has a prior already
    :param kwargs: as in there; ``critic_learning_rate`` may be ``"lin_1.0e-3"``
    """

    def __init__(
        self,
        policy: str | type[DiffusionActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        demonstrations: Any = None,
        pretrain: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        named = own_arguments({"pretrain": pretrain, **kwargs})
        self.demonstrations = demonstrations
        self.pretrain_arguments = named.pop("pretrain_arguments")
        super().__init__(policy, env, *args, **named)

    @classmethod
    def load(cls: type[Self], path: Any, *args: Any, **kwargs: Any) -> Self:
        """
        Load as SB3 does.

        :param path: file
        :param args: as in SB3
        :param kwargs: as in SB3, or hyperparameters, of which those of the policy and the prior are
            passed over: the file has its own
        :return: the model
        """
        of_file = ("policy_kwargs", "prior")
        own = {name: value for name, value in kwargs.items() if name.split(".")[0] not in of_file}
        return super().load(path, *args, **own_arguments(own))

    def learn(self: Self, total_timesteps: int, *args: Any, **kwargs: Any) -> Self:
        """
        Pre-train where that is still to do, then train online.

        :param total_timesteps: number of decisions; 0 for pre-training alone
        :param args: as in SB3
        :param kwargs: as in SB3
        :return: the model
        """
        if self.demonstrations is not None:
            self._use_demonstrations()
        return super().learn(total_timesteps, *args, **kwargs)

    def _use_demonstrations(self) -> None:
        imitates = self._imitates("demonstrations") or self._imitates("context")
        if self.policy.has_prior and not (
            imitates and self.imitation_buffer.demonstrations is None
        ):
            return
        demonstrations = load_demonstrations(self.demonstrations)
        if self.policy.has_prior:
            self.set_demonstrations(demonstrations)
            return
        if self.verbose:
            print(f"Pre-training on {demonstrations}")
        env = self._vec_normalize_env
        if env is not None and env.norm_obs:  # the env's statistics belong to the prior
            self.pretrain(demonstrations, **self.pretrain_arguments)
            return
        policy = self.policy
        levels = [policy.diffusion_kwargs[name] for name in ("noise_schedule", "noise_levels")]
        windows = (self.env_wrappers, policy.observation_space, policy.action_space)
        key = repr((self.demonstrations, self.pretrain_arguments, levels, windows, policy.actor))
        with _PRIORS_LOCK:
            if key in _PRIORS:
                policy.actor.load_state_dict(_PRIORS[key])
                policy.freeze_prior()
                self._forget_improvement()
                self.set_demonstrations(demonstrations)
            else:
                self.pretrain(demonstrations, **self.pretrain_arguments)
                _PRIORS[key] = copy.deepcopy(policy.actor.state_dict())


# -- tuning ------------------------------------------------------------------------------------


def sample_params(
    trial: Any, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw hyperparameters within bounds where training works: 512 to 4096 decisions per update, 64 to
    1024 per minibatch.

    :param trial: :class:`optuna.Trial`
    :param n_actions: unused
    :param n_envs: number of envs
    :param additional_args: unused
    :return: hyperparameters by name
    """
    suggest, choose = trial.suggest_float, trial.suggest_categorical
    # All are drawn in all trials, whatever their kinds make of them: samplers and importances take
    # no notice of parameters that some trials lack.
    choose("beta_kind", ["none", "constant", "linear", "cosine", "adaptive"])
    suggest("beta_init", 1e-4, 0.1, log=True)
    suggest("beta_floor", 0.0, 0.5)
    choose("mixing_kind", ["none", "linear", "cosine", "gated"])
    suggest("mixing_init", 0.2, 1.0)
    trial.suggest_int("denoising_steps", 3, 10)
    suggest("sigma_min", 0.03, 0.3, log=True)
    choose("gamma_denoise", [0.9, 0.95, 0.99, 1.0])
    suggest("clip_range", 0.02, 0.3, log=True)
    suggest("learning_rate", 3e-5, 1e-3, log=True)
    suggest("critic_learning_rate", 3e-4, 3e-3, log=True)
    trial.suggest_int("critic_warmup", 0, 5)
    least = max(3, math.ceil(math.log2(512 / n_envs)))
    trial.suggest_int("n_steps_pow", least, least + 3)
    trial.suggest_int("batch_size_pow", 6, 10)
    trial.suggest_int("n_epochs", 2, 10)
    suggest("one_minus_gamma", 1e-3, 0.05, log=True)
    suggest("one_minus_gae_lambda", 0.01, 0.2, log=True)
    suggest("max_grad_norm", 0.3, 2.0)
    hyperparams = convert_params(trial.params)
    for name in ("n_steps", "batch_size", "gamma", "gae_lambda"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """
    :param params: what :func:`sample_params` drew, as a study stores it
    :return: hyperparameters by name, which replace those of an entry
    """
    hyperparams = dict(params)
    beta_kind, mixing_kind = hyperparams.pop("beta_kind"), hyperparams.pop("mixing_kind")
    beta, floor = hyperparams.pop("beta_init"), hyperparams.pop("beta_floor")
    mixing = hyperparams.pop("mixing_init")
    hyperparams["beta"] = {
        "none": 0.0,
        "constant": beta,
        "adaptive": {"kind": "adaptive", "initial": beta, "floor": floor},
    }.get(beta_kind, {"kind": beta_kind, "initial": beta})
    hyperparams["mixing"] = (
        1.0 if mixing_kind == "none" else {"kind": mixing_kind, "initial": mixing}
    )
    for name in ("n_steps", "batch_size"):
        hyperparams[name] = 2 ** hyperparams.pop(f"{name}_pow")
    for name in ("gamma", "gae_lambda"):
        hyperparams[name] = 1 - hyperparams.pop(f"one_minus_{name}")
    for name in ("denoising_steps", "sigma_min"):
        hyperparams[f"policy_kwargs.{name}"] = hyperparams.pop(name)
    return hyperparams


def open_storage(get_storage: Callable[[Any], Any], storage: Any) -> Any:
    """
    Storages of studies that Optuna has and that the Zoo's ``--storage`` cannot name.

    :param get_storage: Optuna's own function, called for all the others
    :param storage: ``redis://host:port`` for a journal in Redis, ``grpc://host:port`` for Optuna's
        gRPC proxy
    :return: the storage
    """
    if isinstance(storage, str) and storage.startswith(("redis://", "rediss://")):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalRedisBackend

        return JournalStorage(JournalRedisBackend(storage))
    if isinstance(storage, str) and storage.startswith("grpc://"):
        from optuna.storages import GrpcStorageProxy

        host, _, port = storage.removeprefix("grpc://").rstrip("/").partition(":")
        return GrpcStorageProxy(host=host, port=int(port or 13000))
    return get_storage(storage)


# -- into the Zoo ------------------------------------------------------------------------------


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
    module.get_trained_models = _named_without_slashes(module.get_trained_models)
    _mend_hub_client()


def _extend_hyperparams_opt(module: Any) -> None:
    module.HYPERPARAMS_SAMPLER[ALGO] = sample_params
    module.HYPERPARAMS_CONVERTER[ALGO] = convert_params


class _Zero(int):
    """The number of the first trial; the Zoo takes 0 for none given."""

    def __bool__(self) -> bool:
        return True


def _extend_exp_manager(module: Any) -> None:
    from optuna import storages

    storages.get_storage = functools.partial(open_storage, storages.get_storage)
    manager = module.ExperimentManager
    init, read_hyperparameters = manager.__init__, manager.read_hyperparameters

    @functools.wraps(init)
    def find_config(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        config = kwargs.get("config")
        experiment = shipped("zoo_configs") / f"{config}.yml"
        if config is None and self.algo == ALGO:
            self.config = str(shipped("hyperparams") / f"{ALGO}.yml")
        elif config is not None and not os.path.exists(config) and experiment.is_file():
            self.config = str(experiment)
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


# -- repairs of stock packages -----------------------------------------------------------------
# Each applies only while the stock thing is broken, and says so where it steps in.


def say(text: str) -> None:
    """:param text: what was mended, for the standard error"""
    print(f"sb3-diffrl: {text}", file=sys.stderr)


def _mend_hub_client() -> None:
    """
    ``rl_zoo3.push_to_hub`` imports a function that huggingface_sb3 has renamed, and
    ``rl_zoo3.load_from_hub`` waits for an exception that huggingface_hub no longer raises.
    """
    import huggingface_sb3  # type: ignore[import-untyped]
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    # (The package's attribute of that name is a function.)
    client: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    renamed = getattr(client, "_generate_metadata", None)
    if not hasattr(client, "generate_metadata") and renamed is not None:

        @functools.wraps(renamed)
        def generate_metadata(*args: Any, **kwargs: Any) -> Any:
            say("huggingface_sb3 has renamed generate_metadata, which the Zoo calls")
            metadata = renamed(*args, **kwargs)
            return metadata if isinstance(metadata, dict) else metadata.to_dict()

        client.generate_metadata = generate_metadata
    if not issubclass(EntryNotFoundError, HTTPError):
        download = huggingface_sb3.load_from_hub

        @functools.wraps(download)
        def load_from_hub(*args: Any, **kwargs: Any) -> str:
            try:
                return download(*args, **kwargs)
            except EntryNotFoundError as error:
                say("a file that the model may lack is missing on the Hub; the Zoo is told so")
                raise HTTPError(str(error)) from error

        huggingface_sb3.load_from_hub = load_from_hub


def _named_without_slashes(
    get_trained_models: Callable[[str], dict[str, tuple[str, str]]],
) -> Callable[[str], dict[str, tuple[str, str]]]:
    """``rl_zoo3.benchmark`` looks for ``logs/<algo>/sb3_diffrl/Avoiding-v0_1``."""
    from huggingface_sb3 import EnvironmentName

    @functools.wraps(get_trained_models)
    def wrapper(log_folder: str) -> dict[str, tuple[str, str]]:
        models = get_trained_models(log_folder)
        return {name: (algo, EnvironmentName(env)) for name, (algo, env) in models.items()}

    return wrapper


def mend(script: str) -> None:
    """
    Mend what a script of the Zoo would stumble on: other scripts that it calls by names which exist
    only in a checkout of the Zoo, an ``ffmpeg`` that is not on the path, an ``rliable`` that pandas
    3 breaks.

    :param script: full name of the module, about to be run
    """
    calls = ("rl_zoo3.benchmark", "rl_zoo3.record_training")
    if script in calls and not hasattr(subprocess.call, "__wrapped__"):
        subprocess.call = _calls_of_the_zoo(subprocess.call)
    if script in ("rl_zoo3.push_to_hub", "rl_zoo3.record_training"):
        _find_ffmpeg()
    if script == "rl_zoo3.plots":
        _check_rliable()


def _check_rliable() -> None:
    """The Zoo's plots do without it where it is missing, but not where its import fails."""
    try:
        importlib.import_module("rliable.library")
    except ImportError:
        pass
    except Exception as error:
        say(f"rliable cannot be imported ({error}); the Zoo plots without it. pandas<3 may help")
        sys.modules["rliable"] = None  # type: ignore[assignment]  # an ImportError from now on


def _calls_of_the_zoo(call: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(call)
    def wrapper(command: Any, *args: Any, **kwargs: Any) -> int:
        if isinstance(command, list) and command[:1] == ["python"]:
            if command[1] == "enjoy.py" and not os.path.exists("enjoy.py"):
                say("the Zoo calls enjoy.py, which only its checkout has; -m rl_zoo3.enjoy it is")
                command = ["python", "-m", "rl_zoo3.enjoy", *command[2:]]
            command = [sys.executable, *(getattr(word, "gym_id", word) for word in command[1:])]
        return call(command, *args, **kwargs)

    return wrapper


def _find_ffmpeg() -> None:
    if shutil.which("ffmpeg") is not None:
        return
    with contextlib.suppress(ImportError, RuntimeError, OSError):
        import imageio_ffmpeg  # type: ignore[import-untyped]

        program = imageio_ffmpeg.get_ffmpeg_exe()
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.symlink(program, os.path.join(folder, "ffmpeg"))
        os.environ["PATH"] += os.pathsep + folder
        say(f"no ffmpeg on the PATH; the Zoo uses {program}")


# -- command line ------------------------------------------------------------------------------


def main() -> None:
    """Run a script of the Zoo with ``diffppo`` in it: the first argument is its name."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(
            "usage: python -m sb3_diffrl.zoo SCRIPT ..., where SCRIPT is one of RL Zoo's: train, "
            "enjoy, record_video, record_training, push_to_hub, load_from_hub, benchmark, "
            "plots.all_plots, plots.plot_train, plots.plot_from_file"
        )
    script = sys.argv.pop(1)
    zoo_hook.install()
    runpy.run_module(f"rl_zoo3.{script}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
