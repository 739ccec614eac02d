"""The job ``desta cache``: copies of rows and archives that were read by URL, and features of encoders; lists and
removes them."""

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nemo_desta.data.remote import cache_folder
from nemo_desta.sources import cache_root

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
    """Lists the copies or the features, or removes them; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="desta cache",
        description="Copies of rows and shar archives that were read by URL, or the features that frozen encoders "
        "gave. They are made again when needed. Do not remove copies while a training reads them; features may go.",
    )
    parser.add_argument("--clear", action="store_true", help="remove them")
    parser.add_argument("--older-than", type=float, default=0.0, metavar="DAYS", help="only those written before")
    default = cache_root() / "features"
    parser.add_argument(
        "--features", nargs="?", const=default, type=Path, metavar="FOLDER", help="of data.feature_cache"
    )
    parser.add_argument("--max-gb", type=float, help="of features: remove the least recently used above this size")
    arguments = parser.parse_args(argv)
    if arguments.features is not None:
        return _features(arguments.features, arguments.clear, arguments.older_than, arguments.max_gb)
    found = [copy for copy in copies() if copy.days >= arguments.older_than]
    for copy in found:
        print(f"{_size(copy.num_bytes):>10}  {copy.days:6.1f} days  {copy.name}")
        if arguments.clear:
            shutil.rmtree(copy.place)
    what = "removed from" if arguments.clear else "in"
    print(f"{len(found)} copies, {_size(sum(copy.num_bytes for copy in found))}, {what} {cache_folder()}")
    return 0


def _features(root: Path, clear: bool, older_than: float, max_gb: float | None) -> int:
    """List the groups of a feature cache, one for each encoder and its settings, or remove shards."""
    from nemo_desta.perception.feature_store import ABOUT, locked, make_room, shards  # torch, which takes seconds

    if not root.is_dir():
        print(f"no features in {root}")
        return 0
    now = time.time()
    with locked(root):
        if max_gb is not None:
            make_room(root, int(max_gb * 10**9))
        groups: dict[Path, list[tuple[float, int, Path]]] = {}
        for used, size, path in shards(root):
            if now - used >= older_than * 86_400:
                groups.setdefault(path.parent, []).append((used, size, path))
                if clear:
                    path.unlink(missing_ok=True)
    for group, found in groups.items():
        about = json.loads((group / ABOUT).read_text(encoding="utf-8"))
        encoder = f"{about['encoder'].get('name')}, layers {about['layer_ids']}, {about['stored_in']}"
        days = (now - max(used for used, _, _ in found)) / 86_400
        print(f"{_size(sum(size for _, size, _ in found)):>10}  {days:6.1f} days  {encoder}  {group.name}")
    count, size = sum(map(len, groups.values())), sum(size for found in groups.values() for _, size, _ in found)
    print(f"{count} shards of features, {_size(size)}, {'removed from' if clear else 'in'} {root}")
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
