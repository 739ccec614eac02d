"""A model without its LLM, for an LLM that runs in its own engine (vLLM).

It holds prompts, encoders, projector and the LLM's embedding table, which is one tensor of its checkpoint. The LLM's
layers are not loaded, so the frozen LLM is in memory once. `audio_embeddings` makes the same embeddings from it as
from a `DestaModel`.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from nemo_desta.answering.audio_embeddings import AudioCache, Transcriber
from nemo_desta.config import ModelConfig
from nemo_desta.core import build
from nemo_desta.core.folder import PROJECTOR_PREFIX, open_model
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders.weights import load_part
from nemo_desta.sources import resolve_source

#: Prefixes of ``embed_tokens.weight`` in checkpoints.
TABLE_PREFIXES = ("model.", "", "model.language_model.", "language_model.model.")


class AudioFrontend(nn.Module):
    """Encodes audio for an LLM that runs elsewhere; a `ChatModel`.

    Args:
        config: of the model. Of its LLM, only config, tokenizer and embedding table are read.

    Raises:
        ConfigError: LoRA (the LLM elsewhere would not have it), or an LLM whose embedding is no plain table.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.llm.lora is not None:
            raise ConfigError("this model has LoRA, and an unmodified LLM elsewhere lacks it; use DestaModel")
        self.config = config
        self.tokenizer = build.build_tokenizer(config.llm)
        self.prompts = build.build_prompts(self.tokenizer, config.prompt)
        self.audio_locator_tag = self.prompts.audio_locator_tag
        source = resolve_source(config.llm.path)
        trust = config.llm.trust_remote_code
        self.llm_config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
        try:
            self.generation_config = GenerationConfig.from_pretrained(source)
        except OSError:  # the folder has none
            self.generation_config = GenerationConfig.from_model_config(self.llm_config)
        self.embed_tokens = _embedding_table(self.llm_config, source, build.resolve_dtype(config.llm.dtype), trust)
        self.perception = build.build_perception(config.perception, self.embed_tokens.embedding_dim, 1.0)
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> "AudioFrontend":
        """Open a model folder or hub id; ``options`` are those of `open_model`."""
        config, tensors = open_model(str(pretrained_model_name_or_path), **options)
        frontend = cls(config)
        projector = {name.removeprefix(PROJECTOR_PREFIX): tensor for name, tensor in tensors.items()}
        frontend.perception.projector.load_state_dict(projector)
        return frontend.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def sampling_rate(self) -> int:
        return self.config.perception.sampling_rate

    @property
    def context_length(self) -> int | None:
        """Positions of the LLM."""
        return getattr(self.llm_config.get_text_config(), "max_position_embeddings", None)

    def num_audio_tokens(self, num_samples: int) -> int:
        """Number of vectors of a clip of ``num_samples`` at ``sampling_rate``."""
        return self.perception.num_tokens(num_samples)

    def perceive(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(A, S) float32, (A,) -> vectors (A, W, D), lens (A,); the embedding table decides about half precision."""
        dtype = self.embed_tokens.weight.dtype
        with torch.autocast(audio.device.type, dtype=dtype, enabled=dtype in (torch.bfloat16, torch.float16)):
            return self.perception(audio, audio_lens)

    @cached_property
    def audio_cache(self) -> AudioCache:
        """Cached vectors of clips."""
        return AudioCache()

    @cached_property
    def transcriber(self) -> Transcriber:
        """Whisper's decoder behind a voice activity detector; loaded on first use."""
        table = self.embed_tokens.weight
        return build.build_transcriber(self.config.perception, device=table.device, dtype=table.dtype)


def _embedding_table(config: Any, source: str, dtype: torch.dtype, trust_remote_code: bool) -> nn.Embedding:
    """The LLM's input embedding with its weights; nothing else of the LLM is loaded."""
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    table = llm.get_input_embeddings()
    if type(table) is not nn.Embedding:
        raise ConfigError(
            f"{type(llm).__name__} embeds tokens with a {type(table).__name__}, which does more than a table lookup; "
            "its prompts need the whole LLM, so serve it with DestaModel"
        )
    weight = load_part(source, ["embed_tokens.weight"], prefixes=TABLE_PREFIXES)["embed_tokens.weight"]
    return nn.Embedding.from_pretrained(weight.to(dtype), freeze=True)
