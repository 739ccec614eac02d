"""Write each audio's duration into rows that lack it, so that training plans its batches without opening files.

    python -m nemo_desta.data.durations rows.jsonl rows_with_durations.jsonl --audio-root default=<folder>

A row that cannot be used is copied unchanged; training reports it.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nemo_desta.data.audio_io import count_samples
from nemo_desta.data.rows import audio_entries
from nemo_desta.data.sources import JsonlSource
from nemo_desta.errors import RowError, row_guard

#: Durations are rounded to a sample at this rate.
CLOCK_HZ = 48_000


def with_durations(source: JsonlSource, *, num_threads: int = 16) -> Iterator[bytes]:
    """Lines of ``source`` in order, each audio entry with its ``duration`` in seconds."""

    def measured(i: int) -> bytes:
        try:
            with row_guard():
                row = source.row(i)
                for entry, file in zip(audio_entries(row), source.audio_files(i, row), strict=True):
                    entry["duration"] = round(count_samples(file, CLOCK_HZ) / CLOCK_HZ, 5)
                return json.dumps(row, ensure_ascii=False).encode() + b"\n"
        except RowError:
            return source.index.line(i).rstrip(b"\r\n") + b"\n"

    with ThreadPoolExecutor(num_threads) as pool:
        for first in range(0, len(source), 4096):
            yield from pool.map(measured, range(first, min(first + 4096, len(source))))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="+", help="JSONL files or patterns")
    parser.add_argument("output", type=Path)
    parser.add_argument("--audio-root", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--num-threads", type=int, default=16)
    given = parser.parse_args(arguments)
    roots = dict(item.split("=", 1) for item in given.audio_root)
    partial = given.output.with_suffix(given.output.suffix + ".part")
    with open(partial, "wb") as file:
        file.writelines(with_durations(JsonlSource(given.rows, roots), num_threads=given.num_threads))
    partial.rename(given.output)


if __name__ == "__main__":
    main()
