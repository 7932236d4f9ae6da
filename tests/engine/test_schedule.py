import pytest
import torch

from vimpac_ext.engine.optim import adamw, parameter_groups
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


def test_only_matrices_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    decayed, others = parameter_groups(model, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3)]
    assert len(others["params"]) == 3
    assert others["weight_decay"] == 0.0


def test_adamw_equals_the_textbook_update():
    model = torch.nn.Linear(2, 2, bias=False)
    optimizer = adamw(model, lr=0.1, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.5)
    before = model.weight.detach().clone()
    model.weight.grad = torch.tensor([[1.0, -2.0], [0.5, 0.0]])
    optimizer.step()
    gradient = model.weight.grad
    # After one step the bias-corrected moments are the gradient and its square.
    expected = before * (1 - 0.1 * 0.5) - 0.1 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(model.weight.detach(), expected)
