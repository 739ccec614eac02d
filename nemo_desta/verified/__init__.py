"""What was run, where, and with which result: one card per capability, the files of ``cards/``.

The tables of what was run where come from the cards: `desta doctor --verified`, docs/install.md, a page of the site.
Reading them needs neither torch nor a checkout.
"""

import datetime
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nemo_desta.config import MISSING, nearest, parse
from nemo_desta.errors import ConfigError

FOLDER = Path(__file__).resolve().parent / "cards"
STATUSES = {
    "verified": "run on the hardware that it is made for",
    "simulated": "run on CPU cores, with tiny models or stand-ins of servers, GPUs or several machines",
    "unverified": "never run",
    "unsupported": "refused by name",
}
#: The date of a card whose command is part of `.ci/run`.
ALWAYS = "every change"


@dataclass(frozen=True)
class Card:
    """One capability of the package. A card must give every key.

    Attributes:
        capability: its name, unique.
        status: one of `STATUSES`.
        what: one sentence that says what was run, or what is refused.
        command: runs it again.
        expected: the result; null for what was never run.
        versions: package -> version, or versions, that it was run with; empty for what was never run or not recorded.
        hardware: where it was run; null for what was never run.
        date: the day of the run, or `ALWAYS`; null for what was never run.
        commit: hash of the commit that recorded the result; null if there is none.
        notes: limits; may be empty.
    """

    capability: str = MISSING
    status: str = MISSING
    what: str = MISSING
    command: str = MISSING
    expected: str | None = None
    versions: dict[str, str | list[str]] | None = None
    hardware: str | None = None
    date: str | None = None
    commit: str | None = None
    notes: str = ""

    def versions_of(self, package: str) -> list[str]:
        found = (self.versions or {}).get(package, [])
        return [found] if isinstance(found, str) else found


def cards(folder: Path = FOLDER) -> list[Card]:
    """All cards, in the order of `STATUSES`, then by capability.

    Raises:
        ConfigError: a card that is invalid, or two cards of one capability.
    """
    import yaml

    found: dict[str, Card] = {}
    for file in sorted(folder.glob("*.yaml")):
        card = read(yaml.safe_load(file.read_text(encoding="utf-8")), file.name)
        if card.capability in found:
            raise ConfigError(f"{file.name}: another card has the capability '{card.capability}'")
        found[card.capability] = card
    return sorted(found.values(), key=lambda card: (list(STATUSES).index(card.status), card.capability.lower()))


def read(values: Any, where: str) -> Card:
    """A card from the content of its file, ``where``.

    Raises:
        ConfigError: a key that is unknown or missing, a wrong value, or a status that its other keys contradict.
    """
    if isinstance(values, dict):
        values = {key: str(value) if isinstance(value, datetime.date) else value for key, value in values.items()}
    card = parse(Card, values, where)
    if missing := [field.name for field in fields(Card) if field.name not in values]:
        raise ConfigError(f"{where}: missing keys: {', '.join(missing)}")
    if card.status not in STATUSES:
        raise ConfigError(f"{where}: unknown status '{card.status}'.{nearest(card.status, STATUSES)}")
    for key, text in (("capability", card.capability), ("what", card.what), ("command", card.command)):
        if not text.strip() or "\n" in text.strip() or "|" in text:
            raise ConfigError(f"{where}: '{key}' must be one line of text without '|', found {text!r}")
    if card.date not in (None, ALWAYS) and not _is_date(card.date):
        raise ConfigError(f"{where}: 'date' must be a day (2026-11-26), '{ALWAYS}' or null, found {card.date!r}")
    if card.commit is not None and not re.fullmatch(r"[0-9a-f]{7,40}", card.commit):
        raise ConfigError(f"{where}: 'commit' must be a hash of 7 to 40 hex digits in quotes, found {card.commit!r}")
    run = card.status in ("verified", "simulated")
    for key in ("expected", "hardware", "date"):
        if (getattr(card, key) is not None) != run:
            rule = "must be given" if run else "must be null"
            raise ConfigError(f"{where}: '{key}' {rule} for the status '{card.status}', found {getattr(card, key)!r}")
    if card.versions and not run:
        raise ConfigError(f"{where}: 'versions' must be {{}} for the status '{card.status}', found {card.versions!r}")
    return card


def other_versions(card: Card, installed: Callable[[str], str | None]) -> str:
    """How the installed packages differ from those of the card: "torch 2.11.0, here 2.13.0"; empty if they do not."""
    found = []
    for package in card.versions or {}:
        versions, here = card.versions_of(package), installed(package)
        if here is None or here.partition("+")[0] not in versions:
            found.append(f"{package} {' or '.join(versions)}, here {here or 'none'}")
    if not found and card.date and not card.versions:
        return "versions not recorded"
    return "; ".join(found)


def report(installed: Callable[[str], str | None], folder: Path = FOLDER) -> str:
    """The cards as a table of text: first those that hold for the installed packages, then those of other versions."""
    found = cards(folder)
    notes = [other_versions(card, installed) for card in found]
    rows = [("status", "capability", "hardware", "date", "")]
    rows += [
        (card.status, card.capability, card.hardware or "-", card.date or "-", note)
        for card, note in zip(found, notes, strict=True)
    ]
    title, *lines = _aligned(rows)
    same = [line for line, note in zip(lines, notes, strict=True) if not note]
    other = [line for line, note in zip(lines, notes, strict=True) if note]
    text = [*(f"{status}: {meaning}" for status, meaning in STATUSES.items()), "", title, *same]
    return "\n".join(
        text + (["", "Run with other versions than the installed ones, or unknown ones", *other] if other else [])
    )


def table(shown: Iterable[Card]) -> str:
    """The cards as a table in Markdown, one row each."""
    rows = [
        f"| {card.status} | {card.capability} | {card.expected or card.notes or '-'} "
        f"| {card.hardware or '-'} | {card.date or '-'} |"
        for card in shown
    ]
    return "\n".join(["| status | capability | result | hardware | date |", "|---|---|---|---|---|", *rows])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _is_date(text: str) -> bool:
    try:
        return str(datetime.date.fromisoformat(text)) == text
    except ValueError:
        return False
