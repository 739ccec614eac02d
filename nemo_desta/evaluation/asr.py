"""Scores speech recognition: word and character error rates by jiwer, after Whisper's text normalisers."""

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from nemo_desta.config import nearest

NORMALIZERS = ("english", "basic", "none")


def error_rates(
    references: Sequence[str], hypotheses: Sequence[str], *, normalizer: str = "english"
) -> dict[str, Any]:
    """``wer`` and ``cer`` over all texts together: errors divided by the references' words or characters.

    Args:
        references, hypotheses: one each; a hypothesis may be empty. If the normaliser empties a reference ("[noise]"),
            every word of its hypothesis is an insertion.
        normalizer: Whisper's ``english`` (spelling, numbers, contractions) or ``basic`` (any language), or ``none``.

    Raises:
        ImportError: jiwer or whisper_normalizer is missing. ValueError: unequal numbers, or no reference with a word.
    """
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references; each needs its own")
    jiwer = _import("jiwer")
    normalize = text_normalizer(normalizer)
    pairs = [(normalize(r), normalize(h)) for r, h in zip(references, hypotheses, strict=True)]
    spoken = [(r, h) for r, h in pairs if r]
    if not spoken:
        raise ValueError(f"none of {len(references)} references has a word after the {normalizer} normaliser")
    false_alarms = [h for r, h in pairs if not r]
    words = jiwer.process_words([r for r, _ in spoken], [h for _, h in spoken])
    characters = jiwer.process_characters([r for r, _ in spoken], [h for _, h in spoken])
    word_insertions = words.insertions + sum(len(h.split()) for h in false_alarms)
    char_insertions = characters.insertions + sum(map(len, false_alarms))
    num_words = words.hits + words.substitutions + words.deletions
    num_characters = characters.hits + characters.substitutions + characters.deletions
    return {
        "wer": (words.substitutions + words.deletions + word_insertions) / num_words,
        "cer": (characters.substitutions + characters.deletions + char_insertions) / num_characters,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": word_insertions,
        "num_words": num_words,
        "num_characters": num_characters,
        "normalizer": normalizer,
    }


@cache
def text_normalizer(name: str) -> Callable[[str], str]:
    """One of `NORMALIZERS` as a function; all of them reduce white space to single spaces.

    Raises:
        ImportError: whisper_normalizer is missing. ValueError: an unknown name.
    """
    if name not in NORMALIZERS:
        raise ValueError(f"unknown normaliser '{name}'.{nearest(name, NORMALIZERS)}")
    if name == "none":
        return lambda text: " ".join(text.split())
    module = _import(f"whisper_normalizer.{name}")
    normalize = module.EnglishTextNormalizer() if name == "english" else module.BasicTextNormalizer()
    return lambda text: " ".join(normalize(text).split())


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise ImportError(f"scoring recognition needs {package}: pip install 'nemo_desta[eval]'") from error
