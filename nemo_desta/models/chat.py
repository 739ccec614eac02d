"""From conversations to answers: load the clips, render the prompt, let the frozen LLM write.

A conversation is a list of messages ``{"role", "content", "audios"}``. An audio is a path, a (S,) float array at the
model's sampling rate, or ``{"audio": either of them, "text": transcript or None}``.
"""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nemo_desta.data.audio_io import load_audio
from nemo_desta.models.splice import batch_rows

if TYPE_CHECKING:
    from nemo_desta.models.desta import DestaModel

Conversation = Sequence[Mapping[str, Any]]

#: Sampling knobs of a generation config that greedy decoding does not read; set to None so that nobody warns.
SAMPLING_KNOBS = ("temperature", "top_p", "top_k", "min_p")


def encode(
    model: "DestaModel", conversations: Sequence[Conversation], *, audio: Tensor | None = None, audio_lens: Any = None
) -> dict[str, Tensor]:
    """Conversations as a batch of the data layer without targets, on the model's device.

    Args:
        audio: (A, S) float32, all clips of the batch in reading order, if they are loaded already; audio_lens: (A,).

    Raises:
        ValueError: slots and clips do not match. AudioError: a clip that cannot be read.
    """
    clips: list[np.ndarray] = []
    rows = []
    for messages in conversations:
        prompt = model.prompts.prompt(messages, check_audios=audio is None)
        rows.append(torch.tensor(prompt.ids, dtype=torch.int64))
        if audio is None:
            clips.extend(_load(item, model.sampling_rate) for item in prompt.audios)
    input_ids, input_lens = batch_rows(rows)
    if audio is None:
        audio_lens = torch.tensor([clip.shape[0] for clip in clips], dtype=torch.int64)
        audio = torch.zeros(len(clips), max((clip.shape[0] for clip in clips), default=0))
        for i, clip in enumerate(clips):
            audio[i, : clip.shape[0]] = torch.from_numpy(clip)
    batch = {
        "audio": audio.float(),
        "audio_lens": torch.as_tensor(audio_lens, dtype=torch.int64),
        "input_ids": input_ids,
        "input_lens": input_lens,
        "prompt_lens": input_lens,
    }
    return {name: tensor.to(model.llm.device) for name, tensor in batch.items()}


def generate(
    model: "DestaModel",
    conversations: Sequence[Conversation],
    *,
    audio: Tensor | None = None,
    audio_lens: Any = None,
    **generation: Any,
) -> Tensor:
    """New token ids (B, at most max_new_tokens), padded with the model's ``text_pad_id`` after the end of turn.

    ``generation`` goes to the LLM's ``generate``; what is not given comes from the LLM's generation config.
    """
    return write(model, encode(model, conversations, audio=audio, audio_lens=audio_lens), **generation)


@torch.no_grad()
def write(model: "DestaModel", batch: Mapping[str, Tensor], **generation: Any) -> Tensor:
    """New token ids for a batch of prompts (of the data layer, without targets); as `generate`."""
    was_training = model.training
    model.eval()
    try:
        inputs = model.embed(batch, padding_side="left")
        settings = {"eos_token_id": end_ids(model), "pad_token_id": model.text_pad_id, **generation}
        if settings.get("do_sample") is False:
            settings = {**dict.fromkeys(SAMPLING_KNOBS), **settings}
        return model.llm.generate(
            inputs_embeds=inputs.inputs_embeds, attention_mask=inputs.attention_mask.long(), **settings
        )
    finally:
        model.train(was_training)


def answer(model: "DestaModel", messages: list[Any], **generation: Any) -> str | list[str]:
    """Text of the answers up to their end of turn, think blocks kept; a string for one conversation, else a list."""
    if not messages:
        raise ValueError("no messages: give one conversation [{'role': ..., 'content': ...}] or a list of them")
    single = isinstance(messages[0], Mapping)
    ids = generate(model, [messages] if single else messages, **generation)
    ends = set(end_ids(model)) | {model.text_pad_id}
    written = [list(takewhile(lambda token: token not in ends, row)) for row in ids.tolist()]
    texts = [model.tokenizer.decode(row, clean_up_tokenization_spaces=False).strip() for row in written]
    return texts[0] if single else texts


def end_ids(model: "DestaModel") -> list[int]:
    """Every id that ends the LLM's turn."""
    return model.prompts.end_ids(model.llm.generation_config.eos_token_id)


def _load(item: Any, sampling_rate: int) -> np.ndarray:
    source = item["audio"] if isinstance(item, Mapping) else item
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray):
        if source.ndim != 1:
            raise ValueError(f"an audio array must be (samples,), found {source.shape}")
        return source.astype(np.float32, copy=False)
    return load_audio(source, sampling_rate=sampling_rate)
