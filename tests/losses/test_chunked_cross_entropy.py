"""Cross entropy in chunks, against PyTorch's of the whole."""

import pytest
import torch
import torch.nn.functional as F

from vimpac_ext.losses import chunked_cross_entropy as module
from vimpac_ext.losses.chunked_cross_entropy import chunked_cross_entropy


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_value_and_gradient_are_those_of_the_whole(rows, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(module._CHUNK, "cpu", rows * 11)
    logits = (5 * torch.randn(10, 11, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(11, (10,))
    expected = F.cross_entropy(logits, targets)
    (expected_gradient,) = torch.autograd.grad(3 * expected, logits)
    loss = chunked_cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(3 * loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    (logits,) = (logits.detach().requires_grad_(),)
    assert torch.autograd.gradcheck(lambda x: chunked_cross_entropy(x, targets), logits)


def test_bfloat16_logits_are_summed_in_float32():
    """The loss is that of the rounded logits to float32 rounding; the gradient is bfloat16."""
    torch.manual_seed(1)
    logits = (20 * torch.randn(300, 4099)).bfloat16().requires_grad_()
    targets = torch.randint(4099, (300,))
    loss = chunked_cross_entropy(logits, targets)
    expected = F.cross_entropy(logits.double(), targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient, expected_gradient, rtol=2**-8, atol=1e-9)


def test_the_logits_stay_as_they_are():
    logits = torch.randn(4, 5, requires_grad=True)
    before = logits.detach().clone()
    chunked_cross_entropy(logits, torch.tensor([0, 1, 2, 4])).backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.gpu
def test_on_a_gpu():
    torch.manual_seed(2)
    logits = torch.randn(5000, 8197, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(8197, (5000,), device="cuda")
    loss = chunked_cross_entropy(logits, targets)
    expected = F.cross_entropy(logits.float(), targets)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=0.01, atol=1e-9)
