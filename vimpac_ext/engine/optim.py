"""Optimizers and their parameter groups."""

from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from vimpac_ext.checkpoints.components import is_undecayed, original_state_names
from vimpac_ext.engine.original_adamw import OriginalAdamW


def parameter_groups(
    model: nn.Module, weight_decay: float, no_decay: str = "vectors"
) -> list[dict[str, Any]]:
    """Splits parameters into those with and those without weight decay.

    Args:
        model: the parameters' owner; for "original" with ``backbone`` and ``heads``.
        weight_decay: of the first group.
        no_decay: what is not decayed. "vectors": what has one dimension or less, that is biases,
            the gains of normalisation layers and [CLS]. "original": what the authors' code leaves
            out, by its name there, that is biases and the gains of the backbone's LayerNorms;
            parameters that their code has not go by "vectors".

    Returns:
        Two groups for an optimizer.

    Raises:
        ValueError: if `no_decay` is neither, or "original" is asked for another backbone.
    """
    if no_decay not in ("vectors", "original"):
        raise ValueError(f"no_decay={no_decay!r} is not one of vectors, original")
    names = original_state_names(model) if no_decay == "original" else {}
    if no_decay == "original" and not any(name.startswith("backbone.") for name in names):
        raise ValueError("SOLVER.NO_DECAY original is for the VimpacTransformer; use vectors")
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_vector = parameter.ndim <= 1
        is_out = is_undecayed(names[name][0]) if name in names else is_vector
        (undecayed if is_out else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, solver: CfgNode) -> torch.optim.Optimizer:
    """The optimizer that a config's SOLVER section describes.

    Args:
        model: whose parameters are optimized.
        solver: OPTIMIZING_METHOD, NO_DECAY and the numbers of the method.

    Raises:
        ValueError: if the method is unknown.
    """
    groups = parameter_groups(model, solver.WEIGHT_DECAY, solver.NO_DECAY)
    adam = {"lr": solver.BASE_LR, "betas": tuple(solver.BETAS), "eps": solver.EPS}
    methods: dict[str, Callable[[], torch.optim.Optimizer]] = {
        # The fused kernel: CPU and CUDA have one.
        "adamw": lambda: torch.optim.AdamW(groups, **adam, fused=True),
        "adamw_original": lambda: OriginalAdamW(groups, **adam),
        "adam": lambda: torch.optim.Adam(groups, **adam, fused=True),
        "sgd": lambda: torch.optim.SGD(
            groups,
            lr=solver.BASE_LR,
            momentum=solver.MOMENTUM,
            dampening=solver.DAMPENING,
            nesterov=solver.NESTEROV,
        ),
    }
    if solver.OPTIMIZING_METHOD not in methods:
        raise ValueError(
            f"SOLVER.OPTIMIZING_METHOD {solver.OPTIMIZING_METHOD!r} is not one of "
            f"{', '.join(methods)}"
        )
    return methods[solver.OPTIMIZING_METHOD]()
