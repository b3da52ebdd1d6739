"""A Gaussian prior in place of the diffusion prior: behaviour cloning, then SB3's PPO."""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from torch import nn

from sb3_diffrl.batches import TensorBatches, check_demonstrations
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.transport import as_transport, carry_over
from sb3_diffrl.fitting import PretrainingResult, fit
from sb3_diffrl.normalization import ObservationNormalizer
from sb3_diffrl.random_state import preserved_random_state
from sb3_diffrl.wrappers.decisions import decisions
from sb3_diffrl.wrappers.records import recorded_wrappers

BATCH_SIZE = 256  # of imitation during RL
CARRIED = 100_000  # carried-over decisions kept, the oldest leaving first


class NormalizedExtractor(FlattenExtractor):
    """
    Observations normalised by statistics of the state dict, then flattened.

    :param observation_space: of vectors
    """

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space)
        self.normalizer = ObservationNormalizer(observation_space)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(B, *shape)``
        :return: ``(B, F)``
        """
        return super().forward(self.normalizer(observations))


class ClonedPPO(PPO):
    """
    SB3's PPO whose Gaussian policy first imitates demonstrations.

    The rest of DiffusionPPO's recipe is there as far as a Gaussian has it: the critic's warm-up,
    the floor of the advantages' spread, and imitation that goes on during RL, also in contexts met
    online (see :mod:`sb3_diffrl.imitation`), whose gradient steps follow SB3's update. Own
    successes are not imitated. By default all are off, and this is SB3's PPO.

    :param policy: as in :class:`stable_baselines3.PPO`
    :param env: as in there; observations are not to be normalised by ``VecNormalize``
    :param args: as in there
    :param prior: a saved model (its path) or a model whose policy to start from
    :param critic_warmup: number of iterations in which RL trains the critic alone
    :param advantage_floor: smallest standard deviation by which a rollout's advantages are divided,
        in place of SB3's normalisation, see :class:`~sb3_diffrl.DiffusionPPO`
    :param imitation_steps: gradient steps of imitation after each update
    :param imitation_warmup_steps: the same in each iteration of ``critic_warmup``
    :param context_until: fraction of training until which demonstrations are imitated in contexts
        met online as well; 0 for never
    :param transport: carries demonstrations over to the scenes met, as in ``imitation`` of
        :class:`~sb3_diffrl.DiffusionPPO`; None replaces what hardly varies
    :param policy_kwargs: as in there; by default the features extractor is
        :class:`NormalizedExtractor` and the activation function the diffusion policy's
    :param kwargs: as in there
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        prior: "str | pathlib.Path | PPO | None" = None,
        critic_warmup: int = 0,
        advantage_floor: float | None = None,
        imitation_steps: int = 0,
        imitation_warmup_steps: int = 0,
        context_until: float = 0.0,
        transport: Mapping[str, Any] | Callable[..., Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.critic_warmup, self.n_iterations = critic_warmup, 0
        self.advantage_floor = advantage_floor
        if advantage_floor is not None:
            kwargs["normalize_advantage"] = False
        self.imitation_steps = imitation_steps
        self.imitation_warmup_steps = imitation_warmup_steps
        self.context_until = context_until
        self.transport = as_transport(transport)
        self._demonstrations: TensorBatches | None = None
        self._step_wise: Demonstrations | None = None
        self._carried: tuple[th.Tensor, th.Tensor] | None = None
        defaults = {"features_extractor_class": NormalizedExtractor, "activation_fn": nn.SiLU}
        kwargs["policy_kwargs"] = defaults | (policy_kwargs or {})
        super().__init__(policy, env, *args, **kwargs)
        if prior is not None:
            if not isinstance(prior, PPO):
                with preserved_random_state():
                    prior = PPO.load(prior, device="cpu")
            self.policy.load_state_dict(prior.policy.state_dict())

    def pretrain(self, demonstrations: Demonstrations, **kwargs: Any) -> PretrainingResult:
        """
        Imitate demonstrations.

        :param demonstrations: in the env's own units
        :param kwargs: see :func:`pretrain_gaussian`
        :return: losses and steps taken
        """
        result = pretrain_gaussian(self, self._decisions(demonstrations), **kwargs)
        self.set_demonstrations(demonstrations)
        self.n_iterations = 0
        return result

    def set_demonstrations(self, demonstrations: Demonstrations) -> None:
        """
        Give demonstrations to imitate during RL where the model was pre-trained elsewhere.

        :param demonstrations: in the env's own units
        :raises ValueError: where they do not fit the spaces
        """
        checked = check_demonstrations(self._decisions(demonstrations), self.policy)
        self._demonstrations, self._step_wise = _batches(self.policy, checked), demonstrations
        self._carried = None

    def _decisions(self, demonstrations: Demonstrations) -> Demonstrations:
        """Cut into decisions of the wrapped env what is not."""
        wrappers = recorded_wrappers(self.env)
        return decisions(demonstrations, wrappers, self.observation_space, self.action_space)

    def train(self) -> None:
        """Update on the rollout buffer as SB3 does, the critic alone at first; then imitate."""
        warming_up = self.n_iterations < self.critic_warmup
        actor = actor_parameters(self.policy)
        for parameter in actor:  # without gradients the optimizer passes over it
            parameter.requires_grad_(not warming_up)
        if self.advantage_floor is not None:
            advantages = self.rollout_buffer.advantages
            spread = max(float(advantages.std()), self.advantage_floor)
            self.rollout_buffer.advantages = (advantages - advantages.mean()) / spread
        in_context = 1 - self._current_progress_remaining <= self.context_until
        if in_context and self.transport is not None:
            self._carry_over(self.transport)
        super().train()
        for parameter in actor:
            parameter.requires_grad_(True)
        n_steps = self.imitation_warmup_steps if warming_up else self.imitation_steps
        if n_steps:
            self._imitate(n_steps, in_context)
        self.n_iterations += 1

    def _carry_over(self, transport: Callable[..., Any]) -> None:
        """Carry demonstrations over to the scenes in which episodes of the rollout began."""
        begins = self.rollout_buffer.episode_starts.astype(bool)
        if self._step_wise is None or not begins.any():
            return
        met = np.asarray(self.rollout_buffer.observations)[begins]
        drawn = th.randint(len(self._step_wise), (len(met),)).tolist()
        carried = carry_over(self._step_wise, transport, met, drawn)
        new = _batches(self.policy, check_demonstrations(self._decisions(carried), self.policy))
        observations, actions = new.observations, new.actions
        assert isinstance(observations, th.Tensor)  # a clone sees vectors
        if self._carried is not None:
            observations = th.cat([self._carried[0], observations])
            actions = th.cat([self._carried[1], actions])
        self._carried = observations[-CARRIED:], actions[-CARRIED:]

    def _imitate(self, n_steps: int, in_context: bool) -> None:
        """Pull the mean to the demonstrated actions; the deviation is RL's."""
        if self._demonstrations is None:
            raise ValueError(
                "No demonstrations to imitate: call pretrain(demonstrations) or "
                "set_demonstrations(demonstrations) first, or set imitation_steps=0 and "
                "imitation_warmup_steps=0."
            )
        visited = next(self.rollout_buffer.get()).observations
        extractor = self.policy.pi_features_extractor
        carried = TensorBatches(*self._carried) if in_context and self._carried else None
        replaces = in_context and self.transport is None
        for _ in range(n_steps):
            obs, actions = self._demonstrations.draw(BATCH_SIZE)
            losses = [self._error(obs, actions)]
            if carried is not None:
                losses.append(self._error(*carried.draw(BATCH_SIZE)))
            elif replaces and isinstance(extractor, NormalizedExtractor):
                met = visited[th.randint(len(visited), (BATCH_SIZE,), device=self.device)]
                obs = extractor.normalizer.replace_context(obs, met)
                losses.append(self._error(obs, actions))
            self.policy.optimizer.zero_grad()
            th.stack(losses).sum().backward()
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        self.logger.record("train/imitation", float(losses[0].detach()))

    def _error(self, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        return (self.policy.get_distribution(observations).mode() - actions).square().mean()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_demonstrations", "_step_wise", "_carried"]


def actor_parameters(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    """
    :param policy: any of SB3's
    :return: the parameters that its actions depend on, a shared encoder's among them
    """
    critic = ("value_net", "mlp_extractor.value_net", "vf_features_extractor")
    return [
        parameter for name, parameter in policy.named_parameters() if not name.startswith(critic)
    ]


def pretrain_gaussian(
    model: PPO,
    demonstrations: Demonstrations,
    *,
    gradient_steps: int = 10_000,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    warmup_steps: int = 500,
    weight_decay: float = 1e-6,
    ema_decay: float = 0.995,
    validation_fraction: float = 0.1,
    validation_interval: int = 500,
    patience: int | None = 10,
    scale_floor: float = 0.02,
    limit: float = 5.0,
    sigma_min: float = 0.1,
    seed: int = 0,
) -> PretrainingResult:
    """
    Behaviour cloning by maximum likelihood: minimises ``E[-log N(a; mu_theta(s), sigma^2)]``, with
    ``sigma`` the same in all states, as the diffusion policy is pre-trained (see
    :func:`sb3_diffrl.pretraining.pretrain`).

    Where demonstrations differ in their ways the likeliest mean lies between them: a Gaussian has
    one mode. Of precise demonstrations the likeliest ``sigma`` is too small to explore with, so it
    is raised to ``sigma_min`` afterwards; RL may then lower it.

    :param model: whose policy is trained; gSDE is not supported
    :param demonstrations: what to imitate, in the env's own units
    :param gradient_steps: number of minibatches
    :param batch_size: decisions per minibatch
    :param learning_rate: peak learning rate
    :param warmup_steps: steps over which it rises
    :param weight_decay: of AdamW
    :param ema_decay: decay of the average of the weights, which is what is kept
    :param validation_fraction: fraction of the episodes held out, 0 for none
    :param validation_interval: steps between validations
    :param patience: stop after so many validations without a new best, and keep that; None trains
        to the end
    :param scale_floor: of :class:`NormalizedExtractor`'s statistics, see
        :meth:`~sb3_diffrl.normalization.Standardizer.fit`
    :param limit: bound of normalised observations
    :param sigma_min: smallest standard deviation of an action entry after pre-training, in units of
        the action space
    :param seed: of the validation split
    :return: losses, in nats per decision, and steps taken
    :raises ValueError: where the policy is not a plain Gaussian, or for demonstrations that do not
        fit its spaces
    """
    policy = model.policy
    if model.use_sde or not isinstance(policy.action_dist, DiagGaussianDistribution):
        raise ValueError(
            "pretrain_gaussian needs a Gaussian policy with one standard deviation per action "
            f"entry, got {type(policy.action_dist).__name__}. Use a Box action space and "
            "use_sde=False."
        )
    normalized_env = None if model.env is None else unwrap_vec_normalize(model.env)
    if isinstance(normalized_env, VecNormalize) and normalized_env.norm_obs:
        raise ValueError(
            "VecNormalize(norm_obs=True) would move the observations that the clone knows. Use "
            "norm_obs=False: the policy normalises by the demonstrations' statistics."
        )
    for name, value in (("gradient_steps", gradient_steps), ("sigma_min", sigma_min)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}.")
    demonstrations = check_demonstrations(demonstrations, policy)
    train, validation = demonstrations, None
    if validation_fraction > 0 and len(demonstrations) > 1:
        train, validation = demonstrations.split(validation_fraction, seed=seed)
    for extractor in (policy.pi_features_extractor, policy.vf_features_extractor):
        if isinstance(extractor, NormalizedExtractor):
            extractor.normalizer.fit(train.observations, scale_floor, limit)
    data = _batches(policy, train)
    held_out = None if validation is None else _batches(policy, validation.weighted(None))

    def gradients() -> th.Tensor:
        loss = _loss(policy, *data.draw(batch_size))
        loss.backward()
        return loss.detach()

    @th.no_grad()
    def validate(average: ActorCriticPolicy) -> float:
        assert held_out is not None
        return float(_loss(average, held_out.observations, held_out.actions))

    policy.set_training_mode(True)
    result = fit(
        policy,
        actor_parameters(policy),
        gradients,
        None if held_out is None else validate,
        gradient_steps=gradient_steps,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        ema_decay=ema_decay,
        validation_interval=validation_interval,
        patience=patience,
    )
    policy.log_std.data.clamp_(min=math.log(sigma_min))
    policy.set_training_mode(False)
    return result


def _loss(policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
    """Negative log-likelihood in nats per decision."""
    return -policy.get_distribution(observations).log_prob(actions).mean()


def _batches(policy: ActorCriticPolicy, demonstrations: Demonstrations) -> TensorBatches:
    """Actions are as the Gaussian has them: flat and in the env's units."""
    observations, _ = policy.obs_to_tensor(np.asarray(demonstrations.observations))
    actions = th.as_tensor(np.asarray(demonstrations.actions, np.float32), device=policy.device)
    actions = actions.flatten(1)
    weights = demonstrations.weights
    if weights is not None:
        weights = np.repeat(weights, demonstrations.lengths)
    return TensorBatches(observations, actions, weights)
