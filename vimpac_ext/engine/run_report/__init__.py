"""Web pages about runs; `tools/report.py` calls `write_run_report`."""

from vimpac_ext.engine.run_report.report import write_run_report
from vimpac_ext.engine.run_report.sections import curves_pictures

__all__ = ["curves_pictures", "write_run_report"]
