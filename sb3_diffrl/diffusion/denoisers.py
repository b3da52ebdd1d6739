"""Epsilon-networks behind one small interface."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch as th
from torch import nn


class Denoiser(nn.Module, ABC):
    """
    Predicts the noise in a noisy action, given the noise level and the observation features.

    What depends on the observation alone is computed once per decision by ``condition``, however
    many denoising steps follow. Where more can be computed once, override ``stepwise``.

    :cvar capturable: whether sampling may be replayed as a CUDA graph; False for a network that
        reads tensors on the host
    :param features_dim: number of observation features ``F``
    :param action_dim: number of action entries ``D``
    :param noise_levels: number of noise levels ``T``
    """

    capturable: ClassVar[bool] = True

    def __init__(self, features_dim: int, action_dim: int, noise_levels: int):
        super().__init__()
        self.features_dim = features_dim
        self.action_dim = action_dim
        self.noise_levels = noise_levels

    @abstractmethod
    def condition(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: ``(..., F)`` observation features
        :return: ``(..., C)`` whatever ``forward`` wants to know of them
        """

    @abstractmethod
    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        """
        :param noisy: ``(..., D)`` noisy actions
        :param levels: noise levels, 1 to ``T``, broadcastable to ``(...)``
        :param condition: broadcastable to ``(..., C)``, from ``condition``
        :return: ``(..., D)`` predicted noise
        """

    def stepwise(
        self, levels: th.Tensor, condition: th.Tensor
    ) -> Callable[[th.Tensor, int], th.Tensor]:
        """
        The network for all steps of one batch of decisions, for acting.

        :param levels: ``(K,)`` noise levels in the order of the steps
        :param condition: ``(N, C)`` from ``condition``
        :return: predicted noise ``(N, D)`` as a function of noisy actions ``(N, D)`` and the index
            of the step; valid until the weights change
        """
        return lambda noisy, step: self(noisy, levels[step], condition)


class MlpDenoiser(Denoiser):
    """
    Residual multilayer perceptron: ``h_1 = W_a a_t + W_s s + W_t emb(t)``, then ``h_{j+1} = h_j +
    W_j act(h_j)``.

    :param features_dim: number of observation features ``F``
    :param action_dim: number of action entries ``D``
    :param noise_levels: number of noise levels ``T``
    :param net_arch: widths of the hidden layers, residual where a width equals the one before;
        empty for a linear denoiser
    :param activation_fn: activation function
    """

    level_embedding: th.Tensor

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        noise_levels: int,
        net_arch: Sequence[int] = (256, 256, 256),
        activation_fn: type[nn.Module] = nn.SiLU,
    ):
        super().__init__(features_dim, action_dim, noise_levels)
        width = net_arch[0] if net_arch else action_dim
        self.register_buffer(
            "level_embedding", sinusoidal_embedding(noise_levels), persistent=False
        )
        self.action_layer = nn.Linear(action_dim, width)
        self.features_layer = nn.Linear(features_dim, width)
        self.level_layer = nn.Linear(self.level_embedding.shape[1], width)
        self.hidden_layers = nn.ModuleList(
            nn.Linear(n_in, n_out) for n_in, n_out in pairwise(net_arch)
        )
        self.activation = activation_fn() if net_arch else nn.Identity()
        self.output_layer = nn.Linear(net_arch[-1], action_dim) if net_arch else nn.Identity()

    def condition(self, features: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.condition`."""
        return self.features_layer(features)

    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.forward`."""
        given = condition + self.level_layer(self.level_embedding[levels])
        return self._trunk()(self.action_layer(noisy) + given)

    def stepwise(
        self, levels: th.Tensor, condition: th.Tensor
    ) -> Callable[[th.Tensor, int], th.Tensor]:
        """See :meth:`Denoiser.stepwise`; all of the first layer but the action is computed once."""
        table = self.level_layer(self.level_embedding[levels]) + self.action_layer.bias
        given = (condition + table.unsqueeze(1)).unbind()  # K tensors (N, width)
        weight, trunk = self.action_layer.weight.t(), self._trunk()
        return lambda noisy, step: trunk(th.addmm(given[step], noisy, weight))

    def _trunk(self) -> Callable[[th.Tensor], th.Tensor]:
        """All behind the first layer. Modules and weights, which take longer to look up than a
        small operation takes, are looked up once."""
        activation = self.activation.forward
        layers = [
            (layer.weight.t(), layer.bias, layer.in_features == layer.out_features)
            for layer in self.hidden_layers
            if isinstance(layer, nn.Linear)
        ]
        output_layer = self.output_layer.forward

        def trunk(hidden: th.Tensor) -> th.Tensor:
            for weight, bias, residual in layers:
                # For a single row the product alone is a third faster than with the bias in it.
                update = (activation(hidden) @ weight).add_(bias)
                hidden = update.add_(hidden) if residual else update
            return output_layer(activation(hidden))

        return trunk


def sinusoidal_embedding(n_levels: int, dim: int = 32) -> th.Tensor:
    """
    Constant embedding of noise levels (Vaswani et al. 2017, section 3.5).

    :param n_levels: number of levels ``T``
    :param dim: even number of entries
    :return: ``(T + 1, dim)``, row ``t`` belonging to level ``t``
    """
    rates = 10_000 ** (-th.arange(dim // 2) / (dim // 2))
    angles = th.arange(n_levels + 1).unsqueeze(1) * rates
    return th.cat([angles.sin(), angles.cos()], dim=1)


def timestep_embedding(n_levels: int, dim: int) -> th.Tensor:
    """
    Constant embedding of noise levels as the temporal U-Net's authors have it (Janner et al. 2022):
    of the timestep ``t - 1``, with the slowest rate at 1 / 10,000. In single precision throughout,
    as the weights trained with it are used to.

    :param n_levels: number of levels ``T``
    :param dim: even number of entries, at least 4
    :return: ``(T + 1, dim)``, row ``t`` belonging to level ``t``
    :raises ValueError: for another number of entries
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"The embedding needs an even number of entries from 4 on, got {dim}.")
    half = dim // 2
    rates = th.exp(th.arange(half) * -(math.log(10_000) / (half - 1)))
    angles = th.arange(-1, n_levels).unsqueeze(1) * rates
    return th.cat([angles.sin(), angles.cos()], dim=1)
