"""Evaluation: scorers, who is asked and judged, and the controls that figures are read against."""

from nemo_desta.evaluation.scores import ItemError, Scores, score

__all__ = ["ItemError", "Scores", "score"]
