"""Optimizers and their parameter groups."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from vimpac_ext.checkpoints.components import is_undecayed, original_state_names
from vimpac_ext.engine.original_adamw import OriginalAdamW
from vimpac_ext.engine.rate_scales import rate_scales


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    no_decay: str = "vectors",
    scales: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Splits parameters into those with and those without weight decay, and by their rates.

    Args:
        model: the parameters' owner; for "original" with ``backbone`` and ``heads``.
        weight_decay: of the first group.
        no_decay: what is not decayed. "vectors": what has one dimension or less, that is biases,
            the gains of normalisation layers and [CLS]. "original": what the authors' code leaves
            out, by its name there, that is biases and the gains of the backbone's LayerNorms;
            parameters that their code has not go by "vectors".
        scales: parameter name -> factor of its learning rate; 1 for those that are not in it.

    Returns:
        Groups for an optimizer: first those with weight decay, then those without, each by rising
        "lr_scale". Those of factor 1 are always there and may be empty.

    Raises:
        ValueError: if `no_decay` is neither, or "original" is asked for another backbone.
    """
    if no_decay not in ("vectors", "original"):
        raise ValueError(f"no_decay={no_decay!r} is not one of vectors, original")
    names = original_state_names(model) if no_decay == "original" else {}
    if no_decay == "original" and not any(name.startswith("backbone.") for name in names):
        raise ValueError("SOLVER.NO_DECAY original is for the VimpacTransformer; use vectors")
    scales = scales or {}
    decayed: dict[float, list[nn.Parameter]] = {1.0: []}
    undecayed: dict[float, list[nn.Parameter]] = {1.0: []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_vector = parameter.ndim <= 1
        is_out = is_undecayed(names[name][0]) if name in names else is_vector
        groups = undecayed if is_out else decayed
        groups.setdefault(scales.get(name, 1.0), []).append(parameter)
    return [
        {"params": groups[scale], "weight_decay": decay, "lr_scale": scale}
        for groups, decay in ((decayed, weight_decay), (undecayed, 0.0))
        for scale in sorted(groups)
    ]


def build_optimizer(model: nn.Module, solver: CfgNode) -> torch.optim.Optimizer:
    """The optimizer that a config's SOLVER section describes.

    Args:
        model: whose parameters are optimized.
        solver: OPTIMIZING_METHOD, NO_DECAY, LAYER_DECAY, LR_SCALES and the numbers of the method.

    Raises:
        ConfigError: if the rates of SOLVER.LAYER_DECAY or LR_SCALES do not fit the model.
        ValueError: if the method is unknown.
    """
    scales = rate_scales(model, solver.LAYER_DECAY, solver.LR_SCALES)
    groups = parameter_groups(model, solver.WEIGHT_DECAY, solver.NO_DECAY, scales)
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
