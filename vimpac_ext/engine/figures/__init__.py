"""The figures of the paper and of runs, one function each; `tools/visualize.py` calls them."""

from vimpac_ext.engine.figures.attention import ClsAttention, cls_attention, draw_attention
from vimpac_ext.engine.figures.copies import CopyResult, draw_copies
from vimpac_ext.engine.figures.copy_numbers import VideoCopies, measure_copies
from vimpac_ext.engine.figures.frames import draw_frames
from vimpac_ext.engine.figures.masks import draw_masks
from vimpac_ext.engine.figures.runs import draw_run_confusion, draw_run_curves

__all__ = [
    "ClsAttention",
    "CopyResult",
    "VideoCopies",
    "cls_attention",
    "draw_attention",
    "draw_copies",
    "draw_frames",
    "draw_masks",
    "draw_run_confusion",
    "draw_run_curves",
    "measure_copies",
]
