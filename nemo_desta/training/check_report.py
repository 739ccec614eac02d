"""``check=true``: a summary of the run: trainable parameters, tokens per second of audio, estimated memory.

The LLM is built on the meta device, without weights; encoders and projector are built for real.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_desta.config import ModelConfig
from nemo_desta.perception.build import build_encoders, build_projector_for
from nemo_desta.perception.encoders.base import as_dtype
from nemo_desta.sources import resolve_source
from nemo_desta.training.strategies import Split

GIB = 1024**3


def report(model: ModelConfig, settings: Mapping[str, Any], split: Split | None = None) -> str:
    """A summary of the run that ``settings`` describes; ``split``: how the LLM is split over GPUs, if it is."""
    llm_config = AutoConfig.from_pretrained(
        resolve_source(model.llm.path), trust_remote_code=model.llm.trust_remote_code
    )
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(llm_config, trust_remote_code=model.llm.trust_remote_code)
    text = llm.config.get_text_config()
    encoders = build_encoders(model.perception)
    projector = build_projector_for(model.perception, encoders, text.hidden_size, output_rms=1.0)

    rate = model.perception.sampling_rate
    trainable = sum(p.numel() for p in projector.parameters() if p.requires_grad)
    llm_size, encoder_size = _numel(llm), sum(_numel(encoder) for encoder in encoders.values())
    per_second = projector.num_tokens(60 * rate, rate) / 60
    train = settings["data"]["train_ds"]
    tokens = train.get("batch_tokens") or 0
    width = torch.finfo(as_dtype(model.llm.dtype)).bits // 8
    num_parts, sharding = (split.num_parts, f"LLM in {split.num_parts} parts") if split else (1, "without sharding")
    frozen = llm_size / num_parts * width + encoder_size * width
    weights = frozen + trainable * 16  # fp32 weight, gradient, two Adam moments
    activations = activation_bytes(text, tokens, width, recompute=model.activation_checkpointing)
    lines = [
        f"LLM            {model.llm.path}: {_amount(llm_size)} parameters, {text.num_hidden_layers} layers, frozen",
        *(
            f"encoder        {name}: {_amount(_numel(e))} parameters, layers {list(e.layer_ids)}, "
            f"{e.frame_rate:g} frames/s, frozen"
            for name, e in encoders.items()
        ),
        f"projector      {model.perception.projector.get('name', 'window')}: {trainable:,} trainable parameters",
        f"audio tokens   {per_second:.2f} per second of audio; 10 s become {projector.num_tokens(10 * rate, rate)}",
        f"memory         about {weights / GIB:.2f} GiB weights and optimiser + {activations / GIB:.2f} GiB "
        f"activations at {tokens} tokens per batch, per GPU, {sharding} (estimate)",
        f"strategy       {settings['trainer']['strategy']['name']}, {settings['trainer'].get('devices')} devices, "
        f"{settings['trainer'].get('num_nodes', 1)} nodes, {settings['trainer'].get('max_steps')} steps",
        *([f"layout         {split.description}"] if split else []),
        "data, weights and config are complete: leave out check=true to train",
    ]
    return "\n".join(lines)


def activation_bytes(config: Any, num_tokens: int, width: int, *, recompute: bool) -> float:
    """Bytes that backward through the frozen blocks keeps for ``num_tokens`` positions.

    Estimate per block and position: ten vectors of the hidden size and three of the feed-forward's (inputs of norms,
    attention and of the gated product); with recomputation only the block's input.
    """
    if recompute:
        return num_tokens * config.num_hidden_layers * config.hidden_size * width
    per_position = 10 * config.hidden_size + 3 * config.intermediate_size
    return num_tokens * config.num_hidden_layers * per_position * width


def _amount(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"


def _numel(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
