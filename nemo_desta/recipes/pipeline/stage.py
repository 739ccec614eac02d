"""What the driver asks of a stage: which rows a unit of input becomes, and one row at a time."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from nemo_desta.recipes.items import Verdict


class Outcome(NamedTuple):
    """What became of one wanted row: kept (``verdict`` None), or not; ``row`` is what there was to keep, if anything.

    ``attempts``: answers that were asked for. Tokens are all that the row cost, rejected attempts included.
    """

    row: dict[str, Any] | None
    verdict: Verdict | None = None
    attempts: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


class Wanted(NamedTuple):
    """One row to be made. ``id`` is unique in the run; ``item`` is for the stage alone, and None when the row's fate
    (``verdict``) is known before any LLM is asked."""

    id: str
    item: Any
    verdict: Verdict | None = None


class Stage(Protocol):
    """A pure function of a row and its seed; ``rows_per_unit``: rows that one unit is expected to become."""

    rows_per_unit: int

    def wanted(self, unit: Mapping[str, Any]) -> Sequence[Wanted]:
        """The rows that one unit (a clip, or a row of an earlier stage) shall become; the same in every run."""
        ...

    async def make(self, item: Any) -> Outcome:
        """One row. Raises `EngineError` when the run cannot go on."""
        ...
