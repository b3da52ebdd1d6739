"""A small residual network for images."""

from collections.abc import Sequence
from itertools import pairwise

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_diffrl.encoders.layers import FiLM, SpatialSoftmax, check_depth


class ResNet(nn.Module):
    """
    Residual network with GroupNorm and a spatial softmax, as image policies use it instead of
    BatchNorm and average pooling (Chi et al. 2023, section III-B): weights may be averaged, and
    where things are is kept.

    :param image_shape: channels, height and width
    :param features_dim: entries of the output
    :param context_dim: entries of the vector that modulates every stage by FiLM; 0 for none
    :param channels: of each stage, which halves the resolution
    :param n_keypoints: channels of the spatial softmax
    :raises ValueError: for impossible sizes
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        features_dim: int = 128,
        context_dim: int = 0,
        channels: Sequence[int] = (32, 64, 128),
        n_keypoints: int = 32,
    ):
        super().__init__()
        check_depth("channels", channels)
        widths = [channels[0], *channels]
        self.stem = nn.Conv2d(image_shape[0], channels[0], 3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            Stage(n_in, n_out, context_dim) for n_in, n_out in pairwise(widths)
        )
        self.keypoints = nn.Conv2d(channels[-1], n_keypoints, 1)
        self.pool = SpatialSoftmax()
        self.output_layer = nn.Linear(2 * n_keypoints, features_dim)

    def forward(self, images: th.Tensor, context: th.Tensor | None = None) -> th.Tensor:
        """
        :param images: ``(B, C, H, W)`` in [0, 1]
        :param context: ``(B, context_dim)``, for FiLM
        :return: ``(B, features_dim)``
        """
        hidden = self.stem(2 * images - 1)
        for stage in self.stages:
            hidden = stage(hidden, context)
        return self.output_layer(self.pool(self.keypoints(hidden)))


class Stage(nn.Module):
    """
    A residual block of half the resolution (He et al. 2016), modulated before its sum.

    :param n_in: channels of the input
    :param n_out: channels of the output
    :param context_dim: see :class:`ResNet`
    """

    def __init__(self, n_in: int, n_out: int, context_dim: int):
        super().__init__()
        self.first = nn.Conv2d(n_in, n_out, 3, stride=2, padding=1)
        self.first_norm = group_norm(n_out)
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.second_norm = group_norm(n_out)
        self.shortcut = nn.Conv2d(n_in, n_out, 1, stride=2)
        self.film = FiLM(context_dim, n_out)

    def forward(self, images: th.Tensor, context: th.Tensor | None) -> th.Tensor:
        """
        :param images: ``(B, n_in, H, W)``
        :param context: ``(B, context_dim)``
        :return: ``(B, n_out, H / 2, W / 2)``
        """
        hidden = F.silu(self.first_norm(self.first(images)))
        hidden = self.film(self.second_norm(self.second(hidden)), context, dim=1)
        return F.silu(hidden + self.shortcut(images))


def group_norm(channels: int) -> nn.GroupNorm:
    """:return: GroupNorm with groups of 16 channels where that divides, else one group"""
    return nn.GroupNorm(channels // 16 if channels % 16 == 0 else 1, channels)
