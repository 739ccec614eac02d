"""A model without its LLM's layers, for when the LLM runs in an engine of its own (vLLM).

It holds the prompts, encoders, projector and the LLM's embedding table, which is one tensor of the checkpoint, so the
frozen LLM is in memory once. `audio_embeddings` makes the same embeddings from it as from a whole model.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from nemo_desta.config import LLMConfig, ModelConfig
from nemo_desta.core import build
from nemo_desta.core.model import ChatMixin
from nemo_desta.errors import ConfigError
from nemo_desta.ops.dtypes import as_dtype
from nemo_desta.perception.encoders.weights import load_part
from nemo_desta.sources import resolve_source

#: Prefixes of ``embed_tokens.weight`` in checkpoints.
TABLE_PREFIXES = ("model.", "", "model.language_model.", "language_model.model.")


class AudioFrontend(ChatMixin, nn.Module):
    """Encodes audio and embeds prompts for an LLM elsewhere; a `ChatModel`.

    Args:
        config: of the model; of its LLM, only config, tokenizer and embedding table are read.

    Raises:
        ConfigError: LoRA (the LLM elsewhere would not have it), or an LLM whose embedding is no plain table.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.llm.lora is not None:
            raise ConfigError("this model trained LoRA, and an unmodified LLM elsewhere lacks it; use DestaModel")
        self.config = config
        self.prompts = build.build_prompts(build.build_tokenizer(config.llm), config.prompt)
        self.llm = LLMElsewhere(config.llm)
        self.perception = build.build_perception(config.perception, self.embed_tokens.embedding_dim, 1.0)
        self.engine_context: int | None = None
        self.requires_grad_(False).eval()

    @property
    def context_length(self) -> int | None:
        """Positions of the LLM or, if it is less, of the engine that runs it (``engine_context``)."""
        found = [length for length in (super().context_length, self.engine_context) if length is not None]
        return min(found, default=None)


class LLMElsewhere(nn.Module):
    """The embedding table of an LLM and its configs, under the names that a whole LLM has."""

    def __init__(self, llm: LLMConfig) -> None:
        super().__init__()
        source, trust = resolve_source(llm.path), llm.trust_remote_code
        self.config = AutoConfig.from_pretrained(source, trust_remote_code=trust)
        try:
            self.generation_config = GenerationConfig.from_pretrained(source)
        except OSError:  # the folder has none
            self.generation_config = GenerationConfig.from_model_config(self.config)
        self.embed_tokens = _embedding_table(self.config, source, as_dtype(llm.dtype), trust)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype


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
