"""Descent of an imitation loss: schedule, average of the weights, validation, early stopping."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch as th
from stable_baselines3.common.logger import Logger
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

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
    :param gradient_steps: see :func:`sb3_diffrl.pretraining.pretrain`, as for the others
    :return: losses and steps taken
    :raises ValueError: where the loss is no longer finite
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
            if not math.isfinite(train_loss):
                raise ValueError(
                    f"pre-training diverged: the loss is {train_loss} after {step} steps. Lower "
                    f"learning_rate (it is {learning_rate}), or look for huge observations."
                )
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
