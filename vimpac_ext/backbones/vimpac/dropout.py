"""Dropout whose random numbers are cheap on CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16


def fast_dropout(x: Tensor, probability: float) -> Tensor:
    """As `F.dropout` in training, about 1.7 times as fast (forward and backward) on CPU.

    PyTorch draws one Bernoulli number per element there, which took a sixth of a training step.
    This draws 16 bits per element, so the probability is rounded to a multiple of 2**-16.

    Args:
        x: any shape, floating point.
        probability: of an element to become zero; the others are scaled up to keep the mean.
    """
    if probability == 0.0:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, probability)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    levels = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -2**15 .. 2**15-1
    num_dropped_levels = round(probability * _LEVELS)
    is_kept = levels >= num_dropped_levels - _LEVELS // 2
    return x * is_kept.to(x.dtype).mul_(_LEVELS / (_LEVELS - num_dropped_levels))


class Dropout(nn.Module):
    """`fast_dropout` in training, nothing in eval mode.

    Raises:
        ValueError: if the probability is not in [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout={probability} must be at least 0 and less than 1")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return fast_dropout(x, self.probability) if self.training else x
