"""Which language is a text in? For the three kinds of instruction that ask.

The original asks langdetect without a seed, so its verdicts on short texts change from run to run. Here py3langid,
which needs no seed, is asked unless langdetect (with a seed) is wanted.
"""

from collections.abc import Callable
from functools import cache
from typing import Any


def tell_language(text: str) -> str | None:
    """ISO code by py3langid; None for a text without a letter.

    Raises:
        ImportError: py3langid is not installed.
    """
    if not any(char.isalpha() for char in text):
        return None
    # A surrogate that stands alone (a broken emoji) cannot be encoded, as the identifier must.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return _identifier().classify(text)[0]


def langdetect_detector(seed: int = 0) -> Callable[[str], str | None]:
    """langdetect as the original asks it, but with a seed; None where it finds nothing to tell by."""
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError as error:
        raise ImportError("the original's language detector is langdetect: pip install langdetect") from error

    def tell(text: str) -> str | None:
        DetectorFactory.seed = seed
        try:
            return detect(text)
        except LangDetectException:
            return None

    return tell


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError("telling languages needs py3langid: pip install 'nemo_desta[recipes]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)
