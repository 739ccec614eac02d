"""Small pieces of HTML and numbers in words, for the sections of a report."""


def card(title: str, body: str) -> str:
    """A box with a title; both are HTML."""
    return f'<section class="card"><h3>{title}</h3>{body}</section>'


def table(head: list[str] | None, lines: list[list[str]], *, wide: bool = False) -> str:
    """Cells are HTML; all but the first of a line are numbers. ``wide``: scrolls sideways where room is short."""
    top = f"<thead><tr>{_cells(head, 'th')}</tr></thead>" if head else ""
    body = "".join(f"<tr>{_cells(line, 'td')}</tr>" for line in lines)
    html = f'<table class="plain{" wide" if wide else ""}">{top}<tbody>{body}</tbody></table>'
    return f'<div class="scroll">{html}</div>' if wide else html


def percent(part: float) -> str:
    """A share in percent, never rounded down to nothing."""
    return "&lt;0.1&#8239;%" if 0 < part < 0.0005 else f"{100 * part:.1f}&#8239;%"


def hours(number: float) -> str:
    """A time, given in hours, in the unit that suits it."""
    if number >= 1:
        return f"{number:,.1f}&#8239;h"
    return f"{60 * number:.1f}&#8239;min" if number * 60 >= 1 else f"{3600 * number:.0f}&#8239;s"


def none(text: str) -> str:
    """Says in words that there is nothing; ``text`` is HTML."""
    return f'<p class="none">{text}</p>'


def note(text: str) -> str:
    """A remark; ``text`` is HTML."""
    return f'<p class="note">{text}</p>'


def examples(items: list[str]) -> str:
    """A list of HTML items in small print; nothing for none."""
    return f'<ul class="examples">{"".join(f"<li>{item}</li>" for item in items)}</ul>' if items else ""


def _cells(cells: list[str], tag: str) -> str:
    first, *rest = cells
    return f"<th>{first}</th>" + "".join(f'<{tag} class="n">{cell}</{tag}>' for cell in rest)
