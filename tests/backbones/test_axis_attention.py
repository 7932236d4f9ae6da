"""Attention along axes and its dropout, against slow references."""

import math

import pytest
import torch
import torch.nn.functional as F

from vimpac_ext.backbones.vimpac import attend, parse_layout
from vimpac_ext.backbones.vimpac.axis_attention import AxisAttention, key_biases
from vimpac_ext.backbones.vimpac.dropout import Dropout, fast_dropout

GRID = (3, 4, 5)


def test_attend_equals_pytorchs_attention_in_value_and_gradient():
    torch.manual_seed(1)
    inputs = [torch.randn(6, 2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    bias = torch.zeros(6, 1, 1, 5, dtype=torch.float64)
    bias[2, ..., 3:] = -math.inf
    weight = torch.randn(6, 2, 5, 8, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=bias)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), inputs)
    result = attend(*inputs, bias)
    gradients = torch.autograd.grad((result * weight).sum(), inputs)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(gradients, expected_gradients)


def dense_axis_attention(module, cls, tokens, is_pad):
    """The same over all tokens at once: one CLS query per row, other rows masked out."""
    num_projections, heads, size = module.split
    weights = module.qkv.weight.view(num_projections, heads * size, -1)
    biases = module.qkv.bias.view(num_projections, heads * size)
    cells = torch.cartesian_prod(*(torch.arange(n) for n in tokens.shape[1:4]))  # (N, 3)
    sequence = torch.cat([cls[:, None], tokens.flatten(1, 3)], dim=1)  # (B, 1+N, D)
    cls_results, token_results = [], []
    for index, axis in enumerate(module.axes):
        first, second = (a - 1 for a in (1, 2, 3) if a != axis)
        row_of_token = 100 * cells[:, first] + cells[:, second]  # (N,)
        rows = row_of_token.unique()  # (R,)
        same_row = torch.cat([rows, row_of_token])[:, None] == row_of_token  # (R+N, N)
        may_see = F.pad(same_row & ~is_pad.flatten(1)[:, None], (1, 0), value=True)
        query, key, value = (
            (sequence @ weights[3 * index + part].T + biases[3 * index + part])
            .unflatten(-1, (heads, size))
            .transpose(1, 2)
            for part in range(3)
        )  # (B, h, 1+N, e)
        query = torch.cat([query[:, :, :1].expand(-1, -1, len(rows), -1), query[:, :, 1:]], dim=2)
        scores = query @ key.transpose(-1, -2) / math.sqrt(size)
        weights_of_keys = scores.masked_fill(~may_see[:, None], -math.inf).softmax(-1)
        result = (weights_of_keys @ value).transpose(1, 2).flatten(2)  # (B, R+N, h*e)
        cls_results.append(result[:, : len(rows)].mean(1))
        token_results.append(result[:, len(rows) :].unflatten(1, tokens.shape[1:4]))
    return torch.cat(cls_results, -1), torch.cat(token_results, -1)


@pytest.mark.parametrize("axes", [(1,), (2,), (3,), (2, 3), (3, 1), (1, 2, 3)])
def test_axis_attention_equals_masked_dense_attention_in_value_and_gradient(axes):
    torch.manual_seed(2)
    module = AxisAttention(embed_dim=10, attention_dim=12, num_heads=6, axes=axes).double()
    cls = torch.randn(2, 10, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(2, *GRID, 10, dtype=torch.float64, requires_grad=True)
    is_pad = torch.rand(2, *GRID) < 0.3
    is_pad[1, 1:] = True
    inputs = [cls, tokens, *module.parameters()]
    output_weights = [torch.randn(2, 12).double(), torch.randn(2, *GRID, 12).double()]

    def value_and_gradient(results):
        total = sum((r * w).sum() for r, w in zip(results, output_weights, strict=True))
        return [*results, *torch.autograd.grad(total, inputs)]

    ours = value_and_gradient(module(cls, tokens, key_biases(is_pad, set(axes))))
    expected = value_and_gradient(dense_axis_attention(module, cls, tokens, is_pad))
    torch.testing.assert_close(ours, expected)


def test_layouts_are_read_or_refused():
    assert parse_layout("T,H|W") == ((1,), (2, 3))
    assert parse_layout("W") == ((3,),)
    for bad in ("", "T,", "t,h", "T, H", "T;H", "TH", "T,HxW"):
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
