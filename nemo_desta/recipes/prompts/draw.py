"""The seeded draw of prompts for one clip: even over kinds, only what is answerable, fast for pools of thousands."""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, overload

from nemo_desta.recipes.describe import NOT_AUDIBLE, audible_names
from nemo_desta.recipes.prompts.fill import ValueLists, fill
from nemo_desta.recipes.prompts.prompt import Prompt

#: A kind that fewer prompts fit (formats not counted) is drawn less often, in proportion.
_ENOUGH = 10

#: What sets of attributes rows hold and what fits them is remembered; this many sets, then anew.
_REMEMBERED = 1024


def draw(
    prompts: Sequence[Prompt],
    row: Mapping[str, Any],
    count: int,
    *,
    seed: int,
    exclude: Collection[str] = NOT_AUDIBLE,
) -> list[Prompt]:
    """Up to ``count`` different answerable prompts, filled, the same for a row whatever other rows there are.

    A larger ``count`` only adds to the prompts of a smaller one. Each prompt's kind is drawn first, evenly over the
    kinds that fit (those that few prompts fit come less often, so that these are not worn out); then, evenly, whether
    it asks for a format; then the prompt. A plain list is looked through at every call: for many rows hand in a
    `PromptPool`.
    """
    pool = prompts if isinstance(prompts, PromptPool) else PromptPool(prompts)
    return pool.draw(row, count, seed=seed, exclude=exclude)


def answerable(
    prompts: Sequence[Prompt], row: Mapping[str, Any], exclude: Collection[str] = NOT_AUDIBLE
) -> list[Prompt]:
    """The prompts that fit the row's domain and ask only for what its description holds, templates unfilled."""
    held = held_names(row, exclude)
    fitting = (p for p in prompts if _fits(p, row["domain"], held))
    return [p for p in fitting if fill(p, row, seed=0, values=getattr(prompts, "values", None)) is not None]


def held_names(row: Mapping[str, Any], exclude: Collection[str] = NOT_AUDIBLE) -> set[str]:
    """`audible_names`, and the number of speakers where segments tell them apart."""
    held = audible_names(row, exclude)
    if any(segment.get("speaker") is not None for segment in row.get("segments") or []):
        held.add("number_of_speakers")
    return held


class PromptPool(Sequence[Prompt]):
    """Prompts that are ready to be drawn from for many rows.

    ``values``: what attributes can be, for wrong options (see `fill`), best those of the corpus itself;
    ``constraint_share``: how often a prompt that asks for a format is drawn, of a kind that has both.
    """

    def __init__(
        self, prompts: Sequence[Prompt], *, values: ValueLists | None = None, constraint_share: float = 0.5
    ) -> None:
        self.prompts = tuple(prompts)
        self.values = values
        self.constraint_share = constraint_share
        self._audible: dict[Any, bool] = {}
        self._held: dict[Any, frozenset[str]] = {}
        self._strata: dict[Any, list[tuple[_Kind, int]]] = {}

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        return self.prompts[index]

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(
        self, row: Mapping[str, Any], count: int, *, seed: int, exclude: Collection[str] = NOT_AUDIBLE
    ) -> list[Prompt]:
        """See `draw`."""
        rng = random.Random(f"{seed}:{row['id']}")
        fitting = self._fitting(row, frozenset(exclude))
        kinds: list[_Kind | _Lots] = [kind for kind, _ in fitting]
        shares = [share for _, share in fitting]
        whole = sum(shares)
        drawn: list[Prompt] = []
        while kinds and len(drawn) < count:
            point, number = rng.random() * whole, 0
            while point >= shares[number] and number < len(shares) - 1:
                point -= shares[number]
                number += 1
            kind = kinds[number]
            if not isinstance(kind, _Lots):
                kind = kinds[number] = _Lots(kind)
            prompt = kind.take(rng, self.constraint_share)
            if not any(kind.lefts):
                whole -= shares[number]
                del kinds[number], shares[number]
            if (filled := fill(prompt, row, seed=seed, values=self.values)) is not None:
                drawn.append(filled)
        return drawn

    def _fitting(self, row: Mapping[str, Any], exclude: frozenset[str]) -> list[tuple["_Kind", int]]:
        """The kinds that fit, each with its share of the draws."""
        marks = _marks(row)
        held = self._held.get((marks, exclude))
        if held is None:
            held = frozenset(name for name, exact in marks if self._is_audible(name, exact, exclude))
            _remember(self._held, (marks, exclude), held)
        key = (row["domain"], held)
        strata = self._strata.get(key)
        if strata is None:
            by_kind: dict[str, _Kind] = {}
            for prompt in self.prompts:
                if _fits(prompt, row["domain"], held):
                    plain, constrained = by_kind.setdefault(prompt.kind, ([], []))
                    (plain if prompt.constraint is None else constrained).append(prompt)
            shares = [(kind, min(_ENOUGH, len(kind[0]) or len(kind[1]))) for kind in by_kind.values()]
            strata = _remember(self._strata, key, shares)
        return strata

    def _is_audible(self, name: str, exact: bool, exclude: frozenset[str]) -> bool:
        if name in ("transcript", "caption", "number_of_speakers"):
            return True
        key = (name, exact, exclude)
        if key not in self._audible:
            self._audible[key] = name in audible_names({"attributes": {name: 1 if exact else "x"}}, exclude)
        return self._audible[key]


#: Prompts of one kind: those without a constraint and those with one.
_Kind = tuple[list[Prompt], list[Prompt]]


class _Lots:
    """Draws without putting back; what was drawn is noted, nothing is copied."""

    def __init__(self, kind: _Kind) -> None:
        self.lists = kind
        self.lefts = [len(kind[0]), len(kind[1])]
        self.moved: tuple[dict[int, int], dict[int, int]] = ({}, {})

    def take(self, rng: random.Random, constraint_share: float) -> Prompt:
        """One of those that are left, even within the list that the share decides for."""
        which = int(rng.random() < constraint_share) if all(self.lefts) else int(self.lefts[0] == 0)
        self.lefts[which] -= 1
        last, moved = self.lefts[which], self.moved[which]
        place = int(rng.random() * (last + 1))
        picked = moved.get(place, place)
        moved[place] = moved.get(last, last)
        return self.lists[which][picked]


def _fits(prompt: Prompt, domain: str, held: Collection[str]) -> bool:
    return (not prompt.domains or domain in prompt.domains) and all(name in held for name in prompt.requires)


def _marks(row: Mapping[str, Any]) -> frozenset[tuple[str, bool]]:
    """Names of what the row holds, with whether it is an age in years: what `held_names` depends on."""
    segments, speakers = row.get("segments"), row.get("speakers")
    marks = set(_marks_of(row.get("attributes")))
    for part in (row, *(segments or ())):
        marks.update((name, False) for name in ("transcript", "caption") if _is_known(part.get(name)))
    for segment in segments or ():
        marks.update(_marks_of(segment.get("attributes")))
        if segment.get("speaker") is not None:
            marks.add(("number_of_speakers", False))
    for attributes in (speakers or {}).values():
        marks.update(_marks_of(attributes))
    return frozenset(marks)


def _marks_of(attributes: Mapping[str, Any] | None) -> Iterator[tuple[str, bool]]:
    for name, value in (attributes or {}).items():
        if _is_known(value):
            yield name, name.endswith("age") and _is_years(name, value)


def _is_years(name: str, value: Any) -> bool:
    if name != "age" and not name.endswith("_age"):
        return False
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number or str(value).strip().isdigit()


def _is_known(value: Any) -> bool:
    if isinstance(value, str):
        return not value.isspace() and value != ""
    return any(_is_known(one) for one in value) if isinstance(value, (list, tuple)) else value is not None


def _remember(memory: dict[Any, Any], key: Any, value: Any) -> Any:
    if len(memory) >= _REMEMBERED:
        memory.clear()
    memory[key] = value
    return value
