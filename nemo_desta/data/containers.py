"""Compares the bytes of samples that a file's header declares with those in the file.

libsndfile reads a truncated file without an error. Supported here: WAV (RIFF, RIFX, RF64, BW64),
W64, AIFF and AIFF-C, IFF, AU, CAF and NIST SPHERE; of Ogg (RFC 3533, section 6) the last page.
"""

from struct import unpack_from
from typing import BinaryIO, NamedTuple

#: Sizes that programs write when the length is unknown; 0x7FFFF000 and 0x80000000 are sox's and arecord's.
UNKNOWN_SIZES = frozenset((0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF))

_MOST_CHUNKS = 1000  # before the samples
_LONGEST_PAGE = 27 + 255 + 255 * 255


class Promise(NamedTuple):
    """Bytes of samples that the header declares, and bytes in the file from their start."""

    promised: int
    there: int


def promise_of(file: BinaryIO, size: int) -> Promise | None:
    """The promise in the header of an open file of ``size`` bytes. None: an unsupported format or an unknown size."""
    head = _at(file, 0, 1024)
    found = None
    if head[8:12] == b"WAVE" and head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        found = _chunk(file, size, 12, ">I" if head[:4] == b"RIFX" else "<I", b"data", align=2)
        if found and found[1] == 0xFFFFFFFF and head[12:16] == b"ds64" and len(head) >= 36:
            found = found[0], unpack_from("<Q", head, 28)[0]
    elif head[:4] == b"riff" and head[24:28] == b"wave":  # W64: names are GUIDs, sizes count the chunk's own header
        found = _chunk(file, size, 40, "<Q", b"data", name=16, counts_itself=True, align=8)
    elif head[:4] == b"FORM":
        name = b"SSND" if head[8:11] == b"AIF" else b"BODY"
        found = _chunk(file, size, 12, ">I", name, align=2)
    elif head[:4] == b"caff":
        found = _chunk(file, size, 8, ">Q", b"data")
    elif head[:4] in (b".snd", b"dns.") and len(head) >= 12:
        found = unpack_from(">II" if head[:1] == b"." else "<II", head, 4)
    elif head[:7] == b"NIST_1A":
        found = _sphere(head)
    if found is None or found[1] in UNKNOWN_SIZES:
        return None
    return Promise(found[1], max(0, size - found[0]))


def broken_page(file: BinaryIO, size: int) -> bool:
    """Whether an open file of ``size`` bytes is an Ogg file whose last page is truncated."""
    if _at(file, 0, 4) != b"OggS":
        return False
    first = max(0, size - 2 * _LONGEST_PAGE)
    tail = _at(file, first, size - first)
    page = tail[tail.rfind(b"OggS\0") :]
    lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return len(page) < 27 or len(page) < 27 + page[26] + sum(lacing)


def _chunk(
    file: BinaryIO,
    size: int,
    at: int,
    length_type: str,
    wanted: bytes,
    *,
    name: int = 4,
    counts_itself: bool = False,
    align: int = 1,
) -> tuple[int, int] | None:
    """(where the chunk's content starts, its length) of the first chunk called ``wanted``."""
    header = name + (8 if length_type[1] == "Q" else 4)
    for _ in range(_MOST_CHUNKS):
        found = _at(file, at, header)
        if len(found) < header:
            return None
        length = unpack_from(length_type, found, name)[0]
        if counts_itself:
            length = max(0, length - header)
        if found.startswith(wanted):
            return at + header, length
        at += header + length + -length % align
    return None


def _sphere(head: bytes) -> tuple[int, int] | None:
    fields = dict(line.split(b" ", 1) for line in head.split(b"\n") if line.count(b" ") >= 2)
    try:
        count, channels, width = (
            int(fields[key].split()[1]) for key in (b"sample_count", b"channel_count", b"sample_n_bytes")
        )
        return int(head[8:16]), count * channels * width
    except (KeyError, ValueError, IndexError):
        return None


def _at(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)
