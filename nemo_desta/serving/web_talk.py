"""One visitor's conversation on the web page, and the messages that the page shows."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_desta.data.audio_io import AudioError
from nemo_desta.errors import ConfigError
from nemo_desta.serving.session import ChatSession
from nemo_desta.serving.web_picture import card

if TYPE_CHECKING:
    from nemo_desta.models.desta import DestaModel

#: Minimum interval between two updates of the page during an answer.
DRAW_SECS = 0.05

#: Remark on an answer, by its finish and whether there is text after the thought.
ENDS = {
    ("length", True): "the limit of new tokens was reached",
    ("length", False): "the limit of new tokens was reached before an answer",
    ("stop", False): "the answer is empty",
}

Shown = list[dict[str, Any]]


class Talk:
    """A `ChatSession` and its display. ``messages``: the shown messages, in Gradio's format."""

    def __init__(
        self, model: "DestaModel", *, system: str | None, transcript: str, sampling: Mapping[str, Any]
    ) -> None:
        self.session = ChatSession(model, system=system, transcript=transcript, sampling=sampling)
        self.messages: Shown = []
        self._files: list[str] = []
        self._stop = False

    def attach(self, files: Sequence[str]) -> None:
        """Attaches files to the next question.

        Raises:
            AudioError: one cannot be read; the files before it are attached.
        """
        for file in files:
            name = _name(file)
            try:
                self.session.attach(file, name=name)
            except AudioError as error:  # do not reveal Gradio's upload folder
                raise AudioError(error.reason, str(error).replace(file, name)) from error
            self._files.append(file)

    def detach(self) -> None:
        """Drops the attached files."""
        self.session.waiting.clear()
        self._files.clear()

    def stop(self) -> None:
        """Stops the running answer, from another thread."""
        self._stop = True

    @property
    def cards(self) -> str:
        """The attached clips as HTML."""
        rate = self.session.model.sampling_rate
        return "".join(
            card(audio["path"], audio["audio"], len(audio["audio"]) / rate, audio["text"])
            for audio in self.session.waiting
        )

    def ask(self, prompt: str, sampling: Mapping[str, Any]) -> Iterator[None]:
        """Answers; yields whenever ``messages`` has changed.

        Raises:
            ValueError: the question is invalid; nothing has changed.
        """
        if not prompt.strip():
            raise ConfigError("the question is empty; please write one")
        self._stop = False
        self.session.sampling = dict(sampling)
        before = list(self.messages)
        question = [*({"role": "user", "content": {"path": file}} for file in self._files), _message("user", prompt)]
        thought, said, finish, drawn = "", "", None, 0.0
        try:
            for delta in self.session.ask(prompt):
                if self._stop:
                    break
                thought += delta.text if delta.thinking else ""
                said += "" if delta.thinking else delta.text
                finish = delta.finish or finish
                if time.monotonic() - drawn > DRAW_SECS:
                    self.messages = [*before, *question, *_answer(thought, said, writing=True)]
                    yield
                    drawn = time.monotonic()
        finally:
            if not thought and not said:  # an error, or stopped before any text: undo the question
                self.messages = before
        if remark := "stopped" if self._stop else ENDS.get((finish, bool(said))):
            said = f"{said}\n\n*({remark})*"
        self.messages = [*before, *question, *_answer(thought, said, writing=False)]
        if not self.session.waiting:
            self._files = []
        yield


def _name(file: str) -> str:
    """The shown name of a file; Gradio names every recording ``audio.wav``."""
    name = Path(file).name
    return "recording" if name == "audio.wav" else name


def _answer(thought: str, said: str, *, writing: bool) -> Shown:
    """The thought as a foldable message, then the answer."""
    shown: Shown = []
    if thought:
        done = bool(said) or not writing
        metadata = {"title": "Thinking", "status": "done" if done else "pending"}
        shown.append({**_message("assistant", thought), "metadata": metadata})
    if said or not thought:
        shown.append(_message("assistant", said))
    return shown


def _message(role: str, text: str) -> dict[str, Any]:
    """A message without image syntax: a model's text must not make the browser fetch anything."""
    return {"role": role, "content": text.replace("![", "!\\[")}
