"""A Transformer over the actions of a chunk."""

from collections.abc import Callable, Sequence

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_diffrl.diffusion.denoisers import Denoiser, sinusoidal_embedding


class TransformerDenoiser(Denoiser):
    """
    Transformer whose tokens are the ``H`` actions of a chunk, conditioned by adaLN-zero on noise
    level and observation: DiT (Peebles and Xie 2023, section 3.2).

    Every block starts as the identity and the output at zero. The modulations of all blocks depend
    on level and observation alone, and are computed once per decision.

    :param features_dim: number of observation features ``F``
    :param action_dim: number of action entries ``D = H A``
    :param noise_levels: number of noise levels ``T``
    :param net_arch: one equal width for each block
    :param activation_fn: activation function of the blocks
    :param horizon: number of actions ``H`` in a chunk, each a token
    :param n_heads: number of attention heads, a divisor of the width
    :raises ValueError: where the sizes do not divide
    """

    level_embedding: th.Tensor

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        noise_levels: int,
        net_arch: Sequence[int] = (256, 256, 256),
        activation_fn: type[nn.Module] = nn.SiLU,
        horizon: int = 1,
        n_heads: int = 4,
    ):
        super().__init__(features_dim, action_dim, noise_levels)
        if len(set(net_arch)) != 1:
            raise ValueError(
                f"TransformerDenoiser needs one equal width per block, got net_arch="
                f"{list(net_arch)}. Use for instance net_arch=dict(pi=[128] * 4, vf=[256, 256])."
            )
        width = net_arch[0]
        for name, divisor, whole in (
            ("horizon", horizon, ("action entries", action_dim)),
            ("n_heads", n_heads, ("width", width)),
        ):
            if divisor < 1 or whole[1] % divisor:
                raise ValueError(f"{name}={divisor} must divide the {whole[0]}, {whole[1]}.")
        self.horizon = horizon
        self.register_buffer(
            "level_embedding", sinusoidal_embedding(noise_levels), persistent=False
        )
        self.action_layer = nn.Linear(action_dim // horizon, width)
        self.position = nn.Parameter(0.02 * th.randn(horizon, width))
        self.features_layer = nn.Linear(features_dim, width)
        self.level_layer = nn.Sequential(
            nn.Linear(self.level_embedding.shape[1], width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(Block(width, n_heads, activation_fn) for _ in net_arch)
        self.output_modulation = zero(nn.Linear(width, 2 * width))
        self.output_layer = zero(nn.Linear(width, action_dim // horizon))

    def condition(self, features: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.condition`."""
        return self.features_layer(features)

    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.forward`."""
        batch = noisy.shape[:-1]
        modulations = [
            modulation.expand(*batch, -1).reshape(-1, modulation.shape[-1])
            for modulation in self._modulations(levels, condition)
        ]
        return self._trunk(noisy.reshape(-1, self.action_dim), modulations).view(noisy.shape)

    def stepwise(
        self, levels: th.Tensor, condition: th.Tensor
    ) -> Callable[[th.Tensor, int], th.Tensor]:
        """See :meth:`Denoiser.stepwise`; the modulations of all steps are computed at once."""
        steps = [m.unbind() for m in self._modulations(levels.unsqueeze(1), condition)]
        return lambda noisy, step: self._trunk(noisy, [block[step] for block in steps])

    def _modulations(self, levels: th.Tensor, condition: th.Tensor) -> list[th.Tensor]:
        """Scales, shifts and gates of every block ``(..., 6 W)`` and the output ``(..., 2 W)``."""
        given = F.silu(condition + self.level_layer(self.level_embedding[levels]))
        layers = [block.get_submodule("modulation") for block in self.blocks]
        return [layer(given) for layer in (*layers, self.output_modulation)]

    def _trunk(self, noisy: th.Tensor, modulations: Sequence[th.Tensor]) -> th.Tensor:
        """From ``(M, D)`` to ``(M, D)``."""
        tokens = self.action_layer(noisy.unflatten(-1, (self.horizon, -1))) + self.position
        for block, modulation in zip(self.blocks, modulations[:-1], strict=True):
            tokens = block(tokens, modulation)
        shift, scale = modulations[-1].unsqueeze(1).chunk(2, dim=-1)
        return self.output_layer(normalized(tokens, shift, scale)).flatten(1)


class Block(nn.Module):
    """
    Self-attention and a perceptron, each modulated and gated (adaLN-zero).

    :param width: entries ``W`` of a token
    :param n_heads: number of attention heads
    :param activation_fn: activation function of the perceptron
    """

    def __init__(self, width: int, n_heads: int, activation_fn: type[nn.Module]):
        super().__init__()
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.attention = SelfAttention(width, n_heads)
        self.perceptron = perceptron(width, activation_fn)

    def forward(self, tokens: th.Tensor, modulation: th.Tensor) -> th.Tensor:
        """
        :param tokens: ``(M, H, W)``
        :param modulation: ``(M, 6 W)``
        :return: ``(M, H, W)``
        """
        shift, scale, gate, shift_2, scale_2, gate_2 = modulation.unsqueeze(1).chunk(6, dim=-1)
        tokens = tokens + gate * self.attention(normalized(tokens, shift, scale))
        return tokens + gate_2 * self.perceptron(normalized(tokens, shift_2, scale_2))


class SelfAttention(nn.Module):
    """
    Multi-head self-attention (Vaswani et al. 2017, section 3.2).

    :param width: entries ``W`` of a token
    :param n_heads: number of heads
    """

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv_layer = nn.Linear(width, 3 * width)
        self.output_layer = nn.Linear(width, width)

    def forward(self, tokens: th.Tensor) -> th.Tensor:
        """
        :param tokens: ``(M, H, W)``
        :return: ``(M, H, W)``
        """
        heads = self.qkv_layer(tokens).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (M, heads, H, W / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output_layer(mixed.transpose(1, 2).flatten(2))


def perceptron(width: int, activation_fn: type[nn.Module]) -> nn.Sequential:
    """:return: the two layers of a Transformer's block, four times as wide in between"""
    return nn.Sequential(nn.Linear(width, 4 * width), activation_fn(), nn.Linear(4 * width, width))


def normalized(tokens: th.Tensor, shift: th.Tensor, scale: th.Tensor) -> th.Tensor:
    """:return: layer norm of the tokens, with a scale and shift of each row's own"""
    return F.layer_norm(tokens, tokens.shape[-1:]) * (1 + scale) + shift


def zero(layer: nn.Linear) -> nn.Linear:
    """:return: the layer with weights and biases of zero"""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
