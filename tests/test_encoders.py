"""Encoders of images, cameras and language: their layers, their augmentation and their use."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_diffrl import Demonstrations, DiffusionPPO
from sb3_diffrl.encoders import ResNet, VisionExtractor, ViT, color_jitter, random_crop
from sb3_diffrl.encoders.layers import FiLM, SpatialSoftmax
from sb3_diffrl.imitation import imitation_losses
from sb3_diffrl.imitation_buffer import ImitationBuffer

IMAGE = spaces.Box(0, 255, (3, 20, 24), np.uint8)
CAMERAS = spaces.Dict(
    {
        "front": IMAGE,
        "wrist": IMAGE,
        "state": spaces.Box(-1, 1, (4,)),
        "language": spaces.Box(-1, 1, (5,)),
    }
)
SMALL: dict[str, dict[str, Any]] = {
    "resnet": {"channels": (16, 16), "n_keypoints": 4},
    "vit": {"patch_size": 4, "depth": 2, "width": 16, "n_heads": 2},
}


class CameraEnv(gym.Env[Any, np.ndarray]):
    """Where the bright square is in both images says what to do; one word turns it round."""

    def __init__(self) -> None:
        self.observation_space = CAMERAS
        self.action_space = spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 1 - float(np.abs(action - self.target).mean())
        self.steps += 1
        return self.observe(), reward, False, self.steps >= 8, {}

    def observe(self) -> Any:
        place = self.np_random.integers(0, [16, 20])
        image = np.zeros((3, 20, 24), np.uint8)
        image[:, place[0] : place[0] + 4, place[1] : place[1] + 4] = 255
        word = self.np_random.integers(0, 2)
        self.target = (place / [8, 10] - 1).astype(np.float32) * (1 if word else -1)
        language = np.full(5, 2.0 * word - 1, np.float32)
        state = np.zeros(4, np.float32)
        return {"front": image, "wrist": image, "state": state, "language": language}


def demonstrations(n: int = 256) -> Demonstrations:
    env = CameraEnv()
    env.reset(seed=1)
    observations, actions = [], []
    for _ in range(n):
        observations.append(env.observe())
        actions.append(env.target)
    stacked = {key: np.stack([each[key] for each in observations]) for key in CAMERAS}
    ends = range(n // 16, n + 1, n // 16)
    return Demonstrations.from_arrays(stacked, np.stack(actions), list(ends))


def make_model(network: str = "resnet", freeze: bool = False, **options: Any) -> DiffusionPPO:
    return DiffusionPPO(
        "policy",
        CameraEnv(),
        n_steps=32,
        batch_size=16,
        beta=0.1,
        policy_kwargs={
            "net_arch": [64, 64],
            "freeze_encoder": freeze,
            "features_extractor_class": "vision",
            "features_extractor_kwargs": {
                "network": network,
                "network_kwargs": SMALL[network],
                **options,
            },
        },
        seed=0,
        device="cpu",
    )


def batch_of(n: int) -> dict[str, th.Tensor]:
    return {key: th.rand(n, *space.shape) for key, space in CAMERAS.items() if space.shape}


# -- layers ------------------------------------------------------------------------------------


def test_spatial_softmax_finds_where_a_map_is_active() -> None:
    maps = th.zeros(2, 3, 5, 9)
    maps[0, 1, 4, 0] = 100.0
    maps[1, 2, 2, 6] = 100.0

    points = SpatialSoftmax()(maps)

    assert points.shape == (2, 6)
    th.testing.assert_close(points[0, [1, 4]], th.tensor([-1.0, 1.0]))  # left, bottom
    th.testing.assert_close(points[1, [2, 5]], th.tensor([0.5, 0.0]))
    th.testing.assert_close(points[0, [0, 3]], th.zeros(2))  # nowhere: the middle


@pytest.mark.parametrize("dim", [1, 2])
def test_film_scales_and_shifts_every_channel(dim: int) -> None:
    film = FiLM(3, 4)
    shape = [6, 7, 7, 7]
    shape[dim] = 4
    features, context = th.randn(shape), th.randn(6, 3)
    assert th.equal(film(features, context, dim), features)  # the identity at first
    assert film.layer is not None
    nn.init.normal_(film.layer.weight)
    gamma, beta = film.layer(context).chunk(2, dim=1)
    found = film(features, context, dim)
    for row, channel in ((0, 0), (5, 3)):
        before, after = features[row].select(dim - 1, channel), found[row].select(dim - 1, channel)
        th.testing.assert_close(after, (1 + gamma[row, channel]) * before + beta[row, channel])


@pytest.mark.parametrize("make", [ResNet, ViT])
@pytest.mark.parametrize("context_dim", [0, 5])
def test_every_part_of_a_network_learns(make: Any, context_dim: int) -> None:
    net = make((3, 20, 24), 7, context_dim, **SMALL["resnet" if make is ResNet else "vit"])
    for module in net.modules():
        if isinstance(module, FiLM) and module.layer is not None:
            nn.init.normal_(module.layer.weight)
    images, context = th.rand(4, 3, 20, 24), th.randn(4, context_dim)
    features = net(images, context)
    assert features.shape == (4, 7)
    features.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    # Rows do not mix, as they would with BatchNorm.
    th.testing.assert_close(net(images[:1], context[:1]), features[:1], rtol=1e-4, atol=1e-5)
    if context_dim:
        assert not th.allclose(net(images, context.flip(0)), features)


# -- augmentation ------------------------------------------------------------------------------


def test_random_crops_are_crops_and_all_equally_likely() -> None:
    image = th.arange(20.0).view(1, 1, 4, 5)
    crops = random_crop(image.expand(6000, 1, 4, 5), (3, 3))
    assert crops.shape == (6000, 1, 3, 3)
    corners = crops[:, 0, 0, 0].long()
    assert set(corners.tolist()) == {0, 1, 2, 5, 6, 7}
    np.testing.assert_allclose(th.bincount(corners)[[0, 1, 2, 5, 6, 7]] / 6000, 1 / 6, atol=0.03)
    within = th.arange(3).unsqueeze(1) * 5 + th.arange(3)
    assert th.equal(crops[:, 0].long(), corners.view(-1, 1, 1) + within)


def test_colours_vary_from_image_to_image_within_bounds() -> None:
    images = (0.4 * th.rand(1, 3, 8, 8) + 0.3).expand(50, 3, 8, 8)
    jittered = color_jitter(images, 0.3)
    assert jittered.shape == images.shape
    assert float(jittered.min()) >= 0 and float(jittered.max()) <= 1
    means = jittered.mean(dim=(1, 2, 3)) / images[0].mean()
    assert 0.69 < float(means.min()) < 0.85 and 1.15 < float(means.max()) < 1.31
    th.testing.assert_close(color_jitter(images, 0.0), images)


@pytest.mark.parametrize(("n_channels", "n_frames"), [(3, 3), (1, 4)])
def test_colours_are_the_same_in_all_stacked_frames(n_channels: int, n_frames: int) -> None:
    frames = [(0.4 * th.rand(20, n_channels, 8, 8) + 0.3) for _ in range(n_frames)]
    frames[1].zero_()

    def jittered(images: th.Tensor) -> th.Tensor:
        th.manual_seed(0)
        return color_jitter(images, 0.3)

    stacked = jittered(th.cat(frames, dim=1))
    th.testing.assert_close(stacked, th.cat([jittered(frame) for frame in frames], dim=1))


def test_augmentation_is_for_imitation_alone() -> None:
    model = make_model(crop=0.8, jitter=0.3)
    policy = model.policy
    policy.set_training_mode(True)
    obs = {
        key: (255 * part).byte() if part.ndim == 4 else part for key, part in batch_of(8).items()
    }
    actions = th.rand(8, 2) * 2 - 1
    extractor = policy.actor.features_extractor
    assert isinstance(extractor, VisionExtractor) and set(extractor.sizes.values()) == {(16, 19)}
    seen: list[th.Tensor] = []
    extractor.networks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))

    for _ in range(2):
        policy.evaluate_actions(obs, th.randn(8, 12))
        policy.predict_values(obs)
    centre = obs["front"][:, :, 2:18, 2:21] / 255
    assert len(seen) == 2 and all(th.allclose(images, centre) for images in seen)

    policy.denoising_loss(obs, actions)
    policy.denoising_loss(obs, actions)
    assert not th.allclose(seen[2], centre) and not th.allclose(seen[2], seen[3])
    policy.set_training_mode(False)
    policy.denoising_loss(obs, actions)
    assert th.allclose(seen[4], centre)
    buffer = ImitationBuffer()
    buffer.set_demonstrations(demonstrations(16), policy)
    weights = {"demonstrations": 1.0, "context": 0.0, "successes": 0.0}
    for _ in range(2):
        th.manual_seed(1)
        imitation_losses(policy, buffer, obs, weights, 8)
    assert not th.allclose(seen[5], seen[5].mean()) and seen[5].shape[2:] == (16, 19)


# -- cameras, state and language ---------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("film_key", [None, "language"])
def test_all_parts_reach_the_features(shared: bool, film_key: str | None) -> None:
    extractor = VisionExtractor(
        CAMERAS, "resnet", SMALL["resnet"], camera_features=6, shared=shared, film_key=film_key
    )
    for module in extractor.modules():
        if isinstance(module, FiLM) and module.layer is not None:
            nn.init.normal_(module.layer.weight)
    parts = batch_of(3)
    features = extractor(parts)
    assert features.shape == (3, extractor.features_dim)
    assert extractor.features_dim == 2 * 6 + 4 + (0 if film_key else 5)
    assert len(extractor.networks) == (1 if shared else 2)
    for key in CAMERAS:
        other = extractor({**parts, key: parts[key].flip(0)})
        assert not th.allclose(other, features), key
    if shared:
        swapped = extractor({**parts, "front": parts["wrist"], "wrist": parts["front"]})
        th.testing.assert_close(swapped[:, :6], features[:, 6:12])


def test_the_encoder_runs_once_per_observation_whatever_the_steps() -> None:
    model = make_model()
    calls: list[int] = []
    model.policy.actor.features_extractor.register_forward_hook(lambda *_: calls.append(1))
    assert model.policy.process.denoising_steps == 5
    model.predict(CameraEnv().reset()[0])
    assert len(calls) == 1


@pytest.mark.parametrize("network", ["resnet", "vit"])
def test_a_policy_of_cameras_and_words_learns_and_is_shared(network: str, tmp_path: Path) -> None:
    model = make_model(network, film_key="language", crop=0.9, shared=True)
    data = demonstrations()
    model.pretrain(data, gradient_steps=20, batch_size=32, validation_interval=20)
    prior = {name: tensor.clone() for name, tensor in model.policy.prior.state_dict().items()}
    model.learn(64)
    for name, tensor in model.policy.prior.state_dict().items():
        assert th.equal(prior[name], tensor), name
    assert any("features_extractor" in name for name in prior)
    for batch in model.rollout_buffer.get(7):
        assert batch.old_log_prob.shape == (len(batch.actions), 5)
    model.save_pretrained(tmp_path)
    loaded = DiffusionPPO.from_pretrained(tmp_path, device="cpu")
    assert isinstance(data.observations, dict)
    obs = {key: part[:5] for key, part in data.observations.items()}
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )


def test_the_ratio_is_one_on_a_fresh_buffer_with_augmentation_on() -> None:
    model = make_model(crop=0.8, jitter=0.3)
    _, callback = model._setup_learn(32)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 32)
    model.policy.set_training_mode(True)
    for batch in model.rollout_buffer.get(7):
        with th.no_grad():
            _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        assert float(((log_prob - batch.old_log_prob).exp() - 1).abs().max()) < 1e-5


def test_images_and_words_are_understood() -> None:
    """The square's place and the word decide; without either the error is above 0.4."""
    model = make_model(film_key="language", shared=True)
    data, unseen = demonstrations(512), demonstrations(640)
    model.pretrain(
        data,
        gradient_steps=400,
        learning_rate=2e-3,
        warmup_steps=20,
        batch_size=64,
        validation_fraction=0.0,
    )
    assert isinstance(unseen.observations, dict)
    obs = {key: part[512:] for key, part in unseen.observations.items()}
    predicted, _ = model.predict(obs)
    assert float(np.abs(predicted - unseen.actions[512:]).mean()) < 0.15


# -- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (spaces.Box(-1, 1, (4,)), {}, "needs an image"),
        (CAMERAS, {"network": "os.system"}, r"Unknown network 'os.system'.*\['resnet', 'vit'\]"),
        (CAMERAS, {"film_key": "word"}, r"film_key='word'.*\['language', 'state'\]"),
        (IMAGE, {"crop": 0.0}, "crop must lie in"),
        (IMAGE, {"jitter": 2.0}, "jitter in"),
        (IMAGE, {"network": "vit", "network_kwargs": {"depth": 8000}}, "1 to 64 layers"),
        (IMAGE, {"network": "vit", "network_kwargs": {"patch_size": 30}}, "0 patches"),
        (IMAGE, {"network_kwargs": {"channels": []}}, "1 to 64 layers"),
        (
            spaces.Dict({"a": IMAGE, "b": spaces.Box(0, 255, (3, 8, 8), np.uint8)}),
            {"shared": True},
            "shared=True needs cameras of one shape",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    space: spaces.Space[Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        VisionExtractor(space, **arguments)
