"""Token ids of one answer -> its text as a stream: thought and answer apart, stop texts, the thinking budget.

Text is emitted only once later tokens cannot change it. Held back: incomplete UTF-8 characters, a possible start of a
tag or stop text, and white space at the end of a part. The emitted pieces joined are the whole text.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from nemo_desta.answering.sampling import Sampling
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.thinking import CUT_SENTENCE, ThinkFormat

UNFINISHED = "�"  # a tokenizer's text for the bytes of an incomplete character


class Piece(NamedTuple):
    """Text of the thought or of the answer."""

    text: str
    thinking: bool


class StreamParser:
    """Parses the ids of one answer, one after the other."""

    def __init__(
        self, prompts: PromptBuilder, sampling: Sampling, *, format: ThinkFormat | None, end_ids: Collection[int]
    ) -> None:
        self.sampling = sampling
        self.finish: str | None = None  # "stop" or "length" once the answer is over
        self.num_new_tokens = 0  # the LLM's own
        self._prompts = prompts
        self._ends = frozenset(end_ids)
        self._format = format
        self._text = _Detokenizer(prompts.tokenizer)
        self._buffer = ""  # text that is decoded but not emitted
        self._blank = {True: None, False: None}  # held-back white space per part; None: the part has not begun
        opened = format is not None and format.opened_by_template
        self._part = "thought" if opened else "answer" if format is None else "begin"
        self._forced = 0

    @property
    def thinking(self) -> bool:
        return self._part == "thought"

    def push(self, token: int) -> list[Piece]:
        """Read the next id; returns the text that is certain now. `finish` is set after the last one."""
        if self._forced:
            self._forced -= 1
        else:
            self.num_new_tokens += 1
            if token in self._ends:
                self.finish = "stop"
                return self._close()
        self._buffer += self._text.add(token)
        pieces = self._take()
        if self.finish is None and self.num_new_tokens >= self.sampling.max_new_tokens and not self._forced:
            self.finish = "length"
        return pieces + (self._close() if self.finish == "length" else [])

    def cut(self) -> list[Piece]:
        """The engine generates no more tokens, as at a token limit: `finish` is set. Returns the held-back text."""
        self.finish = "length"
        return self._close()

    def forced_ids(self) -> Sequence[int]:
        """Ids that must come next, since the thought has used up its budget; none otherwise.

        A thought in the middle of its closing tag may complete it.
        """
        budget = self.sampling.max_thinking_tokens
        if budget is None or self.num_new_tokens < budget or not self.thinking or self._forced or self.finish:
            return ()
        if self._format is None or _partial(self._buffer, self._format.tags.close):
            return ()
        gap = "" if self._buffer.endswith("\n") else "\n\n"
        end = self._prompts.thinking_end or f"{gap}{CUT_SENTENCE}\n{self._format.tags.close}"
        ids = self._prompts.tokenize(end)
        self._forced = len(ids)
        return ids

    def _take(self) -> list[Piece]:
        """Emit the certain text of the buffer, part by part."""
        pieces = []
        if self._part == "begin":
            begun, tag = self._buffer.lstrip(), self._format.tags.open
            if begun.startswith(tag):
                self._part, self._buffer = "thought", begun[len(tag) :]
            elif not tag.startswith(begun):
                self._part = "answer"
        if self._part == "thought":
            pieces, closed = self._take_until([self._format.tags.close])
            if closed:
                self._part = "answer"
        if self._part == "answer":
            more, stopped = self._take_until(self.sampling.stop)
            pieces += more
            if stopped:
                self._buffer, self.finish = "", "stop"
        return pieces

    def _take_until(self, tags: Sequence[str]) -> tuple[list[Piece], bool]:
        """Emit the buffer up to the first tag, or up to a possible start of one; whether there was a tag."""
        found = min(((self._buffer.find(tag), tag) for tag in tags if tag in self._buffer), default=None)
        kept = max((_partial(self._buffer, tag) for tag in tags), default=0)
        end, tag = found or (len(self._buffer) - kept, "")
        text, self._buffer = self._buffer[:end], self._buffer[end + len(tag) :]
        return self._emit(text, thinking=self.thinking), found is not None

    def _emit(self, text: str, *, thinking: bool) -> list[Piece]:
        """Text without white space at the ends of its part."""
        waiting = self._blank[thinking]
        text = text.lstrip() if waiting is None else waiting + text
        said = text.rstrip()
        if not said:
            if waiting is not None:
                self._blank[thinking] = text
            return []
        self._blank[thinking] = text[len(said) :]
        return [Piece(said, thinking)]

    def _close(self) -> list[Piece]:
        """The held-back text, now that no token follows."""
        self._buffer += self._text.rest()
        pieces = self._take()
        if self._part == "begin":
            self._part = "answer"
        pieces += self._emit(self._buffer, thinking=self.thinking)
        self._buffer = ""
        return pieces


class _Detokenizer:
    """Ids to text without decoding the whole again: each piece is the text that the new ids add.

    The ids of the last piece are decoded with them, since some tokenizers treat the first id differently.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = self.done = 0  # ids[start:done] are context, ids[done:] not emitted yet

    def add(self, token: int) -> str:
        self.ids.append(token)
        before, now = self._decode(self.ids[self.start : self.done]), self._decode(self.ids[self.start :])
        if now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self.start, self.done = self.done, len(self.ids)
        return now[len(before) :]

    def rest(self) -> str:
        """The rest: bytes that never became whole characters."""
        before, now = self._decode(self.ids[self.start : self.done]), self._decode(self.ids[self.start :])
        self.start = self.done = len(self.ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _partial(text: str, tag: str) -> int:
    """Number of characters at the end of ``text`` that may be the start of ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
