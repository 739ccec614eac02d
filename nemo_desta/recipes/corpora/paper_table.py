"""A table of rows and hours per set, with the figures of the papers that used it beside them (cards' ``papers``)."""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from nemo_desta.recipes.corpora.card import read_card, shipped_cards
from nemo_desta.recipes.corpora.card_keys import PaperConfig


class Found(NamedTuple):
    """What there is of a set; ``hours`` None: not known."""

    rows: int
    hours: float | None


def paper_table(found: Mapping[str, Found]) -> str:
    """One line per set, and a sum. ``found`` is keyed by a card's name, or by what a paper calls the corpus.

    A paper has columns where it states figures for a set that is there; its sum is over those sets.
    """
    of_set = {name: _papers(name) for name in found}
    papers = sorted({paper for those in of_set.values() for paper, one in those.items() if one.rows is not None})
    lines = [["set", "rows", "hours", *(column for paper in papers for column in (f"{paper}'s rows", "hours"))]]
    for name, one in found.items():
        figures = [of_set[name].get(paper) for paper in papers]
        stated = [value for figure in figures for value in (figure and figure.rows, figure and figure.hours)]
        lines.append([name, *map(_shown, (*one, *stated))])
    sums = [sum(one.rows for one in found.values()), _sum(one.hours for one in found.values())]
    for paper in papers:
        those = [of_set[name][paper] for name in found if paper in of_set[name]]
        sums += [_sum(one.rows for one in those), _sum(one.hours for one in those)]
    lines.append(["all", *map(_shown, sums)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) if number == 0 else text.rjust(width) for number, (text, width) in cells).rstrip()
        for cells in (list(enumerate(zip(line, widths, strict=True))) for line in lines)
    )


def _papers(name: str) -> Mapping[str, PaperConfig]:
    cards = _cards()
    called = next((card for card, papers in cards.items() if name in [one.name for one in papers.values()]), None)
    return cards.get(name) or cards.get(called or "") or {}


@cache
def _cards() -> dict[str, dict[str, PaperConfig]]:
    return {name: read_card(name).papers for name in shipped_cards()}


def _sum(values) -> float | int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
