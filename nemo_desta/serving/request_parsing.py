"""Turns the bytes of a request into a conversation for the engine. It runs in worker threads and uses no GPU, unless
the request wants Whisper's transcripts.

`RequestParser.parse` checks the request and is cheap; `RequestParser.prepare` decodes, renders and tokenises. Every
request gets a new random locator tag, so that ``<|AUDIO|>`` in a text stays text.
"""

import copy
import threading
import uuid
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from nemo_desta.answering.audio_embeddings import LocalChatModel, Transcriber
from nemo_desta.answering.clips import Clip
from nemo_desta.answering.engine import ContextExceeded, PreparedChat, check_transcript, prepare
from nemo_desta.answering.sampling import resolve_sampling
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.perception.feature_cache import clip_key
from nemo_desta.serving.audio import AudioBudget
from nemo_desta.serving.errors import ApiError
from nemo_desta.serving.protocol import ChatRequest, TextPart, parse_request
from nemo_desta.serving.settings import ServerSettings
from nemo_desta.types import AUDIO_SLOT

#: Text with at most so many characters per position of the context is tokenised at once, because it may fit.
LIKELY_CHARS = 8
#: Longer text is tokenised in pieces of at least so many characters.
MIN_PIECE = 4096
#: Tokens of a piece that are not counted, because a cut word may need a few more.
CUT_TOKENS = 16


class PreparedRequest(NamedTuple):
    """A request ready for the engine. ``num_audio_tokens``: positions of the prompt that are audio vectors."""

    chat: PreparedChat
    audio_secs: float
    num_audio_tokens: int


class RequestParser:
    """Parses requests to one model, which clients call ``name``.

    Raises:
        ConfigError: a transcriber for a model that uses no transcripts.
    """

    def __init__(self, model: LocalChatModel, name: str, settings: ServerSettings) -> None:
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
        """Parses a body and checks the limits that need no decoding. Raises ApiError: the request is invalid."""
        request = parse_request(body)
        if request.model != self.name:
            message = f"the model '{request.model:.200}' does not exist; served here: {self.name}"
            raise ApiError(404, message, param="model", code="model_not_found")
        if request.transcript == "whisper" and self.transcriber is None:
            message = "this server has no transcriber (start it with transcriber=true)"
            raise ApiError(400, message, param="transcript", code="unsupported_value")
        parts = [part for message in request.messages for part in message.parts]
        num_chars = sum(len(part.text if isinstance(part, TextPart) else part.transcript) for part in parts)
        if num_chars > self.settings.max_text_chars:
            message = f"{num_chars} characters of text; the limit is {self.settings.max_text_chars}"
            raise ApiError(413, message, param="messages", code="text_too_long")
        num_audios = sum(not isinstance(part, TextPart) for part in parts)
        if num_audios > self.settings.max_audios:
            message = f"{num_audios} audios; the limit is {self.settings.max_audios} per request"
            raise ApiError(413, message, param="messages", code="too_many_audios")
        return request

    def prepare(self, request: ChatRequest) -> PreparedRequest:
        """Decodes the audio, renders and tokenises the prompt. Raises ApiError: the request is invalid."""
        self._check_text(request)
        prompts = copy.copy(self.model.prompts)
        prompts.audio_locator_tag = f"<|audio {uuid.uuid4().hex}|>"
        budget = AudioBudget(self.settings.max_audio_secs)
        messages = self._messages(request, prompts.audio_locator_tag, budget)
        given = {"max_new_tokens": self.settings.max_new_tokens} | request.generation
        model = self.model
        # The part of a model that `prepare` needs, with this request's own prompts.
        own = {name: getattr(model, name) for name in ("sampling_rate", "audio_rates", "num_audio_tokens")}
        try:
            chat = prepare(
                SimpleNamespace(prompts=prompts, **own),
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
        num_audio_tokens = chat.num_prompt_tokens - sum(token != AUDIO_SLOT for token in chat.ids)
        return PreparedRequest(chat, budget.secs, num_audio_tokens)

    def _check_text(self, request: ChatRequest) -> None:
        """Rejects text that cannot fit. It tokenises piece by piece and stops when the context is full."""
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
                    f"the text needs more than {num_tokens} positions ({sum(map(len, texts))} characters) and the LLM "
                    f"has {self.context}; shorten the conversation"
                )
                raise ApiError(400, message, param="messages", code="context_length_exceeded")

    def _messages(self, request: ChatRequest, tag: str, budget: AudioBudget) -> list[dict[str, Any]]:
        """Messages for `prepare`: each part is on its own line; a tag marks an audio."""
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
                    sampling_rate=self.model.audio_rates,
                    where=f"messages[{i}].content[{j}].input_audio.data",
                )
                audios.append(Clip(audio, part.input_audio.transcript, clip_key(audio)))
            role = "system" if message.role == "developer" else message.role  # the name in chat templates
            messages.append({"role": role, "content": "\n".join(lines), "audios": audios})
        return messages


def _one_at_a_time(transcriber: Transcriber) -> Transcriber:
    """Serialises calls of the worker threads: Whisper's decoder is one module with one cache."""
    lock = threading.Lock()

    def locked(clips: Sequence[Any]) -> Sequence[str]:
        with lock:
            return transcriber(clips)

    return locked
