"""Token ids of one answer -> text as it grows: thinking apart from the answer, stop texts, the thinking budget.

Text is handed out only when nothing that follows can change it: a character whose bytes are not all there, a tag or
stop text that may be beginning, and white space at the end of a part wait. So the pieces joined are the whole.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from nemo_desta.answering.sampling import Sampling
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.thinking import CUT_SENTENCE, ThinkFormat

UNFINISHED = "�"  # what a tokenizer makes of bytes that are no character yet


class Piece(NamedTuple):
    """A stretch of text, of the thought or of the answer."""

    text: str
    thinking: bool


class StreamParser:
    """Takes the ids of one answer, one after the other."""

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
        self._buffer = ""  # text that was read but not handed out
        self._blank = {True: None, False: None}  # white space that waits, per part; None: the part has not begun
        opened = format is not None and format.opened_by_template
        self._part = "thought" if opened else "answer" if format is None else "begin"
        self._forced = 0

    @property
    def thinking(self) -> bool:
        return self._part == "thought"

    def push(self, token: int) -> list[Piece]:
        """The next id; what can be said for sure now. `finish` tells when it was the last one."""
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

    def forced_ids(self) -> Sequence[int]:
        """Ids that the answer must go on with, since the thought has used up its budget; none otherwise.

        A thought in the middle of its closing tag may finish it.
        """
        budget = self.sampling.max_thinking_tokens
        if budget is None or self.num_new_tokens < budget or not self.thinking or self._forced or self.finish:
            return ()
        if self._format is None or _partial(self._buffer, self._format.tags.close):
            return ()
        gap = "" if self._buffer.endswith("\n") else "\n\n"
        ids = self._prompts.tokenize(f"{gap}{CUT_SENTENCE}\n{self._format.tags.close}")
        self._forced = len(ids)
        return ids

    def _take(self) -> list[Piece]:
        """Move what is certain from the buffer to the caller, from part to part."""
        pieces = []
        if self._part == "begin":
            begun, tag = self._buffer.lstrip(), self._format.tags.open
            if begun.startswith(tag):
                self._part, self._buffer = "thought", begun[len(tag) :]
            elif not tag.startswith(begun):
                self._part = "answer"
        if self._part == "thought":
            thought, closed, rest = self._buffer.partition(self._format.tags.close)
            if closed:
                pieces += self._hand_out(thought, thinking=True)
                self._part, self._buffer = "answer", rest
            else:
                kept = _partial(self._buffer, self._format.tags.close)
                pieces += self._hand_out(self._buffer[: len(self._buffer) - kept], thinking=True)
                self._buffer = self._buffer[len(self._buffer) - kept :]
        if self._part == "answer":
            places = [place for stop in self.sampling.stop if (place := self._buffer.find(stop)) >= 0]
            if places:
                pieces += self._hand_out(self._buffer[: min(places)], thinking=False)
                self._buffer, self.finish = "", "stop"
            else:
                kept = max((_partial(self._buffer, stop) for stop in self.sampling.stop), default=0)
                pieces += self._hand_out(self._buffer[: len(self._buffer) - kept], thinking=False)
                self._buffer = self._buffer[len(self._buffer) - kept :]
        return pieces

    def _hand_out(self, text: str, *, thinking: bool) -> list[Piece]:
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
        """What was waiting, now that nothing follows."""
        self._buffer += self._text.rest()
        pieces = self._take()
        if self._part == "begin":
            self._part = "answer"
        pieces += self._hand_out(self._buffer, thinking=self.thinking)
        self._buffer = ""
        return pieces


class _Detokenizer:
    """Ids to text without ever decoding the whole again: each piece is the difference that new ids make.

    A few ids before them go into the tokenizer as well, since some tokenizers treat the first one differently.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.start = self.done = 0  # ids[start:done] are context, ids[done:] not handed out yet

    def add(self, token: int) -> str:
        self.ids.append(token)
        before, now = self._decode(self.ids[self.start : self.done]), self._decode(self.ids[self.start :])
        if now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self.start, self.done = self.done, len(self.ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What never became whole characters."""
        before, now = self._decode(self.ids[self.start : self.done]), self._decode(self.ids[self.start :])
        self.start = self.done = len(self.ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _partial(text: str, tag: str) -> int:
    """Characters at the end of ``text`` with which ``tag`` may be beginning."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
