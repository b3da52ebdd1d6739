"""A small Vision Transformer."""

from collections.abc import Sequence

import torch as th
from torch import nn

from sb3_diffrl.diffusion.transformer import SelfAttention, perceptron
from sb3_diffrl.encoders.layers import FiLM, check_depth


class ViT(nn.Module):
    """
    Vision Transformer (Dosovitskiy et al. 2021), its patches side by side, averaged at the end.

    :param image_shape: channels, height and width
    :param features_dim: entries of the output
    :param context_dim: entries of the vector that modulates every block by FiLM; 0 for none
    :param patch_size: height and width of a patch; incomplete patches at the border are left out
    :param depth: number of blocks
    :param width: entries of a token
    :param n_heads: number of attention heads, a divisor of the width
    :raises ValueError: for impossible sizes
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        features_dim: int = 128,
        context_dim: int = 0,
        patch_size: int = 8,
        depth: int = 3,
        width: int = 128,
        n_heads: int = 4,
    ):
        super().__init__()
        check_depth("depth and width", [width] * min(depth, 1000))
        channels, height, image_width = image_shape
        n_patches = (height // patch_size) * (image_width // patch_size)
        if not 1 <= n_patches <= 4096 or width % n_heads:
            raise ValueError(
                f"patch_size={patch_size} cuts an image of {height} x {image_width} into "
                f"{n_patches} patches, expected 1 to 4096; n_heads={n_heads} must divide "
                f"width={width}."
            )
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        self.position = nn.Parameter(0.02 * th.randn(n_patches, width))
        self.blocks = nn.ModuleList(VisionBlock(width, n_heads, context_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.output_layer = nn.Linear(width, features_dim)

    def forward(self, images: th.Tensor, context: th.Tensor | None = None) -> th.Tensor:
        """
        :param images: ``(B, C, H, W)`` in [0, 1]
        :param context: ``(B, context_dim)``, for FiLM
        :return: ``(B, features_dim)``
        """
        tokens = self.patches(2 * images - 1).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            tokens = block(tokens, context)
        return self.output_layer(self.norm(tokens).mean(dim=1))


class VisionBlock(nn.Module):
    """
    Self-attention and a perceptron on normalised tokens, then FiLM.

    :param width: entries ``W`` of a token
    :param n_heads: number of attention heads
    :param context_dim: see :class:`ViT`
    """

    def __init__(self, width: int, n_heads: int, context_dim: int):
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, n_heads)
        self.perceptron = perceptron(width, nn.GELU)
        self.film = FiLM(context_dim, width)

    def forward(self, tokens: th.Tensor, context: th.Tensor | None) -> th.Tensor:
        """
        :param tokens: ``(B, P, W)``
        :param context: ``(B, context_dim)``
        :return: ``(B, P, W)``
        """
        tokens = tokens + self.attention(self.attention_norm(tokens))
        tokens = tokens + self.perceptron(self.perceptron_norm(tokens))
        return self.film(tokens, context, dim=2)
