"""The temporal U-Net: convolutions along the actions of a chunk."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch as th
from torch import nn

from sb3_diffrl.diffusion.denoisers import Denoiser, timestep_embedding


class FilmBlock(nn.Module):
    """
    Two convolutions with a skip connection; between them the channels are shifted, and scaled if
    asked, by what noise level and observation say (FiLM, Perez et al. 2018).

    :param n_in: channels of the input
    :param n_out: channels of the output
    :param kernel_size: odd width of the convolutions
    :param n_groups: groups of the normalisation
    :param activation_fn: activation function
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel_size: int,
        n_groups: int,
        activation_fn: type[nn.Module],
    ):
        super().__init__()
        self.first = _convolution(n_in, n_out, kernel_size, n_groups, activation_fn)
        self.second = _convolution(n_out, n_out, kernel_size, n_groups, activation_fn)
        self.skip = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, hidden: th.Tensor, film: th.Tensor) -> th.Tensor:
        """
        :param hidden: ``(B, n_in, L)``
        :param film: ``(B, n_out)`` shifts, or ``(B, 2 n_out)`` scales and shifts
        :return: ``(B, n_out, L)``
        """
        modulated = self.first(hidden)
        if film.shape[-1] == modulated.shape[1]:
            modulated = modulated + film.unsqueeze(-1)
        else:
            scale, shift = film.unsqueeze(-1).chunk(2, dim=1)
            modulated = th.addcmul(shift, scale, modulated)
        return self.second(modulated) + self.skip(hidden)


class UnetDenoiser(Denoiser):
    """
    Conditional 1-D U-Net over the ``H`` actions of a chunk (Janner et al. 2022; Chi et al. 2023):
    each level but the last halves the horizon on the way down and doubles it on the way up, and
    noise level and observation modulate the channels of every block.

    For chunks of actions, see :class:`~sb3_diffrl.wrappers.ActionChunkWrapper`.

    :param features_dim: number of observation features ``F``
    :param action_dim: number of action entries ``D = H A``, action after action
    :param noise_levels: number of noise levels ``T``
    :param net_arch: channels of the levels, unless ``down_dims`` says otherwise
    :param activation_fn: activation function
    :param horizon: number of actions ``H``, a multiple of ``2 ** (number of levels - 1)``
    :param down_dims: channels of the levels, each a multiple of ``n_groups``
    :param kernel_size: odd width of the convolutions
    :param n_groups: groups of the normalisation
    :param use_film_scale_modulation: whether the condition scales the channels, besides shifting
        them
    :param level_embed_dim: entries of the noise level's embedding, even and at least 4
    :raises ValueError: where the arguments do not fit one another
    """

    level_embedding: th.Tensor

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        noise_levels: int,
        net_arch: Sequence[int] = (64, 128, 256),
        activation_fn: type[nn.Module] = nn.Mish,
        *,
        horizon: int = 1,
        down_dims: Sequence[int] | None = None,
        kernel_size: int = 5,
        n_groups: int = 8,
        use_film_scale_modulation: bool = True,
        level_embed_dim: int = 128,
    ):
        super().__init__(features_dim, action_dim, noise_levels)
        widths = list(net_arch if down_dims is None else down_dims)
        _check(action_dim, horizon, widths, kernel_size, n_groups)
        self.horizon = horizon
        n_actions = action_dim // horizon

        film_widths: list[int] = []

        def block(n_in: int, n_out: int) -> FilmBlock:
            film_widths.append(n_out * (2 if use_film_scale_modulation else 1))
            return FilmBlock(n_in, n_out, kernel_size, n_groups, activation_fn)

        def pair(n_in: int, n_out: int) -> nn.ModuleList:
            return nn.ModuleList([block(n_in, n_out), block(n_out, n_out)])

        inner = list(pairwise(widths))
        self.encoder = nn.ModuleList(pair(*ends) for ends in pairwise([n_actions, *widths]))
        self.downsample = nn.ModuleList(nn.Conv1d(n, n, 3, 2, 1) for n in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        self.decoder = nn.ModuleList(pair(2 * deep, shallow) for shallow, deep in reversed(inner))
        self.upsample = nn.ModuleList(
            nn.ConvTranspose1d(n, n, 4, 2, 1) for n in reversed(widths[:-1])
        )
        self.output = nn.Sequential(
            _convolution(widths[0], widths[0], kernel_size, n_groups, activation_fn),
            nn.Conv1d(widths[0], n_actions, 1),
        )

        embedding = timestep_embedding(noise_levels, level_embed_dim)
        self.register_buffer("level_embedding", embedding, persistent=False)
        self.level_encoder = nn.Sequential(
            nn.Linear(level_embed_dim, 4 * level_embed_dim),
            activation_fn(),
            nn.Linear(4 * level_embed_dim, level_embed_dim),
        )
        self.activation = activation_fn()
        # Of all blocks at once, in the order in which the blocks are built.
        self.film_widths = film_widths
        self.film_level = nn.Linear(level_embed_dim, sum(film_widths))
        self.film_features = nn.Linear(features_dim, sum(film_widths), bias=False)

    def condition(self, features: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.condition`; the observation's part of the modulation."""
        return self.film_features(self.activation(features))

    def forward(self, noisy: th.Tensor, levels: th.Tensor, condition: th.Tensor) -> th.Tensor:
        """See :meth:`Denoiser.forward`."""
        film = condition + self._film_of_levels(levels)
        film = film.expand(*noisy.shape[:-1], -1).flatten(end_dim=-2)
        return self._unet(noisy.reshape(len(film), -1), film).view_as(noisy)

    def stepwise(
        self, levels: th.Tensor, condition: th.Tensor
    ) -> Callable[[th.Tensor, int], th.Tensor]:
        """See :meth:`Denoiser.stepwise`; all of the modulation is computed once."""
        table = self._film_of_levels(levels)
        return lambda noisy, step: self._unet(noisy, condition + table[step])

    def _film_of_levels(self, levels: th.Tensor) -> th.Tensor:
        encoded = self.level_encoder(self.level_embedding[levels])
        return self.film_level(self.activation(encoded))

    def _unet(self, noisy: th.Tensor, film: th.Tensor) -> th.Tensor:
        """Output ``(B, D)`` for noisy actions ``(B, D)`` and the modulation of all blocks."""
        films = iter(film.split(self.film_widths, dim=-1))

        def apply(blocks: nn.Module, hidden: th.Tensor) -> th.Tensor:
            for block in blocks.children():
                hidden = block(hidden, next(films))
            return hidden

        hidden = noisy.view(len(noisy), self.horizon, -1).transpose(1, 2)
        skips = []
        for i, blocks in enumerate(self.encoder):
            hidden = apply(blocks, hidden if i == 0 else self.downsample[i - 1](hidden))
            skips.append(hidden)
        hidden = apply(self.middle, hidden)
        for blocks, upsample in zip(self.decoder, self.upsample, strict=True):
            hidden = upsample(apply(blocks, th.cat([hidden, skips.pop()], dim=1)))
        return self.output(hidden).transpose(1, 2).flatten(1)


def _convolution(
    n_in: int, n_out: int, kernel_size: int, n_groups: int, activation_fn: type[nn.Module]
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(n_in, n_out, kernel_size, padding=kernel_size // 2),
        nn.GroupNorm(n_groups, n_out),
        activation_fn(),
    )


def _check(
    action_dim: int, horizon: int, widths: list[int], kernel_size: int, n_groups: int
) -> None:
    if horizon < 1 or action_dim % horizon:
        raise ValueError(
            f"horizon={horizon} does not divide the {action_dim} action entries: it is the number "
            "of actions in a chunk. Wrap the env in ActionChunkWrapper(env, horizon=...) with the "
            "same number."
        )
    if not widths:
        raise ValueError("UnetDenoiser needs at least one level, got no down_dims and no net_arch.")
    factor = 2 ** (len(widths) - 1)
    if horizon % factor:
        fitting = max(1, horizon // factor) * factor
        raise ValueError(
            f"horizon={horizon} cannot be halved {len(widths) - 1} times, as the "
            f"{len(widths)} levels of down_dims={widths} ask for: expected a multiple of {factor}, "
            f"such as {fitting}. Change the horizon of the chunks, or use fewer levels."
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that the length is kept, got {kernel_size}.")
    if n_groups < 1 or any(width % n_groups for width in widths):
        raise ValueError(
            f"n_groups={n_groups} does not divide all of down_dims={widths}. "
            "Use widths that are multiples of it."
        )
