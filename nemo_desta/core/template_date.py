"""A chat template that writes today's date (``strftime_now``) with a date that is given: the same prompt on any day.

transformers lets a template call its own clock and passes no function into it. A macro of the same name in front of
the template reads the date from plain values instead.
"""

import re
from datetime import datetime
from typing import Any

NAME = "strftime_now"
_VALUES = "nemo_desta_dates"
#: Jinja removes the one newline behind a block, so the template itself begins on a line of its own, as before.
_MACRO = (
    f"{{% macro {NAME}(format) %}}{{{{ {_VALUES}[format] if format in {_VALUES} else raise_exception("
    f"'no literal date format: ' ~ format) }}}}{{% endmacro %}}\n"
)
_LITERAL = re.compile(r"'([^'\n]*%[^'\n]*)'|\"([^\"\n]*%[^\"\n]*)\"")


def reads_clock(template: str) -> bool:
    """Whether a chat template can ask for today's date."""
    return NAME in template


def with_date(template: str, date: datetime) -> dict[str, Any]:
    """Arguments of ``apply_chat_template`` that make ``template`` write ``date``; none if it reads no clock.

    A format must stand in the template as a literal; the template refuses to render with any other.
    """
    if not reads_clock(template):
        return {}
    formats = {single or double for single, double in _LITERAL.findall(template)}
    return {"chat_template": _MACRO + template, _VALUES: {format: date.strftime(format) for format in formats}}
