"""PPO that imitates: demonstrations before RL, and what it met and did during RL."""

import logging
import math
from abc import abstractmethod
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.utils import configure_logger, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffrl.batches import check_demonstrations
from sb3_diffrl.buffers import ChainBufferMixin
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.env_statistics import hand_over_statistics, hold_statistics, normalized_by
from sb3_diffrl.fitting import PretrainingResult
from sb3_diffrl.imitation import Imitation, ImitationSpec, imitation_losses
from sb3_diffrl.imitation_buffer import ImitationBuffer
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from sb3_diffrl.precision import check_precision, precision
from sb3_diffrl.pretraining import pretrain
from sb3_diffrl.schedules import Constant, Signals
from sb3_diffrl.wrappers.action_chunks import ActionChunkWrapper
from sb3_diffrl.wrappers.decisions import decisions, mending_spaces
from sb3_diffrl.wrappers.observation_history import ObservationHistoryWrapper, map_parts, newest
from sb3_diffrl.wrappers.records import WrapperRecord, find, recorded_wrappers

log = logging.getLogger(__name__)


class ImitatingPPO(PPO):
    """
    What :class:`~sb3_diffrl.DiffusionPPO` does with demonstrations: it fits them to the env's
    wrappers and statistics, makes the prior of them, and imitates them, with what carries over and
    with own successes, beside its updates.
    """

    policy: DiffusionActorCriticPolicy
    rollout_buffer: ChainBufferMixin

    def __init__(
        self,
        policy: str | type[DiffusionActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        imitation: ImitationSpec = 0.0,
        precision: str = "float32",
        **kwargs: Any,
    ):
        super().__init__(policy, env, *args, _init_setup_model=False, **kwargs)  # type: ignore[misc]  # *args
        self.imitation = Imitation.parse(imitation)
        self.imitation_buffer = ImitationBuffer()
        self.precision = precision
        self.env_wrappers: list[WrapperRecord] = recorded_wrappers(self.env)
        self._actor_moved = False  # since it became the prior

    def _setup_model(self) -> None:
        """As SB3, then the arrays that a rollout fills."""
        # Parsed once more, for `load(path, imitation=...)` sets the attribute as it is given.
        self.imitation = Imitation.parse(self.imitation)
        check_precision(self.precision)
        self._check_discount()
        super()._setup_model()
        self.policy.precision = self.precision
        self._outcomes = np.zeros((self.n_steps, self.n_envs), np.int8)
        self._scenes: list[Any] = []  # in which episodes of the rollout began

    @abstractmethod
    def signals(self) -> Signals:
        """:return: what the schedules look at"""

    # -- the env -------------------------------------------------------------------------------

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Set the env as SB3 does, and record its wrappers.

        :param env: to train in, wrapped as the one before
        :param force_reset: whether it is reset before training
        :raises ValueError: where its spaces are not the model's, saying how to mend it
        """
        with mending_spaces():
            super().set_env(env, force_reset)
        self._record_wrappers()
        self._hold_statistics()

    def _record_wrappers(self) -> None:
        """Follow the env's wrappers, where it has any."""
        found = recorded_wrappers(self.env)
        if found and self.env_wrappers and found != self.env_wrappers:
            log.warning(
                "The env is wrapped in %s, other than the one before: %s.", found, self.env_wrappers
            )
        self.env_wrappers = found or self.env_wrappers

    def _check_discount(self) -> None:
        """Warn where rewards within a chunk are discounted by another rate than those beyond."""
        chunk = find(self.env_wrappers, ActionChunkWrapper.__name__)
        if chunk is None or chunk["gamma"] == 1:
            return
        expected = chunk["gamma"] ** chunk["n_executed"]
        if not math.isclose(self.gamma, expected, rel_tol=1e-3):
            log.warning(
                "gamma=%g of the model is a discount per decision of %d environment steps; to "
                "gamma=%g of ActionChunkWrapper, which is one per step, belongs gamma=%g.",
                *(self.gamma, chunk["n_executed"], chunk["gamma"], expected),
            )

    # -- before RL -----------------------------------------------------------------------------

    def set_prior(self, prior: DiffusionActorCriticPolicy) -> None:
        """
        Start from another policy, a frozen copy of which becomes the prior.

        Under ``VecNormalize(norm_obs=True)`` the prior's observation statistics are handed to the
        env; one that has none, for it was trained under ``VecNormalize`` itself, holds those that
        the env has. Moving statistics would drift the prior.

        :param prior: policy of the same architecture and spaces
        :raises ValueError: where its parameters, noise levels or spaces do not fit
        """
        self.policy.set_prior(prior)
        self._hold_statistics()
        self._forget_improvement()

    def _hold_statistics(self) -> None:
        """
        Of a policy with a prior: let the env normalise by its statistics, or else by its own, and
        hold them.
        """
        env, normalizer = self._vec_normalize_env, self.policy.actor.normalizer
        if self.env is None or not self.policy.has_prior:
            return
        lacking = False
        if env is None or not env.norm_obs:
            lacking = normalizer.was_handed_over
        elif normalizer.is_identity:
            lacking = hold_statistics(env)
        else:
            hand_over_statistics(normalizer, env)
            self.policy.prior.normalizer.load_state_dict(normalizer.state_dict())
        if lacking:
            log.warning(
                "The model's observation statistics are those of the VecNormalize that it was "
                "trained under, and the env has others or none: VecNormalize.load(path, env)."
            )

    def set_demonstrations(self, demonstrations: Demonstrations) -> None:
        """
        Give demonstrations to imitate during RL where the prior was trained elsewhere, or after
        loading.

        :param demonstrations: in the env's own units, step-wise or as decisions
        :raises ValueError: where they do not fit the spaces
        """
        self._keep_demonstrations(demonstrations, self._decisions(demonstrations))

    def _keep_demonstrations(self, given: Demonstrations, cut: Demonstrations) -> None:
        """Keep the decisions to imitate, and the steps, where these were given, to carry over."""
        step_wise = given if cut is not given or not self.env_wrappers else None
        self.imitation_buffer.set_demonstrations(self._as_seen(cut), self.policy, step_wise)

    def _decisions(self, demonstrations: Demonstrations) -> Demonstrations:
        """Cut into decisions of the wrapped env what is not."""
        return decisions(
            demonstrations, self.env_wrappers, self.observation_space, self.action_space
        )

    def _as_seen(self, demonstrations: Demonstrations) -> Demonstrations:
        """Normalise as the env does, where it does."""
        env = self._vec_normalize_env
        if env is None or not env.norm_obs:
            return demonstrations
        return demonstrations.with_observations(normalized_by(env, demonstrations.observations))

    def pretrain(self, demonstrations: Demonstrations, **kwargs: Any) -> PretrainingResult:
        """
        Imitate demonstrations, then freeze the result as the prior (paper, section 2.1).

        Under ``VecNormalize(norm_obs=True)`` the observation statistics are set from the
        demonstrations and held from then on, for moving statistics would drift the frozen prior.

        Where the env predicts chunks or sees histories, step-wise demonstrations are cut into
        such decisions, see :meth:`Demonstrations.windows`.

        :param demonstrations: what to imitate, in the env's own units
        :param kwargs: see :func:`sb3_diffrl.pretraining.pretrain`
        :return: losses and steps taken
        """
        given, demonstrations = demonstrations, self._decisions(demonstrations)
        env = self._vec_normalize_env
        if env is not None and env.norm_obs and kwargs.get("fit_normalizer", True):
            checked = check_demonstrations(demonstrations, self.policy)
            options = {
                k: kwargs[k] for k in ("scale_floor", "limit", "normalization") if k in kwargs
            }
            self.policy.actor.normalizer.fit(checked.observations, **options)
            hand_over_statistics(self.policy.actor.normalizer, env)
            kwargs["fit_normalizer"] = False
        elif env is not None and env.norm_obs:
            hold_statistics(env)
        if not self._custom_logger:
            name = f"{type(self).__name__}_pretrain"
            self._logger = configure_logger(self.verbose, self.tensorboard_log, name)
        kwargs.setdefault("precision", self.precision)
        seen = self._as_seen(demonstrations)
        result = pretrain(self.policy, seen, logger=self.logger, **kwargs)
        self._keep_demonstrations(given, demonstrations)
        self._forget_improvement()
        return result

    def _forget_improvement(self) -> None:
        """Start anew from an actor that is the prior itself."""
        self._actor_moved = False

    # -- during RL -----------------------------------------------------------------------------

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """SB3's own loop; what there is to imitate after it is kept. See the base class."""
        self._outcomes[:] = 0
        self._scenes.clear()
        go_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if not go_on:
            self.imitation_buffer.forget_pending(self.n_envs)
            return False
        self._carry_over()
        if self._imitates("successes"):
            actions = rollout_buffer.actions[..., -self.policy.action_dim :]
            self.imitation_buffer.add_rollout(
                rollout_buffer.observations,
                actions,
                rollout_buffer.episode_starts,
                self._outcomes,
                self.imitation.capacity,
            )
        return True

    def _update_info_buffer(
        self, infos: list[dict[str, Any]], dones: np.ndarray | None = None
    ) -> None:
        """SB3's hook after every ``env.step``; keeps how and where episodes end and begin."""
        super()._update_info_buffer(infos, dones)
        self._keep_scenes()
        if dones is not None and not self.rollout_buffer.full:
            for i, info in enumerate(infos):
                outcome = int(dones[i]) * (1 + bool(info.get("is_success", False)))
                self._outcomes[self.rollout_buffer.pos, i] = outcome

    def _keep_scenes(self) -> None:
        """Keep the first observations of the episodes that begin, as the bare env gives them."""
        if self.imitation.transport is None or self._last_episode_starts is None:
            return
        env, seen = self._vec_normalize_env, self._last_obs
        if env is not None:  # not unnormalised, for normalised ones are clipped
            seen, self._last_original_obs = self._last_original_obs, env.get_original_obs()
        history = find(self.env_wrappers, ObservationHistoryWrapper.__name__)
        for i in np.flatnonzero(self._last_episode_starts):
            scene = map_parts(partial(np.take, indices=i, axis=0), seen)
            if history is not None:
                scene = map_parts(partial(newest, n_observations=history["n_observations"]), scene)
            self._scenes.append(scene)

    def _carry_over(self) -> None:
        """Carry demonstrations over to the scenes in which episodes of the rollout began."""
        transport = self.imitation.transport
        if transport is None or not self._scenes:
            return
        if not self.imitation.weights(self.signals())["context"]:
            return
        carried = self.imitation_buffer.carried_over(transport, self._scenes)
        seen = self._as_seen(self._decisions(carried))
        self.imitation_buffer.add_carried_over(seen, self.policy, self.imitation.capacity)

    def _imitates(self, term: str) -> bool:
        return getattr(self.imitation, term) != Constant(0.0)

    def _imitation_gradients(
        self, visited: PyTorchObs, weights: dict[str, float]
    ) -> dict[str, th.Tensor]:
        """
        Add the gradients of the imitation terms, one draw of each.

        :param visited: ``(B, ...)`` observations of the rollout
        :param weights: by name of the term
        :return: the losses by name of the term
        """
        imitation = self.imitation
        contexts = visited if imitation.transport is None else None
        with precision(self.precision, self.device):
            losses = imitation_losses(
                self.policy, self.imitation_buffer, contexts, weights, imitation.batch_size
            )
            if losses:
                th.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _imitate(self, weights: dict[str, float]) -> None:
        """Train the actor by imitation alone, while the critic warms up."""
        policy, n_steps = self.policy, self.imitation.warmup_steps
        visited = next(self.rollout_buffer.get()).observations
        optimizer = th.optim.Adam(
            policy.finetuned_parameters(), lr=self.imitation.warmup_learning_rate, fused=True
        )
        for step in range(n_steps):
            update_learning_rate(
                optimizer, self.imitation.warmup_learning_rate * (1 - 2 / 3 * step / n_steps)
            )
            optimizer.zero_grad()
            if not self._imitation_gradients(visited, weights):
                return
            th.nn.utils.clip_grad_norm_(policy.finetuned_parameters(), self.max_grad_norm)
            optimizer.step()
            self._actor_moved = True

    def _excluded_save_params(self) -> list[str]:
        kept_out = ["imitation_buffer", "_outcomes", "_scenes"]
        return [*super()._excluded_save_params(), *kept_out]
