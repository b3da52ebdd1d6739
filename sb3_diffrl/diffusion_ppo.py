"""PPO through the denoising chain, regularised to a frozen diffusion prior."""

import logging
import pathlib
from collections import defaultdict
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.type_aliases import Schedule as ProgressSchedule
from stable_baselines3.common.utils import (
    FloatSchedule,
    explained_variance,
    safe_mean,
    update_learning_rate,
)
from stable_baselines3.common.vec_env import VecEnv

from sb3_diffrl.action_scale import check_action_space
from sb3_diffrl.buffers import ChainSamples, chain_buffer_class
from sb3_diffrl.imitating_ppo import ImitatingPPO
from sb3_diffrl.imitation import Imitation, ImitationSpec
from sb3_diffrl.losses import clipped_surrogate, value_loss
from sb3_diffrl.policies import (
    DiffusionActorCriticPolicy,
    DiffusionCnnPolicy,
    DiffusionMlpPolicy,
    DiffusionMultiInputPolicy,
)
from sb3_diffrl.precision import precision
from sb3_diffrl.random_state import get_random_state, preserved_random_state, set_random_state
from sb3_diffrl.schedules import (
    BETA,
    MIXING,
    Adaptive,
    Gated,
    Improvement,
    ScheduleSpec,
    Signals,
)
from sb3_diffrl.wrappers.decisions import mending_spaces

SelfDiffusionPPO = TypeVar("SelfDiffusionPPO", bound="DiffusionPPO")

log = logging.getLogger(__name__)

# Network rows of one forward and backward pass on a CPU: more leave its cache.
CPU_CACHE_ROWS = 2_000


class EnvStepCounter(BaseCallback):
    """Counts the env steps, of which a chunk takes several, before other callbacks look."""

    def _on_step(self) -> bool:
        model, infos = self.model, self.locals["infos"]
        assert isinstance(model, DiffusionPPO)
        model.env_steps += sum(info.get("env_steps", 1) for info in infos)
        return True


class DiffusionPPO(ImitatingPPO):
    """
    Diffusion policy fine-tuned online by PPO: maximises ``E[R] - beta * KL(policy || prior)``
    (paper, section 2.2).

    Used as SB3's PPO, whose arguments apply but for ``ent_coef`` and gSDE. ``total_timesteps``
    counts decisions; environment steps are logged beside them.

    :param policy: ``"policy"`` (chosen by the observation space), ``"MlpPolicy"``, ``"CnnPolicy"``,
        ``"MultiInputPolicy"``, or a class
    :param env: environment, its id, or a VecEnv; Box actions with finite bounds
    :param prior: a saved model (its path), a model or a policy to start from, which becomes the
        frozen prior; of its ``policy_kwargs`` those are taken over that are not given. Without it,
        and until ``pretrain`` is called, training is from scratch and has no KL term
    :param beta: weight of the prior KL, see :mod:`sb3_diffrl.schedules`; 0 for no KL term, a number
        for a fixed weight
    :param mixing: weight ``p`` of the policy in the behaviour ``p * policy + (1 - p) * prior``; 1
        for no mixing
    :param imitation: weight of the denoising loss that goes on during RL, or a mapping of its
        terms, see :mod:`sb3_diffrl.imitation`
    :param performance_target: performance at which the improvement of adaptive schedules is 1; by
        default 1 for success rates, and required by them where the env reports returns only
    :param gamma_denoise: discount of the advantage per denoising step still to go
    :param advantage_floor: smallest standard deviation by which advantages are divided. Where every
        episode succeeds their spread is noise, which normalisation would blow up until the policy
        is lost; with success as the reward 0.1 prevents it
    :param critic_learning_rate: learning rate of the critic, a number or a function of the progress
        remaining; by default the actor's ``learning_rate``
    :param critic_warmup: number of iterations in which the critic alone is trained
    :param micro_batch_size: largest number of decisions that go through the networks at once; the
        gradients of a minibatch add up, so that only time and memory depend on it. By default as
        many as fit a CPU's cache, and whole minibatches on other devices
    :param precision: of the networks' matrix products in training: ``"float32"``, ``"tf32"``
        (CUDA's faster float32 with 10 bits of mantissa) or ``"bfloat16"`` (autocast; slow on CPUs
        without instructions for it). Weights, transitions and likelihoods stay in float32
    :param args: positional arguments of :class:`stable_baselines3.PPO`
    :param kwargs: keyword arguments of it
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "policy": DiffusionActorCriticPolicy,
        "MlpPolicy": DiffusionMlpPolicy,
        "CnnPolicy": DiffusionCnnPolicy,
        "MultiInputPolicy": DiffusionMultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[DiffusionActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        prior: "str | pathlib.Path | DiffusionPPO | DiffusionActorCriticPolicy | None" = None,
        beta: ScheduleSpec = "adaptive_0.1",
        mixing: ScheduleSpec = 1.0,
        imitation: ImitationSpec = 0.0,
        performance_target: float | None = None,
        gamma_denoise: float = 0.99,
        advantage_floor: float = 1e-8,
        critic_learning_rate: float | ProgressSchedule | None = None,
        critic_warmup: int = 0,
        micro_batch_size: int | None = None,
        precision: str = "float32",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        if isinstance(prior, str | pathlib.Path):
            with preserved_random_state():
                prior = DiffusionPPO.load(prior, device="cpu")
        if isinstance(prior, DiffusionPPO):
            prior = prior.policy
        if prior is not None:
            kwargs["policy_kwargs"] = prior.architecture() | (kwargs.get("policy_kwargs") or {})
        super().__init__(policy, env, *args, imitation=imitation, precision=precision, **kwargs)
        self.beta = BETA.schedule(beta)
        self.mixing = MIXING.schedule(mixing)
        self.performance_target = performance_target
        self.improvement = Improvement()
        self.gamma_denoise = gamma_denoise
        self.advantage_floor = advantage_floor
        self.critic_learning_rate = critic_learning_rate
        self.critic_warmup = critic_warmup
        self.micro_batch_size = micro_batch_size
        self.n_iterations = 0
        self.env_steps = 0
        self._prior_kl: float | None = None
        self._random_state: dict[str, Any] | None = None
        if _init_setup_model:
            self._setup_model()
            if prior is not None:
                self.set_prior(prior)

    # -- construction --------------------------------------------------------------------------

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """SB3's wrapping; refuses an action space that has no chain before anything is built."""
        check_action_space(env.action_space)
        return PPO._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        """Policy and buffer as SB3 builds them, then the buffer widened to the policy's chains."""
        # Parsed once more, for `load(path, beta=...)` sets the attributes as they are given.
        self.beta = BETA.schedule(self.beta)
        self.mixing = MIXING.schedule(self.mixing)
        if self.ent_coef != 0:
            raise ValueError(
                f"ent_coef={self.ent_coef}: the entropy of a chain's action has no closed form. "
                "Set ent_coef=0; sigma_min in policy_kwargs says how much is explored."
            )
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise ValueError(f"micro_batch_size must be at least 1, got {self.micro_batch_size}.")
        buffer_class = self.rollout_buffer_class
        if buffer_class is None:
            is_dict = isinstance(self.observation_space, spaces.Dict)
            buffer_class = DictRolloutBuffer if is_dict else RolloutBuffer
        self.rollout_buffer_class = chain_buffer_class(buffer_class)
        super()._setup_model()
        self.rollout_buffer_class = buffer_class
        critic_rate = self.critic_learning_rate
        self.critic_lr_schedule = (
            self.lr_schedule if critic_rate is None else FloatSchedule(critic_rate)
        )
        steps = self.policy.chain_steps
        self.rollout_buffer.set_chain_shape((steps + 1) * self.policy.action_dim, steps)
        self._told: set[str] = set()  # warnings
        if self.verbose >= 1:
            counts = self.policy.parameter_counts().items()
            print("Parameters:", ", ".join(f"{name} {number:,}" for name, number in counts))

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        """SB3's preparations of a run; the counts and episodes of the method start with SB3's."""
        if reset_num_timesteps:
            self.env_steps = 0
        prepared = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        if self._total_timesteps > 0:
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        return prepared

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        """SB3's, with the count of env steps before all others."""
        if callback is None:
            callback = []
        elif not isinstance(callback, list | BaseCallback):
            callback = ConvertCallback(callback)
        given = callback if isinstance(callback, list) else [callback]
        return super()._init_callback([EnvStepCounter(), *given], progress_bar)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer", "policy.critic_optimizer"], []

    # -- acting --------------------------------------------------------------------------------

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """SB3's own loop, with the mixing weight set before it; see the base class."""
        if self.policy.has_prior:
            self.policy.set_mixing(self.mixing(self.signals()))
        go_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if go_on:
            with precision(self.precision, self.device):
                self._evaluate_rollout()
        self._warn_of_silence()
        self.logger.record("rollout/mixing", float(self.policy.mixing))
        self.logger.record("rollout/improvement", self.signals().improvement)
        self.logger.record("time/decisions", self.num_timesteps)
        self.logger.record("time/env_steps", self.env_steps)
        return go_on

    @th.no_grad()
    def _evaluate_rollout(self) -> None:
        """
        What stays the same in all epochs, computed once: the old likelihoods and the prior's means.

        The likelihoods that acting gives are those of other batches, which the device rounds
        differently; as a denoising step divides by a small standard deviation, ratios would start
        up to 1e-4 from 1, and in lower precision further.
        """
        log_probs, prior_means = [], []
        for part in self.rollout_buffer.in_order(self._micro_batch()):
            evaluation = self.policy.evaluate_chains(part.observations, part.actions)
            log_probs.append(evaluation.log_prob)
            if evaluation.prior_means is not None:
                prior_means.append(evaluation.prior_means)
        self.rollout_buffer.evaluated(
            th.cat(log_probs), th.cat(prior_means) if prior_means else None
        )

    def _micro_batch(self) -> int:
        """Number of decisions that go through the networks at once."""
        size = self.micro_batch_size
        if size is None and self.device.type == "cpu":
            size = max(1, CPU_CACHE_ROWS // self.policy.finetuned_steps)
        return min(size or self.batch_size, self.batch_size)

    def signals(self) -> Signals:
        """
        What the schedules look at.

        :return: progress, improvement on the prior, prior KL
        :raises ValueError: where a schedule needs the improvement and returns have no target
        """
        performance, target = None, self.performance_target
        if self.ep_success_buffer:
            performance = float(safe_mean(self.ep_success_buffer))
            target = 1.0 if target is None else target
        elif self.ep_info_buffer:
            performance = float(safe_mean([info["r"] for info in self.ep_info_buffer]))
            waiting = self._waiting_for_improvement()
            if target is None and waiting:
                raise ValueError(
                    f'{", ".join(waiting)}: the env reports no success (info["is_success"]), so '
                    "the improvement needs performance_target=, the return that counts as solved. "
                    "Or use schedules without it, e.g. beta=0.1."
                )
        self.improvement.target = target
        improvement = self.improvement.update(performance, acted_by_prior=not self._actor_moved)
        # The last rollout may go beyond the total.
        progress = min(max(1 - self._current_progress_remaining, 0.0), 1.0)
        return Signals(progress, improvement, self._prior_kl)

    def _forget_improvement(self) -> None:
        super()._forget_improvement()
        self.n_iterations, self._prior_kl = 0, None
        self.improvement = Improvement()

    def _warn_of_silence(self) -> None:
        """Say, once, which signal of the env a knob waits for in vain."""
        if not self._outcomes.any():
            return
        target, successes = self.performance_target, bool(self.ep_success_buffer)
        silent = {
            "the env has no Monitor, so that adaptive schedules see no performance; use "
            "VecMonitor(env)": (
                bool(self._waiting_for_improvement()) and not successes and not self.ep_info_buffer
            ),
            'imitation of own successes has none: the env reports no info["is_success"]': (
                self._imitates("successes") and not successes
            ),
            f"performance_target={target} is compared with success rates, which end at 1": (
                successes and target is not None and target > 1
            ),
        }
        for text in [
            text for text, applies in silent.items() if applies and text not in self._told
        ]:
            self._told.add(text)
            log.warning("%s.", text)

    def _waiting_for_improvement(self) -> list[str]:
        """The schedules that look at the improvement, by knob."""
        knobs = {"beta": self.beta, "mixing": self.mixing}
        knobs |= {f"imitation {term}": getattr(self.imitation, term) for term in Imitation.terms}
        found = [f"{name}={of}" for name, of in knobs.items() if isinstance(of, Adaptive | Gated)]
        return found if self.policy.has_prior else []

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        The action for an observation, in the env's units.

        ``deterministic=False`` is recommended, and what success should be graded by: fresh noise
        at every step but the last, without the exploration floor. It is the chain that was trained,
        and shows all its modes. ``deterministic=True`` follows the probability-flow ODE from a
        fixed noise: a function of the observation alone, one path that training may hardly have
        visited. On Avoiding it is better than sampling on the clean task, and in displaced scenes
        now as good, now far worse (``benchmarks/results/avoiding.md``).

        :param observation: one observation or a batch, as the env gives it
        :param state: passed through, for SB3's recurrent policies
        :param episode_start: unused, for SB3's recurrent policies
        :param deterministic: see above
        :return: action ``(*shape)`` or actions ``(N, *shape)``, and ``state``
        """
        return self.policy.predict(observation, state, episode_start, deterministic)

    # -- learning ------------------------------------------------------------------------------

    def train(self) -> None:
        """Update actor and critic on the rollout buffer."""
        policy, progress = self.policy, self._current_progress_remaining
        policy.set_training_mode(True)
        policy.set_finetuning(True)
        self._update_learning_rate(policy.optimizer)
        update_learning_rate(policy.critic_optimizer, self.critic_lr_schedule(progress))
        assert callable(self.clip_range)
        clip_range = self.clip_range(progress)
        clip_range_vf = self.clip_range_vf(progress) if callable(self.clip_range_vf) else None
        signals = self.signals()
        beta = self.beta(signals) if policy.has_prior else 0.0
        imitation_weights = self.imitation.weights(signals)
        train_actor = self.n_iterations >= self.critic_warmup
        stats: dict[str, list[th.Tensor]] = defaultdict(list)
        if not train_actor and self.imitation.warmup_steps:
            self._imitate(imitation_weights)
        approx_kl_exceeded = False

        for epoch in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                advantages = batch.advantages
                if self.normalize_advantage and len(advantages) > 1:
                    spread = advantages.std().clamp(min=self.advantage_floor)
                    batch = batch._replace(advantages=(advantages - advantages.mean()) / spread)
                policy.optimizer.zero_grad()
                policy.critic_optimizer.zero_grad()
                if train_actor:
                    figures = self._ppo_gradients(batch, clip_range, clip_range_vf, beta)
                    terms = self._imitation_gradients(batch.observations, imitation_weights)
                    for name, term in terms.items():
                        figures["loss"] = figures["loss"] + imitation_weights[name] * term
                        figures[f"imitation_{name}"] = term
                else:
                    figures = self._critic_gradients(batch, clip_range_vf)
                for name, figure in figures.items():
                    stats[name].append(figure)

                approx_kl_exceeded = (
                    train_actor
                    and self.target_kl is not None
                    and bool(figures["approx_kl"] > 1.5 * self.target_kl)
                )
                if approx_kl_exceeded:
                    if self.verbose >= 1:
                        print(
                            f"Early stopping at step {epoch} due to reaching max kl: "
                            f"{figures['approx_kl']:.2f}"
                        )
                    break
                if train_actor:
                    th.nn.utils.clip_grad_norm_(policy.finetuned_parameters(), self.max_grad_norm)
                    policy.optimizer.step()
                    self._actor_moved = True
                th.nn.utils.clip_grad_norm_(policy.critic_parameters(), self.max_grad_norm)
                policy.critic_optimizer.step()
            self._n_updates += 1
            if approx_kl_exceeded:
                break

        self.n_iterations += 1
        means = {name: float(th.stack(values).mean()) for name, values in stats.items()}
        self._prior_kl = means.get("prior_kl")
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/beta", beta)
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)
        self.logger.record(
            "train/explained_variance",
            explained_variance(
                self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten()
            ),
        )
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _critic_gradients(
        self, batch: ChainSamples, clip_range_vf: float | None
    ) -> dict[str, th.Tensor]:
        """
        Add the gradients of a minibatch to the critic alone, as :meth:`_ppo_gradients` does.

        :param batch: the minibatch
        :param clip_range_vf: of the value, None for any
        :return: what to log, averaged over the minibatch
        """
        total = th.zeros((), device=self.device)
        for part in batch.split(self._micro_batch()):
            share = len(part.actions) / len(batch.actions)
            with precision(self.precision, self.device):
                values = self.policy.predict_values(part.observations).flatten()
                loss = value_loss(values, part.old_values, part.returns, clip_range_vf)
                (share * self.vf_coef * loss).backward()
            total += share * loss.detach()
        return {"loss": self.vf_coef * total, "value_loss": total}

    def _ppo_gradients(
        self, batch: ChainSamples, clip_range: float, clip_range_vf: float | None, beta: float
    ) -> dict[str, th.Tensor]:
        """
        Add the gradients of a minibatch, whole chains of which go through the networks in parts
        that fit the cache; the critic sees each observation once.

        :param batch: the minibatch, with normalised advantages
        :param clip_range: of the ratio of each denoising step
        :param clip_range_vf: of the value, None for any
        :param beta: weight of the prior KL
        :return: what to log, averaged over the minibatch
        """
        figures: dict[str, th.Tensor] = {}
        for part in batch.split(self._micro_batch()):
            share = len(part.actions) / len(batch.actions)
            with precision(self.precision, self.device):
                averages, ratio = self._ppo_loss(part, clip_range, clip_range_vf, beta)
                (share * averages["loss"]).backward()
            for name, average in averages.items():
                figures[name] = figures.get(name, 0) + share * average.detach()
            figures["ratio_max"] = th.maximum(figures.get("ratio_max", ratio.max()), ratio.max())
        return figures

    def _ppo_loss(
        self, batch: ChainSamples, clip_range: float, clip_range_vf: float | None, beta: float
    ) -> tuple[dict[str, th.Tensor], th.Tensor]:
        """
        :param batch: decisions, with normalised advantages
        :param clip_range: of the ratio of each denoising step
        :param clip_range_vf: of the value, None for any
        :param beta: weight of the prior KL
        :return: the loss and its parts, averaged over the decisions, and the ratios ``(B, k)``
        """
        prior_means = batch.prior_means if batch.prior_means.shape[1] else None
        chains = self.policy.evaluate_chains(batch.observations, batch.actions, prior_means)
        surrogate = clipped_surrogate(
            chains.log_prob, batch.old_log_prob, batch.advantages, clip_range, self.gamma_denoise
        )
        critic_loss = value_loss(
            chains.values.flatten(), batch.old_values, batch.returns, clip_range_vf
        )
        averages = {
            "loss": surrogate.loss + self.vf_coef * critic_loss,
            "policy_gradient_loss": surrogate.loss,
            "value_loss": critic_loss,
            "approx_kl": surrogate.approx_kl,
            "clip_fraction": surrogate.clip_fraction,
            "ratio_mean": surrogate.ratio.mean(),
        }
        if chains.prior_kl is not None:
            averages["prior_kl"] = chains.prior_kl.mean()
            averages["loss"] = averages["loss"] + beta * averages["prior_kl"]
        return averages, surrogate.ratio

    def learn(
        self: SelfDiffusionPPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DiffusionPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDiffusionPPO:
        """
        Train online; parameters as in SB3.

        :param total_timesteps: number of decisions
        :param callback: called at every step
        :param log_interval: iterations between logs
        :param tb_log_name: name of the run for TensorBoard
        :param reset_num_timesteps: whether the count starts anew
        :param progress_bar: whether to show one
        :return: the model
        """
        if not self.policy.has_prior and self.n_iterations == 0:
            log.warning(
                "No prior: training from scratch, without the KL term. "
                "Call pretrain(demonstrations) or pass prior= to start from imitation."
            )
        if self.imitation_buffer.demonstrations is None and (
            self._imitates("demonstrations") or self._imitates("context")
        ):
            raise ValueError(
                f"imitation={self.imitation}: no demonstrations to imitate. Call "
                "pretrain(demonstrations) or set_demonstrations(demonstrations) first; a saved "
                'model keeps them where save(path, include=["imitation_buffer"]) said so.'
            )
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    # -- saving --------------------------------------------------------------------------------

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_told"]

    def save(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """
        Save as SB3 does, and with a seed also the state of the random generators.

        :param path: file
        :param args: as in SB3
        :param kwargs: as in SB3
        """
        self._random_state = None if self.seed is None else get_random_state()
        super().save(path, *args, **kwargs)

    @classmethod
    def load(cls: type[SelfDiffusionPPO], path: Any, *args: Any, **kwargs: Any) -> SelfDiffusionPPO:
        """
        Load as SB3 does. A model that was given a seed also takes up the random generators' state,
        and so goes on as if it had never stopped where the env does too; with ``seed=`` it starts
        from that seed.

        :param path: file
        :param args: as in SB3
        :param kwargs: as in SB3
        :return: the model
        :raises ValueError: where the spaces of an env are not the model's, saying how to mend it,
            and for a ``prior``
        """
        if "prior" in kwargs:
            raise ValueError(
                "load() takes no prior, for the model has its own; model.set_prior(policy) sets "
                "another."
            )
        with mending_spaces():
            model = super().load(path, *args, **kwargs)
        model._record_wrappers()
        model._hold_statistics()
        if model._random_state is not None and "seed" not in kwargs:
            set_random_state(model._random_state)
        return model

    # -- sharing, see sb3_diffrl.hub -----------------------------------------------------------

    def save_pretrained(self, directory: Any, **kwargs: Any) -> None:
        """
        Write the model into a folder as JSON and safetensors files.

        :param directory: where
        :param kwargs: see :func:`sb3_diffrl.hub.save_pretrained`
        """
        from sb3_diffrl import hub

        hub.save_pretrained(self, directory, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """
        Share the model on the Hugging Face Hub as JSON and safetensors files.

        :param repo_id: ``"name"`` or ``"namespace/name"``
        :param kwargs: see :func:`sb3_diffrl.hub.push_to_hub`
        :return: the commit
        """
        from sb3_diffrl import hub

        return hub.push_to_hub(self, repo_id, **kwargs)

    @classmethod
    def from_pretrained(
        cls: type[SelfDiffusionPPO], name: Any, env: Any = None, **kwargs: Any
    ) -> SelfDiffusionPPO:
        """
        Load what ``save_pretrained`` or ``push_to_hub`` wrote; nothing is unpickled.

        :param name: a folder, or ``"namespace/name"`` on the Hugging Face Hub
        :param env: to train in, if that is wanted
        :param kwargs: see :func:`sb3_diffrl.hub.from_pretrained`
        :return: the model
        """
        from sb3_diffrl import hub

        return hub.from_pretrained(cls, name, env, **kwargs)
