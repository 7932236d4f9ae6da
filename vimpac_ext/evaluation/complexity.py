"""Size and cost of a model: parameters, and multiply-adds of one clip."""

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from vimpac_ext.evaluation.step_recorder import StepRecorder


def parameter_count(model: nn.Module) -> int:
    """Trained values, each shared one counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def matrix_flops(model: nn.Module, clip: Tensor) -> int:
    """Floating-point operations of one forward pass in matrix products and convolutions.

    A multiply-add counts as two. Unlike `multiply_adds` it traces nothing: it takes as long as the
    forward pass, works for whatever runs, and leaves out the normalisation.

    Args:
        model: takes the clip.
        clip: one clip with its batch axis, on the model's device.
    """
    was_training = model.training
    model.eval()
    with torch.compiler.set_stance("force_eager"), StepRecorder() as recorder:
        model(clip)
    model.train(was_training)
    return recorder.flops


@torch.no_grad()
def multiply_adds(model: nn.Module, clip: Tensor) -> int:
    """Cost of one forward pass, which the video literature calls FLOPs.

    fvcore counts convolutions, matrix products and normalisation by tracing; fused attention, which
    it does not know, is counted here as its two matrix products. Elementwise operations count
    nothing.

    Args:
        model: takes the clip, returns a tensor or a dictionary of tensors.
        clip: one clip with its batch axis, on the model's device.
    """
    from fvcore.nn import FlopCountAnalysis

    was_training = model.training
    model.eval()
    analysis = FlopCountAnalysis(_Tensors(model), (clip,))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_cost)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    tracer = logging.getLogger("fvcore")
    level = tracer.level
    tracer.setLevel(logging.ERROR)
    try:
        return int(analysis.total())
    finally:
        tracer.setLevel(level)
        model.train(was_training)


class _Tensors(nn.Module):
    """A tracer wants tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> list[Tensor]:
        outputs = self.model(clip)
        return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


def _attention_cost(inputs: list[Any], outputs: list[Any]) -> int:
    query, key, value = (argument.type().sizes() for argument in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
