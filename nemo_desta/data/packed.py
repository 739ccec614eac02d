"""Opens plain, gzip or zstd files of rows as a plain file with random access.

The first bytes of a file decide, not its name. A packed file is unpacked once, into an unnamed temporary file that is
deleted when the process ends.
"""

import gzip
import tempfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from nemo_desta.errors import ConfigError

#: Limit of the unpacked size: this multiple of the packed size, or this many bytes if that is more. Larger is taken
#: for a decompression bomb; rows grow 3 to 30 times.
MAX_RATIO = 200
MAX_UNPACKED_BYTES = 1 << 30

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a first byte of 0x50 to 0x5f; pzstd begins with such a frame
_BLOCK = 1 << 20
_ZSTD_BLOCK = 1 << 12  # four packed bytes can expand to 128 kB, so a larger block would not bound the memory


def open_plain(path: Path) -> BinaryIO:
    """The file's bytes, unpacked, from their start; safe for positioned reads in forked workers.

    Raises:
        ConfigError: a packed file is truncated, damaged or larger than the limits; zstandard is not installed.
    """
    file = open(path, "rb")
    start = file.read(4)
    file.seek(0)
    if start.startswith(_GZIP):
        blocks = iter(partial(gzip.GzipFile(fileobj=file).read, _BLOCK), b"")
    elif start == _ZSTD or start[1:] == _ZSTD_SKIPPABLE:
        blocks = zstd_blocks(file)
    else:
        return file
    with file:
        return _spooled(blocks, path)


def _spooled(blocks: Iterator[bytes], path: Path) -> BinaryIO:
    limit = max(MAX_UNPACKED_BYTES, MAX_RATIO * path.stat().st_size)
    spool = tempfile.TemporaryFile(prefix="rows-")
    size = 0
    try:
        for block in blocks:
            size += len(block)
            if size > limit:
                raise ConfigError(
                    f"{path} unpacks to more than {limit:,} bytes, over {MAX_RATIO} times its size, as rows never do. "
                    "Unpack it yourself if the file is right"
                )
            spool.write(block)
        spool.flush()
    except (EOFError, zlib.error, gzip.BadGzipFile, Damaged) as error:
        raise ConfigError(f"{path} is cut or damaged, no row of it is used: {error}") from error
    except OSError as error:
        where = tempfile.gettempdir()
        raise OSError(error.errno, f"{path} cannot be unpacked into {where} (TMPDIR): {error.strerror}") from error
    spool.seek(0)
    return spool


class Damaged(ValueError):
    """A file that is not zstd data, or is truncated."""


def zstd_blocks(file: BinaryIO) -> Iterator[bytes]:
    """The content of a zstd file of any number of frames.

    Raises:
        Damaged: not zstd data, or truncated. ConfigError: zstandard is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(f"{file.name} is packed by zstd: pip install zstandard") from error
    frame = None
    try:
        while packed := file.read(_ZSTD_BLOCK):
            while packed:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
                yield frame.decompress(packed)
                packed = b""
                if frame.eof:
                    packed, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise Damaged(str(error)) from error
    if frame is not None:
        raise Damaged("it ends within a frame")
