"""The benchmarks of samplers and fine-tuning choices: what they build, keep and report."""

from pathlib import Path

import numpy as np
import pytest
import torch as th
from sb3_diffrl.experiments import TASK, ResultRow, add_rows, algorithm_arguments

from benchmarks import finetuning, samplers
from sb3_diffrl import DiffusionPPO
from sb3_diffrl.zoo import load_hyperparams
from tests.envs import TargetEnv


@pytest.mark.parametrize("eta", samplers.ETAS)
def test_a_policy_is_sampled_as_one_built_so(eta: float) -> None:
    kwargs = {"net_arch": [16], "prediction_type": "v"}
    model = DiffusionPPO("policy", TargetEnv(), policy_kwargs=kwargs, seed=0, device="cpu")
    other = DiffusionPPO(
        "policy",
        TargetEnv(),
        policy_kwargs={**kwargs, "denoising_steps": 10, "eta": eta},
        prior=model,
        device="cpu",
    )
    observations = np.random.default_rng(0).uniform(-1, 1, (5, 3)).astype(np.float32)
    predicted = []
    for each in (samplers.sampled_by(model, 10, eta), other):
        th.manual_seed(0)
        predicted.append(each.predict(observations)[0])
    np.testing.assert_array_equal(predicted[0], predicted[1])
    assert model.policy.process.denoising_steps == 5


def test_rows_of_samplers_are_kept_and_reported(tmp_path: Path) -> None:
    rows = [
        samplers.Row(*policy, steps, eta, 100, 0.9, 0.82, 0.94, 0.5, 1.25)
        for policy in samplers.POLICIES
        for steps in samplers.STEPS
        for eta in samplers.ETAS
    ]
    samplers.write_rows(tmp_path / "rows.csv", rows)
    assert samplers.read_rows(tmp_path / "rows.csv") == rows
    assert samplers.read_rows(tmp_path / "none.csv") == []
    text = samplers.table(rows)
    assert "| v | cosine | 4 | 1 | 0.90 (0.82 to 0.94) | 0.50 | 1.25 |" in text
    samplers.figure(rows, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_every_finetuning_choice_builds_a_model_from_the_plain_prior() -> None:
    plain = load_hyperparams(finetuning.ROOT / "hyperparams/diffppo.yml", TASK)
    arguments = algorithm_arguments(plain) | {"imitation": 0.0, "beta": 0.1}
    prior = DiffusionPPO("policy", TargetEnv(), **arguments)
    for name, (policy_kwargs, others) in finetuning.CHOICES.items():
        kwargs = {**plain["policy_kwargs"], **policy_kwargs}
        mine = {**arguments, **others, "policy_kwargs": kwargs, "prior": prior}
        model = DiffusionPPO("policy", TargetEnv(), **mine)
        assert model.policy.has_prior, name
        assert all(getattr(model, key) == value for key, value in others.items())


def test_the_finetuning_report_is_written(tmp_path: Path) -> None:
    output = tmp_path / "finetuning.csv"
    add_rows(
        output,
        [
            ResultRow(
                TASK, name, "episode", seed, "stochastic", 100, 40_000, 0.9, 0.4, after, *[0] * 4
            )
            for name in ("base", "last_3_steps")
            for seed, after in ((0, 0.5), (1, 0.6), (2, 0.7))
        ],
    )
    text = finetuning.report(output)
    assert "| last_3_steps | 3 × 100 | 40,000 | 0.40" in text and "| 0.60 [0.35, 0.85] |" in text
    assert "- `last_3_steps`: finetuned_steps=3" in text
    assert output.with_suffix(".md").read_text() == text + "\n"
