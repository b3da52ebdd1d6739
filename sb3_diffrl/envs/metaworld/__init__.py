"""
Meta-World's tasks, clean and perturbed; ``pip install 'sb3-diffrl[metaworld]'``.

Meta-World and MuJoCo are imported when the first environment is made.
"""

from sb3_diffrl.envs.metaworld.demonstrations import expert_success, metaworld_demonstrations
from sb3_diffrl.envs.metaworld.environment import MetaWorldEnv, make_metaworld
from sb3_diffrl.envs.metaworld.perturbations import LEVELS, Perturbation
from sb3_diffrl.envs.metaworld.tasks import TASKS

__all__ = [
    "LEVELS",
    "TASKS",
    "MetaWorldEnv",
    "Perturbation",
    "expert_success",
    "make_metaworld",
    "metaworld_demonstrations",
]
