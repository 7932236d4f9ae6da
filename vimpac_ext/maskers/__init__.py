"""Maskers: which tokens to hide (contract: `vimpac_ext.registries.MASKERS`)."""

from vimpac_ext.maskers.block import BlockMasker, blocks_to_mask
from vimpac_ext.maskers.corruption import corrupt
from vimpac_ext.maskers.uniform import UniformMasker

__all__ = ["BlockMasker", "UniformMasker", "blocks_to_mask", "corrupt"]
