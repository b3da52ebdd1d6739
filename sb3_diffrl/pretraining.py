"""Imitation: training the diffusion policy on demonstrations (paper, section 2.1)."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.normalization import ObservationNormalizer, Standardizer
from sb3_diffrl.policies import DiffusionActor, DiffusionActorCriticPolicy
from sb3_diffrl.precision import check_precision
from sb3_diffrl.precision import precision as matmul_precision
from sb3_diffrl.random_state import preserved_random_state


@dataclass(frozen=True)
class PretrainingResult:
    """
    How pre-training went.

    :param gradient_steps: steps taken, fewer than asked after an early stop
    :param train_loss: epsilon loss, averaged over the last validation interval
    :param validation_loss: epsilon loss of the averaged weights on the validation episodes; NaN
        without any
    :param stopped_early: whether the validation loss had stopped falling
    """

    gradient_steps: int
    train_loss: float
    validation_loss: float
    stopped_early: bool


def pretrain(
    policy: DiffusionActorCriticPolicy,
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
    fit_normalizer: bool = True,
    scale_floor: float = 0.02,
    limit: float = 5.0,
    seed: int = 0,
    logger: Logger | None = None,
    progress_bar: bool = False,
    precision: str = "float32",
) -> PretrainingResult:
    """
    Train the actor by ``E||eps - eps_theta(a_t, t, s)||^2``, then freeze it as the prior.

    AdamW with linear warm-up and cosine decay; the exponential moving average of the weights is
    what is kept, that of the best validation where ``patience`` is set. The observation normaliser
    is fitted to the demonstrations first.

    :param policy: the policy to train, on its device
    :param demonstrations: what to imitate, checked against the policy's spaces
    :param gradient_steps: number of minibatches
    :param batch_size: decisions per minibatch
    :param learning_rate: peak learning rate
    :param warmup_steps: steps over which it rises
    :param weight_decay: of AdamW
    :param ema_decay: decay of the average per step; it warms up with the number of steps
    :param validation_fraction: fraction of the episodes held out, 0 for none
    :param validation_interval: steps between validations
    :param patience: stop after so many validations without a new best; None trains to the end
    :param fit_normalizer: whether to take the observation statistics from the demonstrations; False
        keeps those that the policy has
    :param scale_floor: see :meth:`~sb3_diffrl.normalization.Standardizer.fit`
    :param limit: bound of normalised observations
    :param seed: of the validation split
    :param logger: records ``pretrain/…`` if given
    :param progress_bar: whether to show one
    :param precision: of matrix products, see :class:`~sb3_diffrl.diffusion_ppo.DiffusionPPO`
    :return: losses and steps taken
    :raises ValueError: for demonstrations that do not fit the policy's spaces, naming field, index
        and expectation
    """
    for name, size in (
        ("gradient_steps", gradient_steps),
        ("batch_size", batch_size),
        ("validation_interval", validation_interval),
    ):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}.")
    check_precision(precision)
    demonstrations = check_demonstrations(demonstrations, policy)
    train, validation = demonstrations, None
    if validation_fraction > 0 and len(demonstrations) > 1:
        train, validation = demonstrations.split(validation_fraction, seed=seed)
    if fit_normalizer:
        policy.actor.normalizer.fit(train.observations, scale_floor, limit)
    train_obs, train_actions = as_tensors(policy, train)
    validation_data = None if validation is None else as_tensors(policy, validation)

    optimizer = th.optim.AdamW(
        policy.actor.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )
    scheduler = LambdaLR(optimizer, lambda step: warmup_cosine(step, gradient_steps, warmup_steps))
    average = copy.deepcopy(policy.actor)
    best_state, best_loss, best_step = average.state_dict(), math.inf, 0
    losses: list[th.Tensor] = []
    train_loss = validation_loss = math.nan
    stopped_early = False
    step = 0
    policy.set_training_mode(True)
    policy.set_finetuning(False)
    for step in tqdm(range(1, gradient_steps + 1), "pre-training", disable=not progress_bar):
        batch = th.randint(len(train_actions), (batch_size,), device=policy.device)
        optimizer.zero_grad(set_to_none=True)
        with matmul_precision(precision, policy.device):
            loss = policy.denoising_loss(index(train_obs, batch), train_actions[batch]).mean()
            loss.backward()
        optimizer.step()
        scheduler.step()
        update_average(average, policy.actor, min(ema_decay, (1 + step) / (10 + step)))
        losses.append(loss.detach())

        if step % validation_interval == 0 or step == gradient_steps:
            train_loss = float(th.stack(losses).mean())
            losses.clear()
            if validation_data is not None:
                validation_loss = _validate(policy, average, *validation_data)
                if validation_loss < best_loss:
                    best_state = copy.deepcopy(average.state_dict())
                    best_loss, best_step = validation_loss, step
            if logger is not None:
                logger.record("pretrain/loss", train_loss)
                logger.record("pretrain/validation_loss", validation_loss)
                logger.record("pretrain/learning_rate", scheduler.get_last_lr()[0])
                logger.dump(step)
            if patience is not None and validation_data is not None:
                stopped_early = step - best_step >= patience * validation_interval
                if stopped_early:
                    break

    keep_best = patience is not None and validation_data is not None
    policy.actor.load_state_dict(best_state if keep_best else average.state_dict())
    policy.set_training_mode(False)
    policy.freeze_prior()
    return PretrainingResult(
        step, train_loss, best_loss if keep_best else validation_loss, stopped_early
    )


def hand_over_statistics(normalizer: ObservationNormalizer, env: VecNormalize) -> None:
    """
    Let the env normalise observations by the policy's statistics, and hold them.

    :param normalizer: fitted to the demonstrations; becomes the identity where the env takes over
    :param env: wrapper whose ``obs_rms`` is replaced
    """

    def frozen(standardizer: Standardizer) -> FrozenMeanStd:
        statistics = FrozenMeanStd()
        statistics.mean, statistics.var = standardizer.hand_over()
        return statistics

    if isinstance(env.observation_space, spaces.Dict):
        assert isinstance(env.obs_rms, dict)
        env.obs_rms = {key: frozen(normalizer.standardizer(key)) for key in env.obs_rms}
    else:
        env.obs_rms = frozen(normalizer.standardizer())  # type: ignore[assignment]  # Dict alone


class FrozenMeanStd(RunningMeanStd):
    """Statistics of observations that no longer move."""

    def update(self, arr: np.ndarray) -> None:
        """Ignore new data."""


def warmup_cosine(step: int, n_steps: int, warmup_steps: int) -> float:
    """
    :param step: number of optimizer steps done
    :param n_steps: number of steps in all
    :param warmup_steps: steps of linear warm-up
    :return: fraction of the peak learning rate
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, n_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


@th.no_grad()
def update_average(average: th.nn.Module, module: th.nn.Module, decay: float) -> None:
    """
    In-place exponential moving average of parameters; buffers are copied.

    :param average: module that holds the average
    :param module: module that is averaged
    :param decay: weight of the old average
    """
    th._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(new)


def check_demonstrations(
    demonstrations: Demonstrations, policy: DiffusionActorCriticPolicy
) -> Demonstrations:
    """
    Check against the policy's spaces; images are brought to SB3's channel-first order.

    :param demonstrations: what the user brought
    :param policy: the policy that is to imitate them
    :return: the demonstrations in the policy's layout
    :raises ValueError: naming field, first bad index and expected shape
    """
    if not isinstance(demonstrations, Demonstrations):
        raise ValueError(
            f"demonstrations: expected sb3_diffrl.Demonstrations, got {type(demonstrations)}. "
            "Build them by Demonstrations.from_arrays(observations, actions, episode_ends)."
        )
    space = policy.observation_space
    observations: Any = demonstrations.observations
    if isinstance(observations, dict) and isinstance(space, spaces.Dict):
        observations = {
            key: _channels_first(part, space.spaces.get(key)) for key, part in observations.items()
        }
    elif not isinstance(observations, dict):
        observations = _channels_first(observations, space)
    checked = Demonstrations(
        observations,
        demonstrations.actions,
        demonstrations.episode_ends,
        demonstrations.rewards,
        demonstrations.successes,
    )
    assert isinstance(policy.action_space, spaces.Box)
    checked.validate(space, policy.action_space)
    return checked


def as_tensors(
    policy: DiffusionActorCriticPolicy, demonstrations: Demonstrations
) -> tuple[PyTorchObs, th.Tensor]:
    """
    :param policy: gives device and action scale
    :param demonstrations: checked demonstrations, ``M`` decisions
    :return: observations ``(M, ...)`` and scaled actions ``(M, D)``
    """
    observations, _ = policy.obs_to_tensor(demonstrations.observations)
    scaled = policy.scale_action(demonstrations.actions)
    actions = th.as_tensor(scaled, device=policy.device).flatten(1)
    return observations, actions


def index(observations: PyTorchObs, batch: th.Tensor) -> PyTorchObs:
    """
    :param observations: ``(M, ...)``, or a dict of such tensors
    :param batch: ``(B,)`` indices
    :return: ``(B, ...)``
    """
    if isinstance(observations, dict):
        return {key: part[batch] for key, part in observations.items()}
    return observations[batch]


def _channels_first(images: np.ndarray, space: spaces.Space | None) -> np.ndarray:
    if space is None or not is_image_space(space):
        return images
    last = (*space.shape[1:], space.shape[0]) if space.shape else ()
    return np.moveaxis(images, -1, 1) if images.shape[1:] == last else images


def _validate(
    policy: DiffusionActorCriticPolicy,
    average: DiffusionActor,
    observations: PyTorchObs,
    actions: th.Tensor,
) -> float:
    """Epsilon loss of the averaged weights, on noise that is the same each time."""
    average.eval()
    with th.no_grad(), preserved_random_state(seed=0):
        condition = average.condition(policy.preprocess(observations))
        losses = [
            policy.process.denoising_loss(average.denoiser, condition, actions).mean()
            for _ in range(8)
        ]
    return float(th.stack(losses).mean())
