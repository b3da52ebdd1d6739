"""Denoisers by name, and a user's own."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch as th
from torch import nn

from sb3_diffrl.diffusion.denoisers import Denoiser, MlpDenoiser
from sb3_diffrl.diffusion.transformer import TransformerDenoiser
from sb3_diffrl.diffusion.unet import UnetDenoiser

DENOISERS: dict[str, type[Denoiser]] = {
    "mlp": MlpDenoiser,
    "unet": UnetDenoiser,
    "transformer": TransformerDenoiser,
}


def named(spec: Any, registry: Mapping[str, Any]) -> Any:
    """
    What a name stands for, so that command lines and YAML files can say it.

    :param spec: a key of the registry, a dotted name ``"package.module.Class"``, or no string
    :param registry: what the short names stand for
    :return: the class; ``spec`` itself where it is no string
    :raises ValueError: for a name that leads nowhere
    """
    if not isinstance(spec, str):
        return spec
    if spec in registry:
        return registry[spec]
    module, _, name = spec.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{spec!r} leads to no class ({error}): expected one of {', '.join(sorted(registry))}, "
            "or the dotted name of a class that can be imported, 'package.module.Class'."
        ) from error


class ModuleDenoiser(Denoiser):
    """
    A user's own network as a denoiser: called with rows ``(M, D)`` of noisy actions, their levels
    ``(M,)`` and features ``(M, F)``, it gives ``(M, D)``.

    :param features_dim: number of observation features ``F``
    :param action_dim: number of action entries ``D``
    :param noise_levels: number of noise levels ``T``
    :param module: the network
    """

    capturable = False  # it may read tensors on the host

    def __init__(self, features_dim: int, action_dim: int, noise_levels: int, module: nn.Module):
        super().__init__(features_dim, action_dim, noise_levels)
        self.module = module

    def condition(self, features: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.condition`."""
        return features

    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.forward`."""
        batch = noisy.shape[:-1]
        features = condition.expand(*batch, -1).reshape(-1, self.features_dim)
        rows = noisy.reshape(-1, self.action_dim)
        return self.module(rows, levels.expand(batch).reshape(-1), features).view(noisy.shape)


def make_denoiser(
    denoiser_class: Callable[..., nn.Module],
    features_dim: int,
    action_dim: int,
    noise_levels: int,
    **kwargs: Any,
) -> Denoiser:
    """
    :param denoiser_class: a Denoiser, or a network for :class:`ModuleDenoiser`
    :param features_dim: number of observation features ``F``
    :param action_dim: number of action entries ``D``
    :param noise_levels: number of noise levels ``T``
    :param kwargs: its other arguments
    :return: the denoiser
    :raises ValueError: for what is no network
    """
    sizes = features_dim, action_dim, noise_levels
    network = denoiser_class(*sizes, **kwargs)
    if isinstance(network, Denoiser):
        return network
    if not isinstance(network, nn.Module):
        raise ValueError(
            f"denoiser_class={denoiser_class} made {type(network)}: expected a Denoiser or a "
            "torch.nn.Module that is called with noisy actions, levels and features."
        )
    return ModuleDenoiser(*sizes, network)
