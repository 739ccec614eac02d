"""``engine=vllm`` of chat and evaluation: a `ChatEngine` on a model folder that vLLM runs, encoders included.

No weights are loaded in this process, but for a transcriber, if one is asked for.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from nemo_desta.answering.engine import ChatEngine
from nemo_desta.config import ModelConfig
from nemo_desta.core.build import build_transcriber
from nemo_desta.core.folder import ARCHITECTURE, CONFIG_FILE, open_model
from nemo_desta.errors import ConfigError
from nemo_desta.hf.loading import model_folder
from nemo_desta.hf.processing import DestaProcessor
from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.sources import resolve_source
from nemo_desta.vllm_plugin.decoder import VLLMDecoder
from nemo_desta.vllm_plugin.served import served_processor

#: Arguments of vLLM that follow from the settings of the model.
OWN = ("model", "tokenizer", "trust_remote_code")


class VLLMChatModel:
    """A `ChatModel` whose encoders and LLM run in vLLM. ``context_length``: as vLLM resolved it."""

    def __init__(self, processor: DestaProcessor, context_length: int) -> None:
        self.config = processor.settings
        self.prompts = processor.prompts
        self.audio_locator_tag = processor.audio_token
        self.sampling_rate, self.audio_rates = processor.sampling_rate, processor.audio_rates
        self.num_audio_tokens = processor.num_audio_tokens
        self.context_length = context_length

    @cached_property
    def generation_config(self) -> GenerationConfig:
        """The LLM's own."""
        source = resolve_source(self.config.llm.path)
        try:
            return GenerationConfig.from_pretrained(source)
        except OSError:  # the folder has none
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(source, trust_remote_code=self.config.llm.trust_remote_code)
            return GenerationConfig.from_model_config(config)

    @cached_property
    def transcriber(self) -> Callable[[Sequence[Any]], Sequence[str]]:
        """Whisper's decoder behind a voice activity detector, in this process; loaded on first use."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return build_transcriber(self.config.perception, device=device, dtype=as_dtype(self.config.llm.dtype))


def vllm_arguments(
    folder: str | Path,
    *,
    llm: str | None = None,
    encoders: Mapping[str, str] | None = None,
    check_identity: bool = True,
    trust_remote_code: bool = False,
    allow_targets: Sequence[str] = (),
    **engine_args: Any,
) -> tuple[ModelConfig, dict[str, Any]]:
    """The config of a model folder, run or hub id, and its arguments for vLLM; ``engine_args`` are among them.

    Raises:
        ConfigError: an argument of vLLM that follows from other settings, or a folder of an older version. Others as
        `SpeechLM.from_pretrained`.
    """
    if given := [name for name in OWN if name in engine_args]:
        raise ConfigError(f"vllm.{given[0]} cannot be given: it follows from the model and its settings")
    grants = {"trust_remote_code": trust_remote_code, "allow_targets": list(allow_targets)}
    places: dict[str, Any] = {"llm": llm, "encoders": encoders and dict(encoders), "check_identity": check_identity}
    config, _ = open_model(str(folder), **places, **grants)
    own = model_folder(folder, {})
    if ARCHITECTURE not in json.loads((own / CONFIG_FILE).read_text(encoding="utf-8")).get("architectures", ()):
        raise ConfigError(f"'{own}' was written by a version whose models vLLM cannot open: export it (desta export)")
    overrides = {**places, "allow_targets": grants["allow_targets"], **(engine_args.pop("hf_overrides", None) or {})}
    arguments = {
        "model": str(own),
        "trust_remote_code": trust_remote_code,
        "dtype": as_dtype(config.llm.dtype),
        "hf_overrides": {name: value for name, value in overrides.items() if value not in (None, [])},
        **engine_args,
    }
    return config, arguments


def vllm_chat_engine(folder: str | Path, *, max_batch_size: int = 256, **options: Any) -> ChatEngine:
    """A `ChatEngine` on vLLM; its ``model`` is a `VLLMChatModel`. ``options``: see `vllm_arguments`.

    Raises:
        ConfigError: the model trained LoRA. Others as `vllm_arguments` and `VLLMDecoder.start`.
    """
    config, arguments = vllm_arguments(folder, **options)
    if config.llm.lora is not None:
        raise ConfigError(
            "this model trained LoRA, which engine=vllm does not apply here: use engine=hf, or desta serve"
        )
    engine = VLLMDecoder.start({"disable_log_stats": True, **arguments})
    processor = served_processor(engine.model_config)
    decoder = VLLMDecoder(engine, audio_token_id=processor.audio_token_id)
    return ChatEngine(VLLMChatModel(processor, decoder.context), decoder=decoder, max_batch_size=max_batch_size)
