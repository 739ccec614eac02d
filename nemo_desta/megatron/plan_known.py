"""LLMs whose sizes are known without a download, and where any other config comes from.

Numbers are those of the public config.json of each model; a test compares parameter counts with the model cards'.
"""

from pathlib import Path
from typing import NamedTuple

from transformers import AutoConfig, PretrainedConfig

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.megatron.names import ARCHITECTURES
from nemo_desta.sources import is_local, resolve_source


class Known(NamedTuple):
    """``source``: the hub id whose config.json has these numbers."""

    source: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool = False


KNOWN = {
    "llama-3.1-8b": Known("meta-llama/Llama-3.1-8B-Instruct", "llama", 128256, 4096, 14336, 32, 32, 8, 128),
    "llama-3.1-70b": Known("meta-llama/Llama-3.1-70B-Instruct", "llama", 128256, 8192, 28672, 80, 64, 8, 128),
    "llama-3.2-1b": Known("meta-llama/Llama-3.2-1B-Instruct", "llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "llama-3.2-3b": Known("meta-llama/Llama-3.2-3B-Instruct", "llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "qwen2.5-7b": Known("Qwen/Qwen2.5-7B-Instruct", "qwen2", 152064, 3584, 18944, 28, 28, 4, 128),
    "qwen2.5-14b": Known("Qwen/Qwen2.5-14B-Instruct", "qwen2", 152064, 5120, 13824, 48, 40, 8, 128),
    "qwen2.5-32b": Known("Qwen/Qwen2.5-32B-Instruct", "qwen2", 152064, 5120, 27648, 64, 40, 8, 128),
    "qwen2.5-72b": Known("Qwen/Qwen2.5-72B-Instruct", "qwen2", 152064, 8192, 29568, 80, 64, 8, 128),
    "qwen3-4b": Known("Qwen/Qwen3-4B-Instruct-2507", "qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True),
    "qwen3-8b": Known("Qwen/Qwen3-8B", "qwen3", 151936, 4096, 12288, 36, 32, 8, 128),
    "qwen3-14b": Known("Qwen/Qwen3-14B", "qwen3", 151936, 5120, 17408, 40, 40, 8, 128),
    "qwen3-32b": Known("Qwen/Qwen3-32B", "qwen3", 151936, 5120, 25600, 64, 64, 8, 128),
}


def find_llm(llm: str) -> tuple[str, PretrainedConfig]:
    """What ``model.llm.path`` would be, and the config, for a name of `KNOWN`, a folder, a config.json or a hub id.

    Raises:
        ConfigError: nothing there, or an architecture that strategy=megatron does not cover.
    """
    by_source = {known.source.lower(): name for name, known in KNOWN.items()}
    name = by_source.get(llm.lower(), llm.lower())
    if name in KNOWN and not Path(llm).exists():
        source, model_type, *_ = KNOWN[name]
        sizes = {key: value for key, value in KNOWN[name]._asdict().items() if key not in ("source", "model_type")}
        return source, AutoConfig.for_model(model_type, **sizes)
    path, config = _read(llm)
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"'{llm}' is of type '{config.model_type}'; strategy=megatron covers {', '.join(ARCHITECTURES)}"
        )
    return path, config


def _read(llm: str) -> tuple[str, PretrainedConfig]:
    if "/" not in llm and not Path(llm).exists():
        raise ConfigError(
            f"'{llm}' is neither a folder nor a config.json here, nor an LLM known by name.{nearest(llm, KNOWN)} "
            "A hub id has the form owner/name"
        )
    path = Path(resolve_source(llm)).expanduser()
    if is_local(llm) or path.exists():
        file = path / "config.json" if path.is_dir() or path.suffix != ".json" else path
        if not file.is_file():
            raise ConfigError(f"no config.json at '{path}'")
        folder = str(path if path.is_dir() else path.parent)
        return folder, _parse(llm, str(file))
    return llm, _parse(llm, llm)


def _parse(llm: str, source: str) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no config to be had for '{llm}': {str(error).splitlines()[0]} Known by name, without a download: "
            f"{', '.join(KNOWN)}"
        ) from error
