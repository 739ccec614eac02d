"""Evaluation: scorers and the controls that their figures are read against."""
