"""The features extractor for observations with images."""

from collections.abc import Callable
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_diffrl.encoders.augmentation import color_jitter, random_crop
from sb3_diffrl.encoders.resnet import ResNet
from sb3_diffrl.encoders.vit import ViT

IMAGE_NETWORKS: dict[str, Callable[..., nn.Module]] = {"resnet": ResNet, "vit": ViT}


class VisionExtractor(BaseFeaturesExtractor):
    """
    Encodes an image, or cameras and vectors of a Dict observation.

    Each camera goes through a network of its own or one for all; its features and the vectors, such
    as the state or the embedding of a sentence, are concatenated. One of the vectors may instead
    modulate the networks (FiLM), so that what is looked at depends on it.

    Random crops and colours belong into the imitation losses alone, for the likelihood of a chain
    must repeat: :meth:`augment` is called there, and everything else sees the centre of the image.

    :param observation_space: an image, or a Dict with at least one; channels first
    :param network: ``"resnet"``, ``"vit"``, or a class that is called as
        :class:`~sb3_diffrl.encoders.resnet.ResNet` is
    :param network_kwargs: its arguments
    :param camera_features: features of each camera
    :param shared: whether all cameras, of the same shape, go through one network
    :param film_key: key of the vector that modulates the networks, None for none
    :param crop: fraction of height and width that is kept, 1 for the whole image
    :param jitter: strength of random colours, 0 for none
    :raises ValueError: for spaces without an image, or options that do not fit it
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        network: str | Callable[..., nn.Module] = "resnet",
        network_kwargs: dict[str, Any] | None = None,
        camera_features: int = 64,
        shared: bool = False,
        film_key: str | None = None,
        crop: float = 1.0,
        jitter: float = 0.0,
    ):
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        parts = dict(parts) or {"": observation_space}
        cameras = {
            key: part
            for key, part in parts.items()
            if isinstance(part, spaces.Box) and is_image_space(part, check_channels=False)
        }
        if not cameras:
            raise ValueError(
                f"VisionExtractor needs an image, uint8 from 0 to 255, in {observation_space}. "
                "Use the default encoder for vectors."
            )
        vectors = {
            key: get_flattened_obs_dim(part) for key, part in parts.items() if key not in cameras
        }
        if film_key is not None and film_key not in vectors:
            raise ValueError(f"film_key={film_key!r} is no vector: expected one of {[*vectors]}.")
        if isinstance(network, str) and network not in IMAGE_NETWORKS:
            raise ValueError(
                f"Unknown network {network!r}: expected one of {sorted(IMAGE_NETWORKS)} or a class."
            )
        if not (0 < crop <= 1 and 0 <= jitter <= 1):
            raise ValueError(
                f"crop must lie in (0, 1] and jitter in [0, 1], got {crop} and {jitter}."
            )
        n_vector = sum(n for key, n in vectors.items() if key != film_key)
        super().__init__(observation_space, len(cameras) * camera_features + n_vector)
        self.cameras, self.film_key, self.jitter = list(cameras), film_key, jitter
        self.vectors = [key for key in vectors if key != film_key]
        self.sizes = {
            key: (max(1, round(crop * part.shape[1])), max(1, round(crop * part.shape[2])))
            for key, part in cameras.items()
        }
        shapes = {key: (part.shape[0], *self.sizes[key]) for key, part in cameras.items()}
        if shared and len(set(shapes.values())) > 1:
            raise ValueError(f"shared=True needs cameras of one shape, got {shapes}.")
        make = IMAGE_NETWORKS[network] if isinstance(network, str) else network
        context_dim = vectors[film_key] if film_key is not None else 0
        networks = [
            make(shape, camera_features, context_dim, **(network_kwargs or {}))
            for shape in (list(shapes.values())[:1] if shared else shapes.values())
        ]
        self.networks = nn.ModuleList(networks)

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: preprocessed, ``(B, C, H, W)`` in [0, 1] or a dict of such
        :return: ``(B, features_dim)``
        """
        parts = observations if isinstance(observations, dict) else {"": observations}
        context = None if self.film_key is None else parts[self.film_key].flatten(1)
        networks = [*self.networks] * (len(self.cameras) if len(self.networks) == 1 else 1)
        features = [
            network(self._centre(key, parts[key]), context)
            for key, network in zip(self.cameras, networks, strict=True)
        ]
        return th.cat([*features, *(parts[key].flatten(1) for key in self.vectors)], dim=1)

    def augment(self, observations: PyTorchObs) -> PyTorchObs:
        """
        :param observations: as for :meth:`forward`
        :return: with other crops and colours of the images
        """
        if isinstance(observations, dict):
            return {
                key: self._augmented(key, part) if key in self.sizes else part
                for key, part in observations.items()
            }
        return self._augmented("", observations)

    def _augmented(self, key: str, images: th.Tensor) -> th.Tensor:
        if self.sizes[key] != tuple(images.shape[2:]):
            images = random_crop(images, self.sizes[key])
        return color_jitter(images, self.jitter) if self.jitter else images

    def _centre(self, key: str, images: th.Tensor) -> th.Tensor:
        height, width = self.sizes[key]
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width]


# Features extractors by name.
ENCODERS: dict[str, type[BaseFeaturesExtractor]] = {
    "vision": VisionExtractor,
    "flatten": FlattenExtractor,
    "nature_cnn": NatureCNN,
    "combined": CombinedExtractor,
}
