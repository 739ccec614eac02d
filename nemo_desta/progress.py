"""How far a long job is: a bar in a terminal, and otherwise a line each minute. Both have the same text:

``rows: 120 of 1,561 (7 %), 2.3 rows/s, 410 tokens/s, about 10 min left``
"""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

#: Seconds before the first line, between two lines, and between two pictures of the bar.
FIRST_SECS, LINE_SECS, BAR_SECS = 10.0, 60.0, 0.1

T = TypeVar("T")


class Progress:
    """The progress of one job, in this process.

    Rates and the time left are means over this run. What earlier runs did (`skip`) is done, but has no part in them.

    Args:
        total: of the whole job; None if it is not known. It may be corrected later, as ``note``, a text at the end.
        tokens: returns the number of tokens generated so far, for tokens per second.
        shown: False shows nothing.
        leave: False removes the bar at the end, and writes a last line only after an earlier one.
    """

    def __init__(
        self,
        what: str,
        total: float | None = None,
        *,
        unit: str = "rows",
        tokens: Callable[[], int] | None = None,
        shown: bool = True,
        leave: bool = True,
    ) -> None:
        self.what, self.total, self.unit, self.leave = what, total, unit, leave
        self.done, self.note = 0, ""
        self._skipped = 0
        self._tokens, self._tokens_before = tokens, tokens() if tokens else 0
        self._begun = time.monotonic()
        self._ended = not shown
        self._has_lines = False
        self._bar: tqdm | None = None
        if shown and sys.stderr.isatty():
            # tqdm draws only: its own rate would count what is skipped.
            form = {"bar_format": "{bar:20} {desc}", "dynamic_ncols": True, "file": sys.stderr}
            self._bar = tqdm(total=total, desc=f"{what}: 0", leave=leave, **form)
        self._next = self._begun + (FIRST_SECS if self._bar is None else BAR_SECS)

    @property
    def due(self) -> bool:
        """Whether the next `update` shows something, for a ``note`` that is expensive to make."""
        return not self._ended and time.monotonic() >= self._next

    def update(self, count: float = 1) -> None:
        """Count what this run has done. With 0: look at the clock and at the tokens."""
        self.done += count
        if self.due:
            now = time.monotonic()
            self._next = now + (LINE_SECS if self._bar is None else BAR_SECS)
            self._show(self._text(now))

    def skip(self, count: float = 1) -> None:
        """Count what an earlier run has done."""
        self._skipped += count
        self.update(count)

    def close(self) -> None:
        """Show the end; once."""
        if self._ended:
            return
        self._ended = True
        if self.leave or self._has_lines:
            self._show(self._text(time.monotonic(), ended=True))
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @asynccontextmanager
    async def ticking(self) -> AsyncIterator[None]:
        """Keeps the display moving while the block waits for tasks of its event loop."""

        async def tick() -> None:
            while True:
                await asyncio.sleep(BAR_SECS)
                self.update(0)

        ticker = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticker.cancel()

    def _show(self, text: str) -> None:
        if self._bar is not None:
            self._bar.total, self._bar.n = self.total, self.done
            self._bar.set_description_str(text)
            return
        self._has_lines = True
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", text)
        else:
            print(text, file=sys.stderr, flush=True)

    def _text(self, now: float, *, ended: bool = False) -> str:
        secs = max(now - self._begun, 1e-9)
        speed = (self.done - self._skipped) / secs
        said = f"{self.what}: {_number(self.done)}"
        if self.total:
            said += f" of {_number(self.total)}"
        said += "" if self.unit == self.what else f" {self.unit}"
        if self.total and not ended:
            said += f" ({int(100 * self.done / self.total)} %)"
        parts = [said]
        if speed > 0:
            parts.append(_rate(speed, self.unit))
        if self._tokens is not None and (tokens := self._tokens() - self._tokens_before) > 0:
            parts += [] if speed > 0 else [f"{tokens:,} tokens"]
            parts.append(_rate(tokens / secs, "tokens"))
        if ended:
            parts.append(f"after {duration(secs)}")
        elif self.total and speed > 0 and self.done < self.total:
            parts.append(f"about {duration((self.total - self.done) / speed)} left")
        return ", ".join([*parts, self.note] if self.note else parts)


def track(
    items: Iterable[T], what: str, total: int | None = None, *, unit: str = "rows", **options: bool
) -> Iterator[T]:
    """The items, counted when the next one is taken; ``options`` as in `Progress`."""
    with Progress(what, total, unit=unit, **options) as bar:
        for item in items:
            yield item
            bar.update()


def above_bars() -> AbstractContextManager[None]:
    """While it is open, lines may be written to the terminal; they stand above the bars."""
    return tqdm.external_write_mode(file=sys.stderr)


def duration(secs: float) -> str:
    """``40`` -> ``40 s``; ``90`` -> ``2 min``; ``5400`` -> ``1.5 h``; ``200000`` -> ``2.3 days``."""
    if secs < 60:
        return f"{max(1, round(secs))} s"
    if secs < 3600:
        return f"{round(secs / 60)} min"
    return f"{secs / 3600:.1f} h" if secs < 48 * 3600 else f"{secs / 86400:.1f} days"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _rate(speed: float, unit: str) -> str:
    """``2.3 rows/s``; below one a second per minute, below one a minute per hour."""
    per, secs = next((one for one in (("s", 1), ("min", 60)) if speed * one[1] >= 1), ("h", 3600))
    value = speed * secs
    return f"{value:,.0f} {unit}/{per}" if value >= 100 else f"{value:.1f} {unit}/{per}"
