"""The seeded draw of prompts for one clip: uniform over kinds, only answerable ones, fast for large pools."""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any, overload

from nemo_desta.recipes.describe import NOT_AUDIBLE, audible_names
from nemo_desta.recipes.prompts.fill import ValueLists, fill
from nemo_desta.recipes.prompts.prompt import Prompt

#: A kind with fewer fitting prompts (formats not counted) is drawn proportionally less often.
_ENOUGH = 10

#: Size of the cache (domain, attributes held) -> prompts that fit; a full cache is emptied.
_REMEMBERED = 1024


def draw(
    prompts: Sequence[Prompt],
    row: Mapping[str, Any],
    count: int,
    *,
    seed: int,
    exclude: Collection[str] = NOT_AUDIBLE,
) -> list[Prompt]:
    """Up to ``count`` different answerable prompts, filled. The result does not depend on other rows.

    A larger ``count`` only adds prompts to those of a smaller one. First the kind is drawn, uniformly over the fitting
    kinds (kinds with few fitting prompts come less often, so that these are not overused); then whether the prompt
    asks for a format; then the prompt. A plain list is searched at every call: for many rows pass a `PromptPool`.
    """
    pool = prompts if isinstance(prompts, PromptPool) else PromptPool(prompts)
    return pool.draw(row, count, seed=seed, exclude=exclude)


def answerable(
    prompts: Sequence[Prompt], row: Mapping[str, Any], exclude: Collection[str] = NOT_AUDIBLE
) -> list[Prompt]:
    """The prompts that fit the row's domain and ask only for what its description contains, templates unfilled."""
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
    """Prompts prepared for drawing for many rows.

    ``values``: possible values of attributes, for wrong options (see `fill`), ideally those of the corpus itself;
    ``constraint_share``: how often, within a kind that has both, a prompt that asks for a format is drawn.
    """

    def __init__(
        self, prompts: Sequence[Prompt], *, values: ValueLists | None = None, constraint_share: float = 0.5
    ) -> None:
        self.prompts = tuple(prompts)
        self.values = values
        self.constraint_share = constraint_share
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
        """The fitting kinds, each with its share of the draws."""
        held = frozenset(held_names(row, exclude))
        key = (row["domain"], held)
        if key not in self._strata:
            by_kind: dict[str, _Kind] = {}
            for prompt in self.prompts:
                if _fits(prompt, row["domain"], held):
                    plain, constrained = by_kind.setdefault(prompt.kind, ([], []))
                    (plain if prompt.constraint is None else constrained).append(prompt)
            if len(self._strata) >= _REMEMBERED:
                self._strata.clear()
            self._strata[key] = [(kind, min(_ENOUGH, len(kind[0]) or len(kind[1]))) for kind in by_kind.values()]
        return self._strata[key]


#: Prompts of one kind: those without a constraint and those with one.
_Kind = tuple[list[Prompt], list[Prompt]]


class _Lots:
    """Draws without replacement (sparse Fisher-Yates shuffle), without copying the lists."""

    def __init__(self, kind: _Kind) -> None:
        self.lists = kind
        self.lefts = [len(kind[0]), len(kind[1])]
        self.moved: tuple[dict[int, int], dict[int, int]] = ({}, {})

    def take(self, rng: random.Random, constraint_share: float) -> Prompt:
        """One of the remaining prompts, uniformly from the list that the share selects."""
        which = int(rng.random() < constraint_share) if all(self.lefts) else int(self.lefts[0] == 0)
        self.lefts[which] -= 1
        last, moved = self.lefts[which], self.moved[which]
        place = int(rng.random() * (last + 1))
        picked = moved.get(place, place)
        moved[place] = moved.get(last, last)
        return self.lists[which][picked]


def _fits(prompt: Prompt, domain: str, held: Collection[str]) -> bool:
    return (not prompt.domains or domain in prompt.domains) and all(name in held for name in prompt.requires)
