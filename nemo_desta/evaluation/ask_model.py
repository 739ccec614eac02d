"""Prompts a model with one question per clip or per description, in length-sorted batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from nemo_desta.progress import Progress

if TYPE_CHECKING:
    from nemo_desta.models.desta import DestaModel

MAX_NEW_TOKENS = 64


def ask_about_clips(
    model: "DestaModel",
    clips: Sequence[Any],
    questions: Sequence[str],
    *,
    lengths: Sequence[float] | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> list[str]:
    """Greedy answers to ``questions`` (N), the i-th about ``clips[i]`` (path or array), without transcripts.

    ``lengths``: sort keys, so that a batch holds clips of similar length.
    """
    tag = model.audio_locator_tag
    chats = [
        [{"role": "user", "content": f"{tag}\n{question}", "audios": [clip]}]
        for clip, question in zip(clips, questions, strict=True)
    ]
    return _ask(model, chats, lengths or [0.0] * len(chats), batch_size, progress)


def ask_about_descriptions(
    model: "DestaModel",
    descriptions: Sequence[str],
    questions: Sequence[str],
    *,
    progress: bool = True,
) -> list[str]:
    """The text cascade, an upper bound: the same LLM reads the true description instead of the audio."""
    chats = [
        [{"role": "user", "content": f"{description}\n{question}"}]
        for description, question in zip(descriptions, questions, strict=True)
    ]
    return _ask(model, chats, [len(d) for d in descriptions], 64, progress)


def _ask(
    model: "DestaModel",
    chats: Sequence[Any],
    lengths: Sequence[float],
    batch_size: int,
    progress: bool,
) -> list[str]:
    order = sorted(range(len(chats)), key=lambda i: lengths[i])
    answers = [""] * len(chats)
    with Progress("answers", len(chats), unit="answers", shown=progress) as bar:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            texts = model.chat([chats[i] for i in chosen], max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text
            bar.update(len(chosen))
    return answers
