"""
The diffusion layer: noise schedules, the reverse chain and its likelihood, denoisers. Torch only.
"""

from sb3_diffrl.diffusion.chain import (
    DiffusionProcess,
    gaussian_log_prob,
    mixture_log_prob,
    pathwise_kl,
)
from sb3_diffrl.diffusion.cuda_graph import CudaGraphs
from sb3_diffrl.diffusion.denoisers import Denoiser, MlpDenoiser
from sb3_diffrl.diffusion.dppo_mlp import DppoMlpDenoiser
from sb3_diffrl.diffusion.noise_schedules import NOISE_SCHEDULES, make_alpha_bar
from sb3_diffrl.diffusion.parametrization import PREDICTION_TYPES, TIMESTEP_SPACINGS
from sb3_diffrl.diffusion.registry import DENOISERS, make_denoiser, named
from sb3_diffrl.diffusion.transformer import TransformerDenoiser
from sb3_diffrl.diffusion.undirected import EXPLORATIONS, ActionNoiseProcess
from sb3_diffrl.diffusion.unet import UnetDenoiser

__all__ = [
    "DENOISERS",
    "EXPLORATIONS",
    "NOISE_SCHEDULES",
    "PREDICTION_TYPES",
    "TIMESTEP_SPACINGS",
    "ActionNoiseProcess",
    "CudaGraphs",
    "Denoiser",
    "DiffusionProcess",
    "DppoMlpDenoiser",
    "MlpDenoiser",
    "TransformerDenoiser",
    "UnetDenoiser",
    "gaussian_log_prob",
    "make_alpha_bar",
    "make_denoiser",
    "mixture_log_prob",
    "named",
    "pathwise_kl",
]
