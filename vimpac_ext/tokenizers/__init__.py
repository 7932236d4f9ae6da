"""Frames <-> discrete tokens."""

from vimpac_ext.tokenizers.dalle import DalleTokenizer
from vimpac_ext.tokenizers.vqvae import VQVAETokenizer

__all__ = ["DalleTokenizer", "VQVAETokenizer"]
