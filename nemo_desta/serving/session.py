"""One user's conversation with a model: history, clips, and streamed answers. The terminal and the web page use it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_desta.answering.audio_embeddings import HEARD_RATE
from nemo_desta.answering.clips import load_clip
from nemo_desta.answering.engine import Delta, check_transcript
from nemo_desta.data.audio_io import at_rate

if TYPE_CHECKING:
    from nemo_desta.models.desta import DestaModel


class ChatSession:
    """Clips are loaded (and, with ``transcript="whisper"``, transcribed) once, when they are attached.

    Args:
        system: a system message. transcript: see `nemo_desta.answering.engine.prepare`.
        sampling: fields of `Sampling`, for every answer.

    Raises:
        ConfigError: Whisper's transcripts for a model that uses none.
    """

    def __init__(
        self,
        model: "DestaModel",
        *,
        system: str | None = None,
        transcript: str = "given",
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        check_transcript(model, transcript)
        self.model = model
        self.system = system
        self.transcript = transcript
        self.sampling = dict(sampling or {})
        self.reset()

    def reset(self) -> None:
        """Starts a new conversation and drops attached clips."""
        self.messages: list[dict[str, Any]] = []
        self.waiting: list[dict[str, Any]] = []
        if self.system:
            self.messages.append({"role": "system", "content": self.system})

    def attach(self, audio: Any, *, name: str = "audio", text: str | None = None) -> float:
        """Attaches ``audio`` (anything that `load_clip` accepts) to the next question; returns its seconds.

        Raises:
            AudioError: it cannot be read.
        """
        rates = self.model.audio_rates
        clip = load_clip(audio, rates, name=name)
        if self.transcript == "whisper" and text is None:
            heard = at_rate(clip.audio, rates, HEARD_RATE)
            text = self.model.transcriber([heard])[0] or " "  # DeSTA2.5-Audio's transcript of audio without speech
        self.waiting.append({"clip": clip._replace(text=text), "text": text, "path": name})
        return len(clip.audio) / self.model.sampling_rate

    def ask(self, prompt: str) -> Iterator[Delta]:
        """The answer to ``prompt``, piece by piece. If the caller stops early, the history keeps the partial answer.

        Raises:
            ValueError: the prompt is invalid (tags do not match the clips, too long). The session is unchanged.
        """
        tag, audios = self.model.audio_locator_tag, self.waiting
        if audios and tag not in prompt:
            prompt = f"{tag}\n" * len(audios) + prompt
        question = {"role": "user", "content": prompt, "audios": audios}
        deltas = self.model.stream(
            [_plain(message) for message in [*self.messages, question]],
            transcript="none" if self.transcript == "none" else "given",
            **self.sampling,
        )
        said = ""
        try:
            for delta in deltas:
                said += "" if delta.thinking else delta.text
                yield delta
        finally:
            if said:
                self.messages += [question, {"role": "assistant", "content": said}]
                self.waiting = []

    def save(self, path: str | Path) -> None:
        """Writes the conversation as one JSON object; audios are given by name."""
        messages = [
            {
                **message,
                "audios": [{"audio": audio["path"], "text": audio["text"]} for audio in message.get("audios", ())],
            }
            for message in self.messages
        ]
        Path(path).write_text(json.dumps({"messages": messages}, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of the history in the form of `DestaModel.stream`."""
    audios = [audio["clip"] for audio in message.get("audios", ())]
    return {"role": message["role"], "content": message["content"], "audios": audios}
