"""What a comparison found, as figures and as one page that opens from disk."""

from layersync.report.page import write_report
from layersync.report.text import comparison_table

__all__ = ["comparison_table", "write_report"]
