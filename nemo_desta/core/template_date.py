"""Render a chat template that writes today's date (``strftime_now``) with a given date: the same prompt on any day.

A template calls transformers' own clock, and no other function can be passed to it. So a macro of the same name is put
before the template; it reads the date from plain values.
"""

import re
from datetime import datetime
from typing import Any

NAME = "strftime_now"
_VALUES = "nemo_desta_dates"
#: Jinja removes the newline after a block, so the macro adds nothing to the rendered text.
_MACRO = (
    f"{{% macro {NAME}(format) %}}{{{{ {_VALUES}[format] if format in {_VALUES} else raise_exception("
    f"'no literal date format: ' ~ format) }}}}{{% endmacro %}}\n"
)
_LITERAL = re.compile(r"'([^'\n]*%[^'\n]*)'|\"([^\"\n]*%[^\"\n]*)\"")


def reads_clock(template: str) -> bool:
    """Whether a chat template can write today's date."""
    return NAME in template


def with_date(template: str, date: datetime) -> dict[str, Any]:
    """Arguments of ``apply_chat_template`` that make ``template`` write ``date``; empty if it writes no date.

    A format must be a literal in the template; with any other, rendering fails.
    """
    if not reads_clock(template):
        return {}
    formats = {single or double for single, double in _LITERAL.findall(template)}
    return {"chat_template": _MACRO + template, _VALUES: {format: date.strftime(format) for format in formats}}
