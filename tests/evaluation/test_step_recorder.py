"""Counts of operations and of kept memory, against numbers computed by hand and by PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from vimpac_ext.backbones import VimpacTransformer
from vimpac_ext.evaluation import matrix_flops, multiply_adds
from vimpac_ext.evaluation.step_recorder import StepRecorder


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


def test_forward_backward_and_kept_memory_by_hand():
    net, x = make_net(), torch.randn(4, 8, requires_grad=True)
    with StepRecorder(own=net.parameters()) as recorder:
        total = net(x).sum()
        # The two inner tensors of 4 x 16, the sum; the result of 4 x 8 is kept by nobody.
        assert recorder.live_bytes() == 4 * (2 * 4 * 16 + 1)
        assert recorder.flops == 2 * (2 * 4 * 8 * 16)
        total.backward()
    assert recorder.flops == 3 * 2 * (2 * 4 * 8 * 16)
    assert recorder.repeated_flops == 0


def test_frozen_layers_and_inputs_without_gradient_cost_less():
    net, x = make_net(), torch.randn(4, 8)
    net[0].requires_grad_(False)
    with StepRecorder() as recorder:
        net(x).sum().backward()
    # Two forward products and the gradient of one weight.
    assert recorder.flops == 3 * (2 * 4 * 8 * 16)


def test_checkpointing_keeps_less_and_its_repetition_is_counted_apart():
    net, x = make_net(), torch.randn(4, 8, requires_grad=True)
    with StepRecorder(own=net.parameters()) as recorder:
        total = checkpoint(net, x, use_reentrant=False).sum()
        assert recorder.live_bytes() == 4
        total.backward()
    assert recorder.flops == 3 * 2 * (2 * 4 * 8 * 16)
    assert recorder.repeated_flops >= 2 * 4 * 8 * 16


def test_attention_counts_its_products():
    q, k, v = (torch.randn(2, 3, n, 16, requires_grad=True) for n in (5, 7, 7))
    with StepRecorder() as fused:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    with StepRecorder() as written:
        ((q @ k.mT).softmax(-1) @ v).sum().backward()
    product = 2 * 2 * 3 * 5 * 7 * 16
    assert written.flops == 6 * product
    assert fused.flops == 7 * product  # the scores are computed again


def test_watching_changes_no_number_and_agrees_with_pytorchs_counter():
    net, x = make_net(), torch.randn(4, 8)
    net(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    with StepRecorder() as recorder:
        net(x).square().sum().backward()
    assert all(map(torch.equal, expected, (p.grad for p in net.parameters())))
    with FlopCounterMode(display=False) as counter:
        net(x).square().sum().backward()
    assert recorder.flops == counter.get_total_flops()


@pytest.mark.parametrize("layout", ["T,H|W", "TxHxW"])
def test_a_backbone_has_the_cost_that_fvcore_counts(layout):
    """fvcore counts the normalisation, too."""
    model = VimpacTransformer((3, 4, 4), 20, embed_dim=256, num_layers=1, layout=layout)
    clip = torch.randint(20, (1, 3, 4, 4))
    assert matrix_flops(model, clip) / 2 == pytest.approx(multiply_adds(model, clip), rel=0.03)
    assert model.training
