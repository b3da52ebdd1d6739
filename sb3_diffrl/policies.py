"""Actor-critic policies whose actor is a diffusion model."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_diffrl.action_scale import ActionScale
from sb3_diffrl.actor import DiffusionActor
from sb3_diffrl.diffusion import (
    DENOISERS,
    EXPLORATIONS,
    CudaGraphs,
    gaussian_log_prob,
    make_denoiser,
    mixture_log_prob,
    named,
    pathwise_kl,
)
from sb3_diffrl.encoders import ENCODERS
from sb3_diffrl.normalization import ObservationNormalizer
from sb3_diffrl.precision import precision


class ChainEvaluation(NamedTuple):
    """
    What the policy says of stored chains.

    :param values: ``(B, 1)`` of the critic
    :param log_prob: ``(B, k)`` nats per denoising step, of the policy or, where it mixes, of the
        mixture
    :param prior_kl: ``(B,)`` nats per decision; None without a prior
    :param prior_means: ``(B, k D)`` what the prior makes of the chains; as it is frozen, once is
        enough; None without a prior
    """

    values: th.Tensor
    log_prob: th.Tensor
    prior_kl: th.Tensor | None
    prior_means: th.Tensor | None


# What a prior's predictions depend on beside its weights.
PREDICTION = (
    *("noise_schedule", "noise_levels", "prediction_type", "clip_sample"),
    *("activation_fn", "denoiser_class", "denoiser_kwargs", "normalize_images"),
)


class DiffusionActorCriticPolicy(ActorCriticPolicy):
    """
    Diffusion actor and value network, with the frozen prior and the observation normaliser inside.

    The denoising chain is the action in SB3's terms: ``forward`` returns flattened chains ``(N, (k
    + 1) D)`` and ``unscale_action`` takes the last ``D`` entries to the env's action space. Of the
    ``K`` denoising steps the last ``k``, all by default, are fine-tuned; those before are always
    the prior's, and not kept.

    :param observation_space: Observation space, Dict and images included
    :param action_space: Box with finite bounds, of any shape; ``D`` entries
    :param lr_schedule: learning rate of the actor
    :param net_arch: hidden layers, ``dict(pi=[...], vf=[...])`` or one list for both; default three
        layers of 256 each
    :param activation_fn: activation function of both networks
    :param noise_schedule: ``"cosine"``, ``"linear"`` or ``"squared_cosine_capped"``
    :param noise_levels: number of noise levels ``T`` which the denoiser is trained on
    :param denoising_steps: number of steps ``K`` per action, 1 to ``T``
    :param finetuned_steps: number ``k`` of last steps that RL trains, 1 to ``K`` (Ren et al. 2024,
        section 4.3); default all
    :param freeze_encoder: whether RL leaves the encoder as pre-training left it; it is then the
        prior's too, not a copy
    :param eta: 1 samples as DDPM does, 0 as the deterministic DDIM
    :param sigma_min: exploration floor: smallest standard deviation of a denoising step during
        rollouts, in units of half the action range
    :param exploration: ``"chain"``: fresh initial noise and noise in every step, which the denoiser
        shapes into one of the demonstrated ways; ``"action"``: the ODE from the fixed initial noise
        and Gaussian noise ``sigma_min`` on its action, undirected (see
        :class:`~sb3_diffrl.diffusion.ActionNoiseProcess`); ``predict`` then gives the ODE's action,
        deterministic or not
    :param prediction_type: what the denoiser predicts: ``"epsilon"``, ``"sample"`` or ``"v"``
    :param clip_sample: see :class:`~sb3_diffrl.diffusion.DiffusionProcess`, like the next two,
        which serve policies trained elsewhere
    :param timestep_spacing: which levels the sampler visits
    :param use_clipped_model_output: whether the noise follows the clipped clean action
    :param action_range: lowest and highest action that the network's -1 and 1 stand for, in the
        env's units and broadcast to the action space, where it was trained on another range than
        the action space's bounds; actions are clipped to the latter afterwards
    :param denoiser_class: a key of ``DENOISERS`` (``"mlp"``, ``"unet"``, ``"transformer"``), a
        Denoiser, a network of the user's own (see
        :class:`~sb3_diffrl.diffusion.registry.ModuleDenoiser`), or the dotted name of either;
        called with ``features_dim, action_dim, noise_levels, net_arch=, activation_fn=``
    :param denoiser_kwargs: further arguments of it
    :param features_extractor_class: encoder: a key of ``ENCODERS`` (``"vision"`` for images), a
        class or its dotted name; by default chosen by the observation space
    :param features_extractor_kwargs: its arguments
    :param share_features_extractor: if True the critic reads the actor's features (without sending
        gradients), else it has an encoder of its own
    :param normalize_images: whether to divide images by 255
    :param optimizer_class: optimizer of actor and critic each
    :param optimizer_kwargs: its arguments, without the learning rate
    :param use_sde: not supported: the chain has noise of its own
    """

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor] | None] = None

    #: precision of ``forward``, set by the algorithm; ``predict`` is always in float32
    precision: str = "float32"

    has_prior: th.Tensor
    mixing: th.Tensor
    initial_noise: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.SiLU,
        noise_schedule: str = "cosine",
        noise_levels: int = 20,
        denoising_steps: int = 5,
        finetuned_steps: int | None = None,
        freeze_encoder: bool = False,
        eta: float = 1.0,
        sigma_min: float = 0.1,
        exploration: str = "chain",
        prediction_type: str = "epsilon",
        clip_sample: float | None = 1.0,
        timestep_spacing: str = "trailing",
        use_clipped_model_output: bool = True,
        action_range: Sequence[Sequence[float]] | None = None,
        denoiser_class: str | Callable[..., nn.Module] = "mlp",
        denoiser_kwargs: dict[str, Any] | None = None,
        features_extractor_class: str | type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ):
        if use_sde:
            raise ValueError(
                "use_sde=True is not supported: the denoising chain explores by its own noise. "
                "Use policy_kwargs=dict(sigma_min=...) to set how much."
            )
        self.action_range = action_range
        self.action_scale = ActionScale(action_space, action_range, clip_sample)
        if finetuned_steps is not None and not 1 <= finetuned_steps <= denoising_steps:
            raise ValueError(
                f"finetuned_steps must lie between 1 and denoising_steps={denoising_steps}, got "
                f"{finetuned_steps}. Leave it out to fine-tune all steps."
            )
        self.finetuned_steps = finetuned_steps or denoising_steps
        if exploration not in EXPLORATIONS:
            raise ValueError(
                f"exploration={exploration!r}: expected one of {sorted(EXPLORATIONS)}."
            )
        if exploration == "action" and self.finetuned_steps < denoising_steps:
            raise ValueError(
                f"exploration='action' fine-tunes all denoising_steps={denoising_steps}, got "
                f"finetuned_steps={finetuned_steps}. Leave it out."
            )
        self.exploration = exploration
        self.diffusion_kwargs: dict[str, Any] = {
            "noise_schedule": noise_schedule,
            "noise_levels": noise_levels,
            "denoising_steps": denoising_steps,
            "eta": eta,
            "sigma_min": sigma_min,
            "prediction_type": prediction_type,
            "clip_sample": clip_sample,
            "timestep_spacing": timestep_spacing,
            "use_clipped_model_output": use_clipped_model_output,
        }
        self.freeze_encoder = freeze_encoder
        self.denoiser_class = named(denoiser_class, DENOISERS)
        self.denoiser_kwargs = denoiser_kwargs or {}
        self._graphs = CudaGraphs()
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch if net_arch is not None else [256, 256, 256],
            activation_fn=activation_fn,
            features_extractor_class=named(features_extractor_class, ENCODERS)
            or self.default_features_extractor
            or features_extractor_for(observation_space),
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=share_features_extractor,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        # SB3 reserves squashed outputs for gSDE in its constructor; here it means that actions
        # leave through `unscale_action`.
        self._squash_output = True

    # -- construction --------------------------------------------------------------------------

    def _build(self, lr_schedule: Schedule) -> None:
        """
        Networks, prior and one optimizer each for actor and critic; called by SB3's constructor.
        """
        self.process = EXPLORATIONS[self.exploration](**self.diffusion_kwargs)
        self.action_dim = get_action_dim(self.action_space)
        arch = self.net_arch
        pi_arch, vf_arch = (
            (arch.get("pi", []), arch.get("vf", [])) if isinstance(arch, dict) else (arch, arch)
        )
        denoiser = make_denoiser(
            self.denoiser_class,
            self.features_dim,
            self.action_dim,
            self.process.noise_levels,
            net_arch=pi_arch,
            activation_fn=self.activation_fn,
            **self.denoiser_kwargs,
        )
        normalizer = ObservationNormalizer(self.observation_space)
        self.actor = DiffusionActor(normalizer, self.pi_features_extractor, denoiser)
        self.value_net = nn.Sequential(  # type: ignore[assignment]  # SB3 declares its own Linear
            *create_mlp(self.features_dim, 1, vf_arch, self.activation_fn)
        )
        encoder = self.actor.features_extractor
        shared = {id(encoder): encoder} if self.freeze_encoder else {}
        self.prior = copy.deepcopy(self.actor, shared).requires_grad_(False)
        self.set_finetuning(False)
        # Floats, for SB3 treats every entry of a state dict as one.
        self.register_buffer("has_prior", th.tensor(0.0, device="cpu"))
        self.register_buffer("mixing", th.tensor(1.0, device="cpu"))
        # Where deterministic chains start: a fixed draw of typical norm, for zero noise is not a
        # typical draw.
        noise = th.randn(self.action_dim, generator=th.Generator().manual_seed(0), device="cpu")
        self.register_buffer("initial_noise", noise / noise.norm() * self.action_dim**0.5)

        optimizer_kwargs = dict(self.optimizer_kwargs)
        if self.optimizer_class in (th.optim.Adam, th.optim.AdamW):
            optimizer_kwargs.setdefault("fused", "foreach" not in optimizer_kwargs)
        self.optimizer, self.critic_optimizer = (
            self.optimizer_class(parameters, lr=lr_schedule(1), **optimizer_kwargs)  # type: ignore[call-arg]  # lr
            for parameters in (self.finetuned_parameters(), self.critic_parameters())
        )

    def finetuned_parameters(self) -> list[nn.Parameter]:
        """:return: the parameters of the actor that RL trains"""
        frozen = {*self.actor.features_extractor.parameters()} if self.freeze_encoder else set()
        return [each for each in self.actor.parameters() if each not in frozen]

    def set_finetuning(self, finetuning: bool) -> None:
        """
        :param finetuning: whether RL trains, which leaves a frozen encoder without gradients
        """
        self.actor.requires_grad_(True)
        self.actor.features_extractor.requires_grad_(not (finetuning and self.freeze_encoder))

    def critic_parameters(self) -> list[nn.Parameter]:
        """:return: the parameters which the critic alone trains"""
        parameters = list(self.value_net.parameters())
        if not self.share_features_extractor:
            parameters += list(self.vf_features_extractor.parameters())
        return parameters

    def parameter_counts(self) -> dict[str, int]:
        """:return: number of parameters of each part; the prior's are not counted"""
        parts = {
            "encoder": list(self.actor.features_extractor.parameters()),
            "denoiser": list(self.actor.denoiser.parameters()),
            "critic": self.critic_parameters(),
        }
        counts = {
            name: sum(parameter.numel() for parameter in parameters)
            for name, parameters in parts.items()
        }
        return {**counts, "total": sum(counts.values())}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return dict(
            observation_space=self.observation_space,
            action_space=self.action_space,
            lr_schedule=self._dummy_schedule,
            net_arch=self.net_arch,
            activation_fn=self.activation_fn,
            **self.diffusion_kwargs,
            exploration=self.exploration,
            finetuned_steps=self.finetuned_steps,
            action_range=self.action_range,
            freeze_encoder=self.freeze_encoder,
            denoiser_class=self.denoiser_class,
            denoiser_kwargs=self.denoiser_kwargs,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            share_features_extractor=self.share_features_extractor,
            normalize_images=self.normalize_images,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )

    def architecture(self) -> dict[str, Any]:
        """:return: the ``policy_kwargs`` that build a policy like this one"""
        not_kwargs = ("observation_space", "action_space", "lr_schedule")
        parameters = self._get_constructor_parameters()
        if self.finetuned_steps == self.process.denoising_steps:
            parameters["finetuned_steps"] = None  # all, whatever their number is made
        return {name: value for name, value in parameters.items() if name not in not_kwargs}

    # -- the prior -----------------------------------------------------------------------------

    def set_prior(self, prior: "DiffusionActorCriticPolicy") -> None:
        """
        Start from another policy, a frozen copy of which becomes the prior.

        :param prior: policy of the same architecture and spaces
        :raises ValueError: where its parameters, noise levels or spaces do not fit
        """
        self._check_prior(prior)
        self.actor.load_state_dict(prior.actor.state_dict())
        self.freeze_prior()

    def _check_prior(self, prior: "DiffusionActorCriticPolicy") -> None:
        theirs, mine = prior.architecture(), self.architecture()
        for name in PREDICTION:
            if theirs[name] != mine[name]:
                raise ValueError(
                    f"The prior does not fit this policy: its {name} is {theirs[name]!r}, the "
                    f"policy's is {mine[name]!r}. Give both the same policy_kwargs."
                )
        if not self.action_scale.equals(prior.action_scale):
            raise ValueError(
                f"The prior does not fit this policy: its action space is {prior.action_space}, "
                f"the policy's is {self.action_space}, or their action_range differs. Wrap "
                "the env so that they agree, and take over the prior's policy_kwargs."
            )
        if prior.acts_by_two_networks():
            raise ValueError(
                "This policy cannot be a prior: its first steps are another network's than those "
                "that were fine-tuned. Continue its own training: model.set_env(env), then learn()."
            )
        own, others = (
            {name: tuple(tensor.shape) for name, tensor in policy.actor.state_dict().items()}
            for policy in (self, prior)
        )
        differing = sorted(name for name, _ in own.items() ^ others.items())
        if differing:
            name = differing[0]
            raise ValueError(
                f"The prior does not fit this policy: {name} is {others.get(name)} in the prior, "
                f"{own.get(name)} in the policy. Give both the same policy_kwargs and spaces."
            )

    def freeze_prior(self) -> None:
        """Make the actor, as it is now, the prior."""
        self.prior.load_state_dict(self.actor.state_dict())
        self.has_prior.fill_(1.0)

    def acts_by_two_networks(self) -> bool:
        """
        :return: whether the first denoising steps are those of a prior other than the actor
        """
        if self.finetuned_steps == self.process.denoising_steps:
            return False
        prior = self.prior.state_dict()
        return any(not th.equal(prior[k], own) for k, own in self.actor.state_dict().items())

    def set_mixing(self, mixing: float) -> None:
        """
        :param mixing: weight ``p`` of the policy in ``p * policy + (1 - p) * prior``, in (0, 1]
        :raises ValueError: outside this range, or below 1 without a prior
        """
        if not 0 < mixing <= 1:
            raise ValueError(f"mixing must lie in (0, 1], got {mixing}.")
        if mixing < 1 and not self.has_prior:
            raise ValueError(
                f"mixing={mixing} needs a prior: call pretrain() or pass prior= first."
            )
        self.mixing.fill_(mixing)

    def _apply(self, *args: Any, **kwargs: Any) -> "DiffusionActorCriticPolicy":
        """Move all but the two flags: to read them on the host must not wait for the device."""
        flags = self.has_prior, self.mixing
        super()._apply(*args, **kwargs)
        self.has_prior, self.mixing = flags
        return self

    def train(self, mode: bool = True) -> "DiffusionActorCriticPolicy":
        """
        Set the training mode of all but the prior, which always evaluates.

        :param mode: training or evaluation
        :return: self
        """
        super().train(mode)
        self.prior.eval()
        return self

    # -- sampling ------------------------------------------------------------------------------

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        Sample chains with the exploration floor, from the mixture of policy and prior.

        :param obs: ``(N, ...)`` observations
        :param deterministic: follow the most likely transitions from a fixed initial noise instead
        :return: flattened chains ``(N, (k + 1) D)``, values ``(N, 1)``, log-likelihoods ``(N, k)``
        """
        obs = self.preprocess(obs)
        with precision(self.precision, self.device):
            features = self.actor.encode(obs)
            chain, means = self.sample_chains(obs, deterministic, features=features)
            values = self._values(obs, features)
        return chain.flatten(1), values, self._log_prob(chain, *means)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        The action alone, in [-1, 1].

        :param observation: ``(N, ...)`` observations
        :param deterministic: if False, fresh noise at every step but the last and no exploration
            floor; if True, the probability-flow ODE from a fixed initial noise, of the mixture's
            likelier component: a function of the observation alone
        :return: ``(N, D)``
        """
        obs = self.preprocess(observation)
        chain, _ = self.sample_chains(obs, deterministic, sampling_std=True)
        return chain[:, -1]

    def sample_chains(
        self,
        obs: PyTorchObs,
        deterministic: bool = False,
        sampling_std: bool = False,
        noise: th.Tensor | None = None,
        features: th.Tensor | None = None,
    ) -> tuple[th.Tensor, list[th.Tensor]]:
        """
        Sample chains from the mixture of policy and prior; on CUDA as one graph.

        :param obs: ``(N, ...)`` observations as :meth:`preprocess` gives them
        :param deterministic: follow the ODE from the fixed initial noise
        :param sampling_std: draw without the exploration floor
        :param noise: ``(K + 1, N, D)`` standard normal to use instead of a fresh draw, of which the
            ODE uses the first, and noise on the action the last
        :param features: ``(N, F)`` what the actor's encoder makes of them, if known
        :return: ends of the chains ``(N, k + 1, D)`` and their means ``(N, k, D)`` under the
            policy, or under both where they mix
        """
        mixing, n_steps = float(self.mixing), self.process.denoising_steps
        frozen_steps = n_steps - self.finetuned_steps
        mixes = mixing < 1 and not deterministic
        actors = [self.prior if deterministic and mixing < 0.5 else self.actor]
        if mixes or frozen_steps:
            actors.append(self.prior)
        if features is None:
            features = self.actor.encode(obs)
        conditions = [
            each.denoiser.condition(self._features(each, obs, features)) for each in actors
        ]
        n = len(conditions[0])
        if noise is not None:
            noise = noise.to(self.initial_noise)
        elif deterministic:
            noise = self.initial_noise.expand(1, n, -1)
        else:
            first = self.initial_noise.expand(len(self.process.std) + 1, n, -1)
            noise = th.randn_like(first, memory_format=th.contiguous_format)
            if self.exploration == "action":
                noise[0] = self.initial_noise
        chosen = [th.rand(n, 1, device=self.device) < mixing] if mixes else []

        def sample(noise: th.Tensor, *tensors: th.Tensor) -> tuple[th.Tensor, list[th.Tensor]]:
            denoisers = [actor.denoiser for actor in actors]
            networks = list(zip(denoisers, tensors[: len(actors)], strict=True))
            from_policy = tensors[-1] if mixes else None
            return self.process.sample(
                networks, noise, sampling_std, deterministic, frozen_steps, from_policy
            )

        inputs = [noise, *conditions, *chosen]
        if not (noise.is_cuda and all(actor.denoiser.capturable for actor in actors)):
            return sample(*inputs)
        weights = (p.data_ptr() for actor in actors for p in actor.denoiser.parameters())
        return self._graphs(sample, inputs, (deterministic, sampling_std, *weights))

    def _features(self, actor: DiffusionActor, obs: PyTorchObs, features: th.Tensor) -> th.Tensor:
        """Those of the actor or the prior; a frozen encoder, which they share, runs once."""
        return features if actor is self.actor or self.freeze_encoder else actor.encode(obs)

    # -- evaluation ----------------------------------------------------------------------------

    def evaluate_chains(
        self, obs: PyTorchObs, actions: th.Tensor, prior_means: th.Tensor | None = None
    ) -> ChainEvaluation:
        """
        Values, likelihoods and prior KL of stored chains, with one network call each.

        :param obs: ``(B, ...)`` observations
        :param actions: ``(B, (k + 1) D)`` flattened chains
        :param prior_means: ``(B, k D)`` of an earlier evaluation, if known
        :return: the evaluation
        """
        processed = self.preprocess(obs)
        chain = actions.view(len(actions), -1, self.action_dim)
        features = self.actor.encode(processed)
        condition = self.actor.denoiser.condition(features)
        means = self.process.chain_means(self.actor.denoiser, chain, condition)
        theirs = prior_kl = None
        if self.has_prior:
            if prior_means is None:
                prior_means = self._prior_means(processed, chain, features)
            theirs = prior_means.view_as(means)
            prior_kl = pathwise_kl(means, theirs, self._std)
        log_prob = self._log_prob(chain, means, theirs if self.mixing < 1 else None)
        return ChainEvaluation(self._values(processed, features), log_prob, prior_kl, prior_means)

    @th.no_grad()
    def _prior_means(self, obs: PyTorchObs, chain: th.Tensor, features: th.Tensor) -> th.Tensor:
        condition = self.prior.denoiser.condition(self._features(self.prior, obs, features))
        return self.process.chain_means(self.prior.denoiser, chain, condition).flatten(1)

    @property
    def chain_steps(self) -> int:
        """Number ``k`` of the steps of stored chains, each with a likelihood."""
        return len(self._std)

    @property
    def _std(self) -> th.Tensor:
        """Standard deviations of the fine-tuned steps, ``(k,)``."""
        return self.process.std[-self.finetuned_steps :]

    def _log_prob(
        self, chain: th.Tensor, means: th.Tensor, prior_means: th.Tensor | None = None
    ) -> th.Tensor:
        """Log-likelihood ``(B, k)`` of chains, of the mixture where the prior's means are given."""
        log_prob = gaussian_log_prob(chain[:, 1:], means, self._std)
        if prior_means is None:
            return log_prob
        prior_log_prob = gaussian_log_prob(chain[:, 1:], prior_means, self._std)
        return mixture_log_prob(log_prob, prior_log_prob, float(self.mixing))

    def evaluate_actions(
        self, obs: PyTorchObs, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, None]:
        """
        Evaluate chains, under SB3's name.

        :param obs: ``(B, ...)`` observations
        :param actions: ``(B, (k + 1) D)`` flattened chains
        :return: values ``(B, 1)``, log-likelihoods ``(B, k)``, and None: a chain's action has no
            entropy in closed form
        """
        evaluation = self.evaluate_chains(obs, actions)
        return evaluation.values, evaluation.log_prob, None

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: ``(B, ...)`` observations
        :return: ``(B, 1)`` values
        """
        return self._values(self.preprocess(obs))

    def denoising_loss(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        Imitation loss of the actor; in training on augmented images.

        :param obs: ``(B, ...)`` observations
        :param actions: ``(B, D)`` scaled actions in [-1, 1]
        :return: ``(B,)`` one draw each of the denoising loss
        """
        processed = self.preprocess(obs)
        if self.training:
            processed = self.actor.augment(processed)
        condition = self.actor.condition(processed)
        return self.process.denoising_loss(self.actor.denoiser, condition, actions)

    def get_distribution(self, obs: PyTorchObs) -> Any:
        """
        Not available: the action's marginal distribution has no closed form; see
        ``evaluate_actions``.
        """
        raise NotImplementedError(
            "A diffusion policy's action distribution has no closed form. Use "
            "evaluate_actions(obs, chains) for the likelihood of chains, or predict() to sample."
        )

    def preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        """
        :param obs: ``(B, ...)`` raw observations
        :return: floats, images divided by 255, discrete observations one-hot
        """
        return preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)

    def _values(self, obs: PyTorchObs, features: th.Tensor | None = None) -> th.Tensor:
        """Values; ``features`` are the actor's, if known, which the critic may share."""
        if self.share_features_extractor:
            features = (self.actor.encode(obs) if features is None else features).detach()
        else:
            features = self.vf_features_extractor(self.actor.normalizer(obs))
        values = self.value_net(features)
        return values.to(th.promote_types(values.dtype, th.float32))  # not bfloat16

    # -- action space --------------------------------------------------------------------------

    def scale_action(self, action: np.ndarray) -> np.ndarray:
        """
        :param action: ``(N, *shape)`` in the env's units
        :return: ``(N, *shape)`` float32 in [-1, 1]
        """
        return self.action_scale.scale(action)

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """
        The env's action of chains or of scaled actions.

        :param scaled_action: ``(N, (k + 1) D)`` flattened chains, or ``(N, *shape)`` actions;
            clipped to [-1, 1], or given an ``action_range`` to ``clip_sample``
        :return: ``(N, *shape)`` in the env's units and dtype
        """
        return self.action_scale.unscale(
            scaled_action.reshape(len(scaled_action), -1)[:, -self.action_dim :]
        )


class DiffusionMlpPolicy(DiffusionActorCriticPolicy):
    """``"MlpPolicy"``: flattens the observation."""

    default_features_extractor = FlattenExtractor


class DiffusionCnnPolicy(DiffusionActorCriticPolicy):
    """``"CnnPolicy"``: encodes an image by SB3's NatureCNN."""

    default_features_extractor = NatureCNN


class DiffusionMultiInputPolicy(DiffusionActorCriticPolicy):
    """``"MultiInputPolicy"``: encodes a Dict observation by SB3's CombinedExtractor."""

    default_features_extractor = CombinedExtractor


def features_extractor_for(observation_space: spaces.Space) -> type[BaseFeaturesExtractor]:
    """
    :param observation_space: any space SB3 supports
    :return: the encoder that SB3 would choose for it
    """
    if isinstance(observation_space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(observation_space) else FlattenExtractor
