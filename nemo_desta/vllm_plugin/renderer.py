"""Chats to prompts in vLLM: ids of `PromptBuilder`, so that a chat has the same prompt in every engine.

vLLM itself reads requests, fetches and decodes audio; this renderer replaces its Jinja step. A prompt that holds the
audio token without a clip is refused, whichever endpoint it comes from.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.chat_utils import parse_chat_messages, parse_chat_messages_async
from vllm.renderers.hf import HfRenderer
from vllm.utils.async_utils import make_async

from nemo_desta.answering.parts import plain_message
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.types import AUDIO_SLOT
from nemo_desta.vllm_plugin.served import served_processor

#: What vLLM passes with every chat: only these values are known. The rest tells Jinja's caller what to return.
FIXED = {"add_generation_prompt": True, "continue_final_message": False}
FOR_CALLER = ("tokenize", "return_dict")


class DestaRenderer(HfRenderer):
    """vLLM's renderer for model folders; chosen by `ModelHooks`."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        super().__init__(config, tokenizer)
        self._processor = served_processor(config.model_config)
        self._prompt_async = make_async(self._prompt, executor=self._executor)

    def get_eos_token_id(self) -> int:
        """The token that ends a turn by the chat template."""
        return self._processor.prompts.end_of_turn_id

    def render_messages(self, messages: Sequence[Any], params: Any) -> tuple[list[Any], dict[str, Any]]:
        found = parse_chat_messages(messages, self.model_config, **_reading(params))
        return self._prompt(messages, found, params)

    async def render_messages_async(self, messages: Sequence[Any], params: Any) -> tuple[list[Any], dict[str, Any]]:
        found = await parse_chat_messages_async(messages, self.model_config, **_reading(params))
        return await self._prompt_async(messages, found, params)

    def _prompt(
        self, messages: Sequence[Any], found: tuple[list[Any], Any, Any], params: Any
    ) -> tuple[list[Any], dict[str, Any]]:
        """vLLM's reading of ``messages`` -> the conversation, and its prompt with clips in the order of the ids.

        Raises:
            VLLMValidationError: messages that `PromptBuilder` refuses, or an option that it does not have.
        """
        conversation, data, uuids = found
        try:
            prompts = _with_variables(self._processor.prompts, params)
            plain = _plain_messages(messages, conversation, self._processor.audio_token)
            prompt = prompts.prompt(plain)
        except (ConfigError, RowError) as error:
            raise VLLMValidationError(str(error), parameter="messages") from error
        token = self._processor.audio_token_id
        rendered: dict[str, Any] = {"prompt_token_ids": [token if i == AUDIO_SLOT else i for i in prompt.ids]}
        if prompt.audios:
            order = [audio["audio"] for audio in prompt.audios]
            rendered["multi_modal_data"] = {"audio": [data["audio"][i] for i in order]}
            if uuids is not None and "audio" in uuids:
                rendered["multi_modal_uuids"] = {"audio": [uuids["audio"][i] for i in order]}
        return conversation, rendered

    def _process_tokens(self, prompt: Any, **options: Any) -> Any:
        return self._checked(super()._process_tokens(prompt, **options))

    async def _process_tokens_async(self, prompt: Any, **options: Any) -> Any:
        return self._checked(await super()._process_tokens_async(prompt, **options))

    def _checked(self, engine_input: Any) -> Any:
        """Refuse audio tokens that no clip fills.

        Raises:
            VLLMValidationError: there is one.
        """
        token, held = self._processor.audio_token_id, 0
        if self.get_mm_processor().info.held_id == token:
            held = sum(place.length for place in engine_input.get("mm_placeholders", {}).get("audio", ()))
        if engine_input["prompt_token_ids"].count(token) != held:
            tag = self._processor.audio_token
            raise VLLMValidationError(f"the prompt holds {tag} without a clip; each tag needs exactly one audio")
        return engine_input


def _reading(params: Any) -> dict[str, Any]:
    """How vLLM reads messages: parts stay parts."""
    return {
        "content_format": "openai",
        "media_io_kwargs": params.media_io_kwargs,
        "mm_processor_kwargs": params.mm_processor_kwargs,
    }


def _with_variables(prompts: PromptBuilder, params: Any) -> PromptBuilder:
    """``prompts`` with the request's template variables, such as ``enable_thinking``.

    Raises:
        ConfigError: an option that a prompt of this model cannot have; it is never ignored.
    """
    if params.chat_template is not None:
        raise ConfigError("chat_template: prompts are rendered by the chat template that the model was trained with")
    given = {n: value for n, value in params.chat_template_kwargs.items() if value is not None and n not in FOR_CALLER}
    for name, value in FIXED.items():
        if given.pop(name, value) != value:
            raise ConfigError(f"{name}={not value}: a prompt of this model ends where a new answer begins")
    for name in ("tools", "documents"):
        if given.pop(name, None):
            raise ConfigError(f"{name}: prompts of this model hold messages only")
    return prompts.with_variables(given)


def _plain_messages(messages: Sequence[Any], conversation: Sequence[Any], tag: str) -> list[dict[str, Any]]:
    """vLLM's conversation in our form; an audio is ``{"audio": its number, "text": its transcript or None}``.

    Raises:
        RowError: a part that is no text and no audio, tool calls, or tags beside audio parts.
    """
    plain, number = [], 0
    for i, (given, message) in enumerate(zip(messages, conversation, strict=True), 1):
        if message.get("tool_calls"):
            raise RowError("schema", f"message {i}: tool calls cannot be part of a prompt of this model")
        parts, audios = message["content"], []
        transcripts = _transcripts(given)
        if not isinstance(parts, str):
            kept = []
            for part in parts:
                if part["type"] == "audio":
                    kept.append({"type": "audio"})
                    audios.append({"audio": number, "text": transcripts[len(audios)]})
                    number += 1
                else:
                    kept.append({"type": part["type"], "text": part.get("text")})
            parts = kept
        plain.append(plain_message({"role": message["role"], "content": parts, "audios": audios}, tag, f"message {i}"))
    return plain


def _transcripts(message: Mapping[str, Any]) -> list[str | None]:
    """The transcript of each audio part: ``transcript`` of ``input_audio``, ``text`` of other audio parts."""
    found: list[str | None] = []
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and ("input_audio" in part or "audio_url" in part):
            inner = part.get("input_audio")
            found.append(inner.get("transcript") if isinstance(inner, Mapping) else part.get("text"))
    return found
