"""Recipes: from a labelled corpus to training rows. Nothing here knows a model's inside."""

from nemo_desta.recipes.describe import describe

__all__ = ["describe"]
