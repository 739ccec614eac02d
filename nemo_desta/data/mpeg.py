"""The frames of an MPEG audio stream (mp3), counted from their headers.

For an mp3 without a Xing tag libsndfile estimates the length from the first frame and reads only so far. With a
variable bit rate most of the clip is lost. Frame headers: ISO 11172-3, section 2.4.1.3, and ISO 13818-3.
"""

from typing import NamedTuple

_BITRATES = {  # kbit/s by (MPEG 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_TAGS = (b"Xing", b"Info")
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version


class Frame(NamedTuple):
    """A frame header: bytes of the frame, samples in it, offset of the tag in a first frame."""

    length: int
    samples: int
    tag_at: int


class Stream(NamedTuple):
    """``num_frames`` complete audio frames from byte ``start`` on. ``whole``: the last frame is not truncated."""

    num_frames: int
    samples_per_frame: int
    start: int
    whole: bool


def is_tagged(head: bytes) -> bool:
    """Whether the first bytes of a file hold a Xing or Info tag with the number of frames."""
    at = _next(head, _after_id3(head))
    if at is None:
        return False
    tag = head[at + _frame(head, at).tag_at :][:8]
    return tag[:4] in _TAGS and len(tag) == 8 and tag[7] & 1 == 1


def read_stream(data: bytes) -> Stream | None:
    """The stream in the bytes of a file, with every frame counted. None: no two consecutive frames."""
    at = _next(data, _after_id3(data))
    if at is None:
        return None
    first = _frame(data, at)
    if data[at + first.tag_at : at + first.tag_at + 4] in _TAGS:
        at += first.length
    start, num_frames, end = at, 0, len(data)
    lengths: dict[bytes, int] = {}
    while at + 4 <= end:
        head = data[at : at + 3]
        if head not in lengths:
            if (frame := _frame(data, at)) is None:
                if (following := _next(data, at)) is None:
                    break  # other tags follow
                at = following
                continue
            lengths[head] = frame.length
        at += lengths[head]
        num_frames += 1
    whole = at <= end and (at + 4 <= end or data[at : at + 1] != b"\xff")  # and no 1 to 3 bytes of a further frame
    return Stream(num_frames - (not whole), first.samples, start, whole)


def with_length(data: bytes, stream: Stream) -> bytes:
    """The bytes of a file with a tag before its stream that gives the number of frames. Not for layers 1 and 2."""
    head = bytearray(data[stream.start : stream.start + 4])
    if (head[1] >> 1 & 3) != 1:
        return data
    head[1] |= 1  # no checksum
    for bitrate in range(1, 15):
        head[2] = bitrate << 4 | head[2] & 0x0C
        frame = _frame(bytes(head), 0)
        if frame.length >= frame.tag_at + 16:
            tag = b"Xing" + (1).to_bytes(4, "big") + stream.num_frames.to_bytes(4, "big")
            return (bytes(head).ljust(frame.tag_at, b"\0") + tag).ljust(frame.length, b"\0") + data[stream.start :]
    return data


def _frame(data: bytes, at: int) -> Frame | None:
    if at + 3 >= len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    second, third = data[at + 1], data[at + 2]
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    bitrate, rate, padding = third >> 4, third >> 2 & 3, third >> 1 & 1
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    bits = _BITRATES[is_first, layer][bitrate] * 1000
    hertz = _RATES[version][rate]
    if layer == 1:
        return Frame((12 * bits // hertz + padding) * 4, 384, 4)
    samples = 1152 if is_first or layer == 2 else 576
    is_mono = data[at + 3] >> 6 == 3
    side = (17 if is_mono else 32) if is_first else (9 if is_mono else 17)
    return Frame(samples // 8 * bits // hertz + padding, samples, 4 + side)


def _next(data: bytes, at: int) -> int | None:
    """The first position from ``at`` where a frame is followed by another frame or the end of the file."""
    while (at := data.find(b"\xff", at)) >= 0:
        frame = _frame(data, at)
        if frame is not None:
            following = at + frame.length
            if following == len(data) or _frame(data, following) is not None:
                return at
        at += 1
    return None


def _after_id3(data: bytes) -> int:
    at = 0
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = data[at + 6 : at + 10]
        at += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    return at
