"""One visitor's conversation on the web page, and the messages and clips that the page shows."""

import html
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nemo_desta.data.audio_io import AudioError, at_rate
from nemo_desta.errors import ConfigError
from nemo_desta.serving.session import ChatSession

if TYPE_CHECKING:
    from nemo_desta.models.desta import DestaModel

#: Size of a clip's waveform.
WIDTH, HEIGHT = 320, 48
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
            name = Path(file).name
            name = "recording" if name == "audio.wav" else name  # Gradio's name of every recording
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
        rates, rate = self.session.model.audio_rates, self.session.model.sampling_rate
        clips = [(audio, at_rate(audio["clip"].audio, rates, rate)) for audio in self.session.waiting]
        return "".join(card(audio["path"], samples, len(samples) / rate, audio["text"]) for audio, samples in clips)

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


def waveform(audio: np.ndarray, *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """(S,) in [-1, 1] -> an SVG: per point of ``width`` a line from minimum to maximum, scaled to the peak."""
    bounds = np.linspace(0, len(audio), width + 1).astype(int)[:-1]
    bounds = np.minimum(bounds, max(0, len(audio) - 1))
    low, high = np.minimum.reduceat(audio, bounds), np.maximum.reduceat(audio, bounds)
    loudest = max(float(np.abs(audio).max()), 1e-4)  # silence becomes a flat line
    middle = height / 2
    top, bottom = (middle - (middle - 1) * values / loudest for values in (high, low))
    lines = "".join(
        f"M{x}.5 {y0:.1f}V{max(y1, y0 + 1):.1f}" for x, (y0, y1) in enumerate(zip(top, bottom, strict=True))
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="waveform" preserveAspectRatio="none">'
        f'<path d="{lines}" stroke="currentColor" fill="none"/></svg>'
    )


def card(name: str, audio: np.ndarray, secs: float, text: str | None = None) -> str:
    """A clip with its name, length, waveform and transcript, as HTML."""
    said = f"<p>{html.escape(text.strip() or 'no speech')}</p>" if text is not None else ""
    return (
        f'<figure class="clip"><figcaption><b>{html.escape(name)}</b> <span>{secs:.1f} s</span></figcaption>'
        f"{waveform(audio)}{said}</figure>"
    )
