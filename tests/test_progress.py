"""Progress: lines in a log, a bar in a terminal, and figures that hold after a resume."""

import ast
import asyncio
import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import nemo_desta
from nemo_desta import progress
from nemo_desta.progress import Progress, duration, track


class Clock:
    """The time, which only the test moves."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    yield clock


def test_a_log_gets_a_line_soon_then_one_a_minute_and_one_at_the_end(clock, caplog) -> None:
    caplog.set_level(logging.INFO, "nemo_desta.progress")
    bar = Progress("rows", 1500)
    for second in range(1, 201):
        clock.now += 1
        bar.update(5)
        assert len(caplog.messages) == (0 if second < 10 else 1 + (second - 10) // 60)
    bar.close()
    bar.close()
    assert caplog.messages == [
        "rows: 50 of 1,500 (3 %), 5.0 rows/s, about 5 min left",
        "rows: 350 of 1,500 (23 %), 5.0 rows/s, about 4 min left",
        "rows: 650 of 1,500 (43 %), 5.0 rows/s, about 3 min left",
        "rows: 950 of 1,500 (63 %), 5.0 rows/s, about 2 min left",
        "rows: 1,000 of 1,500, 5.0 rows/s, after 3 min",
    ]


def test_rows_of_an_earlier_run_have_no_part_in_rate_and_time_left(clock, caplog) -> None:
    caplog.set_level(logging.INFO, "nemo_desta.progress")
    bar = Progress("rows", 1000)
    bar.skip(900)
    clock.now += 20
    bar.update(10)
    assert caplog.messages == ["rows: 910 of 1,000 (91 %), 30.0 rows/min, about 3 min left"]


def test_tokens_move_the_line_before_a_row_has_ended(clock, caplog) -> None:
    caplog.set_level(logging.INFO, "nemo_desta.progress")
    count = 700  # of an earlier job of the same engine
    bar = Progress("rows", 60, tokens=lambda: count)
    clock.now, count = clock.now + 10, 700 + 3280
    bar.update(0)
    clock.now, bar.note = clock.now + 60, "1 kept"
    bar.update()
    assert caplog.messages == [
        "rows: 0 of 60 (0 %), 3,280 tokens, 328 tokens/s",
        "rows: 1 of 60 (1 %), 51.4 rows/h, 46.9 tokens/s, about 1.1 h left, 1 kept",
    ]


def test_without_a_total_there_is_no_end_and_a_job_that_is_hidden_says_nothing(clock, caplog, capsys) -> None:
    caplog.set_level(logging.INFO, "nemo_desta.progress")
    for options in ({}, {"shown": False}):
        with Progress("reading", unit="clips", **options) as bar:
            clock.now += 100
            bar.update(1234.5)
    now = "reading: 1,234.5 clips, 12.3 clips/s"
    assert caplog.messages == [now, f"{now}, after 2 min"]
    assert capsys.readouterr() == ("", "")


def test_a_short_step_inside_a_job_leaves_no_line(clock, caplog) -> None:
    caplog.set_level(logging.INFO, "nemo_desta.progress")
    for secs in (1, 6):
        for _ in track("abc", "validation", 3, unit="batches", leave=False):
            clock.now += secs
    assert caplog.messages == [
        "validation: 2 of 3 batches (66 %), 10.0 batches/min, about 6 s left",
        "validation: 3 of 3 batches, 10.0 batches/min, after 18 s",
    ]


def test_lines_go_to_standard_error_where_nobody_listens_to_the_log(clock, capsys, monkeypatch) -> None:
    monkeypatch.setattr(progress.logger, "level", logging.WARNING)
    monkeypatch.setattr(progress.logger, "_cache", {})
    with Progress("rows", 2) as bar:
        clock.now += 4
        bar.update(2)
    assert capsys.readouterr() == ("", "rows: 2 of 2, 30.0 rows/min, after 4 s\n")


def test_a_terminal_gets_a_bar_with_the_same_text_and_no_lines(clock, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, "nemo_desta.progress")
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("rows", 100) as bar:
        bar.skip(50)
        for _ in range(50):
            clock.now += 1
            bar.update()
    shown = screen.getvalue()
    assert "rows: 99 of 100 (99 %), 1.0 rows/s, about 1 s left" in shown
    assert shown.count("\n") == 1 and shown.rstrip().endswith("rows: 100 of 100, 1.0 rows/s, after 50 s")
    assert caplog.messages == []


def test_the_display_moves_while_tasks_wait(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, "nemo_desta.progress")
    for name in ("FIRST_SECS", "BAR_SECS"):
        monkeypatch.setattr(progress, name, 0.01)

    async def wait() -> None:
        with Progress("answers", 2, leave=False) as bar:
            async with bar.ticking():
                await asyncio.sleep(0.2)
            assert caplog.messages == ["answers: 0 of 2 rows (0 %)"]

    asyncio.run(wait())


@pytest.mark.parametrize(("secs", "text"), [(5, "5 s"), (90, "2 min"), (5400, "1.5 h"), (200_000, "2.3 days")])
def test_a_duration_is_readable(secs, text) -> None:
    assert duration(secs) == text


def test_no_other_module_draws_bars() -> None:
    """tqdm's own bars fill a log file with thousands of lines."""
    root = Path(nemo_desta.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "tqdm" for name in names):
                found.add(path.relative_to(root).as_posix())
    assert found == {"progress.py"}
