"""The types that stages of a recipe exchange: a row to generate, and the reason why a row was rejected."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_desta.recipes.prompts import Prompt


@dataclass(frozen=True)
class Item:
    """A row to generate. ``clip``: a manifest row with a ``duration``. ``prompt`` None: to be proposed by the LLM.

    ``seed`` is derived from the recipe's seed and the row's id only.
    """

    id: str
    clip: Mapping[str, Any]
    description: str
    prompt: Prompt | None
    seed: int


class Verdict(NamedTuple):
    """Why a row is rejected. ``reason``: a label to count by; ``detail``: what was found in this row."""

    reason: str
    detail: str
