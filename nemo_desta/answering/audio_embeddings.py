"""Clips and prompts -> the LLM's input embeddings; chat, server and batches use it.

A clip is encoded once: its vectors are cached by the hash of its samples. Letters: A clips, S samples, W vectors of
one clip, B conversations, Z spliced length, D LLM width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel

from nemo_desta.answering.clips import Clip
from nemo_desta.core.audio_cache import AudioCache
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.splice import Spliced, batch_rows, splice
from nemo_desta.types import Rates

#: The rate of what a transcriber gets.
HEARD_RATE = 16_000
#: Clips (S,) at `HEARD_RATE` -> one transcript each, "" if there is no speech.
Transcriber = Callable[[Sequence[Any]], Sequence[str]]

#: Seconds of audio, padding included, that go through the encoders together.
ENCODE_SECS = 480
#: The limit on a CPU. Small batches fit its caches; for the demo's encoders this halves the time per clip.
CPU_ENCODE_SECS = 40


class ChatModel(Protocol):
    """What prompts and answers need of a model: a `DestaModel`, or one that runs elsewhere (vLLM)."""

    generation_config: GenerationConfig
    audio_locator_tag: str
    prompts: PromptBuilder
    sampling_rate: int
    audio_rates: Rates
    context_length: int | None
    transcriber: Transcriber

    def num_audio_tokens(self, num_samples: int) -> int: ...


class LocalChatModel(ChatModel, Protocol):
    """A `ChatModel` in this process: a `DestaModel`."""

    llm: PreTrainedModel
    text_pad_id: int
    audio_cache: AudioCache
    embed_tokens: nn.Module
    perception: nn.Module

    def perceive(
        self, audio: Tensor, audio_lens: Tensor, audio_keys: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def embed(self, batch: Mapping[str, Tensor], *, padding_side: str = "right") -> Spliced: ...


@torch.no_grad()
def encode_clips(model: LocalChatModel, clips: Sequence[Clip]) -> list[Tensor]:
    """The vectors (W, D) of each clip. Clips that are not in the cache are encoded, like lengths together."""
    model.audio_cache.expect(_state_of(model.perception.projector))
    found = {clip.key: model.audio_cache.get(clip.key) for clip in clips}
    new = {clip.key: clip for clip in clips if found[clip.key] is None}
    device = model.embed_tokens.weight.device
    room = room_for_clips(model.sampling_rate, device.type)
    unseen = list(new.values())
    for numbers in grouped_clips([len(clip.audio) for clip in unseen], room):
        group = [unseen[i] for i in numbers]
        lens = torch.tensor([len(clip.audio) for clip in group])
        audio = pad_sequence([torch.from_numpy(clip.audio) for clip in group], batch_first=True)
        vectors, num_vectors = model.perceive(audio.to(device), lens.to(device), [clip.key for clip in group])
        for clip, row, count in zip(group, vectors, num_vectors.tolist(), strict=True):
            found[clip.key] = row[:count].clone()
            model.audio_cache.put(clip.key, found[clip.key])
    return [found[clip.key] for clip in clips]


@torch.no_grad()
def embed_prompts(
    model: LocalChatModel, prompts: Sequence[tuple[Sequence[int], Sequence[Clip]]], *, padding_side: str = "left"
) -> Spliced:
    """Prompts (ids with slots, and their clips) as input embeddings (B, Z, D) with masks."""
    vectors = encode_clips(model, [clip for _, clips in prompts for clip in clips])
    table = model.embed_tokens
    device = table.weight.device
    ids, lens = (t.to(device) for t in batch_rows([torch.tensor(ids, dtype=torch.int64) for ids, _ in prompts]))
    text = table(ids.clamp(min=0))
    num_vectors = torch.tensor([v.shape[0] for v in vectors], dtype=torch.int64, device=device)
    padded = pad_sequence(vectors, batch_first=True) if vectors else text.new_zeros(0, 0, text.shape[-1])
    return splice(text, ids, lens, lens, vectors=padded, vector_lens=num_vectors, padding_side=padding_side)


def _state_of(projector: nn.Module) -> object:
    """A value that changes when a weight is written or moved; torch counts the writes."""
    tensors = list(projector.state_dict(keep_vars=True).values())
    return sum(t._version for t in tensors), *{(t.device, t.dtype, t.data_ptr()) for t in tensors[:1]}


def room_for_clips(sampling_rate: int, device_type: str) -> int:
    """Samples, padding included, that go through the encoders together."""
    return (CPU_ENCODE_SECS if device_type == "cpu" else ENCODE_SECS) * sampling_rate


def grouped_clips(lens: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of clips of these lengths, shortest first, in batches of at most ``room`` samples with padding (one clip
    may be longer)."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lens)), key=lens.__getitem__):  # the newest clip is the longest of its group
        if groups and (len(groups[-1]) + 1) * lens[i] <= room:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
