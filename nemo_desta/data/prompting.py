"""Messages and response to token ids, by the LLM's own chat template (design decision 5).

The rendered prompt is split where the audios go and the pieces are tokenised; each audio is one `AUDIO_SLOT` in the
ids. Only locator tags of messages that carry audios are slots: the tag in an answer, a transcript or the template is
text.
"""

import random
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from nemo_desta.config import TranscriptConfig
from nemo_desta.data.rows import RowError
from nemo_desta.data.template_limits import render_chat
from nemo_desta.types import AUDIO_SLOT

Message = Mapping[str, Any]


class Prompt(NamedTuple):
    """``ids``: one per text token, `AUDIO_SLOT` per audio. ``audios``: the messages' audios, in order of the slots."""

    ids: list[int]
    audios: list[Any]


class Example(NamedTuple):
    """``ids[:prompt_len]`` is the prompt, the rest is the supervised target."""

    ids: list[int]
    prompt_len: int
    audios: list[Any]


class Draw(NamedTuple):
    """What decides the random part of one row: equal draws give equal prompts in any worker."""

    seed: int
    epoch: int
    row_id: str


class PromptBuilder:
    """Renders prompts and examples with one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template (or NeMo's wrapper around one).
        audio_locator_tag: the text that stands for one audio in a message.
        chat_template_kwargs: passed on to the template, for example ``{"enable_thinking": False}``.
        audio_tags, audio_role: see `PromptConfig`.
        transcript: the transcript channel; None or ``enabled=False`` leaves transcripts out.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: Any,
        audio_locator_tag: str = "<|AUDIO|>",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        transcript: TranscriptConfig | None = None,
        *,
        audio_tags: Sequence[str] | None = None,
        audio_role: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer if hasattr(tokenizer, "apply_chat_template") else tokenizer.tokenizer
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer '{self.tokenizer.name_or_path}' has no chat template; prompts are rendered by the "
                "LLM's own template, so an instruct or reasoning LLM is needed"
            )
        self.audio_locator_tag = audio_locator_tag
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.transcript = transcript or TranscriptConfig()
        if audio_tags is not None and len(audio_tags) != 2:
            raise ValueError(f"audio_tags are the texts before and after an audio, found {list(audio_tags)}")
        self.audio_tags = tuple(audio_tags or ("", ""))
        self.audio_role = audio_role

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        draw: Draw | None = None,
        check_audios: bool = True,
        max_transcript_tokens: int | None = None,
    ) -> Prompt:
        """The ids up to where the LLM starts to answer.

        Args:
            messages: an item of ``audios`` is a mapping with ``audio`` and ``text``, or whatever stands for a clip.
            draw: switches transcript dropout and noise on (training).
            max_transcript_tokens: where transcripts are cut, as `example` does for training; None reads them whole.
            check_audios: False when the clips come separately: then every tag of a message without audios is a slot.

        Raises:
            RowError: tags and audios do not fit, or the template refuses the messages.
        """
        marked, audios, mark = place_audios(messages, self.audio_locator_tag, check_audios=check_audios)
        marked = [dict(message, content=self._wrap(message["content"], mark)) for message in marked]
        if self.audio_role is not None:
            marked = _apart(marked, mark, self.audio_role)
        pieces = re.split(f"{mark}([0-9]+){mark}", self.render(marked))
        texts, slots = pieces[0::2], [int(number) for number in pieces[1::2]]
        if sorted(slots) != list(range(len(audios))):
            raise RowError("template", f"the chat template kept {len(slots)} of {len(audios)} audio places")
        ids = self.tokenize(texts[0])
        for order, (slot, text) in enumerate(zip(slots, texts[1:], strict=True)):
            transcript = self._transcript_ids(audios[slot], order, draw)[:max_transcript_tokens]
            ids += [AUDIO_SLOT, *transcript, *self.tokenize(text)]
        return Prompt(ids, [audios[slot] for slot in slots if audios[slot] is not None])

    def example(self, row: Mapping[str, Any], *, draw: Draw | None = None) -> Example:
        """Prompt and target of a row: the raw response, then end of turn unless the row is ``truncated``.

        Raises:
            RowError: as `prompt`.
        """
        limit = self.transcript.max_tokens
        ids, audios = self.prompt(row["messages"], draw=draw, max_transcript_tokens=limit)
        target = self.tokenize(row["response"])
        if not row.get("truncated"):
            target.append(self.end_of_turn_id)
        return Example(ids + target, len(ids), audios)

    def render(self, messages: Sequence[Message]) -> str:
        """The chat template's text for the messages, ready for the assistant to go on."""
        from jinja2 import TemplateError

        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            return render_chat(self.tokenizer, plain, add_generation_prompt=True, **self.chat_template_kwargs)
        except TemplateError as error:
            raise RowError("template", f"the chat template refuses these messages: {error}") from error

    def tokenize(self, text: str) -> list[int]:
        """Ids of a piece of text; nothing is added."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    @cached_property
    def end_of_turn_id(self) -> int:
        """The special token that the template puts behind an assistant's content; the tokenizer's eos if none."""
        word = "answer"
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": word}]
        rendered = render_chat(self.tokenizer, turns, **self.chat_template_kwargs)
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for token in self.tokenize(rendered.rpartition(word)[2]):
            if token in special:
                return token
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer '{self.tokenizer.name_or_path}' marks no end of turn: its template puts no special "
                "token behind an answer, and it has no eos_token"
            )
        return self.tokenizer.eos_token_id

    def end_ids(self, configured: int | Sequence[int] | None = None) -> list[int]:
        """Every id that ends a turn: by the chat template, the tokenizer, and the LLM's generation config
        (``configured``: its ``eos_token_id``)."""
        listed = configured if isinstance(configured, Sequence) else [configured]
        ids = (self.end_of_turn_id, self.tokenizer.eos_token_id, *listed)
        return list(dict.fromkeys(i for i in ids if i is not None))

    def _wrap(self, content: str, mark: str) -> str:
        """``audio_tags`` around every marked place that does not have them."""
        before, after = self.audio_tags
        place = f"{re.escape(before)}({mark}[0-9]+{mark}){re.escape(after)}"
        bare = re.sub(place, r"\1", content) if before or after else content
        return re.sub(f"({mark}[0-9]+{mark})", lambda match: before + match[1] + after, bare)

    def _transcript_ids(self, audio: Any, order: int, draw: Draw | None) -> list[int]:
        text = audio.get("text") if isinstance(audio, Mapping) else None
        if not self.transcript.enabled or not text:
            return []
        if draw is not None:
            rng = random.Random(f"{draw.seed}/{draw.epoch}/{draw.row_id}/{order}")
            if rng.random() < self.transcript.dropout:
                return []
            text = _disturb(text, self.transcript.noise, rng)
        return self.tokenize(text)


def place_audios(
    messages: Sequence[Message], tag: str, *, check_audios: bool = True
) -> tuple[list[Message], list[Any], str]:
    """Find the place of every audio.

    Returns:
        The messages with ``<mark><number><mark>`` where an audio goes, the audios by number, and the mark, a character
        that the messages do not contain.

    Raises:
        RowError: a message's tags and audios differ in number.
    """
    everything = "".join(message["content"] for message in messages)
    mark = next((chr(code) for code in range(0xE000, 0xF900) if chr(code) not in everything), None)
    if mark is None:  # the private use area
        raise RowError("tags", "the messages hold all 6,400 private-use characters; one must be left to mark audios")
    audios: list[Any] = []
    untagged = ""
    marked: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        content, tags = message["content"], message["content"].count(tag)
        entries = list(message.get("audios") or ())
        if not entries and not check_audios and message["role"] != "assistant":
            entries = [None] * tags
        places = [f"{mark}{len(audios) + i}{mark}" for i in range(len(entries))]
        if entries and not tags:
            untagged += "".join(places)
        elif entries or message["role"] != "assistant":
            if tags != len(entries):
                raise RowError(
                    "tags",
                    f"message {number} ({message['role']}): {tags} {tag} tags but {len(entries)} audios; "
                    "each tag needs exactly one audio",
                )
            parts = content.split(tag)
            content = parts[0] + "".join(place + part for place, part in zip(places, parts[1:], strict=True))
        audios += entries
        marked.append({"role": message["role"], "content": content})
    if untagged:
        last_user = next((m for m in reversed(marked) if m["role"] == "user"), None)
        if last_user is None:
            raise RowError("tags", f"audios without a {tag} tag go before the last user text, but no user speaks")
        last_user["content"] = untagged + last_user["content"]
    return marked, audios, mark


def _apart(messages: list[Message], mark: str, role: str) -> list[Message]:
    """Every marked place becomes a message of ``role`` in front of the one that held it."""
    result: list[Message] = []
    for message in messages:
        *texts, last = re.split(f"({mark}[0-9]+{mark})", message["content"])
        places = texts[1::2]
        result += [{"role": role, "content": place} for place in places]
        text = "".join([*texts[0::2], last])
        result.append(dict(message, content=text.strip() if places else text))
    return result


def _disturb(text: str, noise: float, rng: random.Random) -> str:
    """Drop a word or swap it with the next, each with probability ``noise / 2`` per word."""
    if noise == 0.0:
        return text
    words, kept = text.split(), []
    while words:
        chance = rng.random()
        word = words.pop(0)
        if chance < noise / 2:
            continue
        if chance < noise and words:
            kept.append(words.pop(0))
        kept.append(word)
    return " ".join(kept)
