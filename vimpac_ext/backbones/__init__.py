"""Backbones: clip -> features (contract: `vimpac_ext.registries.BACKBONES`)."""

from vimpac_ext.backbones.huggingface import HuggingFaceBackbone
from vimpac_ext.backbones.pixels import PixelBackbone
from vimpac_ext.backbones.pytorchvideo import PytorchVideoBackbone
from vimpac_ext.backbones.timm import TimmFrames, TimmSpaceTime, TimmTokens
from vimpac_ext.backbones.vimpac.transformer import VimpacTransformer

__all__ = [
    "HuggingFaceBackbone",
    "PixelBackbone",
    "PytorchVideoBackbone",
    "TimmFrames",
    "TimmSpaceTime",
    "TimmTokens",
    "VimpacTransformer",
]
