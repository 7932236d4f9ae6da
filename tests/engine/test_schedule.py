import pytest

from vimpac_ext.engine.schedule import learning_rate


def test_linear_schedule_equals_the_formula_at_its_corners():
    rates = [learning_rate(u, 100, 2.0, 0.1) for u in range(100)]
    assert rates[0] == 0.0
    assert rates[5] == pytest.approx(1.0)
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(2.0 / 90)


def test_constant_policy_and_no_warm_up():
    assert learning_rate(0, 10, 3.0, 0.0, "constant") == 3.0
    assert learning_rate(9, 10, 3.0, 0.0, "constant") == 3.0
    assert learning_rate(0, 10, 3.0, 0.0) == 3.0
