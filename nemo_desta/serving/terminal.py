"""A conversation in a terminal: streamed answers, and commands that begin with a slash."""

import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from nemo_desta.answering.engine import Delta
from nemo_desta.config import nearest
from nemo_desta.serving.session import ChatSession

DIM, PLAIN, BACK = "\x1b[2m", "\x1b[0m", "\r\x1b[K"

HELP = """\
/audio FILE ...   attach files to the next question ("quotes" around spaces)
/reset            start a new conversation
/save FILE        write the conversation to a JSON file
/help             show this list
/quit             leave (also Ctrl-D); Ctrl-C stops an answer"""


class Terminal:
    """``show_thinking``: print thoughts, dimmed. ``out``: default standard output. ``notes``: stream for remarks in
    brackets, default ``out``. ``colour``: default on if ``out`` is a terminal."""

    def __init__(
        self,
        session: ChatSession,
        *,
        show_thinking: bool = False,
        out: TextIO | None = None,
        notes: TextIO | None = None,
        read: Callable[[str], str] = input,
        colour: bool | None = None,
    ) -> None:
        self.session = session
        self.show_thinking = show_thinking
        self.out = out or sys.stdout
        self.notes = notes or self.out
        self.read = read
        self.colour = self.out.isatty() if colour is None else colour
        self.commands: dict[str, Callable[[list[str]], None]] = {
            "/audio": self._audio,
            "/reset": self._reset,
            "/save": self._save,
            "/help": lambda words: self._say(HELP),
        }

    def attach(self, paths: Sequence[str], *, texts: Sequence[str] = ()) -> None:
        """Attaches clips to the next question, with their transcripts if given.

        Raises:
            AudioError: one cannot be read.
        """
        for i, path in enumerate(paths):
            secs = self.session.attach(path, name=path, text=texts[i] if texts else None)
            self._note(f"{path}: {secs:.1f} s")
            if self.session.transcript == "whisper":
                self._note(f"transcript: {self.session.waiting[-1]['text']}")

    def answer(self, prompt: str) -> None:
        """Prints the answer to ``prompt``. Ctrl-C stops the answer, not the program.

        Raises:
            ValueError: the prompt is invalid.
        """
        deltas = self.session.ask(prompt)
        try:
            with interrupt_between(deltas) as interruptible:
                self._print(interruptible)
        except KeyboardInterrupt:
            deltas.close()
            self._write(PLAIN * self.colour + "\n")
            self._note("stopped")

    def run(self) -> None:
        """Handles questions and commands until /quit or the end of the input."""
        self._note("ask something, or /help")
        while True:
            try:
                line = self.read("> ").strip()
            except EOFError:
                self._write("\n")
                return
            except KeyboardInterrupt:
                self._write("\n")
                self._note("/quit leaves")
                continue
            if line == "/quit":
                return
            try:
                self._obey(line)
            except (ValueError, OSError) as error:  # AudioError and RowError are ValueErrors
                self._say(f"{type(error).__name__}: {error}")

    def _obey(self, line: str) -> None:
        if line.startswith("/"):
            command, *words = shlex.split(line)
            if command not in self.commands:
                raise ValueError(f"no command {command}.{nearest(command, [*self.commands, '/quit'])}")
            self.commands[command](words)
        elif line:
            self.answer(line)

    def _print(self, deltas: Iterable[Delta]) -> None:
        thought = False
        waiting = self.colour and not self.show_thinking
        finish = None
        for delta in deltas:
            finish = delta.finish or finish
            if delta.thinking:
                if not thought:
                    self._write((DIM if self.colour else "") + ("thinking ..." if waiting else ""))
                thought = True
                if self.show_thinking:
                    self._write(printable(delta.text))
            elif delta.text:
                if thought:  # the answer begins
                    self._write(BACK * waiting + PLAIN * self.colour + "\n\n" * self.show_thinking)
                    thought = False
                self._write(printable(delta.text))
        if thought:
            self._write(BACK * waiting + PLAIN * self.colour)
        self._write("\n")
        if finish == "length":
            self._note("the answer reached the limit of new tokens (sampling.max_new_tokens)")

    def _audio(self, words: list[str]) -> None:
        if not words:
            raise ValueError("/audio needs a file")
        self.attach(words)

    def _reset(self, words: list[str]) -> None:
        self.session.reset()
        self._note("a new conversation")

    def _save(self, words: list[str]) -> None:
        if len(words) != 1:
            raise ValueError("/save needs one file name")
        self.session.save(words[0])
        self._note(f"written: {words[0]}")

    def _say(self, text: str) -> None:
        self._write(printable(text) + "\n")

    def _note(self, text: str) -> None:
        line = f"({printable(text)})"
        self.notes.write(f"{DIM}{line}{PLAIN}\n" if self.colour else f"{line}\n")
        self.notes.flush()

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


@contextmanager
def interrupt_between(items: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Yields ``items``; during the block the first Ctrl-C is raised between two of them, the second at once.

    Python raises KeyboardInterrupt wherever it stands. In a finalizer or a callback of C code, it prints and drops it.
    """
    if threading.current_thread() is not threading.main_thread():  # signal handlers belong to the main thread
        yield iter(items)
        return
    pressed = False

    def handle(signum: int, frame: Any) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    def checked() -> Iterator[Any]:
        for item in items:
            if pressed:
                raise KeyboardInterrupt
            yield item

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield checked()
    finally:
        signal.signal(signal.SIGINT, before)


def printable(text: str) -> str:
    """Text without control characters, so that no LLM or file name can move the cursor or colour the screen."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)
