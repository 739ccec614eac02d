"""Statistics of a folder of rows, and an HTML report with random rows and their clips."""

from nemo_desta.recipes.report.compute import compute_stats
from nemo_desta.recipes.report.write import write_report

__all__ = ["compute_stats", "write_report"]
