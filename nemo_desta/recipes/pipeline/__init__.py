"""The driver of a recipe: plan, shards, resume, finish. It does not depend on what a stage does with a row."""

from nemo_desta.recipes.items import Outcome, Stage
from nemo_desta.recipes.pipeline.driver import run_shards
from nemo_desta.recipes.pipeline.finish import Summary, finish
from nemo_desta.recipes.pipeline.folder import RecipeFolder, RecipeMismatch, write_plan

__all__ = ["Outcome", "RecipeFolder", "RecipeMismatch", "Stage", "Summary", "finish", "run_shards", "write_plan"]
