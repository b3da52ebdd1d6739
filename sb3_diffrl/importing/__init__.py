"""Policies trained by LeRobot and by DPPO, as models of this package."""

from sb3_diffrl.importing.dppo import load_dppo
from sb3_diffrl.importing.lerobot import load_lerobot

__all__ = ["load_dppo", "load_lerobot"]
