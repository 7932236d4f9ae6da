"""The loop and all around it: assembly, training, testing, checkpoints, logs, launch."""

from vimpac_ext.engine.launch import prepare, run
from vimpac_ext.engine.placement import Shard
from vimpac_ext.engine.processes import RunRequest, launch

__all__ = ["RunRequest", "Shard", "launch", "prepare", "run"]
