"""Imitation: training the diffusion policy on demonstrations (paper, section 2.1)."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from sb3_diffrl.actor import DiffusionActor
from sb3_diffrl.batches import MEMORY_BYTES, Batches, batches, check_demonstrations
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.demonstrations.arrays import ConvertedArray, Source, is_lazy
from sb3_diffrl.normalization import ObservationNormalizer, Standardizer
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from sb3_diffrl.precision import check_precision
from sb3_diffrl.precision import precision as matmul_precision
from sb3_diffrl.random_state import preserved_random_state

Module = TypeVar("Module", bound=th.nn.Module)


@dataclass(frozen=True)
class PretrainingResult:
    """
    How pre-training went.

    :param gradient_steps: steps taken, fewer than asked after an early stop
    :param train_loss: loss, averaged over the last validation interval
    :param validation_loss: loss of the averaged weights on the validation episodes; NaN
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
    normalization: str = "standard",
    scale_floor: float = 0.02,
    limit: float = 5.0,
    seed: int = 0,
    logger: Logger | None = None,
    progress_bar: bool = False,
    precision: str = "float32",
    memory_bytes: int = MEMORY_BYTES,
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
    :param normalization: ``"standard"``, ``"min_max"`` or ``"quantile"``, see
        :meth:`~sb3_diffrl.normalization.Standardizer.fit`
    :param scale_floor: see :meth:`~sb3_diffrl.normalization.Standardizer.fit`
    :param limit: bound of normalised observations
    :param seed: of the validation split
    :param logger: records ``pretrain/…`` if given
    :param progress_bar: whether to show one
    :param precision: of matrix products, see :class:`~sb3_diffrl.diffusion_ppo.DiffusionPPO`
    :param memory_bytes: lazy demonstrations up to this size are read into memory once; larger ones
        are read for each minibatch
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
        validation = validation.weighted(None)
    if fit_normalizer:
        policy.actor.normalizer.fit(train.observations, scale_floor, limit, normalization)
    train_data = batches(policy, train, memory_bytes)
    validation_data = None if validation is None else batches(policy, validation, memory_bytes)

    def gradients() -> th.Tensor:
        observations, actions = train_data.draw(batch_size)
        with matmul_precision(precision, policy.device):
            loss = policy.denoising_loss(observations, actions).mean()
            loss.backward()
        return loss.detach()

    policy.set_training_mode(True)
    policy.set_finetuning(False)
    result = fit(
        policy.actor,
        policy.actor.parameters(),
        gradients,
        None if validation_data is None else partial(_validate, policy, data=validation_data),
        gradient_steps=gradient_steps,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        ema_decay=ema_decay,
        validation_interval=validation_interval,
        patience=patience,
        logger=logger,
        progress_bar=progress_bar,
    )
    policy.set_training_mode(False)
    policy.freeze_prior()
    return result


def fit(
    module: Module,
    parameters: Iterable[th.nn.Parameter],
    gradients: Callable[[], th.Tensor],
    validate: Callable[[Module], float] | None = None,
    *,
    gradient_steps: int,
    learning_rate: float,
    warmup_steps: int,
    weight_decay: float,
    ema_decay: float,
    validation_interval: int,
    patience: int | None,
    logger: Logger | None = None,
    progress_bar: bool = False,
) -> PretrainingResult:
    """
    Descend a loss by AdamW with linear warm-up and cosine decay. What is left in the module is the
    exponential moving average of its weights, that of the best validation where ``patience`` is
    set.

    :param module: what is trained
    :param parameters: those of it that are
    :param gradients: draws a minibatch, adds its gradients and returns its loss
    :param validate: loss of an averaged module on what is held out, None without such
    :param gradient_steps: see :func:`pretrain`, as for the others
    :return: losses and steps taken
    """
    optimizer = th.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    scheduler = LambdaLR(optimizer, lambda step: warmup_cosine(step, gradient_steps, warmup_steps))
    average = copy.deepcopy(module)
    best_state, best_loss, best_step = average.state_dict(), math.inf, 0
    losses: list[th.Tensor] = []
    train_loss = validation_loss = math.nan
    stopped_early = False
    step = 0
    for step in tqdm(range(1, gradient_steps + 1), "pre-training", disable=not progress_bar):
        optimizer.zero_grad(set_to_none=True)
        losses.append(gradients())
        optimizer.step()
        scheduler.step()
        update_average(average, module, min(ema_decay, (1 + step) / (10 + step)))

        if step % validation_interval == 0 or step == gradient_steps:
            train_loss = float(th.stack(losses).mean())
            losses.clear()
            if validate is not None:
                validation_loss = validate(average)
                if validation_loss < best_loss:
                    best_state = copy.deepcopy(average.state_dict())
                    best_loss, best_step = validation_loss, step
            if logger is not None:
                logger.record("pretrain/loss", train_loss)
                logger.record("pretrain/validation_loss", validation_loss)
                logger.record("pretrain/learning_rate", scheduler.get_last_lr()[0])
                logger.dump(step)
            if patience is not None and validate is not None:
                stopped_early = step - best_step >= patience * validation_interval
                if stopped_early:
                    break

    keep_best = patience is not None and validate is not None
    module.load_state_dict(best_state if keep_best else average.state_dict())
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


def normalized_by(env: VecNormalize, observations: Any) -> Any:
    """
    Normalise as an env does at present; lazy arrays when they are read.

    :param env: wrapper with ``norm_obs``
    :param observations: ``(M, ...)``, or a dictionary of such arrays
    :return: the same, normalised
    """
    if isinstance(observations, dict):
        normalized = set(env.norm_obs_keys or ())
        assert isinstance(env.obs_rms, dict)
        return {
            key: _normalized(env, env.obs_rms[key], part) if key in normalized else part
            for key, part in observations.items()
        }
    return _normalized(env, env.obs_rms, observations)


def _normalized(env: VecNormalize, statistics: Any, observations: Source) -> Source:
    std = np.sqrt(statistics.var + env.epsilon)
    function = partial(_standardized, mean=statistics.mean.copy(), std=std, limit=env.clip_obs)
    return (
        ConvertedArray(observations, function) if is_lazy(observations) else function(observations)
    )


def _standardized(rows: Any, mean: np.ndarray, std: np.ndarray, limit: float) -> np.ndarray:
    return np.clip((rows - mean) / std, -limit, limit).astype(np.float32)


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


def _validate(
    policy: DiffusionActorCriticPolicy,
    average: DiffusionActor,
    data: Batches,
) -> float:
    """Denoising loss of the averaged weights, on noise that is the same each time."""
    average.eval()
    loss = 0.0
    with th.no_grad(), preserved_random_state(seed=0):
        for observations, actions in data.chunks():
            condition = average.condition(policy.preprocess(observations))
            losses = [
                policy.process.denoising_loss(average.denoiser, condition, actions).mean()
                for _ in range(8)
            ]
            loss += float(th.stack(losses).mean()) * (len(actions) / len(data))
    return loss
