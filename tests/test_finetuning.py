"""The encoder that RL leaves alone, and the noise it learns."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch as th
from torch.distributions import Independent, Normal, kl_divergence

from sb3_diffrl import DiffusionPPO
from sb3_diffrl.diffusion import LearnedNoise, pathwise_kl
from tests.envs import TargetEnv, demonstrations, several


def make_model(env: Any = None, policy_kwargs: dict[str, Any] | None = None, **kw: Any) -> Any:
    arguments: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "beta": 0.1, **kw}
    return DiffusionPPO(
        "policy",
        env or TargetEnv(),
        policy_kwargs={"net_arch": [16, 16], "denoising_steps": 4, **(policy_kwargs or {})},
        seed=0,
        device="cpu",
        **arguments,
    )


def changed(before: dict[str, th.Tensor], model: DiffusionPPO) -> set[str]:
    after = model.policy.actor.state_dict()
    return {name for name, tensor in before.items() if not th.equal(tensor, after[name])}


def trained(model: DiffusionPPO) -> set[str]:
    before = {name: tensor.clone() for name, tensor in model.policy.actor.state_dict().items()}
    model.learn(32)
    return changed(before, model)


# -- frozen encoder ----------------------------------------------------------------------------

SMALL = {"features_extractor_kwargs": {"features_dim": 8}}


def test_a_frozen_encoder_is_pretrained_then_shared_with_the_prior(tmp_path: Path) -> None:
    env = several(2, "image")
    model = make_model(env, {**SMALL, "freeze_encoder": True})
    policy = model.policy
    assert policy.prior.features_extractor is policy.actor.features_extractor
    assert policy.prior.denoiser is not policy.actor.denoiser
    before = {name: tensor.clone() for name, tensor in policy.actor.state_dict().items()}
    model.pretrain(demonstrations(TargetEnv("image")), gradient_steps=3)
    encoder = {name for name in before if name.startswith("features_extractor.")}
    assert encoder and encoder <= changed(before, model)

    assert trained(model) == {name for name, _ in policy.actor.named_parameters()} - encoder

    model.save(tmp_path / "model")
    loaded = DiffusionPPO.load(tmp_path / "model", env=env, device="cpu")
    assert loaded.policy.prior.features_extractor is loaded.policy.actor.features_extractor
    for name, tensor in policy.state_dict().items():
        assert th.equal(tensor, loaded.policy.state_dict()[name])
    assert not trained(loaded) & encoder
    loaded.pretrain(demonstrations(TargetEnv("image")), gradient_steps=3)
    assert encoder <= changed(before, loaded)
    assert all(parameter.requires_grad for parameter in loaded.policy.actor.parameters())


def test_a_frozen_encoder_runs_once_for_policy_and_prior() -> None:
    model = make_model(several(2, "image"), {**SMALL, "freeze_encoder": True}, mixing=0.5)
    model.policy.freeze_prior()
    model.policy.set_mixing(0.5)
    calls: list[int] = []
    encoder = model.policy.actor.features_extractor
    encoder.register_forward_hook(lambda *_: calls.append(1))
    model.predict(model.env.reset())
    assert len(calls) == 1


# -- learned exploration noise -----------------------------------------------------------------


def test_kl_of_unequal_standard_deviations_is_that_of_torch() -> None:
    mean, prior_mean = th.randn(2, 6, 3, 2, dtype=th.float64)
    std = th.rand(6, 3, dtype=th.float64) + 0.1
    prior_std = th.rand(3, dtype=th.float64) + 0.1
    expected = kl_divergence(
        Independent(Normal(mean, std.unsqueeze(-1)), 1),
        Independent(Normal(prior_mean, prior_std.unsqueeze(-1).expand(3, 2)), 1),
    ).sum(dim=1)

    found = pathwise_kl(mean, prior_mean, std, prior_std)

    th.testing.assert_close(found, expected)
    equal = prior_std.expand(6, 3)
    th.testing.assert_close(
        pathwise_kl(mean, prior_mean, equal, prior_std), pathwise_kl(mean, prior_mean, prior_std)
    )


@pytest.mark.parametrize("arch", [None, [8]])
def test_the_noise_stays_within_its_bounds(arch: list[int] | None) -> None:
    ddim = th.tensor([0.5, 0.05, 0.0])
    noise = LearnedNoise(ddim, 0.1, 0.3, 4, arch)
    condition = th.randn(50, 4)
    assert noise(condition).shape == (50, 3)
    for shift, floor in ((-100.0, 0.1), (100.0, 0.3)):
        with th.no_grad():
            noise.logits.fill_(shift)
        th.testing.assert_close(noise(condition)[7], th.tensor([0.5, floor, floor]))
    with pytest.raises(ValueError, match=r"sigma_max must exceed sigma_min=0.1, got 0.1"):
        LearnedNoise(ddim, 0.1, 0.1, 4)


@pytest.mark.parametrize("arch", [None, [8]])
@pytest.mark.parametrize("mixing", [1.0, 0.5])
def test_learned_noise_is_drawn_scored_trained_and_saved(
    arch: list[int] | None, mixing: float, tmp_path: Path
) -> None:
    kwargs = {"sigma_max": 0.5, "sigma_arch": arch, "finetuned_steps": 3}
    model = make_model(several(3), kwargs, mixing=mixing)
    policy = model.policy
    policy.freeze_prior()
    policy.set_mixing(mixing)
    noise = policy.learned_noise
    assert noise is not None
    with th.no_grad():
        noise.logits.copy_(th.tensor([-1.0, 0.5, 2.0]))
        if noise.network is not None:
            for parameter in noise.network.parameters():
                parameter.normal_()
    obs = th.rand(1, 3).expand(20_000, 3)
    with th.no_grad():
        flat, _, log_prob = policy(obs)
        chain, [mean, *_], std = policy.sample_chains(obs)
        residual = (chain[:, 1:] - mean).square().mean(dim=(0, 2)).sqrt()
        if mixing == 1:
            th.testing.assert_close(residual, std[0], rtol=0.02, atol=0)
        _, again, _ = policy.evaluate_actions(obs, flat)
        assert float(((again - log_prob).exp() - 1).abs().max()) < 1e-4
        if mixing == 1:
            flat = flat.view(len(flat), 4, 2)
            means = policy.process.chain_means(
                policy.actor.denoiser, flat, policy.actor.condition(obs)
            )
            expected = Normal(means, std.unsqueeze(-1)).log_prob(flat[:, 1:]).sum(dim=-1)
            th.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-4)
    _, callback = model._setup_learn(96)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 32)
    for batch in model.rollout_buffer.get(7):
        with th.no_grad():
            _, log_prob, _ = policy.evaluate_actions(batch.observations, batch.actions)
        assert float(((log_prob - batch.old_log_prob).exp() - 1).abs().max()) < 1e-5

    before = [parameter.clone() for parameter in noise.parameters()]
    model.learn(96)
    assert not all(map(th.equal, before, noise.parameters()))
    model.save(tmp_path / "model")
    loaded = DiffusionPPO.load(tmp_path / "model", device="cpu")
    assert loaded.policy.learned_noise is not None
    for mine, theirs in zip(
        noise.parameters(), loaded.policy.learned_noise.parameters(), strict=True
    ):
        assert th.equal(mine, theirs)


def test_a_reward_for_calm_lowers_the_noise() -> None:
    """PPO finds it: noise only ever misses the target, so that the floor falls."""
    model = make_model(
        several(8),
        {"sigma_min": 0.05, "sigma_max": 0.8},
        n_steps=64,
        batch_size=128,
        n_epochs=8,
        beta=0.0,
        learning_rate=3e-3,
    )
    model.pretrain(demonstrations(n_episodes=40), gradient_steps=500, batch_size=128)
    noise = model.policy.learned_noise
    with th.no_grad():
        noise.logits.fill_(1.0)
    model.learn(8 * 64 * 6)
    assert float(noise.logits[-1]) < 0.9


# -- sharing -----------------------------------------------------------------------------------

OPTIONS = {
    "freeze_encoder": True,
    "sigma_max": 0.4,
    "sigma_arch": [8],
    "prediction_type": "v",
    "noise_schedule": "squared_cosine_capped",
    "clip_sample": None,
    "timestep_spacing": "leading",
    "use_clipped_model_output": False,
    "denoiser_class": "transformer",
    "denoiser_kwargs": {"horizon": 2},
}


def test_all_options_are_shared_and_come_back(tmp_path: Path) -> None:
    model = make_model(policy_kwargs=OPTIONS)
    model.policy.freeze_prior()
    model.learn(32)
    model.save_pretrained(tmp_path)
    loaded = DiffusionPPO.from_pretrained(tmp_path, device="cpu")
    assert loaded.policy.architecture() == model.policy.architecture()
    for name, tensor in model.policy.state_dict().items():
        assert th.equal(tensor, loaded.policy.state_dict()[name]), name


def test_a_file_from_before_the_options_loads_with_their_defaults(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in {*OPTIONS} - {"noise_schedule", "denoiser_class", "denoiser_kwargs"}:
        del config["policy"]["kwargs"][name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = DiffusionPPO.from_pretrained(tmp_path, device="cpu")
    assert loaded.policy.architecture() == model.policy.architecture()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigma_arch", [10**6]),
        ("sigma_max", math.pi * 1e9),
        ("freeze_encoder", {"os": "system"}),
        ("prediction_type", "score"),
        ("timestep_spacing", 3),
        ("denoiser_class", "os.system"),
        ("denoiser_class", "tests.test_transformer.OwnNetwork"),
    ],
)
def test_a_file_with_absurd_options_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    make_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["policy"]["kwargs"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{name}.*expected"):
        DiffusionPPO.from_pretrained(tmp_path, device="cpu")
