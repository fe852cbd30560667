"""What a comparison found, as figures and as one page that opens from disk."""

from layersync.report.page import check_target, write_report
from layersync.report.text import comparison_table

__all__ = ["check_target", "comparison_table", "write_report"]
