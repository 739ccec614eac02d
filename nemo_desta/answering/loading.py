"""Messages in any form -> messages with loaded clips -> ids and clips of a prompt: for chat, server and processor."""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_desta.answering.clips import Clip, load_clip
from nemo_desta.answering.parts import plain_message
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.types import Rates


def load_messages(messages: Sequence[Any], tag: str, sampling_rate: Rates) -> list[dict[str, Any]]:
    """Messages in any form that `plain_message` accepts, as ``{"role", "content", "audios": list of Clip}``.

    Raises:
        RowError: a faulty message. AudioError: a clip that cannot be read. ConfigError: an unknown key.
    """
    loaded = []
    for number, message in enumerate(messages, 1):
        message = plain_message(message, tag, f"message {number}")
        clips = [
            load_clip(audio, sampling_rate, name=f"audio {i} of message {number}")
            for i, audio in enumerate(message["audios"], 1)
        ]
        loaded.append({**message, "audios": clips})
    return loaded


def prompt_of(prompts: PromptBuilder, loaded: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[Clip]]:
    """Ids of a prompt, with an `AUDIO_SLOT` per clip, and the clips in the order of the slots.

    Raises:
        RowError: tags and audios do not match, or the template refuses the messages.
    """
    prompt = prompts.prompt([{**m, "audios": [clip._asdict() for clip in m["audios"]]} for m in loaded])
    return prompt.ids, [Clip(**audio) for audio in prompt.audios]
