"""Language detection for the three kinds of instruction that need it.

The original uses langdetect without a seed, so its verdicts on short texts change from run to run. The default here is
py3langid, which needs no seed; langdetect with a seed is optional.
"""

from collections.abc import Callable
from functools import cache
from typing import Any


def tell_language(text: str) -> str | None:
    """ISO code of the text's language by py3langid; None for a text without a letter.

    Raises:
        ImportError: py3langid is not installed.
    """
    if not any(char.isalpha() for char in text):
        return None
    # The identifier encodes the text, which fails for a lone surrogate (a broken emoji).
    text = text.encode("utf-8", "replace").decode("utf-8")
    return _identifier().classify(text)[0]


def langdetect_detector(seed: int = 0) -> Callable[[str], str | None]:
    """langdetect as in the original, but with a seed; it returns None for a text without features."""
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
        raise ImportError("language detection needs py3langid: pip install 'nemo_desta[recipes]'") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE)
