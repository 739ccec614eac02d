"""The seeded draw of prompts for one clip: uniform over kinds, only answerable ones, fast for large pools."""

import random
from collections import UserList
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

from nemo_desta.recipes.describe import NOT_AUDIBLE, audible_names
from nemo_desta.recipes.languages import ENGLISH, Language
from nemo_desta.recipes.prompts.fill import ValueLists, fill
from nemo_desta.recipes.prompts.prompt import Prompt

#: A kind with fewer fitting prompts (formats not counted) is drawn proportionally less often.
_ENOUGH = 10

#: Prompts of one kind: those without a constraint and those with one.
_Kind = tuple[list[Prompt], list[Prompt]]


def draw(
    prompts: Sequence[Prompt], row: Mapping[str, Any], count: int, *, seed: int, exclude: Collection[str] = NOT_AUDIBLE
) -> list[Prompt]:
    """Up to ``count`` different answerable prompts, filled. The result does not depend on other rows.

    A larger ``count`` only adds prompts to those of a smaller one. First the kind is drawn, uniformly over the fitting
    kinds (kinds with few fitting prompts, or with prompts of low weight, come less often); then whether the prompt
    asks for a format; then the prompt, by its weight. A plain list is searched at every call: for many rows pass a
    `PromptPool`.
    """
    pool = prompts if isinstance(prompts, PromptPool) else PromptPool(prompts)
    return pool.draw(row, count, seed=seed, exclude=exclude)


def answerable(
    prompts: Sequence[Prompt], row: Mapping[str, Any], exclude: Collection[str] = NOT_AUDIBLE
) -> list[Prompt]:
    """The prompts that fit the row's domain and ask only for what its description contains, templates unfilled."""
    held = held_names(row, exclude)
    fitting = (p for p in prompts if fits(p, row["domain"], held))
    filling = {"values": getattr(prompts, "values", None), "language": getattr(prompts, "language", ENGLISH)}
    return [p for p in fitting if fill(p, row, seed=0, **filling) is not None]


def held_names(row: Mapping[str, Any], exclude: Collection[str] = NOT_AUDIBLE) -> set[str]:
    """`audible_names`, and the number of speakers where segments tell them apart."""
    held = audible_names(row, exclude)
    if any(segment.get("speaker") is not None for segment in row.get("segments") or []):
        held.add("number_of_speakers")
    return held


class PromptPool(UserList[Prompt]):
    """Prompts prepared for drawing for many rows; not to be changed.

    ``values``: possible values of attributes, for wrong options (see `fill`), ideally those of the corpus itself;
    ``constraint_share``: how often, within a kind that has both, a prompt that asks for a format is drawn;
    ``language``: that of the prompts, and of the clips' values.
    """

    def __init__(
        self,
        prompts: Iterable[Prompt],
        *,
        values: ValueLists | None = None,
        constraint_share: float = 0.5,
        language: Language = ENGLISH,
    ) -> None:
        super().__init__(prompts)
        self.values = values
        self.language = language
        self.constraint_share = constraint_share
        self._weighted = any(prompt.weight != 1 for prompt in self)
        self._fitting = lru_cache(1024)(self._find_fitting)

    def draw(
        self, row: Mapping[str, Any], count: int, *, seed: int, exclude: Collection[str] = NOT_AUDIBLE
    ) -> list[Prompt]:
        """See `draw`."""
        rng = random.Random(f"{seed}:{row['id']}")
        fitting = self._fitting(row["domain"], frozenset(held_names(row, exclude)))
        lots_of = _WeightedLots if self._weighted else _Lots
        kinds = [(lots_of(plain), lots_of(constrained)) for (plain, constrained), _ in fitting]
        shares = [share for _, share in fitting]
        drawn: list[Prompt] = []
        while kinds and len(drawn) < count:
            number = rng.choices(range(len(kinds)), shares)[0]
            plain, constrained = kinds[number]
            if plain.left and constrained.left:
                lots = constrained if rng.random() < self.constraint_share else plain
            else:
                lots = plain if plain.left else constrained
            prompt = lots.take(rng)
            if not plain.left and not constrained.left:
                del kinds[number], shares[number]
            if (filled := fill(prompt, row, seed=seed, values=self.values, language=self.language)) is not None:
                drawn.append(filled)
        return drawn

    def _find_fitting(self, domain: str, held: frozenset[str]) -> list[tuple[_Kind, float]]:
        """The fitting prompts by kind, each kind with its share of the draws."""
        by_kind: dict[str, _Kind] = {}
        for prompt in self:
            if fits(prompt, domain, held):
                by_kind.setdefault(prompt.kind, ([], []))[prompt.constraint is not None].append(prompt)
        return [(kind, _share(kind[0] or kind[1])) for kind in by_kind.values()]


def _share(prompts: Sequence[Prompt]) -> float:
    return min(_ENOUGH, len(prompts)) * fmean(prompt.weight for prompt in prompts)


class _WeightedLots:
    """Draws from one list without replacement, by weight."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self.rest = list(prompts)

    @property
    def left(self) -> int:
        return len(self.rest)

    def take(self, rng: random.Random) -> Prompt:
        return self.rest.pop(rng.choices(range(len(self.rest)), [prompt.weight for prompt in self.rest])[0])


class _Lots:
    """Draws from one list without replacement (sparse Fisher-Yates shuffle), without copying it."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self.prompts, self.left, self.moved = prompts, len(prompts), {}

    def take(self, rng: random.Random) -> Prompt:
        self.left -= 1
        place = int(rng.random() * (self.left + 1))
        picked = self.moved.get(place, place)
        self.moved[place] = self.moved.get(self.left, self.left)
        return self.prompts[picked]


def fits(prompt: Prompt, domain: str, held: Collection[str]) -> bool:
    """Whether a prompt fits a clip of ``domain`` whose description holds the names ``held``."""
    return (not prompt.domains or domain in prompt.domains) and all(name in held for name in prompt.requires)
