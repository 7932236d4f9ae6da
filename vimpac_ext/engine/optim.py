"""Optimizer and its parameter groups."""

from collections.abc import Sequence

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Splits parameters: decay for matrices and tables, none for vectors.

    Vectors (one dimension or less) are the biases, the gains of normalisation layers and [CLS].
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module, lr: float, betas: Sequence[float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, with the fused kernel (CPU and CUDA have one)."""
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay),
        lr=lr,
        betas=(betas[0], betas[1]),
        eps=eps,
        fused=True,
    )
