"""Learning rates that differ from parameter to parameter: layer-wise decay and name patterns."""

import difflib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vimpac_ext.config import ConfigError

BACKBONE = "backbone."


def rate_scales(
    model: nn.Module, layer_decay: float = 1.0, patterns: Mapping[str, float] | None = None
) -> dict[str, float]:
    """What the learning rate of each trained parameter is multiplied by.

    With layer-wise decay as in BEiT (arXiv 2106.08254) and MAE (arXiv 2111.06377), layer i of N has
    ``layer_decay ** (N + 1 - i)``: the embedding is layer 0, heads and what comes after the last
    layer of the backbone are N + 1 and keep the full rate.

    Args:
        model: whose parameters are trained; for layer-wise decay with a ``backbone`` that numbers
            its layers (see `vimpac_ext.registries.BACKBONES`).
        layer_decay: factor from a layer to the one below; 1 = none.
        patterns: shell pattern ("*" also matches dots) of parameter names -> factor. A parameter
            that several match gets their product.

    Returns:
        Parameter name -> factor.

    Raises:
        ConfigError: if the backbone cannot number its layers, or a pattern matches nothing.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    scales = dict.fromkeys(names, 1.0)
    if layer_decay != 1:
        backbone = _numbered(model, layer_decay)
        for name in names:
            if name.startswith(BACKBONE):
                layers_above = backbone.num_layers + 1 - _layer_of(backbone, name)
                scales[name] = layer_decay**layers_above
    for pattern, factor in (patterns or {}).items():
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(_unmatched(pattern, names))
        for name in matched:
            scales[name] *= factor
    return scales


def _numbered(model: nn.Module, layer_decay: float) -> Any:
    backbone: Any = getattr(model, "backbone", None)
    if getattr(backbone, "num_layers", None) is None or not hasattr(backbone, "layer_of"):
        raise ConfigError(
            f"SOLVER.LAYER_DECAY is {layer_decay}, but the layers of "
            f"{type(model if backbone is None else backbone).__name__} are not numbered (no "
            "num_layers and layer_of); set it to 1, or give SOLVER.LR_SCALES"
        )
    return backbone


def _layer_of(backbone: Any, name: str) -> int:
    layer = int(backbone.layer_of(name.removeprefix(BACKBONE)))
    if not 0 <= layer <= backbone.num_layers + 1:
        raise ValueError(
            f"{type(backbone).__name__}.layer_of({name!r}) is {layer}, not in 0.."
            f"{backbone.num_layers + 1}"
        )
    return layer


def _unmatched(pattern: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0) or names[:3]
    return (
        f"SOLVER.LR_SCALES: no trained parameter has a name like {pattern!r}; there are "
        f"{len(names)}, such as {', '.join(nearest)}"
    )
