"""Imitation: training the diffusion policy on demonstrations (paper, section 2.1)."""

from functools import partial

import torch as th
from stable_baselines3.common.logger import Logger

from sb3_diffrl.actor import DiffusionActor
from sb3_diffrl.batches import MEMORY_BYTES, Batches, batches, check_demonstrations
from sb3_diffrl.demonstrations import Demonstrations
from sb3_diffrl.fitting import PretrainingResult, fit
from sb3_diffrl.policies import DiffusionActorCriticPolicy
from sb3_diffrl.precision import check_precision
from sb3_diffrl.precision import precision as matmul_precision
from sb3_diffrl.random_state import preserved_random_state


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
