"""The supported part of OpenAI's chat completions: the fields of a request, checked one by one.

Every other field is rejected by name, so that no option is ignored silently. Our own extensions are
``max_thinking_tokens``, ``top_k``, ``min_p``, ``repetition_penalty``, ``transcript``, and a ``transcript`` beside the
data of an audio.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from nemo_desta.config import nearest
from nemo_desta.serving.audio import FORMATS
from nemo_desta.serving.errors import ApiError

try:
    from pydantic import (
        BaseModel,
        BeforeValidator,
        ConfigDict,
        Discriminator,
        Field,
        Tag,
        ValidationError,
        model_validator,
    )
except ImportError as error:
    raise ImportError("the server needs pydantic: pip install 'nemo_desta[serve]'") from error

#: Unsupported fields of OpenAI's, with the values that are accepted because they request nothing (as null, [], {} do).
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "chat_template_kwargs": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": (),
    "logit_bias": (),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
#: Below it logits overflow, and an error in sampling would fail all running requests.
MIN_TEMPERATURE = 0.01
#: The caller's labels, which never change an answer.
LABELS = ("metadata", "prompt_cache_key", "safety_identifier", "user")
#: Fields of OpenAI's answers that our answers never fill.
EMPTY_IN_ANSWERS = ("annotations", "audio", "function_call", "refusal", "tool_calls")

Number = Annotated[float, Field(allow_inf_nan=False)]
#: JSON has one type of number: 1.0 is 1.
Whole = Annotated[int, BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)]
Count = Annotated[Whole, Field(ge=1, lt=2**31)]
#: OpenAI's rule for ``name``.
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\s<|\\/>]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value


class InputAudio(_Strict):
    """``data``: a complete file in base64. ``transcript``: the spoken words, if the caller knows them."""

    data: str
    format: str
    transcript: str | None = None


class TextPart(_Strict):
    type: Literal["text"]
    text: str


class AudioPart(_Strict):
    type: Literal["input_audio"]
    input_audio: InputAudio

    @property
    def transcript(self) -> str:
        """The caller's transcript; empty if there is none."""
        return self.input_audio.transcript or ""


Part = Annotated[TextPart | AudioPart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[Part], Tag("parts")],
    Discriminator(lambda value: "string" if isinstance(value, str) else "parts"),
]


class ChatMessage(_Strict):
    """``reasoning_content``: the thought of an earlier answer, from clients that return whole messages; it is left out
    of the prompt, as reasoning LLMs expect. ``name``: a label, which is ignored."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Name | None = None
    reasoning_content: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_not_given(cls, value: Any) -> Any:
        """Drops the empty fields that clients send when they return whole answers."""
        if not isinstance(value, Mapping):
            return value
        return {k: v for k, v in value.items() if not (k in EMPTY_IN_ANSWERS and v in ("", [], {}))}

    @property
    def parts(self) -> list[TextPart | AudioPart]:
        return [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(_Strict):
    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    max_thinking_tokens: Count | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.1, le=10)] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    transcript: Literal["given", "whisper", "none"] = "given"

    @property
    def generation(self) -> dict[str, Any]:
        """The given fields of `nemo_desta.answering.sampling.Sampling`."""
        names = ("temperature", "top_p", "min_p", "repetition_penalty", "seed", "max_thinking_tokens")
        given = {name: getattr(self, name) for name in names}
        given["top_k"] = 0 if self.top_k == -1 else self.top_k  # both mean "off"
        given["max_new_tokens"] = self.max_completion_tokens or self.max_tokens
        given["stop"] = self.stop or None
        return {name: value for name, value in given.items() if value is not None}


def parse_request(body: bytes | bytearray) -> ChatRequest:
    """Parses a body. Raises ApiError: 400 that names the field; ``param`` is its path."""
    try:
        data = json.loads(body, parse_constant=_refuse_constant)
        if b"\\u" in body:  # a lone surrogate may be escaped in JSON, but no tokenizer accepts it
            json.dumps(data, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {str(error):.200}", code="invalid_json") from error
    if not isinstance(data, dict):
        raise ApiError(400, f"the body must be a JSON object, found {type(data).__name__}", code="invalid_json")
    for name, harmless in UNSUPPORTED.items():
        value = data.pop(name, None)
        if not _asks_for_nothing(value, harmless):
            means = " or ".join(json.dumps(known) for known in harmless)
            hint = f"leave it out{f' or set it to {means}' if means else ''}"
            raise ApiError(400, f"'{name}' is not supported: {hint}", param=name, code="unsupported_parameter")
    for name in LABELS:
        data.pop(name, None)
    try:
        request = ChatRequest.model_validate(data)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_input=False)[0], data) from error
    _check(request)
    return request


def _asks_for_nothing(value: Any, harmless: Sequence[Any]) -> bool:
    """Whether a field can be ignored; 0.0 and -0.0 are 0, but false is not."""
    if value is None or value in ([], {}):
        return True
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in harmless)


def _check(request: ChatRequest) -> None:
    """Checks the rules between fields."""
    if request.stream_options is not None and request.stream_options.include_usage and not request.stream:
        raise ApiError(400, "'stream_options' needs stream=true", param="stream_options")
    if request.temperature and request.temperature < MIN_TEMPERATURE:
        raise ApiError(400, f"'temperature' must be 0 or from {MIN_TEMPERATURE} to 2", param="temperature")
    both = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(both) > 1:
        raise ApiError(400, "'max_tokens' and 'max_completion_tokens' differ; give one", param="max_tokens")
    if isinstance(request.stop, list) and not all(request.stop):
        raise ApiError(400, "'stop' holds an empty text", param="stop")
    for i, message in enumerate(request.messages):
        if message.reasoning_content is not None and message.role != "assistant":
            where = f"messages[{i}].reasoning_content"
            raise ApiError(400, f"reasoning_content is only for the role assistant, not {message.role}", param=where)
        for j, part in enumerate(message.parts):
            if not isinstance(part, AudioPart):
                continue
            where = f"messages[{i}].content[{j}]"
            if message.role != "user":
                raise ApiError(400, f"audio is only for the role user, not {message.role}", param=where)
            if (named := part.input_audio.format).lower() not in FORMATS:
                message = f"unknown format '{named:.40}'.{nearest(named.lower(), FORMATS)}"
                raise ApiError(400, message, param=f"{where}.input_audio.format", code="unknown_format")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _refusal(error: Mapping[str, Any], data: Mapping[str, Any]) -> ApiError:
    """Pydantic's first error as an ApiError."""
    known, kind = error.get("ctx") or {}, error["type"]
    where, found = _place(error["loc"], data, missing=kind == "missing")
    if kind == "extra_forbidden":
        hint = nearest(where, ChatRequest.model_fields) if len(error["loc"]) == 1 else ""
        return ApiError(400, f"unknown field '{where:.200}'.{hint}", param=where, code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"'{where}' is missing", param=where, code="missing_required_parameter")
    if kind == "union_tag_invalid":
        message = f"'{where}.type' is {known['tag']!r:.60}; known: {known['expected_tags']}"
        if str(known["tag"]) in ("image_url", "file", "audio_url", "video_url", "input_file"):
            message += ". The server fetches no URLs: send audio as base64 in input_audio"
        return ApiError(400, message, param=f"{where}.type", code="invalid_value")
    shown = f", found {found!r:.60}" if isinstance(found, str | int | float) else ""
    return ApiError(400, f"'{where}': {error['msg']}{shown}", param=where, code="invalid_value")


def _place(loc: Sequence[str | int], data: Any, *, missing: bool) -> tuple[str, Any]:
    """The path in the caller's body (pydantic's path without the names of our union members), and the value there.

    ``missing``: the last step is not in the body but belongs to the path.
    """
    path = ""
    for i, step in enumerate(loc):
        inside = isinstance(data, list) if isinstance(step, int) else isinstance(data, Mapping) and step in data
        if inside or (missing and i == len(loc) - 1):
            path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
        if inside:
            data = data[step]
    return path, data
