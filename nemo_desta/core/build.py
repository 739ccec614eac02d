"""Build the parts of a model from its config. The modules themselves receive ready parts and read no config."""

import logging
import math
import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from nemo_desta.config import LLMConfig, LoraConfig, ModelConfig, PerceptionConfig, PromptConfig
from nemo_desta.core.folder import load_projector
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.tokenizers import load_tokenizer, without_audio_token
from nemo_desta.core.trust import UntrustedConfig, code_named
from nemo_desta.errors import ConfigError
from nemo_desta.ops.dtypes import as_dtype, suggest_fastest
from nemo_desta.perception.build import audio_rates, build_encoders, build_projector_for
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.sources import resolve_source
from nemo_desta.types import first_rate

logger = logging.getLogger(__name__)


def hide_loading_bars() -> None:
    """Disables the progress bars that transformers shows while it loads weights."""
    transformers_logging.disable_progress_bar()


def build_tokenizer(config: LLMConfig) -> PreTrainedTokenizerBase:
    """The LLM's own tokenizer.

    Raises:
        ConfigError: no tokenizer at the source, or one without a chat template.
        UntrustedConfig: loading it would run code.
    """
    source = config.tokenizer or config.path
    try:
        with code_named(source):
            tokenizer = load_tokenizer(resolve_source(source), trust_remote_code=config.trust_remote_code)
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
    return without_audio_token(tokenizer)


def build_prompts(tokenizer: PreTrainedTokenizerBase, config: PromptConfig) -> PromptBuilder:
    """The prompt builder of the config.

    Raises:
        ConfigError: an empty ``system`` for a template that fills an empty system message.
    """
    prompts = PromptBuilder(
        tokenizer,
        audio_locator_tag=config.audio_locator_tag,
        chat_template_kwargs=config.chat_template_kwargs,
        transcript=config.transcript,
        audio_tags=config.audio_tags,
        audio_role=config.audio_role,
        system=config.system,
        system_role=config.system_role,
        thinking_end=config.thinking_end,
    )
    if config.system == "" and prompts.keeps_default_system:
        raise ConfigError(
            "model.prompt.system='' cannot leave out the system prompt of this chat template, which adds "
            f"{prompts.default_system[:80]!r} to an empty one; give a system text, or null"
        )
    return prompts


def build_llm(config: LLMConfig, **loading: Any) -> PreTrainedModel:
    """The causal LLM, frozen and in eval mode; with LoRA adapters when the config has them.

    ``loading``: further arguments of transformers' ``from_pretrained``, such as ``device_map``.
    """
    with code_named(config.path):
        llm = AutoModelForCausalLM.from_pretrained(
            resolve_source(config.path),
            dtype=as_dtype(config.dtype),
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
            **{**_dequantised(config), **loading},
        )
    llm.requires_grad_(False).eval()
    suggest_fastest(config.dtype, llm, "model.llm.dtype")
    return llm if config.lora is None else add_lora(llm, config.lora)


def _dequantised(config: LLMConfig) -> dict[str, Any]:
    """The loading argument for MXFP4 weights (gpt-oss), through which no gradient passes: they become bfloat16."""
    found = AutoConfig.from_pretrained(resolve_source(config.path), trust_remote_code=config.trust_remote_code)
    if (getattr(found, "quantization_config", None) or {}).get("quant_method") != "mxfp4":
        return {}
    from transformers import Mxfp4Config

    return {"quantization_config": Mxfp4Config(dequantize=True)}


def add_lora(llm: PreTrainedModel, lora: LoraConfig) -> PreTrainedModel:
    """The LLM with trainable LoRA adapters; also on the meta device.

    Raises:
        ConfigError: PEFT refuses the settings, such as target modules that the LLM does not have.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    try:
        peft_config = PeftLoraConfig(
            r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(lora.target_modules)
        )
        return inject_adapter_in_model(peft_config, llm)
    except (ValueError, TypeError) as error:
        names = sorted({name.rpartition(".")[2] for name, part in llm.named_modules() if isinstance(part, nn.Linear)})
        raise ConfigError(f"model.llm.lora: {error} (linear layers of this LLM: {', '.join(names)})") from error


def build_parts(config: ModelConfig, **loading: Any) -> tuple[PreTrainedModel, FusedPerception]:
    """The LLM, and a perception with initial weights that fits it. ``loading``: see `build_llm`.

    Raises:
        ConfigError: an LLM that audio vectors cannot be given to.
    """
    llm = build_llm(config.llm, **loading)
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


def build_perception(config: PerceptionConfig, output_size: int, output_rms: float) -> FusedPerception:
    """Encoders and projector. ``output_rms``: RMS of the LLM's embedding table, the projector's initial gain."""
    encoders = build_encoders(config)
    projector = build_projector_for(config, encoders, output_size, output_rms=output_rms)
    if config.init_from is not None:
        loaded = load_projector(config.init_from, projector)
        logger.info("projector: %d tensors initialised from %s", loaded, config.init_from)
    rate = first_rate(audio_rates(config, encoders))
    return FusedPerception(encoders, projector, rate, normalize_dbfs=config.normalize_dbfs)


def build_transcriber(config: PerceptionConfig, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The whole Whisper, decoder included, whose encoder the model uses.

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
    """Root mean square of the LLM's input embeddings, the level that audio vectors should have.

    It is taken from the output of the embedding module, which may differ from its table (Gemma 3 scales it).

    Raises:
        ConfigError: the embeddings are on the meta device.
    """
    embed = llm.get_input_embeddings()
    if embed.weight.is_meta:
        raise ConfigError("the embeddings of the LLM are offloaded; choose a device_map that keeps them on a device")
    if type(embed) is nn.Embedding:
        return embed.weight.detach().float().pow(2).mean().sqrt().item()
    ids = torch.arange(llm.config.get_text_config().vocab_size, device=embed.weight.device)
    means = [(embed(part).float().pow(2).mean().item(), len(part)) for part in ids.split(4096)]
    return math.sqrt(sum(mean * count for mean, count in means) / len(ids))


def recompute_activations(llm: nn.Module) -> None:
    """Recompute the LLM's activations in backward. It must be in train mode for that, so its dropout is set to 0."""
    for module in llm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def freeze_by_pattern(parameters: dict[str, nn.Parameter], patterns: list[str]) -> None:
    """Freeze the parameters whose name contains a match of one of the ``patterns`` (regular expressions).

    Raises:
        ConfigError: a pattern that matches nothing, or nothing left to train.
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
