"""Conversations -> streams of text: prompts, audio embeddings, the decode loop and stream parsers combined.

`prepare` is CPU work and may run in any thread. A `ChatEngine` belongs to one thread. Conversations can be added while
others are being answered; every `step` advances all of them by one token.
"""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from nemo_desta.answering.audio_embeddings import HEARD_RATE, ChatModel, LocalChatModel, Transcriber, embed_prompts
from nemo_desta.answering.clips import Clip
from nemo_desta.answering.decoder import Decoder, eval_mode
from nemo_desta.answering.loading import load_messages, prompt_of
from nemo_desta.answering.sampling import Sampling
from nemo_desta.answering.stream_parser import StreamParser
from nemo_desta.config import nearest
from nemo_desta.core.prompting import Message
from nemo_desta.core.thinking import format_of_prompt, think_format
from nemo_desta.data.audio_io import at_rate
from nemo_desta.errors import ConfigError
from nemo_desta.types import AUDIO_SLOT, Rates

TRANSCRIPTS = ("given", "whisper", "none")


class ContextExceeded(ValueError):
    """A prompt that leaves the LLM no room for an answer."""


class PreparedChat(NamedTuple):
    """A conversation ready to be answered. ``num_prompt_tokens``: its positions, audio vectors included."""

    ids: list[int]
    clips: list[Clip]
    sampling: Sampling
    num_prompt_tokens: int


class Delta(NamedTuple):
    """The text that one token adds to an answer. ``finish``: None, or why the answer has ended: "stop" (end of turn,
    stop text) or "length" (token limit or the LLM's context)."""

    chat_id: int
    text: str
    thinking: bool
    finish: str | None
    num_new_tokens: int


def prepare(
    model: ChatModel,
    messages: Sequence[Message],
    sampling: Sampling,
    *,
    transcript: str = "given",
    transcriber: Transcriber | None = None,
    context: int | None = None,
) -> PreparedChat:
    """Load the clips of a conversation and render its prompt.

    Args:
        messages: ``{"role", "content", "audios"}`` each, in any form that `plain_message` accepts; an audio is
            anything that `load_clip` accepts.
        transcript: "given" uses the texts that came with the audios, "whisper" transcribes the others with
            ``transcriber``, "none" leaves texts out. It matters if the model's transcript channel is on.
        context: positions of the LLM; prompt and answer must fit.

    Raises:
        RowError: no messages, or tags and audios do not match. AudioError: a clip that cannot be read.
        ContextExceeded: too long. ConfigError: an unknown ``transcript``, or an unknown key of a message or audio.
    """
    if transcript not in TRANSCRIPTS:
        raise ConfigError(f"unknown transcript '{transcript}'.{nearest(transcript, TRANSCRIPTS)}")
    loaded = load_messages(messages, model.prompts.audio_locator_tag, model.audio_rates)
    if transcript == "none":
        loaded = [{**m, "audios": [clip._replace(text=None) for clip in m["audios"]]} for m in loaded]
    if transcript == "whisper":
        _transcribe(loaded, transcriber, model.audio_rates)
    ids, clips = prompt_of(model.prompts, loaded)
    length = sum(token != AUDIO_SLOT for token in ids)
    length += sum(model.num_audio_tokens(len(clip.audio)) for clip in clips)
    if context is not None:
        if length >= context:
            secs = sum(len(clip.audio) for clip in clips) / model.sampling_rate
            raise ContextExceeded(
                f"the prompt takes {length} positions ({len(clips)} clips of {secs:.1f} s in all) and the LLM has "
                f"{context}; shorten the audio or the conversation"
            )
        if length + sampling.max_new_tokens > context:
            sampling = replace(sampling, max_new_tokens=context - length)
    return PreparedChat(ids, clips, sampling, length)


def check_transcript(model: ChatModel, transcript: str) -> None:
    """Raise `ConfigError` for an unknown ``transcript``, or if the model would not read Whisper's texts."""
    if transcript not in TRANSCRIPTS:
        raise ConfigError(f"unknown transcript '{transcript}'.{nearest(transcript, TRANSCRIPTS)}")
    if transcript == "whisper" and not model.prompts.transcript.enabled:
        raise ConfigError(
            "transcript=whisper: this model reads no transcripts (model.prompt.transcript.enabled is false in its "
            "config.json), so Whisper would transcribe for nothing"
        )


class TokenDecoder(Protocol):
    """Generates tokens for conversations: `LocalDecoder`, or one whose model runs elsewhere (vLLM)."""

    def join(self, chats: Sequence[PreparedChat]) -> list[int]:
        """Add conversations; returns their keys."""

    def step(self) -> list[tuple[int, int]]:
        """New tokens as (key, id)."""

    def take_ended(self) -> list[int]:
        """Keys of conversations that get no more tokens although they were not removed."""

    def force(self, key: int, ids: Iterable[int]) -> None: ...

    def remove(self, keys: Collection[int]) -> None: ...


class LocalDecoder(Decoder):
    """The decode loop with a model in this process."""

    def __init__(self, model: LocalChatModel) -> None:
        super().__init__(model.llm)
        self.model = model

    def join(self, chats: Sequence[PreparedChat]) -> list[int]:
        with eval_mode(self.model):
            inputs = embed_prompts(self.model, [(chat.ids, chat.clips) for chat in chats])
            return self.add(inputs.inputs_embeds, inputs.attention_mask, [chat.sampling for chat in chats])

    def step(self) -> list[tuple[int, int]]:
        with eval_mode(self.model):
            return super().step()

    def take_ended(self) -> list[int]:
        """None: rows have no limit here."""
        return []


class ChatEngine:
    """Answers up to ``max_batch_size`` conversations at a time.

    Args:
        model: a `DestaModel`; any `ChatModel` if ``decoder`` generates.

    Raises:
        ConfigError: ``max_batch_size`` below 1, or a ``thinking_end`` of the prompts without the closing tag.
    """

    def __init__(
        self, model: LocalChatModel | ChatModel, *, decoder: TokenDecoder | None = None, max_batch_size: int = 32
    ) -> None:
        if max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}; at least 1 is needed")
        self.model = model
        self.max_batch_size = max_batch_size
        self._decoder = LocalDecoder(model) if decoder is None else decoder  # an empty decoder has length 0
        self._ids = itertools.count()
        self._parsers: dict[int, tuple[int, StreamParser]] = {}  # by key of the decoder: chat id and parser
        self._format = think_format(model.prompts)
        end = model.prompts.thinking_end
        if end is not None and self._format is not None and self._format.tags.close not in end:
            raise ConfigError(f"model.prompt.thinking_end has no {self._format.tags.close}, so no thought would end")
        self._ends = model.prompts.end_ids(model.generation_config.eos_token_id)

    @property
    def num_active(self) -> int:
        """Conversations in generation."""
        return len(self._parsers)

    @property
    def free_places(self) -> int:
        """Conversations that `add` accepts now."""
        return self.max_batch_size - self.num_active

    def add(self, chats: Sequence[PreparedChat]) -> list[int]:
        """Start some conversations; returns their ids, counted from 0.

        Raises:
            ValueError: more conversations than `free_places`.
        """
        if len(chats) > self.free_places:
            raise ValueError(f"{len(chats)} conversations for {self.free_places} free places")
        if not chats:
            return []
        keys = self._decoder.join(chats)
        new = [next(self._ids) for _ in chats]
        for key, chat_id, chat in zip(keys, new, chats, strict=True):
            format = format_of_prompt(self.model.prompts, self._format, chat.ids)
            parser = StreamParser(self.model.prompts, chat.sampling, format=format, end_ids=self._ends)
            self._parsers[key] = (chat_id, parser)
        return new

    def step(self) -> list[Delta]:
        """Advance every answer by one token; returns the new text. An answer's last `Delta` has its ``finish``."""
        tokens = self._decoder.step()
        deltas, finished = [], []
        for key, token in tokens:
            chat_id, parser = self._parsers[key]
            if parser.finish is not None:  # a decoder may emit several tokens at a time
                continue
            pieces = parser.push(token)
            if parser.finish is not None:
                finished.append(key)
            elif forced := parser.forced_ids():
                self._decoder.force(key, forced)
            deltas += _deltas(chat_id, parser, pieces)
        for key in self._decoder.take_ended():
            chat_id, parser = self._parsers[key]
            if parser.finish is None:
                finished.append(key)
                deltas += _deltas(chat_id, parser, parser.cut())
        self._remove(finished)
        return deltas

    def cancel(self, chat_id: int) -> None:
        """Stop an answer; unknown and finished ids are ignored."""
        self._remove([key for key, (own, _) in self._parsers.items() if own == chat_id])

    def _remove(self, keys: Sequence[int]) -> None:
        if keys:
            self._decoder.remove(set(keys))
            for key in keys:
                del self._parsers[key]


def _deltas(chat_id: int, parser: StreamParser, pieces: Sequence[tuple[str, bool]]) -> list[Delta]:
    """New text of an answer; the last `Delta` of a finished one has its ``finish``, with or without text."""
    new = [Delta(chat_id, text, thinking, None, parser.num_new_tokens) for text, thinking in pieces]
    if parser.finish is not None:
        last = new.pop() if new else Delta(chat_id, "", False, None, parser.num_new_tokens)
        new.append(last._replace(finish=parser.finish))
    return new


def _transcribe(messages: Sequence[Mapping[str, Any]], transcriber: Transcriber | None, rates: Rates) -> None:
    """Transcribe every clip without a text. A clip without speech gets a single space, as in DeSTA2.5-Audio."""
    silent = [(m, i) for m in messages for i, clip in enumerate(m["audios"]) if clip.text is None]
    if not silent:
        return
    if transcriber is None:
        raise ConfigError("transcript=whisper needs a transcriber: pass one, or give the texts with the audios")
    texts = transcriber([at_rate(message["audios"][i].audio, rates, HEARD_RATE) for message, i in silent])
    for (message, i), text in zip(silent, texts, strict=True):
        message["audios"][i] = message["audios"][i]._replace(text=text or " ")
