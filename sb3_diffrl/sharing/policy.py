"""The policy's architecture as plain data."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch as th
from torch import nn

from sb3_diffrl import diffusion
from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.encoders import ENCODERS
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from sb3_diffrl.sharing.checks import (
    MAX_LAYERS,
    MAX_WIDTH,
    Check,
    arguments,
    at,
    entries,
    flag,
    list_of,
    one_of,
    optional,
    plain,
    real,
    short,
    whole,
)

T = TypeVar("T")


def _named(*classes: type[T]) -> dict[str, type[T]]:
    return {each.__name__: each for each in classes}


POLICIES: dict[str, Any] = dict(DiffusionPPO.policy_aliases)
CLASSES: dict[str, dict[str, Any]] = {
    "activation_fn": _named(
        *(nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.Identity, nn.LeakyReLU, nn.Mish, nn.ReLU),
        *(nn.ReLU6, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh),
    ),
    "denoiser_class": _named(
        *(
            each
            for each in vars(diffusion).values()
            if isinstance(each, type)
            and issubclass(each, diffusion.Denoiser)
            and each is not diffusion.Denoiser
        )
    ),
    "features_extractor_class": _named(*ENCODERS.values()),
    "optimizer_class": _named(
        *(th.optim.Adam, th.optim.AdamW, th.optim.NAdam, th.optim.RAdam),
        *(th.optim.RMSprop, th.optim.SGD),
    ),
}


def _net_arch(value: Any) -> Any:
    layers = list_of(whole(1, MAX_WIDTH), MAX_LAYERS)
    if isinstance(value, Mapping):
        return {one_of(("pi", "vf"))(name): layers(widths) for name, widths in value.items()}
    return layers(value)


_numbers = list_of(real(), 2**14)

POLICY_KWARGS: dict[str, Check] = {
    "net_arch": _net_arch,
    "noise_schedule": one_of(diffusion.NOISE_SCHEDULES),
    "noise_levels": whole(1, 10_000),
    "denoising_steps": whole(1, 1_000),
    "eta": real(0, 1),
    "sigma_min": real(0, 1e3),
    "exploration": one_of(diffusion.EXPLORATIONS),
    "freeze_encoder": flag,
    "prediction_type": one_of(diffusion.PREDICTION_TYPES),
    "clip_sample": optional(real(0, 1e6)),
    "timestep_spacing": one_of(diffusion.TIMESTEP_SPACINGS),
    "use_clipped_model_output": flag,
    "action_range": optional(list_of(_numbers, 2)),
    "share_features_extractor": flag,
    "normalize_images": flag,
    "denoiser_kwargs": arguments,
    "features_extractor_kwargs": arguments,
    "optimizer_kwargs": arguments,
}


# Not in files of the first version, where they had their defaults.
ADDED_POLICY_KWARGS = {
    "prediction_type",
    "clip_sample",
    "timestep_spacing",
    "use_clipped_model_output",
    "action_range",
    "freeze_encoder",
    "exploration",
}


def encode_policy(policy: DiffusionActorCriticPolicy) -> dict[str, Any]:
    """
    :param policy: of a class and with parts that the registries know
    :return: its class and all its ``policy_kwargs`` as plain data
    :raises ValueError: naming what cannot be shared, and what can
    """
    with at("policy"):
        encoded: dict[str, Any] = {"class": _name_of(type(policy), POLICIES)}
    encoded["kwargs"] = {}
    for name, value in policy.architecture().items():
        with at(f"policy_kwargs[{name!r}]"):
            if name in CLASSES:
                encoded["kwargs"][name] = _name_of(value, CLASSES[name])
            else:
                encoded["kwargs"][name] = POLICY_KWARGS.get(name, plain)(value)
    return encoded


def decode_policy(value: Any) -> tuple[type[DiffusionActorCriticPolicy], dict[str, Any]]:
    """
    :param value: what :func:`encode_policy` made
    :return: class and ``policy_kwargs``
    :raises ValueError: saying what was wrong
    """
    name_of_class, kwargs = entries(value, "class", "kwargs")
    no_kwargs = ("self", "observation_space", "action_space", "lr_schedule", "use_sde")
    parameters = inspect.signature(DiffusionActorCriticPolicy.__init__).parameters
    names = [name for name in parameters if name not in no_kwargs]
    with at("class"):
        policy_class = POLICIES[one_of(POLICIES)(name_of_class)]
    decoded: dict[str, Any] = {}
    with at("kwargs"):
        if isinstance(kwargs, Mapping):
            added = {name: parameters[name].default for name in ADDED_POLICY_KWARGS}
            kwargs = {**added, **kwargs}
        for name, argument in zip(names, entries(kwargs, *names), strict=True):
            with at(name):
                if name in CLASSES:
                    decoded[name] = CLASSES[name][one_of(CLASSES[name])(argument)]
                else:
                    decoded[name] = POLICY_KWARGS.get(name, plain)(argument)
    decoded["optimizer_kwargs"] = {
        name: tuple(entry) if isinstance(entry, list) else entry
        for name, entry in decoded["optimizer_kwargs"].items()
    }
    return policy_class, decoded


def _name_of(value: Any, registry: Mapping[str, Any]) -> str:
    for name, known in registry.items():
        if value is known:
            return name
    raise ValueError(
        f"{short(value)} cannot be shared safely, for a file can only name what this package "
        f"knows: {', '.join(registry)}. Use one of them, or share the model by model.save()."
    )


def unique_tensors(policy: DiffusionActorCriticPolicy) -> dict[str, th.Tensor]:
    """
    :param policy: whose parts may share tensors
    :return: each tensor of its state dict once, by the first of its names
    """
    tensors: dict[str, th.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in policy.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor
    return tensors


def optimizers(policy: DiffusionActorCriticPolicy) -> dict[str, th.optim.Optimizer]:
    """:return: the optimizers by name of the attribute"""
    return {"optimizer": policy.optimizer, "critic_optimizer": policy.critic_optimizer}


def parameters(optimizer: th.optim.Optimizer) -> list[th.Tensor]:
    """:return: what it optimizes, in order"""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
