"""
Normalisation of observations, kept in the policy's state dict so that a saved policy is complete.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_diffrl.demonstrations.arrays import Source
from sb3_diffrl.demonstrations.statistics import extremes, moments, quantiles


def _midpoint(bounds: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    low, high = bounds
    return (low + high) / 2, (high - low) / 2


# What is subtracted, and what is divided by where it is not near 0.
_CENTER_AND_SPREAD: dict[str, Callable[[Source], tuple[np.ndarray, np.ndarray]]] = {
    "standard": moments,
    "min_max": lambda observations: _midpoint(extremes(observations)),
    "quantile": lambda observations: _midpoint(quantiles(observations)),
}


def check_normalization(normalization: str) -> None:
    """
    :param normalization: name of a normalisation
    :raises ValueError: where there is none of that name
    """
    if normalization not in _CENTER_AND_SPREAD:
        raise ValueError(
            f"normalization={normalization!r}: expected one of {sorted(_CENTER_AND_SPREAD)}"
        )


class Standardizer(nn.Module):
    """
    ``clamp((x - mean) / scale, -limit, limit)``; the identity until fitted. ``mean`` is the centre
    that the fit has chosen.

    :param space: the space of the observations, whose finite bounds give a near-constant entry its
        scale
    """

    mean: th.Tensor
    scale: th.Tensor
    limit: th.Tensor
    near_constant: th.Tensor

    def __init__(self, space: spaces.Box):
        super().__init__()
        self.space = space
        self.register_buffer("mean", th.zeros(space.shape))
        self.register_buffer("scale", th.ones(space.shape))
        self.register_buffer("limit", th.tensor(th.inf))
        self.register_buffer("near_constant", th.zeros(space.shape))

    def fit(
        self,
        observations: Source,
        scale_floor: float,
        limit: float,
        normalization: str = "standard",
    ) -> None:
        """
        Take the statistics from data, which are read in chunks.

        :param observations: ``(M, *shape)``
        :param scale_floor: smallest scale of an entry, as a fraction of half its range in the
            space, or where it is unbounded of the largest spread of all entries; so near-constant
            entries do not explode
        :param limit: bound of the normalised values
        :param normalization: ``"standard"`` subtracts the mean and divides by the standard
            deviation; ``"min_max"`` maps the smallest and largest value to -1 and 1,
            ``"quantile"`` the 1 and 99 % quantiles
        """
        check_normalization(normalization)
        center, spread = _CENTER_AND_SPREAD[normalization](observations)
        with np.errstate(over="ignore"):
            half_range = (self.space.high.astype(np.float64) - self.space.low) / 2
        typical = spread.max() if spread.size and spread.max() > 0 else 1.0
        # A bound such as float32's largest number is none.
        floor = scale_floor * np.where(half_range < 1e6, half_range, typical)
        scale = np.maximum(spread, floor)
        self.set_statistics(center, np.where(scale > 0, scale, 1.0), spread <= floor, limit)

    def set_statistics(
        self,
        mean: np.ndarray,
        scale: np.ndarray,
        near_constant: np.ndarray,
        limit: float = float("inf"),
    ) -> None:
        """
        Take mean and scale as they are given.

        :param mean: ``(*shape)``, like the next two
        :param scale: above 0
        :param near_constant: which entries hardly varied in the data
        :param limit: bound of the normalised values
        """
        self.mean.copy_(th.as_tensor(mean))
        self.scale.copy_(th.as_tensor(scale))
        self.near_constant.copy_(th.as_tensor(near_constant))
        self.limit.fill_(limit)

    def hand_over(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Leave mean and scale to another normaliser and become the identity up to the limit.

        :return: mean and variance ``(*shape)``
        """
        mean, scale = self.mean.cpu().numpy().copy(), self.scale.cpu().numpy().copy()
        self.mean.zero_()
        self.scale.fill_(1.0)
        return mean.astype(np.float64), scale.astype(np.float64) ** 2

    @property
    def is_identity(self) -> bool:
        """Whether nothing was fitted, or it was handed over."""
        return not self.mean.any() and bool((self.scale == 1).all())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(B, *shape)``
        :return: ``(B, *shape)`` normalised
        """
        return ((observations - self.mean) / self.scale).clamp(-self.limit, self.limit)


def _name(key: str) -> str:
    """Of a module: without dots, and not one that ``ModuleDict`` has a method of."""
    return "obs_" + key.replace(".", "/")


class ObservationNormalizer(nn.Module):
    """
    Standardises each vector-valued Box observation; images and discrete observations pass
    unchanged.

    :param space: observation space, Dict or not
    """

    def __init__(self, space: spaces.Space):
        super().__init__()
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        vectors = {
            key: Standardizer(part)
            for key, part in parts.items()
            if isinstance(part, spaces.Box) and not is_image_space(part)
        }
        self._keys = list(vectors)
        self.standardizers = nn.ModuleDict({_name(key): part for key, part in vectors.items()})

    def fit(
        self,
        observations: Source | Mapping[str, Source],
        scale_floor: float = 0.02,
        limit: float = 5.0,
        normalization: str = "standard",
    ) -> None:
        """
        Take the statistics from data; parameters as in :meth:`Standardizer.fit`.

        :param observations: ``(M, *shape)``, or a mapping of such arrays
        :param scale_floor: smallest scale
        :param limit: bound of the normalised values
        :param normalization: which statistics
        """
        check_normalization(normalization)
        parts = observations if isinstance(observations, Mapping) else {"": observations}
        for key, part in parts.items():
            if _name(key) in self.standardizers:
                self.standardizer(key).fit(part, scale_floor, limit, normalization)

    @property
    def was_handed_over(self) -> bool:
        """Whether the statistics that were fitted are another normaliser's."""
        limits = [self.standardizer(key).limit for key in self._keys]
        return self.is_identity and any(limit < th.inf for limit in limits)

    @property
    def is_identity(self) -> bool:
        """Whether nothing was fitted, or all was handed over."""
        return all(self.standardizer(key).is_identity for key in self._keys)

    def forward(self, observations: PyTorchObs) -> PyTorchObs:
        """
        :param observations: preprocessed observations, a tensor or a dict of tensors
        :return: the same, normalised
        """
        if isinstance(observations, dict):
            return {key: self._normalize(key, part) for key, part in observations.items()}
        return self._normalize("", observations)

    def replace_context(self, observations: PyTorchObs, contexts: PyTorchObs) -> PyTorchObs:
        """
        Put observations into other contexts: the entries that hardly varied in the data of
        :meth:`fit`.

        :param observations: ``(B, ...)`` preprocessed
        :param contexts: ``(B, ...)`` preprocessed observations whose near-constant entries are
            taken
        :return: ``(B, ...)``
        """
        if isinstance(observations, dict):
            assert isinstance(contexts, dict)
            return {
                key: self._replace(key, part, contexts[key]) for key, part in observations.items()
            }
        assert not isinstance(contexts, dict)
        return self._replace("", observations, contexts)

    def _replace(self, key: str, part: th.Tensor, context: th.Tensor) -> th.Tensor:
        if _name(key) not in self.standardizers:
            return part
        return th.where(self.standardizer(key).near_constant > 0.5, context, part)

    def standardizer(self, key: str = "") -> Standardizer:
        """
        :param key: key of a Dict observation
        :return: what standardises it
        """
        standardizer = self.standardizers[_name(key)]
        assert isinstance(standardizer, Standardizer)
        return standardizer

    def _normalize(self, key: str, part: th.Tensor) -> th.Tensor:
        return self.standardizer(key)(part) if _name(key) in self.standardizers else part
