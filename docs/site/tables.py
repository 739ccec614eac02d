"""Writes the tables of docs/ that are made from the cards of nemo_desta/verified: `make docs-tables`."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from nemo_desta.verified import cards, table  # noqa: E402  (needs the path above)

#: Page -> words of which one is in the capability of each card that it shows.
PAGES = {
    "docs/install.md": ("",),
    "docs/megatron.md": ("egatron",),
    "docs/stacks.md": ("Python", "stack", "Stack", "Container"),
}
BETWEEN = re.compile(r"(<!-- cards: begin -->\n).*?(<!-- cards: end -->)", re.DOTALL)


def with_table(text: str, words: tuple[str, ...]) -> str:
    """A page with the current table of the cards that hold one of ``words`` between its two markers.

    Raises:
        ValueError: the page has no pair of markers.
    """
    chosen = [card for card in cards() if any(word in card.capability for word in words)]
    found, count = BETWEEN.subn(lambda match: f"{match[1]}{table(chosen)}\n{match[2]}", text)
    if count != 1:
        raise ValueError(
            f"one pair of markers '<!-- cards: begin -->' and '<!-- cards: end -->' needed, found {count}"
        )
    return found


if __name__ == "__main__":
    for page, words in PAGES.items():
        file = ROOT / page
        file.write_text(with_table(file.read_text(encoding="utf-8"), words), encoding="utf-8")
