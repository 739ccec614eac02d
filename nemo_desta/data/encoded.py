"""Decodes base64 in all the variants that programs send."""

import base64
import binascii

from nemo_desta.data.audio_decoding import AudioError

_TO_STANDARD = bytes.maketrans(b"-_", b"+/")  # the url-safe alphabet


def from_base64(text: str, name: str) -> bytes:
    """The bytes encoded in ``text``: base64 of either alphabet, with or without line breaks and padding, alone or as a
    data URI (``data:audio/wav;base64,...``).

    Raises:
        AudioError: ``base64``, for anything else; ``name`` is how the error calls it.
    """
    head, data = "", text
    if text[:5].lower() == "data:":
        head, _, data = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise AudioError("base64", f"{name} is a data URI without base64 ('{head:.60}'); it must say ';base64,'")
    try:
        raw = data.encode("ascii").translate(_TO_STANDARD, b" \t\r\n")
        body = raw.rstrip(b"=")
        if len(raw) - len(body) > 2:
            raise ValueError("more than two '=' at the end")
        return base64.b64decode(body + b"=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise AudioError("base64", f"{name} is no base64: {error}") from error
