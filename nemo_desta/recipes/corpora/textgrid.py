"""Praat's TextGrid files, in the long text format that corpora ship: each labelled interval is a row."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_desta.recipes.corpora.card_keys import SourceConfig
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.files import lines

_KEY = re.compile(r"(name|xmin|xmax|text|mark|time)\s*=\s*(.*?)\s*", re.DOTALL)


def textgrid_rows(path: Path, source: SourceConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows ``tier, start, end, text`` (seconds); intervals without a label are left out.

    Raises ``CorpusError``: a line that is cut, or a file without a tier (the short format has no keys).
    """
    tier, interval, tiers = None, {}, 0
    open_text: list[str] = []
    for number, line in lines(path):
        if open_text:  # a label may go over several lines
            open_text.append(line)
            value = "".join(open_text).rstrip()
        else:
            found = _KEY.fullmatch(line.strip())
            if found is None:
                if re.match(r"\s*intervals\s*\[", line):
                    interval = {}
                continue
            key, value = found.groups()
        if key in ("name", "text", "mark"):
            if value.count('"') % 2 or len(value) < 2:
                open_text = open_text or [line.split("=", 1)[1].lstrip()]
                continue
            open_text = []
            value = " ".join(value[1:-1].replace('""', '"').split())
        if key == "name":
            tier, tiers = value, tiers + 1
        elif key in ("xmin", "xmax"):
            interval["start" if key == "xmin" else "end"] = _number(value, f"{path}:{number}")
        elif key == "text" and value and len(interval) == 2:
            yield f"{path}:{number}", {"tier": tier, **interval, "text": value}
    if open_text or not tiers:
        what = "a label has no closing quote" if open_text else "no tier; only the long text format is read"
        raise CorpusError(f"{path}: not a whole TextGrid ({what})")


def _number(value: str, where: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise CorpusError(f"{where}: expected seconds, found {value!r:.80}") from None
