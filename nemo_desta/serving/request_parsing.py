"""From the bytes of a request to a conversation that the engine takes; runs in worker threads, touches no GPU
(unless Whisper's transcripts are asked for).

Two steps: `RequestParser.parse` checks what a request says and is cheap, `RequestParser.prepare` decodes, renders and tokenises.
The locator tag of every request is drawn anew: where a text says ``<|AUDIO|>`` it is text.
"""

import copy
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from nemo_desta.answering.audio_embeddings import Transcriber
from nemo_desta.answering.engine import ContextExceeded, PreparedChat, check_transcript, prepare
from nemo_desta.answering.sampling import resolve_sampling
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.serving.audio import AudioBudget
from nemo_desta.serving.errors import ApiError
from nemo_desta.serving.protocol import ChatRequest, TextPart, parse_request
from nemo_desta.serving.settings import ServerSettings
from nemo_desta.types import AUDIO_SLOT

if TYPE_CHECKING:
    from nemo_desta.answering.audio_frontend import AudioFrontend
    from nemo_desta.models.desta import DestaModel

#: Text with at most so many characters per position of the context is tokenised at once: it may well fit.
LIKELY_CHARS = 8
#: Characters that are tokenised at a time where the text is longer, and
MIN_PIECE = 4096
#: tokens of a piece that are not counted: where text is cut, a word may take a few more.
CUT_TOKENS = 16


class Wanted(NamedTuple):
    """A request that was understood. ``num_audio_tokens``: positions of the prompt that are audio vectors."""

    request: ChatRequest
    chat: PreparedChat
    audio_secs: float
    num_audio_tokens: int


@dataclass(frozen=True)
class _Ear:
    """What `prepare` needs of a model, with prompts of this request's own."""

    prompts: PromptBuilder
    sampling_rate: int
    num_audio_tokens: Callable[[int], int]


class RequestParser:
    """Reads requests to one model, called ``name``.

    Raises:
        ConfigError: a transcriber for a model that reads no transcripts.
    """

    def __init__(self, model: "DestaModel | AudioFrontend", name: str, settings: ServerSettings) -> None:
        self.model = model
        self.name = name
        self.settings = settings
        lengths = [length for length in (model.context_length, settings.max_context) if length is not None]
        self.context = min(lengths, default=None)
        self.transcriber = None
        if settings.transcriber:
            check_transcript(model, "whisper")
            self.transcriber = _one_at_a_time(model.transcriber)

    def parse(self, body: bytes | bytearray) -> ChatRequest:
        """Understand a body and check it against the limits that need no decoding.

        Raises:
            ApiError: whatever is wrong with it.
        """
        request = parse_request(body)
        if request.model != self.name:
            message = f"the model '{request.model:.200}' does not exist; served here: {self.name}"
            raise ApiError(404, message, param="model", code="model_not_found")
        if request.transcript == "whisper" and self.transcriber is None:
            message = "no transcriber runs here (the server is started with transcriber=true to have one)"
            raise ApiError(400, message, param="transcript", code="unsupported_value")
        self._check_size(request)
        return request

    def prepare(self, request: ChatRequest) -> Wanted:
        """Decode, render, tokenise.

        Raises:
            ApiError: whatever is wrong with the request.
        """
        self._check_text(request)
        prompts = copy.copy(self.model.prompts)
        prompts.audio_locator_tag = f"<|audio {uuid.uuid4().hex}|>"
        budget = AudioBudget(self.settings.max_audio_secs)
        chat = self._prepare(request, self._messages(request, prompts.audio_locator_tag, budget), prompts)
        num_audio_tokens = chat.num_prompt_tokens - sum(token != AUDIO_SLOT for token in chat.ids)
        return Wanted(request, chat, budget.secs, num_audio_tokens)

    def _prepare(self, request: ChatRequest, messages: list[dict[str, Any]], prompts: PromptBuilder) -> PreparedChat:
        given = {"max_new_tokens": self.settings.max_new_tokens} | request.generation
        try:
            return prepare(
                _Ear(prompts, self.model.sampling_rate, self.model.num_audio_tokens),
                messages,
                resolve_sampling(self.model.generation_config, **given),
                transcript=request.transcript,
                transcriber=self.transcriber,
                context=self.context,
            )
        except ContextExceeded as error:
            raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from error
        except RowError as error:
            raise ApiError(400, str(error), param="messages", code="invalid_messages") from error
        except ConfigError as error:
            raise ApiError(400, str(error), code="invalid_value") from error

    def _check_size(self, request: ChatRequest) -> None:
        parts = [part for message in request.messages for part in message.parts]
        num_chars = sum(len(part.text if isinstance(part, TextPart) else part.transcript) for part in parts)
        if num_chars > self.settings.max_text_chars:
            message = f"{num_chars} characters of text; at most {self.settings.max_text_chars} are taken"
            raise ApiError(413, message, param="messages", code="text_too_long")
        num_audios = sum(not isinstance(part, TextPart) for part in parts)
        if num_audios > self.settings.max_audios:
            message = f"{num_audios} audios; a request may bring {self.settings.max_audios}"
            raise ApiError(413, message, param="messages", code="too_many_audios")

    def _check_text(self, request: ChatRequest) -> None:
        """Refuse text that cannot fit without tokenising all of it: a piece at a time, until the context is full."""
        parts = [part for message in request.messages for part in message.parts]
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        if self.model.prompts.transcript.enabled and request.transcript != "none":
            texts += [part.transcript for part in parts if not isinstance(part, TextPart)]
        if self.context is None or sum(map(len, texts)) <= LIKELY_CHARS * self.context:
            return
        num_tokens, size = 0, max(MIN_PIECE, self.context)
        for piece in (text[start : start + size] for text in texts for start in range(0, len(text), size)):
            num_tokens += max(0, len(self.model.prompts.tokenize(piece)) - CUT_TOKENS)
            if num_tokens >= self.context:
                message = (
                    f"the text takes more than {num_tokens} positions ({sum(map(len, texts))} characters) and the LLM "
                    f"has {self.context}; shorten the conversation"
                )
                raise ApiError(400, message, param="messages", code="context_length_exceeded")

    def _messages(self, request: ChatRequest, tag: str, budget: AudioBudget) -> list[dict[str, Any]]:
        """Our messages: parts stand on lines of their own, an audio is its tag."""
        messages = []
        for i, message in enumerate(request.messages):
            lines, audios = [], []
            for j, part in enumerate(message.parts):
                if isinstance(part, TextPart):
                    lines.append(part.text)
                    continue
                lines.append(tag)
                audio = budget.load(
                    part.input_audio.data,
                    format=part.input_audio.format,
                    sampling_rate=self.model.sampling_rate,
                    where=f"messages[{i}].content[{j}].input_audio.data",
                )
                audios.append({"audio": audio, "text": part.input_audio.transcript})
            role = "system" if message.role == "developer" else message.role  # the name that templates know
            messages.append({"role": role, "content": "\n".join(lines), "audios": audios})
        return messages


def _one_at_a_time(transcriber: Transcriber) -> Transcriber:
    """Whisper's decoder is one module with one cache: worker threads take turns."""
    lock = threading.Lock()

    def locked(clips: Sequence[Any]) -> Sequence[str]:
        with lock:
            return transcriber(clips)

    return locked
