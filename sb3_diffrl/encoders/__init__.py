"""Encoders of images, of several cameras and the state, and of language."""

from sb3_diffrl.encoders.augmentation import color_jitter, crop_at, random_crop
from sb3_diffrl.encoders.resnet import ResNet
from sb3_diffrl.encoders.vision import ENCODERS, IMAGE_NETWORKS, VisionExtractor
from sb3_diffrl.encoders.vit import ViT

__all__ = [
    "ENCODERS",
    "IMAGE_NETWORKS",
    "ResNet",
    "ViT",
    "VisionExtractor",
    "color_jitter",
    "crop_at",
    "random_crop",
]
