"""Types shared by the stages of a recipe and its driver: rows to be made, their outcomes, reasons of rejection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from nemo_desta.recipes.languages import ENGLISH, Language
from nemo_desta.recipes.prompts import Prompt


@dataclass(frozen=True)
class Item:
    """One row to be made. ``clip``: a manifest row with known ``duration``; ``prompt`` None: an LLM will propose it.
    ``seed`` is derived from the recipe's seed and the row's id. ``language``: of the description and the prompt."""

    id: str
    clip: Mapping[str, Any]
    description: str
    prompt: Prompt | None
    seed: int
    language: Language = ENGLISH


class Rejection(NamedTuple):
    """Why a row is rejected. ``reason``: a short fixed phrase for counting; ``detail``: what was found in this row."""

    reason: str
    detail: str


class Outcome(NamedTuple):
    """The result for one wanted row: kept (``verdict`` None) or rejected; ``row`` may be None if rejected.
    ``attempts``: number of answers generated. Token counts include rejected attempts."""

    row: dict[str, Any] | None
    verdict: Rejection | None = None
    attempts: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


class Wanted(NamedTuple):
    """One row to be made. ``id`` is unique in the run. ``item`` is read by the stage only; it is None when the row is
    rejected (``verdict``) before any LLM is queried."""

    id: str
    item: Any
    verdict: Rejection | None = None


class Stage(Protocol):
    """A pure function of a row and its seed. ``rows_per_unit``: expected number of rows per unit."""

    rows_per_unit: int

    def wanted(self, unit: Mapping[str, Any]) -> Sequence[Wanted]:
        """The rows that one unit (a clip, or a row of an earlier stage) should become; the same in every run."""

    async def make(self, item: Any) -> Outcome:
        """Make one row. Raises `EngineError` when the run cannot continue."""
