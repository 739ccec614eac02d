"""Prompts: what to ask about a clip. A pool of our own, formats to combine it with, the draw, an LLM's proposals."""

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
