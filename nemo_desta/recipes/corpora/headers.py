"""The length of an intact plain WAV file from its header, without opening the file with libsndfile."""

import os
from struct import unpack_from

from nemo_desta.data.audio_decoding import RATES

_HEAD = 4096  # bytes; holds every WAV header without long notes before the samples
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_BITS = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}
_RATES = range(RATES[0], 655_351)  # Hz


def intact_seconds(path: str) -> float | None:
    """Seconds of an intact WAV file. None: another format, a rare header or damage; libsndfile must decide.

    Raises ``OSError``.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        head, size = os.read(descriptor, _HEAD), os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at, rate, block = 12, 0, 0
    while at + 8 <= len(head):
        name, length = head[at : at + 4], unpack_from("<I", head, at + 4)[0]
        if name == b"data":
            whole = 0 < length <= size - at - 8 and block > 0 and rate > 0
            return length // block / rate if whole and length >= block else None
        if name == b"fmt " and at + 24 <= len(head):
            kind, channels, rate, _, block, bits = unpack_from("<HHIIHH", head, at + 8)
            if kind == _EXTENSIBLE and at + 34 <= len(head):
                kind = unpack_from("<H", head, at + 32)[0]
            if bits not in _BITS.get(kind, ()) or block != channels * bits // 8 or rate not in _RATES:
                return None
        at += 8 + length + length % 2
    return None
