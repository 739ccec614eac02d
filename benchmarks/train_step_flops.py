"""Model FLOPs of a step (the necessary operations, without those that an implementation adds) and GPU peaks.

A linear layer with n weights costs 2 n per position forward, 2 n for the gradient of its input and, if it is trained,
2 n for the gradient of its weights. So the frozen LLM and its head cost 4 n, the
projector 6 n, the encoders 2 n. Attention costs 4 C per pair of positions forward (half of the pairs where causal) and
twice that backward. Not counted: padding of text, logits that no target needs, recomputed activations, norms,
softmaxes, filter banks. Counted: Whisper's whole 30 s window, because Whisper always encodes it.

MFU = model FLOPs / (time * peak), peak = dense bfloat16 as the vendor states it, whatever dtype the variant runs in.
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.train_step_rows import BenchRow
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import QFormerProjector

#: Dense bfloat16 FLOP/s by a part of the GPU's name; the first that fits counts.
PEAKS = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165.2e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak of this device; None if the table has none (every CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def step_flops(rows: list[BenchRow], llm: PreTrainedModel, perception: FusedPerception) -> float:
    """Model FLOPs of forward and backward on these rows."""
    samples = [row.num_samples for row in rows]
    vectors = [perception.num_tokens(count) for count in samples]
    positions = [n + row.prompt_tokens + row.target_tokens for n, row in zip(vectors, rows, strict=True)]
    return (
        _llm(llm, positions, sum(row.target_tokens for row in rows))
        + sum(_encoder(encoder, samples) for encoder in perception.encoders.values())
        + _projector(perception, sum(vectors))
    )


def _llm(llm: PreTrainedModel, positions: list[int], targets: int) -> float:
    """``positions``: of each row; ``targets``: of all rows."""
    config = llm.config
    width = config.num_attention_heads * (getattr(config, "head_dim", None) or 0)
    width = width or config.hidden_size
    linear = 4 * linear_size(llm.base_model) * sum(positions)
    attention = 3 * 4 * width * config.num_hidden_layers * sum(n**2 for n in positions) / 2
    return linear + attention + 4 * config.hidden_size * config.vocab_size * targets


def _encoder(encoder: nn.Module, num_samples: list[int]) -> float:
    frames = [encoder.num_frames(count) for count in num_samples]
    if hasattr(encoder, "window_frames"):  # Whisper: whole windows
        window = encoder.window_frames
        frames = [window * -(-n // window) for n in frames]
    else:  # BEATs: chunks of its own frames
        window = encoder.chunk_steps * encoder.frame_grid.frames_per_step
    layers = encoder.model.layers if hasattr(encoder.model, "layers") else encoder.model.encoder.layers
    pairs = sum(n * min(n, window) for n in frames)
    return 2 * linear_size(layers) * sum(frames) + 4 * encoder.hidden_size * len(layers) * pairs


def _projector(perception: FusedPerception, vectors: int) -> float:
    projector = perception.projector
    if not isinstance(projector, QFormerProjector):
        return 6 * linear_size(projector) * vectors
    flops = 6 * projector.output.weight.numel() * vectors
    for name, branch in projector.branches.items():
        taps = len(perception.encoders[name].layer_ids)
        frames = perception.encoders[name].window_frames * vectors // projector.num_queries
        of_frames = sum(
            linear_size(nn.ModuleList([layer.cross_attention.key, layer.cross_attention.value]))
            for layer in branch.layers
        )
        of_queries = linear_size(branch) - of_frames
        flops += taps * (6 * of_queries * vectors + 4 * of_frames * frames)  # frames are frozen: no gradient of them
    return flops


def linear_size(module: nn.Module) -> int:
    """Weights of all linear layers in a module."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
