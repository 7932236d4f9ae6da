"""Features of clips by a task's backbone, and backbones from checkpoints."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor

from vimpac_ext.config import ConfigError
from vimpac_ext.engine.checkpoint import find_checkpoint, initialise_weights

_logger = logging.getLogger(__name__)

AS_BUILT = "none"  # TEST.CHECKPOINT_FILE_PATH: the model with the weights that components bring

Encoder = Callable[[Tensor], Mapping[str, Tensor]]


def encoder_of(task: Any, key: str) -> Encoder:
    """What turns a task's clips into the backbone's outputs, "cls" (N, D) among them.

    Args:
        task: with ``encode``, or with a ``backbone`` that reads its clips.
        key: of the configuration that asks for features, for the message.

    Raises:
        ConfigError: the task has neither.
    """
    if hasattr(task, "encode"):
        encode: Encoder = task.encode
        return encode
    if hasattr(task, "backbone"):
        backbone: Encoder = task.backbone
        return backbone
    raise ConfigError(f"{key}: {type(task).__name__} has no backbone that gives features")


def checkpoint_to_test(cfg: CfgNode) -> Path | None:
    """TEST.CHECKPOINT_FILE_PATH, or the newest checkpoint of OUTPUT_DIR; None = as built.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = cfg.TEST.CHECKPOINT_FILE_PATH
    return None if path == AS_BUILT else find_checkpoint(path or cfg.OUTPUT_DIR)


def load_backbone(cfg: CfgNode, task: Any, facts: Mapping[str, Any]) -> Path | None:
    """Loads the checkpoint to test into a task whose heads may be others than the checkpoint's.

    Args:
        cfg: configuration.
        task: receives the weights.
        facts: what the checkpoint's data must have in common with those to test on.

    Returns:
        The checkpoint, None = as built.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        CheckpointError: if its backbone is another one, or was trained on other tokens.
    """
    path = checkpoint_to_test(cfg)
    if path is not None:
        _logger.info("backbone of %s: %s", path, initialise_weights(path, task, facts))
    return path
