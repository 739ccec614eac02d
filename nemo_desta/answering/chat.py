"""Answers to conversations from Python: whole answers, streams, and bare token ids.

A conversation is a list of messages ``{"role", "content", "audios"}`` (`plain_message` accepts other forms, too). An
audio is anything that `load_clip` accepts. All functions use the one decode loop (`decoder`, `engine`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nemo_desta.answering.audio_embeddings import LocalChatModel, Transcriber
from nemo_desta.answering.clips import load_clip
from nemo_desta.answering.decoder import Decoder, eval_mode
from nemo_desta.answering.engine import ChatEngine, Delta, PreparedChat, prepare
from nemo_desta.answering.parts import plain_message
from nemo_desta.answering.sampling import Sampling, resolve_sampling
from nemo_desta.core.splice import Spliced, batch_rows
from nemo_desta.errors import RowError

Conversation = Sequence[Mapping[str, Any]]

#: Conversations in a batch.
MAX_BATCH_SIZE = 32


class Answer(str):
    """The LLM's answer without its thinking.

    ``thinking``: the thought before the answer, None if there is none. ``finish``: "stop", or "length" if the token
    limit came first. ``num_prompt_tokens`` includes audio vectors, ``num_new_tokens`` the thinking.
    """

    thinking: str | None
    finish: str
    num_prompt_tokens: int
    num_new_tokens: int

    def __new__(
        cls, text: str, *, thinking: str | None, finish: str, num_prompt_tokens: int, num_new_tokens: int
    ) -> "Answer":
        answer = super().__new__(cls, text)
        answer.thinking, answer.finish = thinking, finish
        answer.num_prompt_tokens, answer.num_new_tokens = num_prompt_tokens, num_new_tokens
        return answer


def answer(
    model: LocalChatModel,
    messages: Sequence[Any],
    *,
    transcript: str = "given",
    transcriber: Transcriber | None = None,
    max_batch_size: int = MAX_BATCH_SIZE,
    **generation: Any,
) -> Answer | list[Answer]:
    """The answer to one conversation, or the answers to a list of conversations; arguments as `stream`."""
    single, chats = _prepare_all(model, messages, transcript, transcriber, generation)
    texts: dict[tuple[int, bool], list[str]] = {}
    ends: dict[int, Delta] = {}
    for delta in _run(model, chats, max_batch_size):
        texts.setdefault((delta.chat_id, delta.thinking), []).append(delta.text)
        if delta.finish is not None:
            ends[delta.chat_id] = delta
    answers = [
        Answer(
            "".join(texts.get((i, False), ())),
            thinking="".join(texts[i, True]) if (i, True) in texts else None,
            finish=ends[i].finish or "stop",
            num_prompt_tokens=chat.num_prompt_tokens,
            num_new_tokens=ends[i].num_new_tokens,
        )
        for i, chat in enumerate(chats)
    ]
    return answers[0] if single else answers


def stream(
    model: LocalChatModel,
    messages: Sequence[Any],
    *,
    transcript: str = "given",
    transcriber: Transcriber | None = None,
    max_batch_size: int = MAX_BATCH_SIZE,
    **generation: Any,
) -> Iterator[Delta]:
    """The answers as they are generated; ``chat_id`` of a delta is the index of its conversation in the list.

    Args:
        messages: one conversation, or a list of conversations, which share batches.
        transcript, transcriber: see `nemo_desta.answering.engine.prepare`.
        max_batch_size: conversations in a batch; the others join as rows end.
        generation: fields of `Sampling`, or ``do_sample``; the LLM's generation config gives the others.

    Raises:
        ValueError: nothing to answer, a conversation that cannot be prepared (see `prepare`), an unknown setting.
    """
    chats = _prepare_all(model, messages, transcript, transcriber, generation)[1]
    return _run(model, chats, max_batch_size)


def encode(
    model: LocalChatModel,
    conversations: Sequence[Conversation],
    *,
    audio: Tensor | None = None,
    audio_lens: Any = None,
) -> dict[str, Tensor]:
    """Conversations as a training batch without targets, on the model's device.

    Args:
        audio: (A, S) float32, all clips of the batch in reading order, if they are loaded already. audio_lens: (A,).

    Raises:
        ValueError: slots and clips do not match. AudioError: a clip that cannot be read.
    """
    tag = model.prompts.audio_locator_tag
    plain = [[plain_message(m, tag, f"message {i}") for i, m in enumerate(c, 1)] for c in conversations]
    prompts = [model.prompts.prompt(messages, check_audios=audio is None) for messages in plain]
    input_ids, input_lens = batch_rows([torch.tensor(prompt.ids, dtype=torch.int64) for prompt in prompts])
    if audio is None:
        clips = [load_clip(item, model.audio_rates).audio for prompt in prompts for item in prompt.audios]
        audio_lens = torch.tensor([len(clip) for clip in clips], dtype=torch.int64)
        audio = torch.zeros(0, 0)
        if clips:
            audio = pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    batch = {
        "audio": audio.float(),
        "audio_lens": torch.as_tensor(audio_lens, dtype=torch.int64),
        "input_ids": input_ids,
        "input_lens": input_lens,
        "prompt_lens": input_lens,
    }
    return {name: tensor.to(model.llm.device) for name, tensor in batch.items()}


@torch.no_grad()
def write(model: LocalChatModel, batch: Mapping[str, Tensor], sampling: Sampling) -> Tensor:
    """New token ids (B, at most max_new_tokens) for a batch of prompts as `encode` gives it, padded after the end of
    turn with the model's ``text_pad_id``."""
    with eval_mode(model):
        inputs: Spliced = model.embed(batch, padding_side="left")
        decoder = Decoder(model.llm)
        keys = decoder.add(inputs.inputs_embeds, inputs.attention_mask, [sampling] * len(batch["input_ids"]))
        written: dict[int, list[int]] = {key: [] for key in keys}
        ends = set(model.prompts.end_ids(model.generation_config.eos_token_id))
        for _ in range(sampling.max_new_tokens):
            tokens = decoder.step()
            for key, token in tokens:
                written[key].append(token)
            decoder.remove({key for key, token in tokens if token in ends})
            if not len(decoder):
                break
    rows, lens = batch_rows([torch.tensor(ids) for ids in written.values()])
    beyond = torch.arange(rows.shape[1]) >= lens[:, None]
    return rows.masked_fill(beyond, model.text_pad_id).to(model.llm.device)


def _prepare_all(
    model: LocalChatModel,
    messages: Sequence[Any],
    transcript: str,
    transcriber: Transcriber | None,
    generation: Mapping[str, Any],
) -> tuple[bool, list[PreparedChat]]:
    """Whether ``messages`` is a single conversation, and the conversations ready to be answered."""
    if not messages:
        raise ValueError("no messages: give one conversation [{'role': ..., 'content': ...}] or a list of them")
    single = isinstance(messages[0], Mapping)
    sampling = resolve_sampling(model.generation_config, **generation)
    if transcript == "whisper" and transcriber is None:
        transcriber = model.transcriber
    texts = {"transcript": transcript, "transcriber": transcriber}
    chats = []
    for i, conversation in enumerate([messages] if single else messages):
        try:
            chats.append(prepare(model, conversation, sampling, context=model.context_length, **texts))
        except RowError as error:  # AudioError, too
            where = "" if single else f"conversation {i + 1}: "
            raise type(error)(error.reason, f"{where}{error}") from error
    return single, chats


def _run(model: LocalChatModel, chats: Sequence[PreparedChat], max_batch_size: int) -> Iterator[Delta]:
    """Answer all. Like lengths start together; new conversations join when a quarter of the batch is free."""
    engine = ChatEngine(model, max_batch_size=max_batch_size)
    waiting = sorted(range(len(chats)), key=lambda i: -chats[i].num_prompt_tokens)
    names: dict[int, int] = {}
    while waiting or engine.num_active:
        if waiting and (not engine.num_active or engine.free_places >= max(1, max_batch_size // 4)):
            group, waiting = waiting[: engine.free_places], waiting[engine.free_places :]
            names.update(zip(engine.add([chats[i] for i in group]), group, strict=True))
        for delta in engine.step():
            yield delta._replace(chat_id=names[delta.chat_id])
