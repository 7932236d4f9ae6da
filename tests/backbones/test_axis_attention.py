"""Attention along axes and its dropout, against closed forms (more: test_vimpac_reference.py)."""

import math

import pytest
import torch

from vimpac_ext.backbones.vimpac import attend, parse_layout
from vimpac_ext.backbones.vimpac.axis_attention import LONG_ROW, AxisAttention
from vimpac_ext.backbones.vimpac.dropout import Dropout, fast_dropout, residual_dropout


@pytest.mark.parametrize("length", [5, LONG_ROW - 1, LONG_ROW])
def test_attention_equals_the_formula_in_value_and_gradient(length):
    torch.manual_seed(1)
    inputs = [
        torch.randn(2, 3, 2, length, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]
    bias = torch.zeros(2, 3, 1, 1, length)
    bias[1, ..., 3:] = -math.inf
    weight = torch.randn(2, 3, 2, length, 4, dtype=torch.float64)
    query, key, value = inputs
    expected = ((query @ key.mT) / 2 + bias).softmax(-1) @ value
    expected_gradients = torch.autograd.grad((expected * weight).sum(), inputs)
    result = attend(query, key, value, bias)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        torch.autograd.grad((result * weight).sum(), inputs), expected_gradients
    )


@pytest.mark.parametrize("length", [5, LONG_ROW])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_dropout_acts_on_the_attention_weights(length, device):
    """With equal scores and values of 1 a result is the share of the kept keys, scaled up."""
    torch.manual_seed(2)
    zeros = torch.zeros(4, 10, 2, length, 4, device=device)
    bias = torch.zeros(4, 10, 1, 1, length, device=device)
    result = attend(zeros, zeros, zeros + 1, bias, dropout=0.2)
    kept = result * 0.8 * length
    torch.testing.assert_close(kept, kept.round(), atol=1e-4 * length, rtol=0)
    deviation = math.sqrt(0.25 / (80 * length * length))
    assert result[..., 0].mean().item() == pytest.approx(1.0, abs=5 * deviation)
    assert result[..., 0].std() > 0


def test_a_pattern_has_the_same_projections_whether_it_joins_axes_or_not():
    shapes = [
        {name: p.shape for name, p in AxisAttention(8, 8, 2, block).named_parameters()}
        for block in (((1,),), ((2, 3),), ((1, 2, 3),), ((2,), (3,)), ((1, 2), (3,)))
    ]
    assert all(shape == shapes[0] for shape in shapes)


def test_layouts_are_read_or_refused():
    assert parse_layout("T,H|W") == (((1,),), ((2,), (3,)))
    assert parse_layout("W") == (((3,),),)
    assert parse_layout("T,HxW") == (((1,),), ((2, 3),))
    assert parse_layout("WxTxH") == (((1, 2, 3),),)
    assert parse_layout("WxT|H") == (((1, 3), (2,)),)
    for bad in ("", "T,", "t,h", "T, H", "T;H", "TH", "Tx", "TxT", "TXH", "xH", "T|"):
        with pytest.raises(ValueError, match="side by side"):
            parse_layout(bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_share_and_the_mean(dtype):
    torch.manual_seed(3)
    x = torch.ones(250_003, dtype=dtype, requires_grad=True)
    result = fast_dropout(x, 0.1)
    share = (result == 0).float().mean().item()
    assert share == pytest.approx(0.1, abs=5 * math.sqrt(0.09 / len(x)))
    assert result.detach().float().unique().tolist() == pytest.approx([0, 1 / 0.9], rel=0.005)
    result.sum().backward()
    assert torch.equal(x.grad, result.detach())
    kept = (result != 0).float()
    neighbours = (kept[1:] * kept[:-1]).mean().item()  # the four draws of one word are independent
    assert neighbours == pytest.approx(0.81, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_dropout_before_a_sum_equals_the_two_steps(dtype, probability):
    """The same mask from the same seed; the residual is wider than what is dropped."""
    torch.manual_seed(5)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    residual = torch.randn(7, 33, dtype=wide, requires_grad=True)
    x = torch.randn(7, 33, dtype=dtype, requires_grad=True)
    weight = torch.randn(7, 33, dtype=wide)
    state = torch.get_rng_state()
    expected = residual + fast_dropout(x, probability).to(wide)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), [residual, x])
    torch.set_rng_state(state)
    result = residual_dropout(residual, x, probability)
    gradients = torch.autograd.grad((result * weight).sum(), [residual, x])
    assert result.dtype == wide
    # bfloat16 has 8 bits; the two steps round once more.
    tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 0.01, "atol": 1e-2 * (wide != dtype)}
    torch.testing.assert_close(result, expected, **tolerance)
    torch.testing.assert_close(gradients, expected_gradients, **tolerance)


def test_dropout_follows_the_mode_and_the_seed():
    module = Dropout(0.5)
    x = torch.ones(1000)
    torch.manual_seed(4)
    first = module(x)
    torch.manual_seed(4)
    assert torch.equal(first, module(x))
    assert not torch.equal(first, module(x))
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    for bad in (-0.1, 1.0):
        with pytest.raises(ValueError, match="dropout"):
            Dropout(bad)
