"""Demonstrations: one dataclass, whatever the format they came in."""

from sb3_diffrl.demonstrations.dataset import Demonstrations

__all__ = ["Demonstrations"]
