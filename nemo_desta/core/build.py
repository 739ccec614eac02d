"""Config -> parts. The only place that looks at both; every module below receives what it needs ready made."""

import logging
import math
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from nemo_desta.config import LLMConfig, ModelConfig, PerceptionConfig, PromptConfig, nearest
from nemo_desta.core.folder import load_projector
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.trust import UntrustedConfig, code_named
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import build_encoder
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import build_projector
from nemo_desta.sources import resolve_source

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU and float32 on a CPU (design decision 9)."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"unknown dtype '{name}'.{nearest(name, ['auto', *DTYPES])}")
    return DTYPES[name]


def build_tokenizer(config: LLMConfig) -> PreTrainedTokenizerBase:
    """The LLM's own tokenizer.

    Raises:
        ConfigError: no tokenizer at the source, or one without a chat template; `UntrustedConfig`: it is code.
    """
    source = config.tokenizer or config.path
    try:
        with code_named(source):
            tokenizer = AutoTokenizer.from_pretrained(
                resolve_source(source), trust_remote_code=config.trust_remote_code, use_fast=True
            )
    except UntrustedConfig:
        raise
    except Exception as error:  # transformers raises half a dozen kinds here, none of which says what to do
        raise ConfigError(
            f"no usable tokenizer at '{source}' ({type(error).__name__}). The folder needs tokenizer.json and "
            "tokenizer_config.json; if they live elsewhere set model.llm.tokenizer to that folder or hub id."
        ) from error
    if not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer at '{source}' has no chat template. Prompts are rendered by the LLM's own template: use "
            f"an "
            "instruct or reasoning LLM, or put its chat_template.jinja into the folder."
        )
    return tokenizer


def build_prompts(tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> PromptBuilder:
    """What renders this model's prompts."""
    return PromptBuilder(
        tokenizer,
        audio_locator_tag=config.audio_locator_tag,
        chat_template_kwargs=config.chat_template_kwargs,
        transcript=config.transcript,
        audio_tags=config.audio_tags,
        audio_role=config.audio_role,
        system_role=config.system_role,
    )


def build_llm(config: LLMConfig) -> PreTrainedModel:
    """The causal LLM, frozen and in eval mode; with LoRA adapters when the config asks for them."""
    with code_named(config.path):
        llm = AutoModelForCausalLM.from_pretrained(
            resolve_source(config.path),
            dtype=resolve_dtype(config.dtype),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
        )
    llm.requires_grad_(False).eval()
    if config.lora is not None:
        from peft import LoraConfig as PeftLoraConfig
        from peft import inject_adapter_in_model

        lora = config.lora
        peft_config = PeftLoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.target_modules)
        )
        llm = inject_adapter_in_model(peft_config, llm)
    return llm


def build_parts(config: ModelConfig) -> tuple[PreTrainedModel, FusedPerception]:
    """The LLM, and a perception with initial weights that fits it.

    Raises:
        ConfigError: an LLM that audio vectors cannot be given to.
    """
    llm = build_llm(config.llm)
    check_reads_embeddings(llm)
    return llm, build_perception(config.perception, llm.config.get_text_config().hidden_size, embedding_rms(llm))


def check_reads_embeddings(llm: nn.Module) -> None:
    """Audio vectors enter an LLM as embeddings, so the LLM must need nothing but embeddings.

    Raises:
        ConfigError: an LLM that looks token ids up in every layer.
    """
    if width := getattr(llm.config.get_text_config(), "hidden_size_per_layer_input", None):
        raise ConfigError(
            f"{type(llm).__name__} looks token ids up in every layer (hidden_size_per_layer_input={width}); audio "
            "vectors have no ids, and text given as embeddings would be read differently. Use an LLM without"
        )


def build_encoders(config: PerceptionConfig) -> dict[str, nn.Module]:
    """The chosen encoders by name, in the order of the config."""
    names = list(config.encoders) if config.use is None else list(config.use)
    if not names:
        raise ConfigError("'model.perception.encoders' is empty: at least one encoder is needed")
    for name in names:
        if name not in config.encoders:
            raise ConfigError(f"model.perception.use names '{name}'.{nearest(name, config.encoders)}")
    encoders = {}
    for name in names:
        knobs: dict[str, Any] = {"name": name, **config.encoders[name]}
        if isinstance(knobs.get("path"), str):
            knobs["path"] = resolve_source(knobs["path"])
        encoders[name] = build_encoder(knobs, dtype=resolve_dtype(config.dtype))
    return encoders


def build_perception(config: PerceptionConfig, output_size: int, output_rms: float) -> FusedPerception:
    """Encoders and projector. ``output_rms``: RMS of the LLM's embedding table, where the projector's gain starts."""
    encoders = build_encoders(config)
    projector = build_projector_for(config, encoders, output_size, output_rms=output_rms)
    if config.init_from is not None:
        loaded = load_projector(config.init_from, projector)
        logger.info("projector: %d tensors started from %s", loaded, config.init_from)
    return FusedPerception(
        encoders, projector, sampling_rate=config.sampling_rate, normalize_dbfs=config.normalize_dbfs
    )


def build_projector_for(
    config: PerceptionConfig, encoders: dict[str, nn.Module], output_size: int, *, output_rms: float
) -> nn.Module:
    """The projector that the config names, for these encoders."""
    knobs = dict(config.projector)
    name = knobs.pop("name", "window")
    return build_projector(knobs.pop("_target_", name), encoders, output_size, output_rms=output_rms, **knobs)


def build_transcriber(config: PerceptionConfig, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The whole Whisper, decoder included, whose encoder the model listens with.

    Raises:
        ConfigError: no Whisper among the encoders.
    """
    from nemo_desta.perception.transcribe import WhisperTranscriber

    for name in config.use or list(config.encoders):
        knobs = config.encoders[name]
        if knobs.get("name", name) == "whisper":
            return WhisperTranscriber.from_pretrained(resolve_source(knobs["path"]), device=device, dtype=dtype)
    raise ConfigError(
        f"transcript=whisper needs a Whisper among the encoders, found {sorted(config.encoders)}; give transcripts "
        "with the audios, or pass a transcriber"
    )


@torch.no_grad()
def embedding_rms(llm: PreTrainedModel) -> float:
    """Root mean square of the LLM's input embeddings: the level at which audio vectors should arrive.

    Of what the embedding module gives, which may be more than its table (Gemma 3 scales it).
    """
    embed = llm.get_input_embeddings()
    if type(embed) is nn.Embedding:
        return embed.weight.detach().float().pow(2).mean().sqrt().item()
    ids = torch.arange(llm.config.get_text_config().vocab_size, device=embed.weight.device)
    means = [(embed(part).float().pow(2).mean().item(), len(part)) for part in ids.split(4096)]
    return math.sqrt(sum(mean * count for mean, count in means) / len(ids))


def freeze_by_pattern(parameters: dict[str, nn.Parameter], patterns: list[str]) -> None:
    """Freeze the parameters that a pattern (regular expression, searched) names.

    Raises:
        ConfigError: a pattern that names nothing, or nothing left to train.
    """
    for pattern in patterns:
        names = [name for name in parameters if re.search(pattern, name)]
        if not names:
            some = ", ".join(list(parameters)[:5])
            raise ConfigError(f"model.freeze pattern '{pattern}' matches no trainable parameter (first ones: {some})")
        for name in names:
            parameters[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"model.freeze {patterns} freezes every parameter: nothing would be trained")
