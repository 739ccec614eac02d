"""Recipes: from a labelled corpus to training rows. Nothing here knows a model's inside."""

from nemo_desta.recipes.corpus import read_corpus
from nemo_desta.recipes.describe import describe

__all__ = ["describe", "read_corpus"]
