"""Schedules of beta, mixing and imitation: values at known points, forms, errors, pickling."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

from sb3_diffrl.imitation import Imitation
from sb3_diffrl.schedules import (
    BETA,
    IMITATION,
    MIXING,
    Adaptive,
    Constant,
    Cosine,
    Gated,
    Improvement,
    KlController,
    Knob,
    Linear,
    Signals,
)

KNOBS = [BETA, MIXING, IMITATION]


def at(progress: float = 0.0, improvement: float = 0.0, kl: float | None = None) -> Signals:
    return Signals(progress=progress, improvement=improvement, prior_kl=kl)


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "signals", "value"),
    [
        (Constant(0.3), at(0.0), 0.3),
        (Constant(0.3), at(1.0, 1.0, 9.0), 0.3),
        (Linear(0.5, 0.1), at(0.0), 0.5),
        (Linear(0.5, 0.1), at(0.25), 0.4),
        (Linear(0.5, 0.1), at(1.0), 0.1),
        (Linear(0.2, 1.0), at(0.5), 0.6),
        (Linear(0.5), at(0.5), 0.25),
        (Linear(0.5, 0.1, until=0.5), at(0.25), 0.3),
        (Linear(0.5, 0.1, until=0.5), at(0.5), 0.1),
        (Linear(0.5, 0.1, until=0.5), at(0.8), 0.1),
        (Cosine(0.5, 0.1), at(0.0), 0.5),
        (Cosine(0.5, 0.1), at(1 / 3), 0.1 + 0.4 * 0.75),
        (Cosine(0.5, 0.1), at(0.5), 0.3),
        (Cosine(0.5, 0.1), at(2 / 3), 0.1 + 0.4 * 0.25),
        (Cosine(0.5, 0.1), at(1.0), 0.1),
        (Cosine(0.2, 1.0), at(0.5), 0.6),
        (Cosine(0.5, 0.1, until=0.5), at(0.25), 0.3),
        (Cosine(0.5, 0.1, until=0.5), at(0.5), 0.1),
        (Cosine(0.5, 0.1, until=0.5), at(0.8), 0.1),
        (Adaptive(0.5), at(1.0, improvement=0.0), 0.5),
        (Adaptive(0.5), at(0.0, improvement=0.4), 0.3),
        (Adaptive(0.5), at(0.0, improvement=0.89), 0.055),
        (Adaptive(0.5), at(0.0, improvement=0.95), 0.05),
        (Adaptive(0.5), at(0.0, improvement=1.0), 0.05),
        (Adaptive(0.5, floor=0.0), at(improvement=1.0), 0.0),
        (Adaptive(0.5, floor=1.0), at(improvement=1.0), 0.5),
        (Gated(0.2), at(1.0, improvement=0.0), 0.2),
        (Gated(0.2), at(0.0, improvement=0.5), 0.6),
        (Gated(0.2, 0.8), at(0.0, improvement=1.0), 0.8),
    ],
)
def test_schedules_at_known_points(schedule: Any, signals: Signals, value: float) -> None:
    assert schedule(signals) == pytest.approx(value, abs=1e-12)
    # They look at nothing but the signals: the same question has the same answer.
    schedule(at(0.7, 0.7, 0.7))
    assert schedule(signals) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (4.0, 1.1),  # far above the target of 2: the largest step up, 0.5 * 0.2
        (2.4, 1.1),  # 20 % above, where the clamp begins
        (2.2, 1.05),
        (2.0, 1.0),
        (1.9, 0.975),
        (1.6, 0.9),
        (0.0, 0.9),
        (None, 1.0),  # nothing measured yet
    ],
)
def test_the_kl_controller_answers_in_the_right_direction_within_its_clamp(
    kl: float | None, factor: float
) -> None:
    controller = KlController(initial=0.1, target=2.0)

    assert controller(at(kl=kl)) == pytest.approx(0.1 * factor)
    assert controller(at(kl=kl)) == pytest.approx(0.1 * factor**2)


def test_the_gain_sets_the_kl_controllers_largest_step() -> None:
    assert KlController(1.0, 2.0, gain=1.0)(at(kl=100.0)) == pytest.approx(1.2)
    assert KlController(1.0, 2.0, gain=0.1)(at(kl=0.0)) == pytest.approx(0.98)


def test_the_kl_controller_holds_a_divergence_that_falls_with_its_weight() -> None:
    """On ``KL = 1 / beta`` it settles at the beta that gives the target, from either side."""
    for initial in (0.01, 10.0):
        controller, kl = KlController(initial, target=4.0), None
        for _ in range(300):
            kl = 1 / controller(at(kl=kl))
        assert kl == pytest.approx(4.0, rel=0.01)


def test_a_copied_or_pickled_kl_controller_goes_on_where_it_was() -> None:
    controller = KlController(initial=0.1, target=2.0)
    for _ in range(7):
        controller(at(kl=5.0))
    assert controller.value != controller.initial

    for twin in (pickle.loads(pickle.dumps(controller)), copy.deepcopy(controller)):
        assert twin == controller
        assert twin.value == controller.value
        before = controller.value
        assert twin(at(kl=1.0)) == pytest.approx(0.9 * before)
        # The copy moves, the original does not.
        assert controller.value == before


# -- forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knob", "spec", "schedule"),
    [
        (BETA, 0.1, Constant(0.1)),
        (BETA, 0, Constant(0.0)),
        (BETA, 2, Constant(2.0)),
        (BETA, "0.1", Constant(0.1)),
        (BETA, "1e-3", Constant(0.001)),
        (BETA, "constant_0.1", Constant(0.1)),
        (BETA, "linear_0.1", Linear(0.1, 0.0)),
        (BETA, "linear_0.1_0.05", Linear(0.1, 0.05)),
        (BETA, "linear_1e-2_1e-3", Linear(0.01, 0.001)),
        (BETA, "linear_0.1_0.05_0.5", Linear(0.1, 0.05, until=0.5)),
        (BETA, np.float32(0.25), Constant(0.25)),
        (BETA, np.int64(2), Constant(2.0)),
        (BETA, "cosine_0.1", Cosine(0.1, 0.0)),
        (BETA, "cosine_0.1_0.05", Cosine(0.1, 0.05)),
        (BETA, "adaptive_0.1", Adaptive(0.1, 0.1)),
        (BETA, "adaptive_0.1_0.2", Adaptive(0.1, 0.2)),
        (BETA, "kl_controller_0.1_2", KlController(0.1, 2.0)),
        (BETA, "kl_controller_0.1_2_0.25", KlController(0.1, 2.0, 0.25)),
        (BETA, {"kind": "constant", "value": 0.1}, Constant(0.1)),
        (BETA, {"kind": "linear", "initial": 0.1}, Linear(0.1, 0.0)),
        (BETA, {"kind": "cosine", "initial": 0.1, "final": 0.02}, Cosine(0.1, 0.02)),
        (BETA, {"kind": "adaptive", "initial": 0.1}, Adaptive(0.1)),
        (BETA, {"kind": "kl_controller", "initial": 1, "target": 3}, KlController(1, 3)),
        (MIXING, 1, Constant(1.0)),
        (MIXING, "linear_0.5", Linear(0.5, 1.0)),
        (MIXING, "cosine_0.5", Cosine(0.5, 1.0)),
        (MIXING, "linear_0.5_0.8", Linear(0.5, 0.8)),
        (MIXING, {"kind": "linear", "initial": 0.5}, Linear(0.5, 1.0)),
        (MIXING, {"kind": "linear", "initial": 0.5, "until": 0.4}, Linear(0.5, 1.0, until=0.4)),
        (MIXING, {"kind": "cosine", "initial": 0.5, "final": 0.8}, Cosine(0.5, 0.8)),
        (MIXING, "gated_0.3", Gated(0.3, 1.0)),
        (MIXING, "gated_0.3_0.9", Gated(0.3, 0.9)),
        (MIXING, {"kind": "gated", "initial": 0.3}, Gated(0.3, 1.0)),
        (IMITATION, "linear_0.1", Linear(0.1, 0.0)),
        (IMITATION, "adaptive_0.1", Adaptive(0.1)),
    ],
)
def test_numbers_strings_and_mappings_name_schedules(knob: Knob, spec: Any, schedule: Any) -> None:
    original = copy.deepcopy(spec)

    built = knob.schedule(spec)

    assert built == schedule
    assert type(built) is type(schedule)
    assert spec == original
    assert pickle.loads(pickle.dumps(built)) == schedule


def half(signals: Signals) -> float:
    return 0.5 * signals.progress


def test_objects_and_functions_of_the_users_own_are_taken_as_they_are() -> None:
    schedule = Cosine(0.3, 0.2)
    assert BETA.schedule(schedule) is schedule
    assert BETA.schedule(half) is half


def test_every_build_of_a_controller_starts_afresh() -> None:
    spec = {"kind": "kl_controller", "initial": 0.1, "target": 2.0}
    first, second = BETA.schedule(spec), BETA.schedule(spec)
    first(at(kl=9.0))

    assert second(at()) == pytest.approx(0.1)


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize(
    "spec",
    [
        None,
        True,
        False,
        [0.1],
        (),
        "",
        "much",
        "exponential_0.1",
        "linearly_0.1",
        "linear_a_lot",
        -0.1,
        "-0.1",
        math.nan,
        "nan",
        math.inf,
        "inf",
        "linear",
        "linear_",
        "linear_0.1_0.2_0.3_0.4",
        "linear_0.1_0.2_0",
        "linear_0.1_0.2_1.5",
        "0_1",
        "linear_-0.1",
        "linear_0.1_-0.1",
        "linear_inf",
        "constant",
        "constant_0.1_0.2",
        {},
        {"initial": 0.1},
        {"kind": "exponential", "initial": 0.1},
        {"kind": None},
        {"kind": ["linear"], "initial": 0.1},
        {"kind": "linear"},
        {"kind": "linear", "initial": "0.1"},
        {"kind": "linear", "initial": True},
        {"kind": "linear", "initial": None},
        {"kind": "linear", "initial": 0.1, "finally": 0.2},
        {"kind": "linear", "initial": 0.1, "final": -0.2},
        {"kind": "linear", "initial": 0.1, "final": math.nan},
    ],
)
def test_what_is_no_schedule_is_refused_with_the_forms_there_are(knob: Knob, spec: Any) -> None:
    with pytest.raises(ValueError) as error:
        knob.schedule(spec)

    message = str(error.value)
    assert message.startswith(f"{knob.name}={spec!r}: ")
    assert f"kinds for {knob.name}: {', '.join(knob.kinds)}" in message
    assert "'linear_0.5_" in message


@pytest.mark.parametrize(
    ("knob", "spec", "reason"),
    [
        (BETA, -0.1, r"value must .*got -0\.1"),
        (BETA, "linear_0.1_-1", r"final must .*got -1\.0"),
        (BETA, "linear", "linear takes initial, final"),
        (BETA, "gated_0.3", "neither a known kind nor a number"),
        (BETA, {"kind": "gated", "initial": 0.3}, "kind 'gated' is unknown"),
        (BETA, "adaptive_0.1_1.5", r"floor must .*0 and 1, got 1\.5"),
        (BETA, "adaptive_0.1_-0.5", r"floor must .*0 and 1, got -0\.5"),
        (BETA, "kl_controller_0.1", "kl_controller takes initial, target, gain"),
        (BETA, "kl_controller_0_2", r"initial must .*got 0\.0"),
        (BETA, "kl_controller_0.1_0", r"target must .*got 0\.0"),
        (BETA, "kl_controller_0.1_2_0", r"gain must .*got 0\.0"),
        (BETA, {"kind": "linear", "initial": "0.1"}, "initial must be a .*number, got '0.1'"),
        (MIXING, 0, r"value must .*0\.01 and 1, got 0\.0"),
        (MIXING, 1.01, r"value must .*0\.01 and 1, got 1\.01"),
        (MIXING, "linear_0", r"initial must .*0\.01 and 1, got 0\.0"),
        (MIXING, "linear_0.5_0", r"final must .*0\.01 and 1, got 0\.0"),
        (MIXING, "gated_0.5_2", r"final must .*0\.01 and 1, got 2\.0"),
        (MIXING, "adaptive_0.5", "neither a known kind nor a number"),
        (MIXING, "kl_controller_0.5_2", "neither a known kind nor a number"),
        (IMITATION, "kl_controller_0.5_2", "neither a known kind nor a number"),
        (IMITATION, [0.1], "a list is no schedule"),
        (MIXING, None, "NoneType is no schedule"),
        (MIXING, True, "bool is no schedule"),
    ],
)
def test_errors_say_what_was_wrong(knob: Knob, spec: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        knob.schedule(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "kl_controller_0.1_2_0.5_-3",
        {"kind": "kl_controller", "initial": 0.1, "target": 2.0, "value": -3.0},
    ],
)
def test_the_state_of_a_controller_is_no_argument(spec: Any) -> None:
    with pytest.raises(ValueError, match="kl_controller takes initial, target, gain"):
        BETA.schedule(spec)


@pytest.mark.parametrize("gain", [5.0, 50.0])
def test_a_gain_that_takes_all_of_the_weight_in_one_step_is_refused(gain: float) -> None:
    with pytest.raises(ValueError, match="gain"):
        BETA.schedule(f"kl_controller_0.1_2_{gain}")


# -- improvement -------------------------------------------------------------------------------


def test_adaptive_beta_follows_a_scripted_performance_curve() -> None:
    """Prior 0.4, target 1: beta falls as performance rises, and rises again when it is lost."""
    improvement, beta = Improvement(target=1.0), BETA.schedule("adaptive_0.5")
    curve: list[tuple[float | None, bool, float, float]] = [
        # performance, acted by the prior, improvement, beta
        (None, True, 0.0, 0.5),
        (0.5, True, 0.0, 0.5),  # the prior is being measured: its window is still filling
        (0.4, True, 0.0, 0.5),
        (0.4, False, 0.0, 0.5),
        (0.55, False, 0.25, 0.375),
        (0.7, False, 0.5, 0.25),
        (0.97, False, 0.95, 0.05),  # max(0.1, 0.05)
        (1.0, False, 1.0, 0.05),
        (0.7, False, 0.5, 0.25),
        (0.1, False, 0.0, 0.5),  # worse than the prior is not below 0
        (None, False, 0.0, 0.5),
    ]
    for performance, by_prior, expected_improvement, expected_beta in curve:
        value = improvement.update(performance, acted_by_prior=by_prior)

        assert value == pytest.approx(expected_improvement)
        assert beta(at(improvement=value)) == pytest.approx(expected_beta)
    assert improvement.prior == 0.4


def test_the_improvement_of_returns_of_any_sign() -> None:
    improvement = Improvement(target=-100.0)
    improvement.update(-300.0, acted_by_prior=True)

    assert improvement.update(-250.0, acted_by_prior=False) == pytest.approx(0.25)
    assert improvement.update(50.0, acted_by_prior=False) == 1.0
    assert improvement.update(-900.0, acted_by_prior=False) == 0.0


def test_a_missing_measurement_keeps_the_last_improvement() -> None:
    improvement = Improvement(target=1.0)
    improvement.update(0.5, acted_by_prior=True)
    improvement.update(0.75, acted_by_prior=False)

    assert improvement.update(None, acted_by_prior=False) == pytest.approx(0.5)


@pytest.mark.parametrize("prior", [1.0, 1.5])
def test_a_prior_that_meets_the_target_leaves_nothing_to_improve(prior: float) -> None:
    improvement = Improvement(target=1.0)
    improvement.update(prior, acted_by_prior=True)

    for performance in (0.0, 1.0, 2.0):
        assert improvement.update(performance, acted_by_prior=False) == 0.0


def test_without_a_target_there_is_no_improvement() -> None:
    improvement = Improvement()
    improvement.update(0.2, acted_by_prior=True)

    assert improvement.update(0.9, acted_by_prior=False) == 0.0


def test_the_first_measurement_stands_for_a_prior_that_finished_no_episode() -> None:
    improvement = Improvement(target=1.0)

    assert improvement.update(0.6, acted_by_prior=False) == 0.0
    assert improvement.update(0.8, acted_by_prior=False) == pytest.approx(0.5)


def test_a_pickled_improvement_remembers_the_prior() -> None:
    improvement = Improvement(target=1.0)
    improvement.update(0.6, acted_by_prior=True)
    improvement.update(0.7, acted_by_prior=False)

    twin = pickle.loads(pickle.dumps(improvement))

    assert twin == improvement
    assert twin.update(0.8, acted_by_prior=False) == pytest.approx(0.5)


# -- imitation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        (0.0, (0.0, 0.0, 0.0)),
        (0.5, (0.5, 0.0, 0.0)),
        ("0.5", (0.5, 0.0, 0.0)),
        ("linear_0.4", (0.3, 0.0, 0.0)),
        ("adaptive_0.4", (0.2, 0.0, 0.0)),
        (Linear(0.4, 0.8), (0.5, 0.0, 0.0)),
        ({"kind": "linear", "initial": 0.4}, (0.3, 0.0, 0.0)),
        ({}, (0.0, 0.0, 0.0)),
        ({"successes": 0.5}, (0.0, 0.0, 0.5)),
        ({"demonstrations": 0.1, "context": 0.2, "successes": 0.3}, (0.1, 0.2, 0.3)),
        ({"context": "linear_0.4", "successes": Constant(2.0)}, (0.0, 0.3, 2.0)),
        (
            {"demonstrations": {"kind": "cosine", "initial": 0.4, "final": 0.4}, "capacity": 5},
            (0.4, 0.0, 0.0),
        ),
    ],
)
def test_the_forms_of_imitation(spec: Any, weights: tuple[float, float, float]) -> None:
    imitation = Imitation.parse(spec)

    assert imitation.weights(at(0.25, improvement=0.5)) == pytest.approx(
        dict(zip(("demonstrations", "context", "successes"), weights, strict=True))
    )
    assert pickle.loads(pickle.dumps(imitation)) == imitation
    assert Imitation.parse(imitation) is imitation


def test_the_sizes_of_imitation() -> None:
    assert (Imitation.parse(0.5).batch_size, Imitation.parse(0.5).capacity) == (256, 100_000)
    sizes = Imitation.parse({"successes": 1, "batch_size": 7, "capacity": 9})
    assert (sizes.batch_size, sizes.capacity) == (7, 9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, r"^imitation=None"),
        (True, r"^imitation=True"),
        (-0.5, r"value must .*got -0\.5"),
        ("often", r"^imitation='often'"),
        ({"demos": 0.5}, r"unknown \['demos'\].*demonstrations, context, successes"),
        ({"demonstrations": -1}, r"^imitation demonstrations=-1: value must .*got -1"),
        ({"context": None}, r"^imitation context=None"),
        ({"successes": "often"}, r"^imitation successes='often'"),
        ({"kind": "kl_controller", "initial": 1, "target": 1}, r"'kl_controller' is unknown"),
        ({"batch_size": 0}, r"batch_size must be .*, got 0"),
        ({"batch_size": 2.5}, r"batch_size must be .*, got 2\.5"),
        ({"capacity": -1}, r"capacity must be .*, got -1"),
        ({"capacity": None}, r"capacity must be .*, got None"),
        ({"warmup_steps": -1}, r"warmup_steps must be .*, got -1"),
        ({"warmup_learning_rate": 0.0}, r"warmup_learning_rate must be .*, got 0\.0"),
        ({"warmup_learning_rate": math.nan}, r"warmup_learning_rate must be .*, got nan"),
        ({"warmup_learning_rate": math.inf}, r"warmup_learning_rate must be .*, got inf"),
        ({"warmup_learning_rate": "1e-3"}, r"warmup_learning_rate must be .*, got '1e-3'"),
        ({"batch_size": True}, r"batch_size must be .*, got True"),
    ],
)
def test_what_is_no_imitation_is_refused(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Imitation.parse(spec)


def test_a_schedule_of_ones_own_is_tried_when_it_is_given() -> None:
    of_sb3: Any = lambda progress_remaining: 0.1 * progress_remaining  # noqa: E731 -- as users do
    with pytest.raises(ValueError, match=r"beta=.*called with Signals\(.*it is handed Signals"):
        BETA.schedule(of_sb3)
    controller = KlController(0.1, 0.05)
    assert BETA.schedule(controller) is controller and controller == KlController(0.1, 0.05)
