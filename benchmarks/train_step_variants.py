"""Our training step and DeSTA2.5's as plain functions of a batch, and their variants.

`our_loss` is `DestaModel.loss` without NeMo (a test compares the two). Letters: B rows, A clips, S samples, Z spliced
length, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.train_step_rows import MAX_SECS, SAMPLING_RATE
from benchmarks.train_step_shapes import Shape, build_encoders, build_llm
from nemo_desta.core.loss import choose_cross_entropy, summed_cross_entropy
from nemo_desta.core.splice import Spliced, splice
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import QFormerProjector, WindowProjector
from nemo_desta.types import EncoderOutput

PLAIN_ROWS = 12  # DeSTA2.5's batch per GPU
WINDOW = int(MAX_SECS * SAMPLING_RATE)


@dataclass(frozen=True)
class Variant:
    """A variant of the step; the defaults are ours.

    ``recipe``: "ours" or "plain". ``proposal``: faster than ours on paper, but not what `DestaModel` does today.
    """

    name: str
    recipe: str = "ours"
    gather_targets: bool = True
    bucketing: bool = True
    pad_encoders: bool = False
    cross_entropy: str = "auto"
    checkpointing: bool = False
    attention: str = "sdpa"
    dtype: torch.dtype = torch.bfloat16
    padding_mask: bool = True
    compile_llm: bool = False
    proposal: bool = False


def variants(dtype: torch.dtype) -> dict[str, Variant]:
    """All variants by their name on the command line. ``dtype``: of the frozen parts in all but one."""
    ours = Variant("ours", dtype=dtype)
    off = {
        "plain": {"name": "plain DeSTA2.5", "recipe": "plain", "bucketing": False},
        "full-logits": {"name": "logits of all positions", "gather_targets": False},
        "random-batches": {"name": "without bucketing", "bucketing": False},
        "pad-encoders": {"name": "encoders on 30 s padding", "pad_encoders": True},
        "torch-loss": {"name": "without fused loss", "cross_entropy": "torch"},
        "checkpointing": {"name": "activation checkpointing", "checkpointing": True},
        "eager": {"name": "eager attention", "attention": "eager"},
        "float32": {"name": "without half precision", "dtype": torch.float32},
        "no-mask": {"name": "no padding mask", "padding_mask": False, "proposal": True},
        "compiled": {"name": "compiled LLM", "padding_mask": False, "compile_llm": True, "proposal": True},
    }
    return {"ours": ours, **{key: replace(ours, **changes) for key, changes in off.items()}}


def why_not(variant: Variant, ours: Variant) -> str | None:
    """The reason why a variant cannot be measured on this machine; None if it can."""
    if variant.cross_entropy == "torch" and choose_cross_entropy(ours.cross_entropy) == "torch":
        return "ours runs without it here: liger-kernel needs a GPU and pip install liger-kernel"
    if variant.name == "without half precision" and ours.dtype == torch.float32:
        return "ours runs in float32 here; give --dtype bfloat16"
    return None


class Parts(nn.Module):
    """The frozen LLM and the perception of one variant, with random weights on the device."""

    def __init__(self, shape: Shape, variant: Variant, device: torch.device) -> None:
        super().__init__()
        self.llm = build_llm(shape, device, variant.dtype, variant.attention)
        names = ("whisper",) if variant.recipe == "plain" else ("whisper", "beats")
        encoders = build_encoders(shape, device, variant.dtype, variant.attention, names)
        width = shape.llm.hidden_size
        with torch.device(device):
            if variant.recipe == "plain":
                projector = QFormerProjector(encoders, width, mask_padding=False, **shape.qformer)
            else:
                rms = self.llm.get_input_embeddings().weight.float().pow(2).mean().sqrt().item()
                projector = WindowProjector(encoders, width, output_rms=rms)
        if variant.pad_encoders:
            encoders = {name: PaddedEncoder(encoder) for name, encoder in encoders.items()}
        self.perception = FusedPerception(encoders, projector, SAMPLING_RATE)
        self.perception.train()
        if variant.checkpointing:
            self.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.llm.train()  # else transformers does not recompute; these LLMs have no dropout
        if variant.compile_llm:
            for layer in self.llm.base_model.layers:
                layer.compile(dynamic=True)


def make_loss(parts: Parts, variant: Variant) -> Callable[[Mapping[str, Tensor]], tuple[Tensor, int]]:
    """A variant's loss of a batch on the device: the sum over targets, and their number."""
    if variant.recipe == "plain":
        return lambda batch: plain_loss(parts.llm, parts.perception, batch)
    implementation = choose_cross_entropy(variant.cross_entropy)
    return lambda batch: our_loss(
        parts.llm,
        parts.perception,
        batch,
        implementation=implementation,
        gather_targets=variant.gather_targets,
        padding_mask=variant.padding_mask,
    )


def our_loss(
    llm: PreTrainedModel,
    perception: FusedPerception,
    batch: Mapping[str, Tensor],
    *,
    implementation: str = "torch",
    gather_targets: bool = True,
    padding_mask: bool = True,
) -> tuple[Tensor, int]:
    """Hidden states are gathered at the targets before lm_head.

    ``padding_mask`` False: in a causal LLM no target attends to right padding, so it needs no mask, and SDPA may
    choose its kernels for causal attention.
    """
    inputs = _embed(llm, perception, batch)
    kwargs: dict[str, Any] = {"inputs_embeds": inputs.inputs_embeds, "use_cache": False}
    if padding_mask:
        kwargs |= {"attention_mask": inputs.attention_mask.long(), "position_ids": inputs.position_ids}
    at = (inputs.target_rows, inputs.target_positions - 1)
    if gather_targets:
        hidden, head = llm.base_model(**kwargs).last_hidden_state[at], llm.get_output_embeddings()
    else:
        hidden, head, implementation = llm(**kwargs).logits[at], nn.Identity(), "torch"
    loss, _ = summed_cross_entropy(hidden, head, inputs.target_ids, implementation=implementation)
    return loss, inputs.target_ids.numel()


def plain_loss(llm: PreTrainedModel, perception: FusedPerception, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """DeSTA2.5's recipe, implemented plainly: every clip padded to 30 s, 64 vectors that also read the silence, left
    padding, labels through the Hugging Face model, whose loss makes logits of all positions.

    In favour of the original: targets are not cut at 300 tokens, attention is SDPA, frozen weights are half precision.
    """
    audio = nn.functional.pad(batch["audio"], (0, WINDOW - batch["audio"].shape[1]))
    full = {**batch, "audio": audio, "audio_lens": torch.full_like(batch["audio_lens"], WINDOW)}
    inputs = _embed(llm, perception, full, padding_side="left")
    labels = torch.full(inputs.attention_mask.shape, -100, device=audio.device)
    labels[inputs.target_rows, inputs.target_positions] = inputs.target_ids
    mask = inputs.attention_mask.long()
    mean = llm(inputs_embeds=inputs.inputs_embeds, attention_mask=mask, labels=labels, use_cache=False).loss
    return mean * inputs.target_ids.numel(), inputs.target_ids.numel()


def _embed(
    llm: PreTrainedModel, perception: FusedPerception, batch: Mapping[str, Tensor], padding_side: str = "right"
) -> Spliced:
    text = llm.get_input_embeddings()(batch["input_ids"].clamp(min=0))
    half = llm.dtype in (torch.bfloat16, torch.float16)
    with torch.autocast(text.device.type, dtype=llm.dtype if half else None, enabled=half):
        vectors, lens = perception(batch["audio"], batch["audio_lens"])
    ids, input_lens, prompt_lens = batch["input_ids"], batch["input_lens"], batch["prompt_lens"]
    return splice(text, ids, input_lens, prompt_lens, vectors=vectors, vector_lens=lens, padding_side=padding_side)


class PaddedEncoder(nn.Module):
    """An encoder that always encodes 30 s, although only the clip's own frames are used."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("encoder"), name)

    def forward(self, audio: Tensor, audio_lens: Tensor) -> EncoderOutput:
        """See `AudioEncoder`."""
        audio = nn.functional.pad(audio, (0, WINDOW - audio.shape[1]))
        layers, _ = self.encoder(audio, torch.full_like(audio_lens, WINDOW))
        lens = [self.encoder.num_frames(length) for length in audio_lens.tolist()]
        return EncoderOutput(layers, torch.tensor(lens, device=audio.device))
