"""What the image networks share."""

from collections.abc import Sequence

import torch as th
from torch import nn

MAX_DEPTH = 64


class FiLM(nn.Module):
    """
    Feature-wise linear modulation ``(1 + gamma(z)) x + beta(z)`` (Perez et al. 2018, eq. 2); the
    identity at first.

    :param context_dim: entries of ``z``; 0 for the identity
    :param channels: of ``x``
    """

    def __init__(self, context_dim: int, channels: int):
        super().__init__()
        self.layer = nn.Linear(context_dim, 2 * channels) if context_dim else None
        if self.layer is not None:
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)

    def forward(self, features: th.Tensor, context: th.Tensor | None, dim: int) -> th.Tensor:
        """
        :param features: ``(B, ...)`` with the channels in dimension ``dim``
        :param context: ``(B, context_dim)``
        :param dim: dimension of the channels
        :return: of the same shape
        """
        if self.layer is None or context is None:
            return features
        shape = [len(features), *[1] * (features.ndim - 1)]
        shape[dim] = -1
        gamma, beta = self.layer(context).chunk(2, dim=1)
        return features * (1 + gamma.view(shape)) + beta.view(shape)


class SpatialSoftmax(nn.Module):
    """
    Where in the image each channel is active (Finn et al. 2016, section V): the expected position
    under a softmax over all positions, in [-1, 1].
    """

    def forward(self, maps: th.Tensor) -> th.Tensor:
        """
        :param maps: ``(B, C, H, W)``
        :return: ``(B, 2 C)``, the expected columns and then the rows
        """
        height, width = maps.shape[2:]
        weights = maps.flatten(2).softmax(dim=2).view(maps.shape)
        rows, columns = (th.linspace(-1, 1, n, device=maps.device) for n in (height, width))
        x = (weights.sum(dim=2) * columns).sum(dim=2)
        y = (weights.sum(dim=3) * rows).sum(dim=2)
        return th.cat([x, y], dim=1)


def check_depth(name: str, sizes: Sequence[int]) -> None:
    """
    :param name: of the argument
    :param sizes: widths of the layers
    :raises ValueError: for no layer, too many, or an impossible width
    """
    if not 1 <= len(sizes) <= MAX_DEPTH or min(sizes) < 1:
        raise ValueError(
            f"{name} must give 1 to {MAX_DEPTH} layers a positive width each, got {list(sizes)}."
        )
