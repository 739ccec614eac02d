"""The driver of a recipe: plan, shards, resume, finish. It does not depend on what a stage does with a row."""

from nemo_desta.recipes.pipeline.driver import run_shards
from nemo_desta.recipes.pipeline.finish import finish
from nemo_desta.recipes.pipeline.folder import RecipeFolder, RecipeMismatch
from nemo_desta.recipes.pipeline.plan import write_plan
from nemo_desta.recipes.pipeline.stage import Outcome, Stage
from nemo_desta.recipes.pipeline.summary import Summary

__all__ = [
    "Outcome",
    "RecipeFolder",
    "RecipeMismatch",
    "Stage",
    "Summary",
    "finish",
    "run_shards",
    "write_plan",
]
