"""Prompts about clips: our own pool, output formats to combine with it, the draw, and proposals by an LLM."""

from nemo_desta.recipes.prompts.compose import compositions, prompt_set
from nemo_desta.recipes.prompts.constraints import Constraint, obeys
from nemo_desta.recipes.prompts.draw import PromptPool, answerable, draw
from nemo_desta.recipes.prompts.prompt import Prompt, load_prompts, parse_prompts

__all__ = [
    "Constraint",
    "Prompt",
    "PromptPool",
    "answerable",
    "compositions",
    "draw",
    "load_prompts",
    "obeys",
    "parse_prompts",
    "prompt_set",
]
