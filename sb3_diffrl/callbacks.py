"""Callbacks that drive the method's knobs and measure what training gives."""

import gymnasium as gym
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.evaluation import evaluate
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


class SuccessCallback(BaseCallback):
    """
    Measures the success rate as training goes on: before the first update, whenever so many
    environment steps have been made, and at the end.

    Every point belongs to the policy as it was after exactly that many environment steps, so
    points lie between rollouts. Training itself is left as it would have been.

    :param env: environment to evaluate in, not the one of training
    :param eval_freq_env_steps: environment steps between two evaluations
    :param n_episodes: episodes of each
    :param seed: of the evaluation
    :param verbose: verbosity
    :param name: of the logged scalar, after ``eval/``
    """

    def __init__(
        self,
        env: gym.Env | VectorEnv | VecEnv,
        eval_freq_env_steps: int,
        n_episodes: int = 100,
        seed: int = 0,
        verbose: int = 0,
        name: str = "success_rate",
    ):
        super().__init__(verbose)
        self.name = name
        self.env = env
        self.eval_freq_env_steps = eval_freq_env_steps
        self.n_episodes = n_episodes
        self.seed = seed
        self.curve: list[tuple[int, float]] = []  # (environment steps, success rate)

    @property
    def env_steps(self) -> int:
        """Environment steps so far; a decision of a DiffusionPPO may take several."""
        return int(getattr(self.model, "env_steps", self.num_timesteps))

    def _on_rollout_start(self) -> None:
        freq = self.eval_freq_env_steps
        if not self.curve or self.env_steps // freq > self.curve[-1][0] // freq:
            self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if not self.curve or self.env_steps > self.curve[-1][0]:
            self._evaluate()

    def _evaluate(self) -> None:
        result = evaluate(self.model, self.env, self.n_episodes, seed=self.seed)
        self.curve.append((self.env_steps, result.success_rate))
        self.logger.record(f"eval/{self.name}", result.success_rate)
        self.logger.dump(self.num_timesteps)
