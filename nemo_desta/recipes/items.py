"""What passes between the stages of a recipe: a row that is to be made, and why one was not kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from nemo_desta.recipes.prompts import Prompt


@dataclass(frozen=True)
class Item:
    """One row to be made: ``clip`` is a manifest row with known ``duration``; ``prompt`` None: still to be proposed.

    ``seed`` belongs to the row: it follows from the recipe's seed and the row's id alone.
    """

    id: str
    clip: Mapping[str, Any]
    description: str
    prompt: Prompt | None
    seed: int


class Verdict(NamedTuple):
    """Why a row is not kept. ``reason``: a short fixed phrase to count by; ``detail``: what was found in this row."""

    reason: str
    detail: str
