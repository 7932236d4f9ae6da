"""Heads: backbone outputs -> predictions (contract: `vimpac_ext.registries.HEADS`)."""

from vimpac_ext.heads.attentive import AttentiveHead
from vimpac_ext.heads.batch_norm import SyncBatchNorm1d
from vimpac_ext.heads.classification import ClassificationHead
from vimpac_ext.heads.frame_average import FrameAverageHead
from vimpac_ext.heads.masked_token import MaskedTokenHead
from vimpac_ext.heads.projection import ProjectionHead

__all__ = [
    "AttentiveHead",
    "ClassificationHead",
    "FrameAverageHead",
    "MaskedTokenHead",
    "ProjectionHead",
    "SyncBatchNorm1d",
]
