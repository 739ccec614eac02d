"""Types shared by the stages of a recipe: a row to be made, and the reason why a row is rejected."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_desta.recipes.prompts import Prompt


@dataclass(frozen=True)
class Item:
    """One row to be made. ``clip``: a manifest row with known ``duration``; ``prompt`` None: an LLM will propose it.

    ``seed`` is derived from the recipe's seed and the row's id.
    """

    id: str
    clip: Mapping[str, Any]
    description: str
    prompt: Prompt | None
    seed: int


class Rejection(NamedTuple):
    """Why a row is rejected. ``reason``: a short fixed phrase for counting; ``detail``: what was found in this row."""

    reason: str
    detail: str
