"""Evaluation: benchmarks and scorers, the judge, and the controls and baselines that figures are compared with."""

from nemo_desta.evaluation.scores import ItemError, Scores, score

__all__ = ["ItemError", "Scores", "score"]
