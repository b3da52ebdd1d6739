"""The Transformer, the user's own networks and their names."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.diffusion import DENOISERS, MlpDenoiser, TransformerDenoiser
from sb3_diffrl.diffusion.transformer import Block, SelfAttention
from tests.envs import TargetEnv, demonstrations
from tests.models import assert_same_predictions


class OwnNetwork(nn.Module):
    """A plain module, as a user may write it."""

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        noise_levels: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        gain: float = 1.0,
    ):
        super().__init__()
        self.gain, self.noise_levels = gain, noise_levels
        self.layers = nn.Sequential(
            nn.Linear(features_dim + action_dim + 1, net_arch[0]),
            activation_fn(),
            nn.Linear(net_arch[0], action_dim),
        )

    def forward(self, noisy: th.Tensor, levels: th.Tensor, features: th.Tensor) -> th.Tensor:
        assert noisy.ndim == features.ndim == 2 and levels.ndim == 1
        level = levels.unsqueeze(1) / self.noise_levels
        return self.gain * self.layers(th.cat([noisy, level, features], dim=1))


def make(horizon: int = 3) -> TransformerDenoiser:
    net = TransformerDenoiser(5, 6, 10, net_arch=[16, 16], horizon=horizon, n_heads=2).double()
    with th.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
    return net


def make_model(**policy_kwargs: Any) -> DiffusionPPO:
    return DiffusionPPO(
        "policy",
        TargetEnv(),
        n_steps=64,
        beta=0.1,
        policy_kwargs={"net_arch": [16, 16], **policy_kwargs},
        seed=0,
        device="cpu",
    )


def test_attention_is_that_of_the_paper() -> None:
    """``softmax(Q K^T / sqrt(d)) V`` for each head, by torch's own module."""
    mine, theirs = SelfAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": mine.qkv_layer.weight,
            "in_proj_bias": mine.qkv_layer.bias,
            "out_proj.weight": mine.output_layer.weight,
            "out_proj.bias": mine.output_layer.bias,
        }
    )
    tokens = th.randn(4, 5, 8)
    th.testing.assert_close(mine(tokens), theirs(tokens, tokens, tokens)[0])


def test_it_starts_at_zero_with_blocks_that_are_the_identity() -> None:
    net = TransformerDenoiser(5, 6, 10, net_arch=[16, 16], horizon=3)
    tokens, given = th.randn(4, 3, 16), F.silu(th.randn(4, 16))
    for block in net.blocks:
        assert isinstance(block, Block)
        assert th.equal(block(tokens, block.modulation(given)), tokens)
    assert not net(th.randn(4, 6), th.tensor(3), net.condition(th.randn(4, 5))).any()


def test_all_levels_at_once_equal_the_steps_one_by_one() -> None:
    net = make()
    chains, features = th.randn(7, 4, 6).double(), th.randn(7, 5).double()
    levels, condition = th.tensor([10, 7, 4, 1]), net.condition(features)

    together = net(chains, levels, condition.unsqueeze(1))

    assert together.shape == chains.shape
    stepwise = net.stepwise(levels, condition)
    for step in range(4):
        th.testing.assert_close(stepwise(chains[:, step], step), together[:, step])
    for row, step in itertools.product(range(7), range(4)):
        alone = net(chains[row, step], levels[step], condition[row])
        th.testing.assert_close(alone, together[row, step])


def test_every_action_of_a_chunk_sees_the_others_and_its_place() -> None:
    net = make()
    noisy = th.randn(1, 6).double().requires_grad_()
    predicted = net(noisy, th.tensor(4), net.condition(th.randn(1, 5).double()))
    for i in range(6):
        (gradient,) = th.autograd.grad(predicted[0, i], noisy, retain_graph=True)
        assert (gradient != 0).all()
    swapped = noisy.unflatten(1, (3, 2)).flip(1).flatten(1)
    features = net.condition(th.zeros(1, 5).double())
    there = net(swapped, th.tensor(4), features).unflatten(1, (3, 2)).flip(1).flatten(1)
    assert not th.allclose(there, net(noisy, th.tensor(4), features))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"net_arch": [16, 8]}, r"one equal width per block.*\[16, 8\]"),
        ({"net_arch": []}, "one equal width per block"),
        ({"net_arch": [16], "horizon": 4}, "horizon=4 must divide the action entries, 6"),
        ({"net_arch": [18]}, "n_heads=4 must divide the width, 18"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerDenoiser(5, 6, 10, **arguments)


# -- by name -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [*DENOISERS, "tests.test_transformer.OwnNetwork", "sb3_diffrl.diffusion.MlpDenoiser"]
)
def test_every_network_pretrains_learns_and_is_saved(name: str, tmp_path: Path) -> None:
    horizon = {"denoiser_kwargs": {"horizon": 2}} if name == "unet" else {}
    model = make_model(denoiser_class=name, **horizon)
    data = demonstrations(n_episodes=40)
    model.pretrain(data, gradient_steps=600, batch_size=128, validation_interval=300)
    prior = {key: value.clone() for key, value in model.policy.prior.state_dict().items()}
    assert isinstance(data.observations, np.ndarray)
    observations, actions = data.observations[:200], data.actions[:200]
    predicted, _ = model.predict(observations)
    assert float(np.abs(predicted - actions).mean()) < 0.45  # 0.75 untrained

    model.learn(64)

    assert all(th.equal(prior[key], now) for key, now in model.policy.prior.state_dict().items())
    model.save(tmp_path / "model")
    loaded = DiffusionPPO.load(tmp_path / "model", device="cpu")
    assert_same_predictions(model, loaded, observations)


def test_ones_own_network_is_given_rows_whatever_the_shapes() -> None:
    model = make_model(
        denoiser_class="tests.test_transformer.OwnNetwork", denoiser_kwargs={"gain": 0.5}
    )
    net = model.policy.actor.denoiser
    own = net.module
    assert isinstance(own, OwnNetwork) and own.gain == 0.5
    noisy, features = th.randn(4, 3, 2), th.randn(4, 3)
    levels = th.tensor([20, 10, 3])
    together = net(noisy, levels, net.condition(features).unsqueeze(1))
    for row, step in itertools.product(range(4), range(3)):
        alone = own(noisy[row, step][None], levels[step][None], features[row][None])
        th.testing.assert_close(together[row, step], alone[0])


@pytest.mark.parametrize("name", ["mpl", "tests.test_transformer.Missing", "no.such.Module"])
def test_a_name_that_leads_nowhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' leads to no class.*mlp, transformer"):
        make_model(denoiser_class=name)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"made <class 'int'>: expected a Denoiser"):
        make_model(denoiser_class=lambda *_, **__: 3)


# -- parameter counts --------------------------------------------------------------------------


def test_the_parameters_are_counted_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    model = DiffusionPPO("policy", TargetEnv(), verbose=1, device="cpu")
    net = model.policy.actor.denoiser
    assert isinstance(net, MlpDenoiser)
    denoiser = 2 * 256 + 256 + 3 * 256 + 256 + 32 * 256 + 256 + 2 * (256**2 + 256) + 256 * 2 + 2
    critic = 3 * 256 + 256 + 2 * (256**2 + 256) + 256 + 1
    assert model.policy.parameter_counts() == {
        "encoder": 0,
        "denoiser": denoiser,
        "critic": critic,
        "total": denoiser + critic,
    }
    said = f"Parameters: encoder 0, denoiser {denoiser:,}, critic {critic:,}, total "
    assert said in capsys.readouterr().out
