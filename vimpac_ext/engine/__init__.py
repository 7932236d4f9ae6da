"""The loop and all around it: assembly, training, testing, checkpoints, logs, launch."""

from vimpac_ext.engine.launch import prepare, run

__all__ = ["prepare", "run"]
