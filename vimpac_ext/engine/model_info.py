"""What a run says about its model before it starts."""

import logging
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from vimpac_ext.engine.assembly import token_grid
from vimpac_ext.engine.device_peaks import peak_of
from vimpac_ext.engine.distributed import is_main
from vimpac_ext.engine.step_meter import StepMeter
from vimpac_ext.evaluation import matrix_flops, parameter_count

_logger = logging.getLogger(__name__)


def log_model_info(cfg: CfgNode, task: Any) -> None:
    """Logs parameters and the operations of a forward pass. Every process calls this.

    Args:
        cfg: configuration.
        task: on the device where the forward pass runs.
    """
    total = parameter_count(task)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    parts = ", ".join(f"{name} {count:,}" for name, count in _parts(task).items())
    _logger.info("parameters: %s (%s), %s trained", f"{total:,}", parts, f"{trained:,}")
    backbone = getattr(task, "backbone", None)
    if backbone is None:
        return
    view = _training_view(cfg, getattr(backbone, "input_kind", "tokens"))
    view = view.to(next(backbone.parameters()).device)
    flops = matrix_flops(backbone, view)
    text = f"{flops / 1e9:,.4g} GFLOPs ({flops / 2e9:,.4g} G multiply-adds)"
    crops = (cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE)
    if cfg.TEST.ENABLE and crops[0] == crops[1]:
        views = cfg.TEST.NUM_ENSEMBLE_VIEWS * cfg.TEST.NUM_SPATIAL_CROPS
        text += f"; a video of the test has {views} views"
    _logger.info("the backbone on a view of %s: %s", _size(view), text)


def step_meter(cfg: CfgNode, task: Any, device: torch.device) -> StepMeter:
    """The meter that a configuration asks for (LOG_MODEL_INFO, LOG_MFU)."""
    precision = cfg.TRAIN.PRECISION
    # Only the main process writes, so the others need not measure.
    peak = peak_of(device, precision, cfg.TRAIN.TF32) if cfg.LOG_MFU and is_main() else None
    # In all processes alike: a step that is tried before the first must be so in all of them.
    watching = cfg.LOG_MFU or cfg.LOG_MODEL_INFO
    return StepMeter(task, peak, watching, cfg.LOG_MODEL_INFO, cfg.TRAIN.COMPILE)


def _parts(task: nn.Module) -> dict[str, int]:
    """Parameters of the task's parts, each head by itself; parts without any are left out."""
    parts: dict[str, nn.Module] = {}
    for name, child in task.named_children():
        if isinstance(child, nn.ModuleDict):
            parts |= {f"{name}.{key}": module for key, module in child.items()}
        else:
            parts[name] = child
    counts = {name: parameter_count(module) for name, module in parts.items()}
    return {name: count for name, count in counts.items() if count}


def _training_view(cfg: CfgNode, kind: str) -> Tensor:
    side = cfg.DATA.TRAIN_CROP_SIZE
    if kind == "tokens":
        return torch.zeros((1, *token_grid(cfg, side)), dtype=torch.int64)
    return torch.zeros((1, 3, cfg.DATA.NUM_FRAMES, side, side))


def _size(view: Tensor) -> str:
    unit = "pixels" if view.is_floating_point() else "tokens"
    return f"{' x '.join(str(size) for size in view.shape[-3:])} {unit}"
