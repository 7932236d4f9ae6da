import json
import math

import pytest

from vimpac_ext.config import load_config
from vimpac_ext.engine.schedule import build_schedule, learning_rate, schedule_of


def test_linear_schedule_equals_the_formula_at_its_corners():
    rates = [learning_rate(u, 100, 2.0, 10) for u in range(100)]
    assert rates[0] == 0.0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(2.0 / 90)


def test_constant_policy_and_no_warm_up():
    assert learning_rate(0, 10, 3.0, 0, "constant") == 3.0
    assert learning_rate(9, 10, 3.0, 0, "constant") == 3.0
    assert learning_rate(0, 10, 3.0, 0) == 3.0


def test_cosine_goes_half_a_period_down_to_its_end():
    rates = [learning_rate(u, 110, 2.0, 10, "cosine", end_lr=0.5) for u in range(110)]
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.25)  # half way
    assert rates[35] == pytest.approx(0.5 + 1.5 * (1 + math.sqrt(0.5)) / 2)  # a quarter
    assert rates[109] == pytest.approx(0.5, abs=1e-3)


def test_step_changes_at_its_epochs_and_warm_up_starts_where_it_is_told():
    rate = schedule_of(
        1.0,
        "step",
        10,
        9,
        warmup_steps=4,
        start_lr=0.2,
        step_epochs=[3, 6],
        step_factors=[0.1, 0.01],
    )
    assert [rate(u) for u in (0, 2, 4, 29, 30, 59, 60, 89)] == pytest.approx(
        [0.2, 0.6, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize(
    "warmup", [{"warmup_ratio": 0.25}, {"warmup_epochs": 2.5}, {"warmup_steps": 25}]
)
def test_a_warm_up_is_given_as_ratio_epochs_or_steps(warmup):
    rate = schedule_of(1.0, "constant", 10, 10, **warmup)
    assert rate(24) == pytest.approx(24 / 25)
    assert rate(25) == 1.0


@pytest.mark.parametrize("warmup_epochs", [0.04, 0.1])
def test_a_short_warm_up_is_one_update_and_not_the_default_one(warmup_epochs):
    rate = schedule_of(
        1.0, "constant", 10, 10, warmup_ratio=0.1, warmup_epochs=warmup_epochs, start_lr=0.5
    )
    assert [rate(u) for u in range(3)] == [0.5, 1.0, 1.0]


def test_a_stage_continues_the_schedule_where_the_one_before_it_ended():
    whole = schedule_of(1.0, "linear", 10, 10, warmup_ratio=0.1)
    second = schedule_of(1.0, "linear", 10, 10, start_epoch=9, warmup_ratio=0.1)
    assert [second(u) for u in range(10)] == [whole(u) for u in range(90, 100)]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"WARMUP_RATIO": 0.0}, {0: 2.0, 50: 1.0, 99: 0.02}),
        ({"WARMUP_RATIO": 0.2, "WARMUP_START_LR": 1.0}, {0: 1.0, 10: 1.5, 20: 2.0, 60: 1.0}),
        ({"WARMUP_EPOCHS": 2.5, "LR_POLICY": "constant"}, {0: 0.0, 5: 0.4, 24: 1.92, 25: 2.0}),
        ({"WARMUP_STEPS": 4, "LR_POLICY": "constant"}, {1: 0.5, 4: 2.0, 99: 2.0}),
        (
            {"WARMUP_RATIO": 0.0, "LR_POLICY": "cosine", "COSINE_END_LR": 1.0},
            {0: 2.0, 50: 1.5, 99: 1.0002},
        ),
        (
            {"WARMUP_RATIO": 0.0, "LR_POLICY": "step", "STEPS": [3, 6], "LRS": [0.5, 0.1]},
            {29: 2.0, 30: 1.0, 59: 1.0, 60: 0.2},
        ),
        (
            {"WARMUP_RATIO": 0.0, "SCHEDULE_EPOCHS": 20, "SCHEDULE_START_EPOCH": 10},
            {0: 1.0, 50: 0.5},
        ),
    ],
)
def test_every_key_of_the_configuration_does_what_it_says(tmp_path, keys, expected):
    """Ten epochs of ten updates, peak 2."""
    path = tmp_path / "solver.yaml"
    path.write_text(json.dumps({"SOLVER": {"MAX_EPOCH": 10, "BASE_LR": 2.0, **keys}}))
    rate = build_schedule(load_config(path).cfg.SOLVER, 10)
    for update, value in expected.items():
        assert rate(update) == pytest.approx(value, abs=1e-4), update
