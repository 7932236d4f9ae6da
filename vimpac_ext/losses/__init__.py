"""Losses: predictions and targets -> a scalar (contract: `vimpac_ext.registries.LOSSES`)."""

from vimpac_ext.losses.cross_entropy import CrossEntropyLoss
from vimpac_ext.losses.info_nce import InfoNCELoss
from vimpac_ext.losses.masked_token import MaskedTokenLoss, masked_token_accuracy

__all__ = ["CrossEntropyLoss", "InfoNCELoss", "MaskedTokenLoss", "masked_token_accuracy"]
