"""Maskers: which tokens to hide (contract: `vimpac_ext.registries.MASKERS`)."""

from vimpac_ext.maskers.abilities import has_all, ignores_tokens
from vimpac_ext.maskers.block import BlockMasker, blocks_to_mask, single_blocks
from vimpac_ext.maskers.corruption import Noise, corrupt, replace_blocks
from vimpac_ext.maskers.induced_ratio import induced_mask_ratio, num_blocks_for_ratio
from vimpac_ext.maskers.tube import TubeMasker
from vimpac_ext.maskers.uniform import UniformMasker

__all__ = [
    "BlockMasker",
    "Noise",
    "TubeMasker",
    "UniformMasker",
    "blocks_to_mask",
    "corrupt",
    "has_all",
    "ignores_tokens",
    "induced_mask_ratio",
    "num_blocks_for_ratio",
    "replace_blocks",
    "single_blocks",
]
