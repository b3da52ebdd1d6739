"""The benchmarks of samplers and fine-tuning choices: what they build, keep and report."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

from benchmarks import finetuning, samplers, variants
from benchmarks.rows import read_rows, write_rows
from sb3_diffrl import DiffusionPPO
from sb3_diffrl.bench.records import Evaluation, Point, Record, Successes, add_records
from sb3_diffrl.bench.tasks import avoiding
from sb3_diffrl.bench.training import algorithm_arguments
from sb3_diffrl.zoo import merge
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
    write_rows(tmp_path / "rows.csv", rows, samplers.Row)
    assert read_rows(tmp_path / "rows.csv", samplers.Row) == rows
    assert read_rows(tmp_path / "none.csv", samplers.Row) == []
    text = samplers.table(rows)
    assert "| v | cosine | 4 | 1 | 0.90 (0.82 to 0.94) | 0.50 | 1.25 |" in text
    samplers.figure(rows, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_every_finetuning_choice_builds_a_model_from_the_plain_prior() -> None:
    plain = avoiding().hyperparams_of("diffppo")
    arguments = algorithm_arguments(plain) | {"imitation": 0.0, "beta": 0.1}
    prior = DiffusionPPO("policy", TargetEnv(), **arguments)
    for name, choice in finetuning.CHOICES.items():
        model = DiffusionPPO("policy", TargetEnv(), **merge(arguments, choice), prior=prior)
        assert model.policy.has_prior, name
        others = {key: value for key, value in choice.items() if key != "policy_kwargs"}
        assert all(getattr(model, key) == value for key, value in others.items())


def test_finetuning_choices_share_their_priors() -> None:
    parse = variants.parser(None, [*finetuning.CHOICES], "finetuning", 40_000).parse_args
    runs = finetuning.plan(parse(["--seeds", "0", "1", "--episodes", "7"]))
    assert len(runs) == 2 * len(finetuning.CHOICES)
    assert len({run.key for run in runs}) == len(runs)
    assert len({run.prior_key for run in runs}) == 2
    assert {(run.perturbation, run.env_steps, run.n_episodes) for run in runs} == {
        ("episode", 40_000, 7)
    }


def test_the_report_of_variants_is_written(tmp_path: Path) -> None:
    file = tmp_path / "avoiding.jsonl"
    clean, before = Successes(90, 100), Successes(40, 100)
    records = [
        Record(
            *("avoiding", name, "episode", seed, 40_000),
            evaluations={"stochastic": Evaluation(clean, before, Successes(after, 100))},
            curve=[Point(0, before), Point(40_000, Successes(after, 100))],
            mode_entropy=0.5,
            wall_s=9.0,
            peak_rss_mb=1.0,
            started="",
            commit="",
            command="",
        )
        for name in ("last_2_layers", "base", "last_3_steps")
        for seed, after in ((0, 50), (1, 60), (2, 70))
    ]
    add_records(file, records)
    text = variants.report(file, "Choices", finetuning.labels(), [20_000, 50_000])
    assert "| finetuned_steps=3 | 3 × 100 | 40,000 | 0.40 [0.31, 0.50] | 0.50 [" in text
    assert "| – | 0.60 [0.35, 0.85] | 0.90 [0.83, 0.94] | 0.50 | 9 |" in text
    assert text.index("| all steps |") < text.index("| last 2 layers (left out) |")
    assert file.with_suffix(".md").read_text() == text + "\n"
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
