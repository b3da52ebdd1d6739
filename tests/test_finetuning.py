"""The encoder that RL may leave alone, and options of policies in shared files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_diffrl import DiffusionPPO
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


# -- sharing -----------------------------------------------------------------------------------

OPTIONS = {
    "freeze_encoder": True,
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
        ("sigma_min", 1e9),
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
