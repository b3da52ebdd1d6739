"""Hyperparameters that a study draws, and where it may be stored."""

import math
from collections.abc import Callable, Mapping
from typing import Any


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
