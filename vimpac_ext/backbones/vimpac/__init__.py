"""The VIMPAC transformer: axis attention over grids of discrete video tokens (paper, Section 3)."""

from vimpac_ext.backbones.vimpac.axis_attention import attend, parse_layout
from vimpac_ext.backbones.vimpac.embedding import POSITION_FORMS
from vimpac_ext.backbones.vimpac.layers import NORM_STYLES
from vimpac_ext.backbones.vimpac.transformer import VimpacTransformer
from vimpac_ext.backbones.vimpac.weights import (
    convert_original_state_dict,
    resize_position_tables,
    resize_table,
    to_original_state_dict,
)

__all__ = [
    "NORM_STYLES",
    "POSITION_FORMS",
    "VimpacTransformer",
    "attend",
    "convert_original_state_dict",
    "parse_layout",
    "resize_position_tables",
    "resize_table",
    "to_original_state_dict",
]
