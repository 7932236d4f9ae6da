"""Checkpoint files of the authors' code -> ours, and back."""

from vimpac_ext.engine.conversion.report import ConversionReport
from vimpac_ext.engine.conversion.to_original import convert_to_original
from vimpac_ext.engine.conversion.to_ours import convert_to_ours

__all__ = ["ConversionReport", "convert_to_original", "convert_to_ours"]
