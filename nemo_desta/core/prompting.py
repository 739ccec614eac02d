"""Messages and response to token ids, by the LLM's own chat template (design decision 5).

The rendered prompt is split at the audios and the pieces are tokenised; each audio becomes one `AUDIO_SLOT` in the
ids. Only locator tags of messages that have audios are slots; the tag in an answer, a transcript or the template is
text. Likewise only the template writes control tokens; a control token that data spell is text.
"""

import copy
import logging
import random
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from nemo_desta.config import TranscriptConfig
from nemo_desta.core.control_tokens import ControlTokens
from nemo_desta.core.roles import TemplateRoles
from nemo_desta.core.template_date import reads_clock, with_date
from nemo_desta.core.template_limits import render_chat
from nemo_desta.errors import RowError
from nemo_desta.types import AUDIO_SLOT

logger = logging.getLogger(__name__)

Message = Mapping[str, Any]
#: The end of gpt-oss's generation prompt, after which the LLM chooses a channel. Answers belong into the final one, so
#: its opening is part of the prompt: the LLM answers at once, and a response is the answer alone.
HARMONY_TURN = "<|start|>assistant"
FINAL_CHANNEL = "<|channel|>final<|message|>"


_QUESTION = {"role": "user", "content": "question"}


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
    """The seed of a row's random part: equal draws give equal prompts in any worker."""

    seed: int
    epoch: int
    row_id: str


class PromptBuilder:
    """Renders prompts and examples with one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template (or NeMo's wrapper around one).
        audio_locator_tag: the text that stands for one audio in a message.
        chat_template_kwargs: passed on to the template, for example ``{"enable_thinking": False}``.
        audio_tags, audio_role, system, system_role, thinking_end: see `PromptConfig`.
        transcript: the transcript channel; None or ``enabled=False`` leaves transcripts out.
        date: what a template that writes today's date writes; None: the date of each call.

    Raises:
        ValueError: the tokenizer has no chat template. ConfigError: an unknown ``system_role``.
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
        system: str | None = None,
        system_role: str = "auto",
        thinking_end: str | None = None,
        date: datetime | None = None,
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
        self.system = system
        self.thinking_end = thinking_end
        self.date = date
        self._roles = TemplateRoles(self._apply, system_role)
        self._told_control = False

    def prompt(
        self,
        messages: Sequence[Message],
        *,
        draw: Draw | None = None,
        check_audios: bool = True,
        max_transcript_tokens: int | None = None,
    ) -> Prompt:
        """The ids of a prompt, up to the position where the LLM starts to answer.

        Args:
            messages: an item of ``audios`` is a mapping with ``audio`` and ``text``, or any other object for a clip.
            draw: turns transcript dropout and noise on (training).
            max_transcript_tokens: where transcripts are cut, as `example` does for training; None keeps them whole.
            check_audios: False when the clips come separately: then every tag of a message without audios is a slot.

        Raises:
            RowError: tags and audios do not fit, or the template refuses the messages.
        """
        texts, slots, audios, cut = self._rendered(messages, check_audios=check_audios)
        ids = self._pieces_ids(texts[0].split(cut))
        for order, (slot, text) in enumerate(zip(slots, texts[1:], strict=True)):
            transcript = self._transcript_ids(audios[slot], order, draw)[:max_transcript_tokens]
            ids += [AUDIO_SLOT, *transcript, *self._pieces_ids(text.split(cut))]
        return Prompt(ids, [audios[slot] for slot in slots if audios[slot] is not None])

    def audio_prompt(self, messages: Sequence[Message]) -> str:
        """The rendered prompt as text, with a locator tag where each audio goes; transcripts are left out.

        Raises:
            RowError: as `prompt`; or a message spells a control token or the tag, which a text cannot tell apart from
                the template's own.
        """
        texts, _, _, cut = self._rendered(messages)
        for spelt, name in ((cut, "a control token"), (self.audio_locator_tag, self.audio_locator_tag)):
            if any(spelt in text for text in texts):
                raise RowError("control_tokens", f"a message spells {name}: a prompt as text cannot hold it, use ids")
        return self.audio_locator_tag.join(texts)

    def _rendered(
        self, messages: Sequence[Message], *, check_audios: bool = True
    ) -> tuple[list[str], list[int], list[Any], str]:
        """The rendered prompt split at its audios: the texts, the number of the audio between each two, the audios,
        and the mark inside control tokens that messages spell."""
        messages = self._with_system(messages)
        marked, audios, mark = place_audios(messages, self.audio_locator_tag, check_audios=check_audios)
        if self.audio_tags != ("", ""):
            marked = [dict(message, content=self._unwrap(message["content"], mark)) for message in marked]
        marked, cut = self._cut_control(marked, mark)
        if self.audio_tags != ("", ""):
            marked = [dict(message, content=self._wrap(message["content"], mark)) for message in marked]
        if self.audio_role is not None:
            marked = _apart(marked, mark, self.audio_role)
        pieces = re.split(f"{mark}([0-9]+){mark}", self.render(marked))
        texts, slots = pieces[0::2], [int(number) for number in pieces[1::2]]
        if sorted(slots) != list(range(len(audios))):
            raise RowError("template", f"the chat template kept {len(slots)} of {len(audios)} audio positions")
        return texts, slots, audios, cut

    def with_variables(self, variables: Mapping[str, Any]) -> "PromptBuilder":
        """The same prompts with further variables of the chat template, such as ``enable_thinking``."""
        found = copy.copy(self)
        found.chat_template_kwargs = {**self.chat_template_kwargs, **variables}
        return found

    def text_prompt(self, messages: Sequence[Message], prefix: str = "") -> str | list[int]:
        """The prompt of a chat without audio plus the beginning of its answer, as text. If a message or ``prefix``
        spells a control token, that text would be tokenised wrongly: then the prompt is returned as ids.

        Raises:
            RowError: the template refuses the messages, or leaves one out.
        """
        marked, cut = self._cut_control(self._with_system(messages), "", prefix)
        pieces = self._control.split(prefix, thoughts=True)
        rendered = self.render(marked)
        if cut not in rendered and len(pieces) == 1:
            return rendered + prefix
        head, *rest = pieces
        *before, last = rendered.split(cut)
        return self._pieces_ids([*before, last + head, *rest])

    def example(self, row: Mapping[str, Any], *, draw: Draw | None = None) -> Example:
        """Prompt and target of a row: the raw response, then end of turn unless the row is ``truncated``.

        Raises:
            RowError: as `prompt`.
        """
        limit = self.transcript.max_tokens
        ids, audios = self.prompt(row["messages"], draw=draw, max_transcript_tokens=limit)
        target = self._text_ids(row["response"], thoughts=True)
        if not row.get("truncated"):
            target.append(self.end_of_turn_id)
        return Example(ids + target, len(ids), audios)

    def render(self, messages: Sequence[Message]) -> str:
        """The chat template's text for the messages, ending with the generation prompt.

        An empty system message switches `default_system` off; for templates without one it is left out.

        Raises:
            RowError: the template refuses them, or leaves one out.
        """
        if any(map(_is_empty_system, messages)) and not self.default_system:
            messages = [message for message in messages if not _is_empty_system(message)]
        return self._apply(self._roles.fit(messages))

    def _with_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        """With the own system message, where there is none."""
        if self.system is None or any(message["role"] == "system" for message in messages):
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    def tokenize(self, text: str) -> list[int]:
        """Ids of a piece of the template's own text, in which a spelt control token is one. Nothing is added."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []

    @cached_property
    def end_of_turn_id(self) -> int:
        """The special token that the template puts after an assistant's content; the tokenizer's eos if none."""
        word = "answer"
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": word}]
        rendered = self._apply(turns, add_generation_prompt=False)
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for token in self.tokenize(rendered.rpartition(word)[2]):
            if token in special:
                return token
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer '{self.tokenizer.name_or_path}' has no end of turn: its template puts no special "
                "token after an answer, and it has no eos_token"
            )
        return self.tokenizer.eos_token_id

    def end_ids(self, configured: int | Sequence[int] | None = None) -> list[int]:
        """Every id that ends a turn, by the chat template, the tokenizer and the LLM's generation config.

        ``configured``: ``eos_token_id`` of the generation config.
        """
        listed = configured if isinstance(configured, Sequence) else [configured]
        ids = (self.end_of_turn_id, self.tokenizer.eos_token_id, *listed)
        return list(dict.fromkeys(i for i in ids if i is not None))

    def has_own_system(self, text: str) -> bool:
        """Whether a conversation without a system message has the same prompt as one with ``text``."""
        given = [{"role": "system", "content": text}, _QUESTION]
        return self.render(given) == self.render(self._with_system([_QUESTION]))

    @cached_property
    def default_system(self) -> str:
        """The system text that the chat template adds to messages without one; empty if it adds none."""
        mark = "\ue001"
        try:
            plain, given = self._apply([_QUESTION]), self._apply([{"role": "system", "content": mark}, _QUESTION])
        except RowError:
            return ""
        before, _, after = given.partition(mark)
        if len(plain) < len(before) + len(after) or not (plain.startswith(before) and plain.endswith(after)):
            return ""
        return plain[len(before) : len(plain) - len(after)].strip()

    @cached_property
    def keeps_default_system(self) -> bool:
        """Whether the template adds `default_system` to an empty system message, too."""
        empty = {"role": "system", "content": ""}
        return bool(self.default_system) and self._apply([_QUESTION]) == self._apply([empty, _QUESTION])

    def about_default_system(self, switch: str) -> str:
        """A sentence about `default_system`; empty if there is none, or if ``system`` is set.

        ``switch``: the setting that leaves it out.
        """
        if self.system is not None or not self.default_system:
            return ""
        said = f"the chat template adds a system prompt to every conversation without one: {self.default_system!r}"
        return f"{said}; {'an empty one does not leave' if self.keeps_default_system else f'{switch} leaves'} it out"

    def tell_default_system(self, switch: str) -> None:
        """Log `about_default_system`."""
        if said := self.about_default_system(switch):
            logger.info(said)

    @property
    def reads_clock(self) -> bool:
        """Whether the chat template writes today's date."""
        return reads_clock(self.tokenizer.get_chat_template())

    def freeze_date(self, date: datetime) -> None:
        """Let the template write ``date`` from now on, so that a resumed run has the same prompts."""
        self.date = date
        if self.reads_clock:
            logger.info("the chat template writes the date: %s in the whole run", date.date())

    def control_token(self, row: Mapping[str, Any]) -> str | None:
        """The first control token that a row's messages, transcripts or response spell; it is tokenised as text."""
        spelt = [self._control.find(row["response"], thoughts=True)]
        for message in row["messages"]:
            spelt.append(self._control.find(message["content"], thoughts=message["role"] == "assistant"))
            if self.transcript.enabled:
                spelt += [self._control.find(audio.get("text") or "") for audio in message.get("audios") or ()]
        return next(filter(None, spelt), None)

    @cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    def _apply(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The only place where the chat template is run."""
        from jinja2 import TemplateError

        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        settings = {**self.chat_template_kwargs, "add_generation_prompt": add_generation_prompt}
        if self.date is not None:
            settings |= with_date(self.tokenizer.get_chat_template(), self.date)
        try:
            rendered = render_chat(self.tokenizer, plain, **settings)
        except TemplateError as error:
            raise RowError("template", f"the chat template refuses these messages: {error}") from error
        if (
            add_generation_prompt
            and rendered.endswith(HARMONY_TURN)
            and "<|channel|>" in str(self.tokenizer.chat_template)
        ):
            return rendered + FINAL_CHANNEL
        return rendered

    def _cut_control(
        self, messages: Sequence[Message], mark: str, prefix: str = ""
    ) -> tuple[list[dict[str, Any]], str]:
        """Mark the control tokens that messages spell.

        A mark is inserted after the first character of each one. Returns the messages and the mark, a character that
        occurs nowhere else. Templates keep it: `TemplateRoles` probed them with a similar one.
        """
        for message in messages:
            if found := self._control.find(message["role"]):
                raise RowError("control_tokens", f"the role {message['role']!r:.100} spells {found}, a control token")
        cut = _free_mark("".join([mark, prefix, *(message["content"] for message in messages)]))
        marked = []
        for message in messages:
            pieces = self._control.split(message["content"], thoughts=message["role"] == "assistant")
            marked.append({"role": message["role"], "content": cut.join(pieces)})
        return marked, cut

    def _pieces_ids(self, pieces: Sequence[str]) -> list[int]:
        return [token for piece in pieces for token in self.tokenize(piece)]

    def _text_ids(self, text: str, *, thoughts: bool = False) -> list[int]:
        """Ids of text from data, in which a spelt control token does not become one; with ``thoughts`` think tags
        do."""
        pieces = self._control.split(text, thoughts=thoughts)
        ids = self._pieces_ids(pieces)
        if found := self._control.among(ids, thoughts=thoughts):
            raise RowError("control_tokens", f"the tokenizer makes {found}, a control token, of this text: {text:.80}")
        if thoughts and len(pieces) > 1 and not self._told_control:
            self._told_control = True
            found = self._control.find(text, thoughts=True)
            logger.warning("a response spells %s, a control token: it is learnt as text (logged once)", found)
        return ids

    def _unwrap(self, content: str, mark: str) -> str:
        """``content`` without the ``audio_tags`` that already surround marked positions."""
        before, after = map(re.escape, self.audio_tags)
        return re.sub(f"{before}({mark}[0-9]+{mark}){after}", r"\1", content)

    def _wrap(self, content: str, mark: str) -> str:
        """Put ``audio_tags`` around every marked position."""
        before, after = self.audio_tags
        return re.sub(f"({mark}[0-9]+{mark})", lambda match: before + match[1] + after, content)

    def _transcript_ids(self, audio: Any, order: int, draw: Draw | None) -> list[int]:
        text = audio.get("text") if isinstance(audio, Mapping) else None
        if not self.transcript.enabled or not text:
            return []
        if draw is not None:
            rng = random.Random(f"{draw.seed}/{draw.epoch}/{draw.row_id}/{order}")
            if rng.random() < self.transcript.dropout:
                return []
            text = _disturb(text, self.transcript.noise, rng)
        return self._text_ids(text)


def _is_empty_system(message: Message) -> bool:
    return message["role"] == "system" and not message["content"]


def place_audios(
    messages: Sequence[Message], tag: str, *, check_audios: bool = True
) -> tuple[list[Message], list[Any], str]:
    """Find the position of every audio.

    Returns:
        The messages with ``<mark><number><mark>`` where an audio goes, the audios by number, and the mark, a character
        that the messages do not contain.

    Raises:
        RowError: a message's tags and audios differ in number.
    """
    mark = _free_mark("".join(message["content"] for message in messages))
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
            raise RowError(
                "tags", f"audios without a {tag} tag go before the last user text; there is no user message"
            )
        last_user["content"] = untagged + last_user["content"]
    return marked, audios, mark


def _free_mark(texts: str) -> str:
    """A character of the private use area that ``texts`` do not contain."""
    mark = next((chr(code) for code in range(0xE000, 0xF900) if chr(code) not in texts), None)
    if mark is None:
        raise RowError("tags", "the messages hold all 6,400 private-use characters; two must be left as marks")
    return mark


def _apart(messages: list[Message], mark: str, role: str) -> list[Message]:
    """Move every marked position into a message of ``role`` before the message that held it."""
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
