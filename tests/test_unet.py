"""The temporal U-Net: shapes, its conditioning, and learning with it."""

import re

import numpy as np
import pytest
import torch as th

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.diffusion import UnetDenoiser
from sb3_diffrl.diffusion.denoisers import timestep_embedding
from tests.envs import MATRIX, TargetEnv

LEVELS = 12


def unet(**kwargs: object) -> UnetDenoiser:
    th.manual_seed(0)
    given = {"horizon": 8, "down_dims": (8, 16, 24), "level_embed_dim": 8, **kwargs}
    return UnetDenoiser(5, 16, LEVELS, **given)  # type: ignore[arg-type]  # of several types


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("down_dims", [(8,), (8, 16, 24)])
def test_all_ways_to_call_it_agree(scales: bool, down_dims: tuple[int, ...]) -> None:
    denoiser = unet(use_film_scale_modulation=scales, down_dims=down_dims)
    condition = denoiser.condition(th.randn(3, 5))
    levels, noisy = th.tensor([12, 7, 3, 1]), th.randn(3, 4, 16)
    at_once = denoiser(noisy, levels, condition.unsqueeze(1))
    step = denoiser.stepwise(levels, condition)
    for i in range(4):
        alone = denoiser(noisy[1:2, i], levels[i], condition[1:2])
        th.testing.assert_close(at_once[1:2, i], alone, atol=1e-5, rtol=1e-5)
        th.testing.assert_close(at_once[:, i], step(noisy[:, i], i), atol=1e-5, rtol=1e-5)


def test_level_observation_and_every_action_matter() -> None:
    denoiser = unet()
    features, noisy = th.randn(1, 5), th.randn(1, 16)
    output = denoiser(noisy, th.tensor([5]), denoiser.condition(features))
    assert not th.allclose(output, denoiser(noisy, th.tensor([6]), denoiser.condition(features)))
    assert not th.allclose(output, denoiser(noisy, th.tensor([5]), denoiser.condition(-features)))
    jacobian = th.autograd.functional.jacobian(
        lambda x: denoiser(x, th.tensor([5]), denoiser.condition(features))[0], noisy
    )[:, 0]
    assert (jacobian != 0).all()  # the middle level sees the whole chunk


def test_convolutions_run_along_the_actions() -> None:
    """One level, kernel 1 and no normalisation across actions left: reversing time reverses all."""
    denoiser = unet(down_dims=(8,), kernel_size=1)
    condition = denoiser.condition(th.randn(2, 5))
    noisy, level = th.randn(2, 16), th.tensor([4])

    def reverse(chunk: th.Tensor) -> th.Tensor:
        return chunk.view(2, 8, 2).flip(1).flatten(1)

    th.testing.assert_close(
        denoiser(reverse(noisy), level, condition), reverse(denoiser(noisy, level, condition))
    )


def test_every_weight_is_trained() -> None:
    denoiser = unet()
    loss = denoiser(th.randn(4, 16), th.tensor([1, 5, 9, 12]), denoiser.condition(th.randn(4, 5)))
    loss.square().sum().backward()
    idle = [name for name, p in denoiser.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_the_embedding_in_closed_form() -> None:
    embedding = timestep_embedding(100, 6).double()
    rates = np.array([1, 1e-2, 1e-4])
    angles = 41 * rates
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(embedding[42], expected, atol=1e-5)  # level 42, timestep 41


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"horizon": 3}, "horizon=3 does not divide the 16 action entries"),
        ({"down_dims": (8,) * 5}, "horizon=8 cannot be halved 4 times"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"down_dims": (8, 12)}, "n_groups=8 does not divide all of down_dims=[8, 12]"),
        ({"down_dims": ()}, "at least one level"),
        ({"level_embed_dim": 3}, "an even number of entries from 4 on, got 3"),
    ],
)
def test_arguments_that_do_not_fit(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        unet(**kwargs)


def test_it_is_pretrained_and_fine_tuned_by_name() -> None:
    env = TargetEnv(action_space=MATRIX)
    kwargs = {"denoiser_class": "unet", "denoiser_kwargs": {"horizon": 3}, "net_arch": [8]}
    model = DiffusionPPO(
        "policy", env, n_steps=16, batch_size=16, n_epochs=1, policy_kwargs=kwargs, seed=0
    )
    before = {name: p.clone() for name, p in model.policy.actor.denoiser.named_parameters()}
    model.learn(16)
    moved = [n for n, p in model.policy.actor.denoiser.named_parameters() if (p != before[n]).any()]
    assert "film_features.weight" in moved and "encoder.0.0.first.0.weight" in moved
    action, _ = model.predict(env.reset()[0])
    assert env.action_space.contains(action)
