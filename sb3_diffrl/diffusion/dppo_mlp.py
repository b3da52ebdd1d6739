"""The multilayer perceptron of DPPO, so that policies trained there run here."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch as th
from torch import nn

from sb3_diffrl.diffusion.denoisers import Denoiser, timestep_embedding


class PreActivationBlock(nn.Module):
    """
    ``h + W_2 act(W_1 act(h))``, each activation after a normalisation if asked.

    :param width: entries of ``h``
    :param activation_fn: activation function
    :param layer_norm: whether to normalise
    """

    def __init__(self, width: int, activation_fn: type[nn.Module], layer_norm: bool):
        super().__init__()
        self.update = nn.Sequential(
            *(
                layer
                for _ in range(2)
                for layer in (
                    nn.LayerNorm(width, eps=1e-6) if layer_norm else nn.Identity(),
                    activation_fn(),
                    nn.Linear(width, width),
                )
            )
        )

    def forward(self, hidden: th.Tensor) -> th.Tensor:
        """
        :param hidden: ``(..., width)``
        :return: ``(..., width)``
        """
        return hidden + self.update(hidden)


class DppoMlpDenoiser(Denoiser):
    """
    The denoiser of DPPO's policies of states (Ren et al. 2024, appendix): noisy action, encoded
    noise level and observation, concatenated, through a multilayer perceptron. For policies trained
    there; :class:`~sb3_diffrl.diffusion.MlpDenoiser` is the simpler one for new ones.

    :param features_dim: number of observation features ``F``
    :param action_dim: number of action entries ``D``
    :param noise_levels: number of noise levels ``T``
    :param net_arch: widths of the hidden layers; with ``residual`` an odd number of equal widths
    :param activation_fn: activation function
    :param residual: whether every two hidden layers after the first are a residual block
    :param layer_norm: whether hidden layers are normalised
    :param level_embed_dim: entries of the noise level's embedding, even and at least 4
    :param features_arch: widths of the layers that the observation goes through first
    :raises ValueError: where the arguments do not fit one another
    """

    level_embedding: th.Tensor

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        noise_levels: int,
        net_arch: Sequence[int] = (512, 512, 512),
        activation_fn: type[nn.Module] = nn.ReLU,
        residual: bool = True,
        layer_norm: bool = False,
        level_embed_dim: int = 16,
        features_arch: Sequence[int] = (),
    ):
        super().__init__(features_dim, action_dim, noise_levels)
        widths = list(net_arch)
        if not widths or (residual and (len(widths) % 2 == 0 or len(set(widths)) > 1)):
            raise ValueError(
                "DppoMlpDenoiser needs at least one hidden layer, and with residual=True an odd "
                f"number of equal widths, such as [512, 512, 512]; got net_arch={widths}."
            )
        self.features_net = _mlp([features_dim, *features_arch], activation_fn)
        embedding = timestep_embedding(noise_levels, level_embed_dim)
        self.register_buffer("level_embedding", embedding, persistent=False)
        self.level_encoder = nn.Sequential(
            nn.Linear(level_embed_dim, 2 * level_embed_dim),
            nn.Mish(),
            nn.Linear(2 * level_embed_dim, level_embed_dim),
        )
        # One layer of the concatenated inputs, in three parts.
        self.action_layer = nn.Linear(action_dim, widths[0])
        self.level_layer = nn.Linear(level_embed_dim, widths[0], bias=False)
        n_features = [features_dim, *features_arch][-1]
        self.features_layer = nn.Linear(n_features, widths[0], bias=False)
        layers: list[nn.Module] = []
        if residual:
            for _ in range(len(widths) // 2):
                layers.append(PreActivationBlock(widths[0], activation_fn, layer_norm))
            layers.append(nn.Linear(widths[0], action_dim))
        else:
            for n_in, n_out in pairwise([*widths, action_dim]):
                norm = nn.LayerNorm(n_in) if layer_norm else nn.Identity()
                layers += [norm, activation_fn(), nn.Linear(n_in, n_out)]
        self.trunk = nn.Sequential(*layers)

    def condition(self, features: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.condition`; the observation's part of the first layer."""
        return self.features_layer(self.features_net(features))

    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.forward`."""
        return self.trunk(self.action_layer(noisy) + (condition + self._of_levels(levels)))

    def stepwise(
        self, levels: th.Tensor, condition: th.Tensor
    ) -> Callable[[th.Tensor, int], th.Tensor]:
        """See :meth:`Denoiser.stepwise`; all of the first layer but the action is computed once."""
        given = (condition + self._of_levels(levels).unsqueeze(1)).unbind()  # K tensors (N, width)
        return lambda noisy, step: self.trunk(self.action_layer(noisy) + given[step])

    def _of_levels(self, levels: th.Tensor) -> th.Tensor:
        return self.level_layer(self.level_encoder(self.level_embedding[levels]))


def _mlp(widths: list[int], activation_fn: type[nn.Module]) -> nn.Sequential:
    """Linear layers with activations between them; none for a single width."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation_fn()]
    return nn.Sequential(*layers[:-1])
