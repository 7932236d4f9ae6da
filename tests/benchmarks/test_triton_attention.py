"""The Triton kernel against the reference: on a GPU, or interpreted on a CPU with

TRITON_INTERPRET=1 python -m pytest tests/benchmarks/test_triton_attention.py
"""

import os

import pytest
import torch
from test_row_attention import GRID, drawn, values_and_gradients

from vimpac_ext.backbones.vimpac.axis_attention import key_biases
from vimpac_ext.benchmarks.row_attention import reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)

from vimpac_ext.benchmarks.triton_attention import short_rows  # noqa: E402  (after the checks)

DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = torch.float16 if INTERPRETED else torch.bfloat16  # the interpreter knows no bfloat16
TOLERANCES = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.03}


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(
    ("grid", "heads", "size"),
    [
        ((5, 4, 3), 2, 8),  # rows of 3 to 5, several in a tile, which they do not fill
        ((1, 2, 33), 1, 24),  # rows of 1, 2 and 33; a size that is no power of 2
        ((2, 16, 3), 1, 64),
    ],
)
@pytest.mark.parametrize("pattern", [(1,), (2,), (3,)])
def test_values_and_gradients_are_those_of_the_reference(pattern, grid, heads, size, dtype):
    inputs = drawn(dtype, DEVICE, grid, heads, size)
    found = values_and_gradients(short_rows, pattern, inputs)
    upcast = [one.detach().double().requires_grad_() for one in inputs[:2]]
    upcast += [one.double() for one in inputs[2:4]]
    expected = values_and_gradients(reference, pattern, (*upcast, inputs[4]))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        error = (one.double() - other).abs().max() / other.abs().max()
        assert error.item() < TOLERANCES[dtype]


def test_inputs_of_any_layout_are_taken():
    """Parts that lie differently in memory, and gradients that are expanded from one number."""
    bias = key_biases(torch.zeros(3, *GRID, dtype=torch.bool, device=DEVICE), {(2,)})[2,]
    cls, tokens, *_ = drawn(torch.float32, DEVICE)
    query, key, value = tokens.detach().unbind(4)
    query = query.transpose(1, 2).contiguous().transpose(1, 2)
    leaves = [query, key.contiguous(), value]
    results = []
    for way in (short_rows, reference):
        for leaf in leaves:
            leaf.requires_grad_()
        values = way(cls.detach().unbind(1), leaves, bias, (2,))
        results.append([*values, *torch.autograd.grad(sum(v.sum() for v in values), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_joined_axes_are_refused():
    inputs = drawn(torch.float32, DEVICE)
    with pytest.raises(ValueError, match="along one axis, found 2 joined"):
        values_and_gradients(short_rows, (2, 3), inputs)
