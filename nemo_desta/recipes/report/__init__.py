"""What is in a folder of rows: figures in one pass, and a report to look at and listen to."""

from nemo_desta.recipes.report.figures import figures
from nemo_desta.recipes.report.write import write_report

__all__ = ["figures", "write_report"]
