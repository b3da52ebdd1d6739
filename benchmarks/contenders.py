"""
The same work by three codes: ours, the naive form of our own mathematics, and a checkout of DPPO.

The naive form is what the equations say line by line: the observation goes through the network at
every denoising step, a minibatch is a list of single (observation, step) pairs, the critic and the
prior look at each of them. It is the reference of the tests too: same chains, same gradients.
"""

import copy
import importlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from sb3_diffrl import Demonstrations, DiffusionMlpPolicy, DiffusionPPO, pretrain
from sb3_diffrl.actor import DiffusionActor
from sb3_diffrl.diffusion import MlpDenoiser, gaussian_log_prob


@dataclass(frozen=True)
class Size:
    """
    Sizes of a task and its networks.

    :param name: of the configuration
    :param obs_dim: observation features
    :param action_dim: entries of one action
    :param horizon: actions in a chunk ``H``
    :param width: of three hidden layers of the denoiser
    :param critic_width: of three hidden layers of the critic
    :param denoising_steps: ``K``
    :param finetuned_steps: last ``k`` of them
    """

    name: str
    obs_dim: int
    action_dim: int
    horizon: int = 4
    width: int = 512
    critic_width: int = 256
    denoising_steps: int = 20
    finetuned_steps: int = 10

    @property
    def flat_dim(self) -> int:
        """Entries of a chunk, ``D``."""
        return self.horizon * self.action_dim


HOPPER = Size("hopper", obs_dim=11, action_dim=3)
SQUARE = Size("square", obs_dim=23, action_dim=7, width=1024)
SIZES = {size.name: size for size in (HOPPER, SQUARE)}


class Contender(Protocol):
    """What is measured. Each callable does the work once."""

    def act(self, observations: th.Tensor) -> Any:
        """:param observations: ``(N, F)``; samples their chains"""

    def update(self, n_chains: int) -> Callable[[], Any]:
        """:return: one gradient step of actor and critic on ``n_chains k`` (observation, step)
        pairs"""

    def pretraining(self, batch_size: int, n_steps: int) -> Callable[[], Any]:
        """:return: ``n_steps`` gradient steps of imitation, data loading included"""


class StillEnv(gym.Env[np.ndarray, np.ndarray]):
    """
    Costs next to nothing: random observations, no reward.

    :param size: of observation and action
    """

    def __init__(self, size: Size):
        self.observation_space = spaces.Box(-np.inf, np.inf, (size.obs_dim,), np.float32)
        self.action_space = spaces.Box(-1, 1, (size.horizon, size.action_dim), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """See :class:`gymnasium.Env`."""
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """See :class:`gymnasium.Env`."""
        return self._observation(), float(self.np_random.normal()), False, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.normal(size=self.observation_space.shape).astype(np.float32)


def make_demonstrations(size: Size, n_episodes: int = 100, length: int = 100) -> Demonstrations:
    """
    :param size: of observation and action
    :param n_episodes: number of episodes
    :param length: decisions in each
    :return: random demonstrations
    """
    rng, n = np.random.default_rng(0), n_episodes * length
    observations = rng.normal(size=(n, size.obs_dim)).astype(np.float32)
    actions = rng.uniform(-1, 1, (n, size.horizon, size.action_dim)).astype(np.float32)
    return Demonstrations(observations, actions, np.arange(1, n_episodes + 1) * length)


def policy_kwargs(size: Size) -> dict[str, Any]:
    """
    :param size: of the networks
    :return: arguments of our policy
    """
    return {
        "net_arch": {"pi": [size.width] * 3, "vf": [size.critic_width] * 3},
        "activation_fn": nn.ReLU,
        "noise_levels": max(20, size.denoising_steps),
        "denoising_steps": size.denoising_steps,
        "finetuned_steps": size.finetuned_steps,
    }


class Ours:
    """
    The package as users run it.

    :param size: of task and networks
    """

    def __init__(self, size: Size):
        self.size = size
        self.policy = self.model(2).policy
        self.policy.freeze_prior()

    def model(self, n_chains: int, env: VecEnv | None = None, **kwargs: Any) -> DiffusionPPO:
        """
        :param n_chains: decisions of the rollout and of the minibatch
        :param env: by default one :class:`StillEnv`
        :param kwargs: of the algorithm
        :return: a model of this size
        """
        arguments: dict[str, Any] = {
            "n_steps": n_chains,
            "batch_size": n_chains,
            "n_epochs": 1,
            "seed": 0,
            "device": "cpu",
            "policy_kwargs": policy_kwargs(self.size),
            **kwargs,
        }
        env = env or DummyVecEnv([lambda: StillEnv(self.size)])
        return DiffusionPPO(DiffusionMlpPolicy, env, **arguments)

    def act(self, observations: th.Tensor) -> Any:
        """Chains with the exploration floor, as in a rollout."""
        with th.no_grad():
            return self.policy.sample_chains(observations)

    def update(self, n_chains: int) -> Callable[[], Any]:
        """SB3's ``train()`` on one minibatch, with the prior KL of a policy that has a prior."""
        model = self.model(n_chains, beta=0.01)
        model.policy.freeze_prior()
        model.learn(n_chains)
        return model.train

    def pretraining(self, batch_size: int, n_steps: int) -> Callable[[], Any]:
        """Our loop on demonstrations in memory."""
        demonstrations = make_demonstrations(self.size)
        return lambda: pretrain(
            self.policy,
            demonstrations,
            gradient_steps=n_steps,
            batch_size=batch_size,
            validation_fraction=0,
        )


@dataclass
class Pairs:
    """
    A rollout as the references keep it.

    :param observations: ``(M, F)``
    :param chains: ``(M, k + 1, D)``
    :param log_prob: ``(M, k)``
    :param advantages: ``(M,)``
    :param returns: ``(M,)``
    """

    observations: th.Tensor
    chains: th.Tensor
    log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor


def update_all_pairs(contender: "Naive | Dppo", n_chains: int) -> Callable[[], None]:
    """
    :param contender: a reference
    :param n_chains: number of decisions ``M``
    :return: a gradient step on one minibatch of all ``M k`` pairs in random order, for random
        observations, advantages and returns
    """
    k = contender.size.finetuned_steps
    observations = th.randn(n_chains, contender.size.obs_dim)
    chains = contender.act(observations)
    log_prob = contender.old_log_probs(observations, chains)
    data = Pairs(observations, chains, log_prob, th.randn(n_chains), th.randn(n_chains))

    def step() -> None:
        pairs = th.randperm(n_chains * k)
        contender.minibatch(data, data.returns, pairs // k, pairs % k)

    return step


class Naive:
    """
    Our own mathematics without any of the savings.

    :param size: of task and networks
    :param policy: whose networks to use, by default a new one's
    """

    def __init__(self, size: Size, policy: DiffusionMlpPolicy | None = None):
        self.size = size
        if policy is None:
            policy = Ours(size).policy  # type: ignore[assignment]  # one class of policies here
        assert isinstance(policy, DiffusionMlpPolicy)
        self.policy = policy
        self.optimizers = [
            th.optim.Adam(self.policy.actor.parameters(), 3e-4),
            th.optim.Adam(self.policy.critic_parameters(), 3e-4),
        ]

    def epsilon(
        self, actor: DiffusionActor, obs: th.Tensor, noisy: th.Tensor, levels: th.Tensor
    ) -> th.Tensor:
        """
        Everything from the raw observation on, for single pairs.

        :param actor: policy or prior
        :param obs: ``(B, F)``
        :param noisy: ``(B, D)``
        :param levels: ``(B,)``
        :return: ``(B, D)`` predicted noise
        """
        denoiser = actor.denoiser
        assert isinstance(denoiser, MlpDenoiser)
        features = actor.features_extractor(actor.normalizer(obs))
        hidden = denoiser.action_layer(noisy) + denoiser.features_layer(features)
        hidden = hidden + denoiser.level_layer(denoiser.level_embedding[levels])
        for layer in denoiser.hidden_layers:
            hidden = hidden + layer(denoiser.activation(hidden))
        return denoiser.output_layer(denoiser.activation(hidden))

    def mean(
        self, actor: DiffusionActor, obs: th.Tensor, noisy: th.Tensor, steps: th.Tensor
    ) -> th.Tensor:
        """
        Mean of the reverse transition as Song et al. (2021, eq. 12) have it.

        :param actor: policy or prior
        :param obs: ``(B, F)``
        :param noisy: ``(B, D)``
        :param steps: ``(B,)`` indices of the denoising steps
        :return: ``(B, D)``
        """
        process = self.policy.process
        levels = process.levels[steps]
        after = th.cat([process.levels[1:], process.levels.new_zeros(1)])[steps]
        kept, next_kept = process.alpha_bar[levels, None], process.alpha_bar[after, None]
        epsilon = self.epsilon(actor, obs, noisy, levels)
        clean = ((noisy - (1 - kept).sqrt() * epsilon) / kept.sqrt()).clamp(-1, 1)
        epsilon = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
        std = process.sampling_std[steps, None]
        return next_kept.sqrt() * clean + (1 - next_kept - std**2).clamp(min=0).sqrt() * epsilon

    def act(self, observations: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """
        One network call per step.

        :param observations: ``(N, F)``
        :param noise: ``(K + 1, N, D)``, drawn by default
        :return: ends of the chains ``(N, k + 1, D)``
        """
        policy, size, n = self.policy, self.size, len(observations)
        frozen = size.denoising_steps - size.finetuned_steps
        with th.no_grad():
            if noise is None:
                noise = th.randn(size.denoising_steps + 1, n, size.flat_dim)
            noisy = noise[0]
            chain = [noisy]
            for step in range(size.denoising_steps):
                actor = policy.prior if step < frozen else policy.actor
                mean = self.mean(actor, observations, noisy, th.full((n,), step))
                noisy = mean + policy.process.std[step] * noise[step + 1]
                chain.append(noisy)
            return th.stack(chain, 1)[:, frozen:]

    def old_log_probs(self, observations: th.Tensor, chains: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(M, F)``
        :param chains: ``(M, k + 1, D)``
        :return: ``(M, k)``
        """
        n, frozen = len(chains), self.size.denoising_steps - self.size.finetuned_steps
        log_probs = []
        with th.no_grad():
            for i in range(self.size.finetuned_steps):
                step = th.full((n,), frozen + i)
                mean = self.mean(self.policy.actor, observations, chains[:, i], step)
                std = self.policy.process.std[step]
                log_probs.append(gaussian_log_prob(chains[:, i + 1], mean, std))
        return th.stack(log_probs, dim=1)

    def values(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(B, F)``
        :return: ``(B,)``
        """
        policy = self.policy
        features = policy.vf_features_extractor(policy.actor.normalizer(observations))
        return policy.value_net(features).flatten()

    def actions(self, chains: th.Tensor) -> np.ndarray:
        """
        :param chains: from :meth:`act`
        :return: ``(N, H, A)`` for the environment
        """
        chunks = chains[:, -1].reshape(-1, self.size.horizon, self.size.action_dim)
        return chunks.clamp(-1, 1).numpy()

    def minibatch(
        self, data: Pairs, old_values: th.Tensor, rows: th.Tensor, steps: th.Tensor
    ) -> None:
        """
        One gradient step on pairs; parameters as in :meth:`loss`.

        :param data: the rollout
        :param old_values: unused, for there is no clipping of values
        :param rows: ``(B,)`` decision of each pair
        :param steps: ``(B,)`` fine-tuned step of each pair
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.loss(data, rows, steps).backward()
        nn.utils.clip_grad_norm_(self.policy.actor.parameters(), 0.5)
        nn.utils.clip_grad_norm_(self.policy.critic_parameters(), 0.5)
        for optimizer in self.optimizers:
            optimizer.step()

    def loss(
        self,
        data: Pairs,
        rows: th.Tensor,
        steps: th.Tensor,
        clip_range: float = 0.2,
        beta: float = 0.01,
        vf_coef: float = 0.5,
        gamma_denoise: float = 0.99,
    ) -> th.Tensor:
        """
        PPO on single pairs: every term once per pair.

        :param data: the rollout
        :param rows: ``(B,)`` decision of each pair
        :param steps: ``(B,)`` fine-tuned step of each pair, from 0
        :param clip_range: of the ratio
        :param beta: weight of the prior KL
        :param vf_coef: weight of the critic's loss
        :param gamma_denoise: discount per denoising step still to go
        :return: scalar, on the scale of a sum over steps
        """
        policy, k = self.policy, self.size.finetuned_steps
        step = steps + self.size.denoising_steps - k
        obs, noisy, drawn = data.observations[rows], data.chains[rows, steps], None
        drawn = data.chains[rows, steps + 1]
        mean = self.mean(policy.actor, obs, noisy, step)
        std = policy.process.std[step]
        advantages = (data.advantages - data.advantages.mean()) / data.advantages.std()
        weighted = advantages[rows] * gamma_denoise ** (k - 1 - steps)
        ratio = (gaussian_log_prob(drawn, mean, std) - data.log_prob[rows, steps]).exp()
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        loss = -th.min(weighted * ratio, weighted * clipped)
        with th.no_grad():
            prior_mean = self.mean(policy.prior, obs, noisy, step)
        loss = loss + beta * ((mean - prior_mean) / std[:, None]).square().sum(-1) / 2
        critic = (self.values(obs) - data.returns[rows]).square()
        return k * loss.mean() + vf_coef * critic.mean()

    def update(self, n_chains: int) -> Callable[[], Any]:
        """A minibatch of all pairs of ``n_chains`` decisions, in random order."""
        return update_all_pairs(self, n_chains)

    def pretraining(self, batch_size: int, n_steps: int) -> Callable[[], Any]:
        """Array rows to tensors at every step, AdamW and the average parameter by parameter."""
        demonstrations = make_demonstrations(self.size)
        observations = np.asarray(demonstrations.observations)
        actions = np.asarray(demonstrations.actions).reshape(len(observations), -1)
        actor, process = self.policy.actor, self.policy.process
        average = copy.deepcopy(actor)
        optimizer = th.optim.AdamW(actor.parameters(), 1e-3, weight_decay=1e-6)
        rng = np.random.default_rng(0)

        def run() -> None:
            for _ in range(n_steps):
                rows = rng.integers(len(actions), size=batch_size)
                obs, clean = th.tensor(observations[rows]), th.tensor(actions[rows])
                levels = th.randint(1, process.noise_levels + 1, (batch_size,))
                noise = th.randn_like(clean)
                kept = process.alpha_bar[levels, None]
                noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
                loss = (self.epsilon(actor, obs, noisy, levels) - noise).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with th.no_grad():
                    for kept_average, new in zip(
                        average.parameters(), actor.parameters(), strict=True
                    ):
                        kept_average.mul_(0.995).add_(0.005 * new)

        return run


@dataclass
class Dppo:
    """
    The reference implementation's own classes by its own configuration, the critic's activation
    (Mish, where ours has the actor's ReLU) included.

    :param size: of task and networks
    :param checkout: folder of its source
    """

    size: Size
    checkout: Path
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        if str(self.checkout) not in sys.path:
            sys.path.insert(0, str(self.checkout))
        network = importlib.import_module("model.diffusion.mlp_diffusion")
        critic = importlib.import_module("model.common.critic")
        ppo = importlib.import_module("model.diffusion.diffusion_ppo")
        size = self.size
        self.model = ppo.PPODiffusion(
            gamma_denoising=0.99,
            clip_ploss_coef=0.01,
            clip_ploss_coef_base=0.01,
            randn_clip_value=3,
            min_sampling_denoising_std=0.1,
            min_logprob_denoising_std=0.1,
            actor=self._network(network),
            critic=critic.CriticObs(
                cond_dim=size.obs_dim,
                mlp_dims=[size.critic_width] * 3,
                activation_type="Mish",
                residual_style=True,
            ),
            ft_denoising_steps=size.finetuned_steps,
            denoising_steps=size.denoising_steps,
            horizon_steps=size.horizon,
            obs_dim=size.obs_dim,
            action_dim=size.action_dim,
            device="cpu",
        )
        self.optimizers = [
            th.optim.AdamW(self.model.actor_ft.parameters(), 1e-4, weight_decay=0),
            th.optim.AdamW(self.model.critic.parameters(), 1e-3, weight_decay=0),
        ]

    def _network(self, module: Any) -> nn.Module:
        return module.DiffusionMLP(
            action_dim=self.size.action_dim,
            horizon_steps=self.size.horizon,
            cond_dim=self.size.obs_dim,
            time_dim=16,
            mlp_dims=[self.size.width] * 3,
            activation_type="ReLU",
            residual_style=True,
        )

    def act(self, observations: th.Tensor) -> Any:
        """Its ``forward`` with the chain kept; log-likelihoods come later, in a pass of its own."""
        with th.no_grad():
            return self.model({"state": observations[:, None]}, return_chain=True).chains

    def old_log_probs(self, observations: th.Tensor, chains: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(M, F)``
        :param chains: ``(M, k + 1, H, A)``
        :return: ``(M, k, H, A)``
        """
        with th.no_grad():
            log_prob = self.model.get_logprobs({"state": observations[:, None]}, chains)
        return log_prob.reshape(len(chains), -1, *chains.shape[2:])

    def minibatch(
        self, data: Pairs, old_values: th.Tensor, rows: th.Tensor, steps: th.Tensor
    ) -> None:
        """
        One gradient step on pairs.

        :param data: the rollout, with its log-likelihoods ``(M, k, H, A)``
        :param old_values: ``(M,)``
        :param rows: ``(B,)`` decision of each pair
        :param steps: ``(B,)`` fine-tuned step of each pair
        """
        losses = self.model.loss(
            {"state": data.observations[rows, None]},
            data.chains[rows, steps],
            data.chains[rows, steps + 1],
            steps,
            data.returns[rows],
            old_values[rows],
            data.advantages[rows],
            data.log_prob[rows, steps],
            reward_horizon=self.size.horizon,
        )
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        (losses[0] + 0.5 * losses[2]).backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def update(self, n_chains: int) -> Callable[[], Any]:
        """Its ``loss`` on all pairs in random order, and AdamW."""
        return update_all_pairs(self, n_chains)

    def values(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``(B, F)``
        :return: ``(B,)``
        """
        return self.model.critic({"state": observations[:, None]}).flatten()

    def actions(self, chains: th.Tensor) -> np.ndarray:
        """
        :param chains: from :meth:`act`
        :return: ``(N, H, A)`` for the environment
        """
        return chains[:, -1].clamp(-1, 1).numpy()

    def pretraining(self, batch_size: int, n_steps: int) -> Callable[[], Any]:
        """Its loss and average, on its rows through torch's ``DataLoader`` in one process."""
        network = importlib.import_module("model.diffusion.mlp_diffusion")
        diffusion = importlib.import_module("model.diffusion.diffusion")
        size = self.size
        model = diffusion.DiffusionModel(
            network=self._network(network),
            horizon_steps=size.horizon,
            obs_dim=size.obs_dim,
            action_dim=size.action_dim,
            denoising_steps=size.denoising_steps,
            device="cpu",
        )
        average = copy.deepcopy(model)
        optimizer = th.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-6)
        loader = th.utils.data.DataLoader(self._dataset(), batch_size=batch_size, shuffle=True)

        def run() -> None:
            done = 0
            while done < n_steps:
                for actions, condition in loader:
                    model.loss(actions, condition).backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    if done % 10 == 0:
                        with th.no_grad():
                            for kept, new in zip(
                                average.parameters(), model.parameters(), strict=True
                            ):
                                kept.data = kept.data * 0.995 + 0.005 * new.data
                    done += 1
                    if done == n_steps:
                        return

        return run

    def _dataset(self) -> Any:
        """Its dataset of the same demonstrations, from the kind of file that it reads."""
        sequence = importlib.import_module("agent.dataset.sequence")
        demonstrations = make_demonstrations(self.size)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.npz"
            np.savez(
                path,
                states=np.asarray(demonstrations.observations),
                actions=demonstrations.actions[:, 0],
                traj_lengths=np.diff(demonstrations.episode_ends, prepend=0),
            )
            return sequence.StitchedSequenceDataset(
                str(path), horizon_steps=self.size.horizon, device="cpu"
            )
