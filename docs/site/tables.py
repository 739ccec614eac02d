"""Writes the tables of docs/ that are made from the cards of nemo_desta/verified: `make docs-tables`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from nemo_desta.verified import cards, table  # noqa: E402  (needs the path above)

PAGES = ("docs/install.md",)
BETWEEN = re.compile(r"(<!-- cards: begin -->\n).*?(<!-- cards: end -->)", re.DOTALL)


def with_table(text: str) -> str:
    """A page with the current table between its two markers.

    Raises:
        ValueError: the page has no pair of markers.
    """
    found, count = BETWEEN.subn(lambda match: f"{match[1]}{table(cards())}\n{match[2]}", text)
    if count != 1:
        raise ValueError(
            f"one pair of markers '<!-- cards: begin -->' and '<!-- cards: end -->' needed, found {count}"
        )
    return found


if __name__ == "__main__":
    for page in PAGES:
        file = ROOT / page
        file.write_text(with_table(file.read_text(encoding="utf-8")), encoding="utf-8")
