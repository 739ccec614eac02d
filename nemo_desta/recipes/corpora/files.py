"""Files of a corpus: globs in a fixed order, one folder in memory at a time, and lines with their numbers."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from nemo_desta.data.packed import Damaged, zstd_blocks
from nemo_desta.recipes.corpora.errors import CorpusError

#: Errors from a file that cannot be read, or from a packed file that is truncated or damaged.
UNREADABLE = (OSError, EOFError, zlib.error)


def matching_files(root: Path, glob: str, *, folders: bool = False) -> Iterator[str]:
    """Files below ``root`` that match, relative and with ``/``, sorted folder by folder; with ``folders`` these too.

    ``**`` stands for any number of folders. Wildcards do not match hidden names; links are followed. An absolute path
    (a manifest that the user names) is used as it is.

    Raises ``CorpusError``: nothing matches, or ``..`` in the glob.
    """
    parts = PurePosixPath(glob).parts
    if ".." in parts and not os.path.isabs(glob):
        raise CorpusError(f"reader.files: {glob!r} leaves the data root")
    found = ([glob] if os.path.exists(glob) else []) if os.path.isabs(glob) else _visit(root, "", parts)
    nothing = True
    for relative in found:
        if folders or (root / relative).is_file():
            nothing = False
            yield relative
    if nothing:
        raise CorpusError(f"no file matches '{glob}' below {root}")


def open_binary(path: Path) -> BinaryIO:
    """The file for reading, unpacked when its name ends in ``.gz`` or ``.zst``. All its errors are `UNREADABLE`."""
    if path.suffix == ".zst":
        return io.BufferedReader(_Zstd(path), 1 << 17)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a UTF-8 file; ``CorpusError`` with ``file:line`` for other bytes."""
    number = 0
    try:
        with open_binary(path) as file:
            for number, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise CorpusError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UNREADABLE as error:
        raise CorpusError(f"{path}:{number + 1}: cannot be read ({error})") from None


class _Zstd(io.RawIOBase):
    """The content of a zstd file, unpacked as it is read. Raises ``OSError`` if it is no zstd file or truncated."""

    def __init__(self, path: Path):
        self._file = path.open("rb")
        self._blocks = zstd_blocks(self._file)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self._rest:
                self._rest = next(self._blocks)
        except StopIteration:
            return 0
        except Damaged as error:
            raise OSError(str(error)) from None
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _visit(root: Path, folder: str, parts: tuple[str, ...]) -> Iterator[str]:
    first, rest = parts[0], parts[1:]
    if first == "**":
        yield from _visit(root, folder, rest or ("*",))
        for name, is_folder in _entries(root / folder):
            if is_folder:
                yield from _visit(root, _join(folder, name), parts)
    elif any(sign in first for sign in "*?["):
        for name, is_folder in _entries(root / folder):
            if fnmatchcase(name, first) and (is_folder or not rest):
                yield from _visit(root, _join(folder, name), rest) if rest else (_join(folder, name),)
    elif (root / folder / first).exists():
        path = _join(folder, first)
        yield from _visit(root, path, rest) if rest else (path,)


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """(name, is a folder) of what is not hidden, sorted; nothing for a file."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry.name, entry.is_dir()) for entry in found if not entry.name.startswith("."))
    except NotADirectoryError:
        return []


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
