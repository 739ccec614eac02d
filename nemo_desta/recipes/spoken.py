"""Spoken questions (``prompts: spoken``): a clip's transcript is the question, so no description stands for its sound.

ALARM's rows of HeySQuAD and InstructS2S: the LLM answers text that goes with the question (the clip's attribute
``passage``: what it is about, or the chat so far), a line end, and the transcript. In training the clip stands before
that text.
"""

from collections.abc import Mapping
from typing import Any

from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.prompts import Prompt

SPOKEN = "spoken"


def spoken_prompts(clip: Mapping[str, Any], count: int) -> list[Prompt]:
    """Up to two prompts: the clip's passage, if it has one, then an empty one, the question alone."""
    passage = clip["attributes"].get("passage")
    texts = [("spoken-passage", str(passage))] if passage else []
    return [Prompt(name, text, (SPOKEN,), kind=SPOKEN) for name, text in [*texts, ("spoken-alone", "")][:count]]


def misheard(clip: Mapping[str, Any], max_wer: float | None) -> Rejection | None:
    """Why a question is left out: it has no transcript, or a recogniser heard (attribute ``heard``) other words.

    ``max_wer``: word errors per word of the question; ALARM takes 0.5 with Whisper-large-v3.
    """
    asked, heard = _words(clip.get("transcript")), clip["attributes"].get("heard")
    if not asked:
        return Rejection("no question", "the clip has no transcript")
    if max_wer is not None and heard is not None and (errors := _errors(asked, _words(heard))) > max_wer * len(asked):
        return Rejection("misheard", f"{errors} word errors in {len(asked)} words: {heard!r:.80}")
    return None


def _words(text: Any) -> list[str]:
    plain = "".join(sign if sign.isalnum() or sign.isspace() else " " for sign in str(text or "").lower())
    return plain.split()


def _errors(wanted: list[str], found: list[str]) -> int:
    """Word errors: the edit distance."""
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, start=1):
        before, row[0] = row[0], number
        for column, other in enumerate(found, start=1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (word != other))
    return row[-1]
