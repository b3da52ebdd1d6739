"""The network that acts: encoder and denoiser."""

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_diffrl.diffusion import Denoiser
from sb3_diffrl.encoders import VisionExtractor
from sb3_diffrl.normalization import ObservationNormalizer


class DiffusionActor(nn.Module):
    """
    All that turns an observation into predicted noise; what the prior is a frozen copy of.

    :param normalizer: normalises preprocessed observations
    :param features_extractor: encodes them, ``(B, F)``
    :param denoiser: the network
    """

    def __init__(
        self,
        normalizer: ObservationNormalizer,
        features_extractor: BaseFeaturesExtractor,
        denoiser: Denoiser,
    ):
        super().__init__()
        self.normalizer = normalizer
        self.features_extractor = features_extractor
        self.denoiser = denoiser

    def condition(self, obs: PyTorchObs) -> th.Tensor:
        """
        What the denoiser wants to know of the observation, computed once per decision.

        :param obs: preprocessed observations, ``(B, ...)``
        :return: ``(B, C)``
        """
        return self.denoiser.condition(self.encode(obs))

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: preprocessed observations, ``(B, ...)``
        :return: features, ``(B, F)``
        """
        return self.features_extractor(self.normalizer(obs))

    def augment(self, obs: PyTorchObs) -> PyTorchObs:
        """
        What imitation sees instead of the observation, where the encoder augments images.

        :param obs: preprocessed observations, ``(B, ...)``
        :return: the same, with random crops and colours
        """
        if isinstance(self.features_extractor, VisionExtractor):
            return self.features_extractor.augment(obs)
        return obs
