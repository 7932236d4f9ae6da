"""Backbones: clip -> features (contract: `vimpac_ext.registries.BACKBONES`)."""

from vimpac_ext.backbones.vimpac.transformer import VimpacTransformer

__all__ = ["VimpacTransformer"]
