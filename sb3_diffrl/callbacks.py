"""Callbacks that drive the method's knobs."""

from stable_baselines3.common.callbacks import BaseCallback

from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.schedules import MIXING, ScheduleSpec


class MixingCallback(BaseCallback):
    """
    Sets the ``mixing`` of a :class:`DiffusionPPO` when training starts, where the model was built
    without (paper, section 2.3).

    :param mixing: number, string, mapping or schedule, as the algorithm's own argument
    :param verbose: verbosity
    """

    def __init__(self, mixing: ScheduleSpec = "linear_0.5", verbose: int = 0):
        super().__init__(verbose)
        self.mixing = MIXING.schedule(mixing)

    def _init_callback(self) -> None:
        if not isinstance(self.model, DiffusionPPO):
            raise ValueError(
                f"MixingCallback drives DiffusionPPO, got {type(self.model).__name__}. "
                "Other algorithms have no prior to mix with."
            )
        self.model.mixing = self.mixing

    def _on_step(self) -> bool:
        return True
