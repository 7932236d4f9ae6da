"""Checkpoints of the authors' code <-> models and checkpoints of this library."""

from vimpac_ext.checkpoints.model import VimpacModel, load_original
from vimpac_ext.checkpoints.source import OriginalCheckpointError, read_original

__all__ = ["OriginalCheckpointError", "VimpacModel", "load_original", "read_original"]
