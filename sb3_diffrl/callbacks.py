"""Callbacks that drive the method's knobs and measure what training gives."""

from abc import abstractmethod
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffrl.diffusion_ppo import DiffusionPPO
from sb3_diffrl.evaluation import evaluate
from sb3_diffrl.multimodality import RESOLUTION, action_samples, count_modes, knn_entropy
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


class PeriodicCallback(BaseCallback):
    """
    Measures something as training goes on: before the first update, whenever so many environment
    steps have been made, and at the end.

    Every point belongs to the policy as it was after exactly that many environment steps, so
    points lie between rollouts.

    :param eval_freq_env_steps: environment steps between two points
    :param verbose: verbosity
    """

    def __init__(self, eval_freq_env_steps: int, verbose: int = 0):
        super().__init__(verbose)
        if eval_freq_env_steps < 1:
            raise ValueError(f"eval_freq_env_steps must be at least 1, got {eval_freq_env_steps}.")
        self.eval_freq_env_steps = eval_freq_env_steps
        self._last: int | None = None
        self._n_further = 0  # environment steps of the decisions seen, beyond one for each

    @property
    def env_steps(self) -> int:
        """
        Environment steps so far, of which a chunk of actions takes several. Models other than
        DiffusionPPO do not count them: theirs are as far as this callback has seen the training.
        """
        return int(getattr(self.model, "env_steps", self.num_timesteps + self._n_further))

    def _on_training_start(self) -> None:
        if self.num_timesteps == 0:  # what was counted belongs to another run
            self._last, self._n_further = None, 0

    def _on_rollout_start(self) -> None:
        freq = self.eval_freq_env_steps
        if self._last is None or self.env_steps // freq > self._last // freq:
            self._measure()

    def _on_step(self) -> bool:
        infos = self.locals.get("infos", [])
        self._n_further += sum(info["env_steps"] - 1 for info in infos if "env_steps" in info)
        return True

    def _on_training_end(self) -> None:
        if self._last is None or self.env_steps > self._last:
            self._measure()

    def _measure(self) -> None:
        self._last = self.env_steps
        self.measure(self._last)

    @abstractmethod
    def measure(self, env_steps: int) -> None:
        """
        What subclasses do at each point; they leave training as it would have been.

        :param env_steps: environment steps so far
        """


class SuccessCallback(PeriodicCallback):
    """
    Measures the success rate as training goes on, see :class:`PeriodicCallback`. Training itself is
    left as it would have been.

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
        super().__init__(eval_freq_env_steps, verbose)
        self.name = name
        self.env = env
        self.n_episodes = n_episodes
        self.seed = seed
        self.curve: list[tuple[int, float]] = []  # (environment steps, success rate)

    def measure(self, env_steps: int) -> None:
        """
        :param env_steps: environment steps so far
        """
        result = evaluate(self.model, self.env, self.n_episodes, seed=self.seed)
        self.curve.append((env_steps, result.success_rate))
        self.logger.record(f"eval/{self.name}", result.success_rate)
        self.logger.dump(self.num_timesteps)


class Multimodality(NamedTuple):
    """
    A point of :class:`MultimodalityCallback`.

    :param env_steps: environment steps made before
    :param entropy: nats, mean over the observations
    :param modes: number of modes, mean over the observations
    """

    env_steps: int
    entropy: float
    modes: float


class MultimodalityCallback(PeriodicCallback):
    """
    Measures whether the policy keeps its modes as training goes on, see :class:`PeriodicCallback`
    (paper, section 3.4): the entropy of its actions at fixed observations, and how many modes they
    have. Training itself is left as it would have been.

    :param observations: ``(B, *obs_shape)`` or a dictionary of such arrays, best where there is a
        choice; of episodes' starts, see :func:`~sb3_diffrl.multimodality.start_observations`
    :param eval_freq_env_steps: environment steps between two points
    :param n_samples: actions drawn at each observation
    :param resolution: blur of both measures, see :mod:`sb3_diffrl.multimodality`
    :param seed: of the draws, the same at every point
    :param name: section of the log, to tell two such callbacks apart
    :param verbose: verbosity
    """

    def __init__(
        self,
        observations: np.ndarray | dict[str, np.ndarray],
        eval_freq_env_steps: int,
        n_samples: int = 500,
        resolution: float = RESOLUTION,
        seed: int = 0,
        name: str = "multimodality",
        verbose: int = 0,
    ):
        super().__init__(eval_freq_env_steps, verbose)
        self.observations = observations
        self.n_samples = n_samples
        self.resolution = resolution
        self.seed = seed
        self.name = name
        self.curve: list[Multimodality] = []

    def measure(self, env_steps: int) -> None:
        """
        :param env_steps: environment steps so far
        """
        drawn = action_samples(self.model, self.observations, self.n_samples, seed=self.seed)
        entropy = np.mean([knn_entropy(actions, resolution=self.resolution) for actions in drawn])
        modes = np.mean([count_modes(actions, self.resolution).number for actions in drawn])
        self.curve.append(Multimodality(env_steps, float(entropy), float(modes)))
        self.logger.record(f"{self.name}/entropy", float(entropy))
        self.logger.record(f"{self.name}/modes", float(modes))
        self.logger.dump(self.num_timesteps)
