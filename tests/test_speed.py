"""The fast paths: equal to the naive form of the same mathematics, and as sparing as they claim."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks import contenders, speed
from benchmarks.contenders import Naive, Ours, Pairs, Size, StillEnv, policy_kwargs
from sb3_diffrl import DiffusionActorCriticPolicy, DiffusionMlpPolicy, DiffusionPPO
from sb3_diffrl.diffusion import CudaGraphs, MlpDenoiser

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
    ),
]
needs_cuda = pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")

SMALL = Size("small", 5, 2, 2, width=24, critic_width=16, denoising_steps=6, finetuned_steps=6)
LAST_STEPS = Size("last", 5, 2, 2, width=24, critic_width=16, denoising_steps=6, finetuned_steps=2)


def make_policy(size: Size, device: str = "cpu") -> DiffusionMlpPolicy:
    """A policy that differs from its prior, both with weights of a size that matters."""
    env = StillEnv(size)
    assert isinstance(env.action_space, spaces.Box)
    th.manual_seed(3)
    policy = DiffusionMlpPolicy(
        env.observation_space,
        env.action_space,
        lambda _: 1e-3,
        **policy_kwargs(size),
    )
    policy.freeze_prior()
    with th.no_grad():
        for parameter in policy.actor.parameters():
            parameter.add_(0.3 * th.randn_like(parameter))
        policy.actor.normalizer.standardizer().mean.normal_()
        policy.prior.normalizer.load_state_dict(policy.actor.normalizer.state_dict())
    policy.set_training_mode(False)
    return policy.to(device)


def noise_of(policy: DiffusionMlpPolicy, n: int) -> th.Tensor:
    """What ``sample_chains`` draws right after ``manual_seed``."""
    steps = policy.process.denoising_steps
    return th.randn(steps + 1, n, policy.action_dim, device=policy.device)


# -- acting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, LAST_STEPS], ids=lambda size: size.name)
@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("device", DEVICES)
def test_chains_are_those_of_the_naive_form(size: Size, n: int, device: str) -> None:
    policy = make_policy(size, device)
    obs = th.randn(n, 5, device=device)
    for _ in range(2):  # on CUDA the second is a replay
        th.manual_seed(7)
        with th.no_grad():
            chains, means = policy.sample_chains(obs)
    th.manual_seed(7)
    expected = naive_chains(policy, size, obs, noise_of(policy, n))
    assert chains.shape == (n, size.finetuned_steps + 1, 4)
    th.testing.assert_close(chains, expected, rtol=1e-4, atol=1e-5)
    std = policy.process.std[-size.finetuned_steps :, None]
    th.manual_seed(7)
    noise = noise_of(policy, n)[-size.finetuned_steps :].transpose(0, 1)
    th.testing.assert_close(chains[:, 1:] - std * noise, means[0], rtol=1e-4, atol=1e-5)


def naive_chains(
    policy: DiffusionMlpPolicy, size: Size, obs: th.Tensor, noise: th.Tensor
) -> th.Tensor:
    """The naive form on the CPU."""
    on_cpu = make_policy(size)
    on_cpu.load_state_dict(policy.state_dict())
    return Naive(size, on_cpu).act(obs.cpu(), noise.cpu()).to(policy.device)


CHANGES: dict[str, Callable[[DiffusionMlpPolicy], Any]] = {
    "optimizer step": lambda policy: step_of_optimizer(policy),
    "load_state_dict": lambda policy: policy.load_state_dict(
        {name: 0.5 * entry + 0.1 for name, entry in policy.state_dict().items()}
    ),
    "in place": lambda policy: [p.data.mul_(0.7) for p in policy.actor.parameters()],
    "new memory": lambda policy: new_memory(policy),
    "new prior": lambda policy: policy.freeze_prior(),
}


def new_memory(policy: DiffusionMlpPolicy) -> None:
    for parameter in policy.actor.parameters():
        parameter.data = 0.7 * parameter.data


def step_of_optimizer(policy: DiffusionMlpPolicy) -> None:
    for parameter in policy.actor.parameters():
        parameter.grad = th.ones_like(parameter)
    policy.optimizer.step()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("device", DEVICES)
def test_acting_follows_every_change_of_the_weights(change: str, device: str) -> None:
    policy = make_policy(LAST_STEPS, device)
    obs = th.randn(4, 5, device=device)

    def chains() -> th.Tensor:
        th.manual_seed(1)
        with th.no_grad():
            return policy.sample_chains(obs)[0]

    before = chains()
    CHANGES[change](policy)
    after = chains()
    assert (after - before).abs().max() > 1e-3
    th.manual_seed(1)
    expected = naive_chains(policy, LAST_STEPS, obs, noise_of(policy, 4))
    th.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net_arch", [(), (8,), (8, 8), (8, 12, 12)])
def test_stepwise_is_the_network_itself(net_arch: tuple[int, ...]) -> None:
    denoiser = MlpDenoiser(5, 3, 10, net_arch=net_arch).double()
    levels = th.tensor([10, 7, 2])
    noisy = th.randn(3, 6, 3, dtype=th.float64)
    condition = denoiser.condition(th.randn(6, 5, dtype=th.float64))
    epsilon = denoiser.stepwise(levels, condition)
    for step in range(3):
        expected = denoiser(noisy[step], levels[step], condition)
        th.testing.assert_close(epsilon(noisy[step], step), expected, rtol=1e-12, atol=1e-12)


def test_a_policy_is_outlined_without_memory() -> None:
    env = StillEnv(SMALL)
    assert isinstance(env.action_space, spaces.Box)
    with th.device("meta"):
        policy = DiffusionMlpPolicy(
            env.observation_space, env.action_space, lambda _: 0.0, **policy_kwargs(SMALL)
        )
    assert {p.device.type for p in policy.parameters()} == {"meta"}
    assert not policy.has_prior and float(policy.mixing) == 1.0


def test_copies_of_a_policy_have_no_graphs() -> None:
    graphs = CudaGraphs(capacity=3)
    graphs._captured["key"] = None  # type: ignore[assignment]
    policy = make_policy(SMALL)
    policy._graphs = graphs
    assert len(graphs) == 1
    assert len(copy.deepcopy(policy)._graphs) == 0
    assert copy.deepcopy(policy)._graphs.capacity == 3


@needs_cuda
def test_graphs_equal_single_launches_and_are_few() -> None:
    policy = make_policy(LAST_STEPS, "cuda")
    policy.set_mixing(0.5)
    obs = {n: th.randn(n, 5, device="cuda") for n in range(1, 12)}

    def chains(n: int) -> th.Tensor:
        th.manual_seed(n)
        with th.no_grad():
            return policy.sample_chains(obs[n])[0]

    replayed = [chains(n) for n in obs]
    assert len(policy._graphs) == policy._graphs.capacity
    MlpDenoiser.capturable = False
    try:
        launched = [chains(n) for n in obs]
    finally:
        MlpDenoiser.capturable = True
    for one, other in zip(replayed, launched, strict=True):
        th.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# -- update ------------------------------------------------------------------------------------


def filled_model(size: Size, **kwargs: Any) -> DiffusionPPO:
    """A model with a prior, after one iteration, whose next update takes plain gradient steps."""
    model = DiffusionPPO(
        DiffusionMlpPolicy,
        DummyVecEnv([lambda: StillEnv(size)] * 4),
        n_steps=10,
        batch_size=40,
        n_epochs=1,
        beta=0.01,
        max_grad_norm=1e9,
        seed=0,
        policy_kwargs=policy_kwargs(size),
        **{"device": "cpu", **kwargs},
    )
    policy = model.policy
    policy.load_state_dict(make_policy(size).state_dict())
    model.learn(40)
    policy.optimizer = th.optim.SGD(policy.actor.parameters(), 1.0)
    policy.critic_optimizer = th.optim.SGD(policy.critic_parameters(), 1.0)
    model.lr_schedule = model.critic_lr_schedule = lambda _: 1.0
    return model


def weights(policy: DiffusionActorCriticPolicy) -> th.Tensor:
    """Those that are trained, in one vector."""
    trained = [*policy.actor.parameters(), *policy.critic_parameters()]
    return th.cat([parameter.detach().cpu().flatten() for parameter in trained]).double()


@pytest.mark.parametrize("size", [SMALL, LAST_STEPS], ids=lambda size: size.name)
@pytest.mark.parametrize("micro_batch_size", [None, 1, 7, 40, 1000])
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_are_those_of_the_naive_form(
    size: Size, micro_batch_size: int | None, device: str
) -> None:
    model = filled_model(size, micro_batch_size=micro_batch_size, device=device)
    policy, k = model.policy, size.finetuned_steps
    assert isinstance(policy, DiffusionMlpPolicy)
    batch = next(model.rollout_buffer.get())
    assert isinstance(batch.observations, th.Tensor)
    naive = Naive(size, make_policy(size))
    naive.policy.load_state_dict(policy.state_dict())
    data = Pairs(
        *(
            tensor.cpu()
            for tensor in (
                batch.observations,
                batch.actions.view(40, k + 1, -1),
                batch.old_log_prob,
                batch.advantages,
                batch.returns,
            )
        )
    )
    pairs = th.randperm(40 * k)
    naive.loss(data, pairs // k, pairs % k).backward()
    trained = [*naive.policy.actor.parameters(), *naive.policy.critic_parameters()]
    expected = th.cat([p.grad.flatten() for p in trained if p.grad is not None]).double()

    before = weights(policy)
    model.train()
    step = before - weights(policy)

    assert step.shape == expected.shape and expected.norm() > 0.1
    # The step is read off float32 weights of size 1.
    assert (step - expected).norm() < 1e-5 * expected.norm() + 1e-7 * before.norm()


@pytest.mark.parametrize("micro_batch_size", [3, 40])
def test_what_is_logged_does_not_depend_on_the_parts(micro_batch_size: int) -> None:
    logged = []
    for size in (None, micro_batch_size):
        model = filled_model(SMALL, micro_batch_size=size)
        th.manual_seed(0)
        model.train()
        logged.append(dict(model.logger.name_to_value))
    for name in ("loss", "policy_gradient_loss", "value_loss", "prior_kl", "ratio_mean"):
        first, second = (float(values[f"train/{name}"]) for values in logged)
        assert first == pytest.approx(second, rel=1e-4, abs=1e-5), name
    first, second = (float(values["train/ratio_max"]) for values in logged)
    assert first == pytest.approx(second, rel=1e-5)


class Calls:
    """Counts the calls of modules and the rows that they see."""

    def __init__(self, **modules: th.nn.Module):
        self.rows = dict.fromkeys(modules, 0)
        for name, module in modules.items():
            module.register_forward_hook(self._hook(name), with_kwargs=False)

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(module: th.nn.Module, inputs: tuple[th.Tensor, ...], output: th.Tensor) -> None:
            self.rows[name] += len(inputs[0])

        return hook


def test_each_network_sees_no_more_than_it_must() -> None:
    model = filled_model(SMALL, micro_batch_size=7)
    model.n_epochs = 3
    policy = model.policy
    denoiser, prior = policy.actor.denoiser, policy.prior.denoiser
    assert isinstance(denoiser, MlpDenoiser) and isinstance(prior, MlpDenoiser)
    calls = Calls(
        critic=policy.value_net,
        encoder=policy.pi_features_extractor,
        projection=denoiser.features_layer,
        prior=prior.features_layer,
    )
    model.train()
    # 40 decisions, three epochs; of the chains' steps the encoder and the critic know nothing, and
    # the prior was asked when the rollout was complete.
    assert calls.rows == {"critic": 120, "encoder": 120, "projection": 120, "prior": 0}

    calls = Calls(encoder=policy.pi_features_extractor, prior=prior.features_layer)
    model.n_epochs = 0
    model.learn(40)
    # Acting once per decision, and once more for old likelihoods.
    assert calls.rows == {"encoder": 80, "prior": 40}


def test_the_prior_is_asked_once_a_rollout_and_right() -> None:
    model = filled_model(LAST_STEPS)
    for batch in model.rollout_buffer.get(7):
        expected = model.policy.evaluate_chains(batch.observations, batch.actions).prior_means
        th.testing.assert_close(batch.prior_means, expected, rtol=1e-5, atol=1e-6)


@needs_cuda
def test_no_epoch_waits_for_the_device() -> None:
    model = filled_model(SMALL, device="cuda", beta=0.01)
    model.n_epochs = 3
    model.policy.optimizer = th.optim.Adam(model.policy.actor.parameters(), 1e-4, fused=True)
    model.policy.critic_optimizer = th.optim.Adam(
        model.policy.critic_parameters(), 1e-4, fused=True
    )
    waits: list[int] = []

    def waiting(*args: Any, **kwargs: Any) -> Any:
        th.cuda.set_sync_debug_mode("error")
        try:
            return gradients(*args, **kwargs)
        finally:
            th.cuda.set_sync_debug_mode("default")
            waits.append(1)

    gradients = model._ppo_gradients
    model._ppo_gradients = waiting  # type: ignore[method-assign]
    model.train()
    assert len(waits) == 3


# -- fine-tuning the last steps ----------------------------------------------------------------


def test_only_the_last_steps_are_kept_and_trained() -> None:
    model = filled_model(LAST_STEPS)
    assert model.rollout_buffer.log_probs.shape[-1] == 2
    assert model.rollout_buffer.actions.shape[-1] == 3 * 4
    policy = model.policy
    obs = th.randn(6, 5)
    th.manual_seed(0)
    first = policy.sample_chains(obs)[0][:, 0]
    with th.no_grad():
        for parameter in policy.actor.parameters():
            parameter.normal_()
    th.manual_seed(0)
    chains = policy.sample_chains(obs)[0]
    th.testing.assert_close(chains[:, 0], first, rtol=0, atol=0)  # the prior's
    assert policy.predict(np.zeros((2, 5), np.float32))[0].shape == (2, 2, 2)


def test_the_prior_is_what_acts_without_any_fine_tuning() -> None:
    policy = make_policy(LAST_STEPS)
    policy.actor.load_state_dict(policy.prior.state_dict())
    assert isinstance(policy.action_space, spaces.Box)
    whole = DiffusionMlpPolicy(
        policy.observation_space,
        policy.action_space,
        lambda _: 1e-3,
        **{**policy_kwargs(LAST_STEPS), "finetuned_steps": None},
    )
    whole.load_state_dict(policy.state_dict())
    obs = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    for deterministic in (True, False):
        actions = []
        for each in (policy, whole):
            th.manual_seed(4)
            actions.append(each.predict(obs, deterministic=deterministic)[0])
        np.testing.assert_allclose(actions[0], actions[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mixing", [1.0, 0.4])
def test_ratios_of_the_last_steps_start_at_1(mixing: float) -> None:
    model = filled_model(LAST_STEPS, mixing=mixing)
    model.n_epochs = 0
    model.learn(40)
    for batch in model.rollout_buffer.get(16):
        log_prob = model.policy.evaluate_chains(batch.observations, batch.actions).log_prob
        assert log_prob.shape == (len(batch.actions), 2)
        th.testing.assert_close(log_prob, batch.old_log_prob, rtol=0, atol=1e-5)


def test_a_saved_model_keeps_the_number_of_steps(tmp_path: Path) -> None:
    model = filled_model(LAST_STEPS)
    obs = np.zeros((3, 5), np.float32)
    model.save(tmp_path / "model.zip")
    loaded = DiffusionPPO.load(tmp_path / "model.zip")
    assert loaded.policy.finetuned_steps == 2
    assert model.policy.architecture()["finetuned_steps"] == 2
    np.testing.assert_array_equal(
        model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0]
    )


@pytest.mark.parametrize("steps", [0, -1, 7])
def test_a_number_of_steps_out_of_range(steps: int) -> None:
    kwargs = {**policy_kwargs(SMALL), "finetuned_steps": steps}
    with pytest.raises(ValueError, match=rf"finetuned_steps .* denoising_steps=6, got {steps}\."):
        DiffusionPPO(DiffusionMlpPolicy, StillEnv(SMALL), policy_kwargs=kwargs)


# -- precision ---------------------------------------------------------------------------------


def test_bfloat16_trains_with_ratios_that_start_at_1() -> None:
    model = filled_model(SMALL, precision="bfloat16", learning_rate=0.0)
    exact = filled_model(SMALL, learning_rate=0.0)
    assert model.rollout_buffer.values.dtype == np.float32
    values = model.logger.name_to_value
    assert values["train/ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert values["train/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    before = weights(model.policy)
    model.train()
    step = before - weights(model.policy)
    before = weights(exact.policy)
    exact.train()
    expected = before - weights(exact.policy)
    cosine = float(step @ expected / step.norm() / expected.norm())
    assert 0.9 < cosine < 1 - 1e-6  # the same direction, but rounded


def test_predictions_are_in_float32_whatever_the_training(tmp_path: Path) -> None:
    model = filled_model(SMALL, precision="bfloat16")
    model.save(tmp_path / "model.zip")
    exact = DiffusionPPO.load(tmp_path / "model.zip", precision="float32")
    obs = np.ones((3, 5), np.float32)
    np.testing.assert_array_equal(
        model.predict(obs, deterministic=True)[0], exact.predict(obs, deterministic=True)[0]
    )
    assert model.policy.precision == "bfloat16" and exact.policy.precision == "float32"


def test_tf32_leaves_the_cpu_and_the_global_setting_alone() -> None:
    setting = th.get_float32_matmul_precision()
    models = [filled_model(SMALL, precision=name) for name in ("float32", "tf32")]
    first, second = (weights(model.policy) for model in models)
    th.testing.assert_close(first, second, rtol=0, atol=0)
    assert th.get_float32_matmul_precision() == setting


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"precision": "half"}, r"precision must be one of float32, tf32, bfloat16, got 'half'"),
        ({"micro_batch_size": 0}, r"micro_batch_size must be at least 1, got 0"),
    ],
)
def test_bad_arguments_of_speed(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionPPO("policy", StillEnv(SMALL), **kwargs)


def test_optimizers_are_fused_unless_told_otherwise() -> None:
    def kinds(**optimizer_kwargs: Any) -> list[Any]:
        kwargs = {**policy_kwargs(SMALL), "optimizer_kwargs": optimizer_kwargs}
        policy = DiffusionPPO(DiffusionMlpPolicy, StillEnv(SMALL), policy_kwargs=kwargs).policy
        optimizers = (policy.optimizer, policy.critic_optimizer)
        return [optimizer.param_groups[0]["fused"] for optimizer in optimizers]

    assert kinds() == [True, True]
    assert kinds(fused=False) == [False, False]
    assert kinds(foreach=True) == [False, False]


# -- the benchmark -----------------------------------------------------------------------------


def test_the_benchmark_measures_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "UPDATE_PAIRS", (4_000, 2_000))
    monkeypatch.setattr(speed, "PRETRAIN_STEPS", 2)
    monkeypatch.setattr(speed, "HOPPER", SMALL)
    monkeypatch.setattr(speed, "added_memory", lambda who, *_: {"ours": 1.0, "naive": 9.0}[who])
    records = speed.measure(SMALL, None, 0.0)
    assert [(r["work"], r["batch"]) for r in records] == [
        *(("act", n) for n in (1, 16, 40)),
        ("update", 4_000),
        ("update", 2_000),
        ("pretrain", 128),
        ("pretrain", 256),
    ]
    for r in records:
        assert r["size"] == "small" and r["reference"] == "naive" and r["threads"] >= 1
        assert min(r["ours_s"], r["reference_s"], r["ratio"]) > 0
    assert all(r["roofline_s"] > 0 for r in records[:5])
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(records))
    speed.report(path)
    assert path.with_suffix(".png").stat().st_size > 10_000
    text = path.with_suffix(".md").read_text()
    assert "| update | small | 4,000 |" in text and "1 / 9 MiB" in text


def test_whole_iterations_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    sizes = {"N_ENVS": 2, "N_DECISIONS": 6, "N_EPOCHS": 2, "MINIBATCH_CHAINS": 6, "PPO_STEPS": 64}
    for name, value in sizes.items():
        monkeypatch.setattr(speed, name, value)
    small = dataclasses.replace(
        contenders.HOPPER, width=16, critic_width=16, denoising_steps=3, finetuned_steps=2
    )
    monkeypatch.setattr(speed, "HOPPER", small)
    records = speed.iterations(None, 0.0) + speed.against_ppo(0.0)
    assert [(r["size"], r["reference"]) for r in records] == [
        ("hopper", "naive"),
        ("hopper-K4", "naive"),
        ("256x2-K4-H1", "sb3-ppo"),
        ("256x2-K4-H4", "sb3-ppo"),
    ]
    assert all(0 < r["env_share"] < 1 for r in records[:2])
    assert all(r["ratio"] > 0 for r in records)
    assert "Share of the environments" in speed.table(records)


@pytest.mark.parametrize("axis", ["denoising steps", "environments", "minibatch", "demonstrations"])
def test_a_point_of_a_growth_curve(
    axis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    monkeypatch.setattr(speed, "peak_added", lambda work: (work(), 2.5)[1])
    point = speed.growth_point(axis, 200 if axis == "demonstrations" else 2)
    assert point["seconds"] > 0 and point["mib"] == 2.5
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_peak_of_memory_is_seen() -> None:
    assert 150 < speed.peak_added(lambda: np.ones(25_000_000)) < 300  # 191 MiB
    assert speed.peak_added(lambda: None) < 50


def test_ours_and_the_naive_form_pretrain() -> None:
    for contender in (Ours(SMALL), Naive(SMALL)):
        before = weights(contender.policy)
        contender.pretraining(8, 3)()
        assert (weights(contender.policy) - before).abs().max() > 0
