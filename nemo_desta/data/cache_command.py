"""The job ``desta cache``: the copies of rows and archives that were read by URL, and how to remove them."""

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nemo_desta.data.remote import cache_folder

#: A copy's folder is named by the first 16 digits of its URL's hash; nothing else is ever removed.
PLACE = re.compile(r"[0-9a-f]{16}")
NOT_THE_COPY = ("stamp.json", "lock")


class Copy(NamedTuple):
    """One copied object. ``days``: since it was written."""

    place: Path
    name: str
    num_bytes: int
    days: float


def main(argv: Sequence[str] | None = None) -> int:
    """Lists the copies, or removes them; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="desta cache",
        description="Copies of rows and shar archives that were read by URL. They are made again when needed. Do "
        "not remove them while a training reads them.",
    )
    parser.add_argument("--clear", action="store_true", help="remove them")
    parser.add_argument("--older-than", type=float, default=0.0, metavar="DAYS", help="only those written before")
    arguments = parser.parse_args(argv)
    found = [copy for copy in copies() if copy.days >= arguments.older_than]
    for copy in found:
        print(f"{_size(copy.num_bytes):>10}  {copy.days:6.1f} days  {copy.name}")
        if arguments.clear:
            shutil.rmtree(copy.place)
    what = "removed from" if arguments.clear else "in"
    print(f"{len(found)} copies, {_size(sum(copy.num_bytes for copy in found))}, {what} {cache_folder()}")
    return 0


def copies() -> Iterator[Copy]:
    """The copies on this machine, unfinished ones included, the largest first."""
    places = [path for path in cache_folder().glob("*") if PLACE.fullmatch(path.name) and path.is_dir()]
    found = []
    for place in places:
        files = [path for path in place.iterdir() if path.is_file() and path.name not in NOT_THE_COPY]
        written = max((path.stat().st_mtime for path in files), default=place.stat().st_mtime)
        names = ", ".join(sorted(path.name for path in files)) or "(empty)"
        found.append(Copy(place, names, sum(path.stat().st_size for path in files), (time.time() - written) / 86_400))
    yield from sorted(found, key=lambda copy: -copy.num_bytes)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.2f} MiB"


if __name__ == "__main__":
    sys.exit(main())
