"""Renders the HTML reports from the package's own templates. Row texts are data: Jinja2 escapes every one of them.

A report is one file. Its content policy allows the style, the script and embedded sound, so it loads nothing.
"""

import base64
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_PACKAGE = Path(__file__).resolve().parents[2]
_MAX_TEXT = 6000


def render(template: str, **values: Any) -> str:
    """The HTML of a template of the package, such as ``evaluation/report.html.jinja``, for these ``values``."""
    return _environment().get_template(template).render(values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    templates = _PACKAGE / "recipes/report/templates"
    script = (templates / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "style": (templates / "style.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": digest,
        "ticks": _ticks,
    }
    environment.filters |= {
        "json": lambda value: json.dumps(value, ensure_ascii=False, indent=1),
        "clipped": _clipped,
        "form": format,
        "thousands": lambda value: f"{value:,}",
        "percent": _percent,
        "hours": _hours,
        "perplexity": _perplexity,
        "short": _short,
    }
    return environment


def _clipped(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text) - _MAX_TEXT:,} more characters)"


def _percent(share: float) -> str:
    """A share in percent. A share above 0 is never shown as 0."""
    return "<0.1\u202f%" if 0 < share < 0.0005 else f"{100 * share:.1f}\u202f%"


def _hours(number: float) -> str:
    """A time in hours, minutes or seconds, whichever is readable."""
    if number >= 1:
        return f"{number:,.1f}\u202fh"
    return f"{60 * number:.1f}\u202fmin" if number * 60 >= 1 else f"{3600 * number:.0f}\u202fs"


def _perplexity(value: float) -> str:
    return f"{value:.3f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.2g}"


def _short(number: float) -> str:
    """1234 as 1.2k."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + sign
    return f"{number:g}"


def _ticks(highest: int) -> list[int]:
    """Two to five round numbers from 0 to ``highest``."""
    size = 10 ** (len(str(highest)) - 1)
    step = next(s for s in (size // 5, size // 2, size, 2 * size) if s >= 1 and highest <= 5 * s)
    return list(range(0, highest + 1, step))
