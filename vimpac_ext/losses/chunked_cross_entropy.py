"""Cross entropy over a large vocabulary that never holds all its probabilities."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Numbers of float32 at a time: on a CPU so few that they stay in its cache.
_CHUNK = {"cpu": 2**19}
_OTHER_CHUNK = 2**24


def chunked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """`F.cross_entropy` in float32, in chunks of rows, forward and backward.

    Of the rows only the logarithm of the denominator is kept for the backward pass, which computes
    the probabilities again: it saves two float32 copies of the logits.

    Args:
        logits: (M, V), floating point, M at least 1.
        targets: int64 (M,), classes.

    Returns:
        The mean over the rows; float32 (float64 for float64 logits) scalar.
    """
    mean: Tensor = _ChunkedCrossEntropy.apply(logits, targets)
    return mean


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        rows = _rows_of_a_chunk(logits)
        denominators, losses = [], []
        for chunk, target in zip(logits.split(rows), targets.split(rows), strict=True):
            chunk = chunk.to(_accurate(logits.dtype))
            denominators.append(chunk.logsumexp(dim=-1))
            losses.append(denominators[-1] - chunk.gather(1, target[:, None]).squeeze(1))
        ctx.save_for_backward(logits, targets, torch.cat(denominators))
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets, denominators = ctx.saved_tensors
        rows = _rows_of_a_chunk(logits)
        result = torch.empty_like(logits)
        scale = gradient / len(logits)
        parts = (tensor.split(rows) for tensor in (result, logits, targets, denominators))
        for part, chunk, target, denominator in zip(*parts, strict=True):
            # (softmax - one_hot(target)) * scale
            share = chunk.to(_accurate(logits.dtype), copy=True)
            share.sub_(denominator[:, None]).exp_()
            minus_one = share.new_full((), -1.0).expand(len(target), 1)
            share.scatter_add_(1, target[:, None], minus_one)
            part.copy_(share.mul_(scale))
        return result, None


def _accurate(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _rows_of_a_chunk(logits: Tensor) -> int:
    return max(1, _CHUNK.get(logits.device.type, _OTHER_CHUNK) // logits.shape[1])
