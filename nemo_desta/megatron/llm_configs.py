"""Configs of LLMs: sizes of well-known ones without a download, any other from its folder, config.json or the hub.

Sizes are those of each model's public config.json; a test compares parameter counts with the model cards.
"""

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.megatron.param_mapping import ARCHITECTURES
from nemo_desta.sources import is_local, resolve_source

KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "tie_word_embeddings"),
)
_QWEN3_30B = (
    *("qwen3_moe", 151936, 2048, 6144, 48, 32, 4, 128, False),
    {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True},
)
#: Name -> hub id, model_type, the values of `KEYS`, and what some types have in addition.
KNOWN: dict[str, tuple] = {
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B-Instruct", "llama", 128256, 4096, 14336, 32, 32, 8, 128, False),
    "llama-3.1-70b": ("meta-llama/Llama-3.1-70B-Instruct", "llama", 128256, 8192, 28672, 80, 64, 8, 128, False),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B-Instruct", "llama", 128256, 2048, 8192, 16, 32, 8, 64, True),
    "llama-3.2-3b": ("meta-llama/Llama-3.2-3B-Instruct", "llama", 128256, 3072, 8192, 28, 24, 8, 128, True),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct", "qwen2", 152064, 3584, 18944, 28, 28, 4, 128, False),
    "qwen2.5-14b": ("Qwen/Qwen2.5-14B-Instruct", "qwen2", 152064, 5120, 13824, 48, 40, 8, 128, False),
    "qwen2.5-32b": ("Qwen/Qwen2.5-32B-Instruct", "qwen2", 152064, 5120, 27648, 64, 40, 8, 128, False),
    "qwen2.5-72b": ("Qwen/Qwen2.5-72B-Instruct", "qwen2", 152064, 8192, 29568, 80, 64, 8, 128, False),
    "qwen3-4b": ("Qwen/Qwen3-4B-Instruct-2507", "qwen3", 151936, 2560, 9728, 36, 32, 8, 128, True),
    "qwen3-8b": ("Qwen/Qwen3-8B", "qwen3", 151936, 4096, 12288, 36, 32, 8, 128, False),
    "qwen3-14b": ("Qwen/Qwen3-14B", "qwen3", 151936, 5120, 17408, 40, 40, 8, 128, False),
    "qwen3-32b": ("Qwen/Qwen3-32B", "qwen3", 151936, 5120, 25600, 64, 64, 8, 128, False),
    "qwen3-30b-a3b": ("Qwen/Qwen3-30B-A3B-Instruct-2507", *_QWEN3_30B),
    "qwen3-30b-a3b-thinking": ("Qwen/Qwen3-30B-A3B-Thinking-2507", *_QWEN3_30B),
    "gemma-3-1b": (
        *("google/gemma-3-1b-it", "gemma3_text", 262144, 1152, 6912, 26, 4, 1, 256, True),
        {"sliding_window": 512},
    ),
    "gemma-3-4b": (
        *("google/gemma-3-4b-it", "gemma3_text", 262208, 2560, 10240, 34, 8, 4, 256, True),
        {"sliding_window": 1024},
    ),
    "gemma-3-12b": (
        *("google/gemma-3-12b-it", "gemma3_text", 262208, 3840, 15360, 48, 16, 8, 256, True),
        {"sliding_window": 1024},
    ),
    "mixtral-8x7b": (
        *("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral", 32000, 4096, 14336, 32, 32, 8, 128, False),
        {"num_local_experts": 8, "num_experts_per_tok": 2},
    ),
}


def find_llm(llm: str) -> tuple[str, PretrainedConfig]:
    """The value for ``model.llm.path`` and the config of a name of `KNOWN`, a folder, a config.json or a hub id.

    Raises:
        ConfigError: nothing there, or an architecture that strategy=megatron does not cover.
    """
    name = next((name for name, (hub_id, *_) in KNOWN.items() if llm.lower() in (name, hub_id.lower())), None)
    if name is not None and not Path(llm).exists():
        hub_id, model_type, *sizes = KNOWN[name]
        more = sizes.pop() if len(sizes) > len(KEYS) else {}
        return hub_id, AutoConfig.for_model(model_type, **dict(zip(KEYS, sizes, strict=True)), **more)
    path = source = llm
    if is_local(llm):
        place = Path(resolve_source(llm)).expanduser()
        file = place if place.suffix == ".json" and not place.is_dir() else place / "config.json"
        if not file.is_file():
            raise ConfigError(f"no config.json at '{place}'")
        path, source = str(file.parent), str(file)
    elif "/" not in llm:
        raise ConfigError(
            f"'{llm}' is neither a folder nor a config.json here, nor an LLM known by name.{nearest(llm, KNOWN)} "
            "A hub id has the form owner/name"
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the config of '{llm}' cannot be read: {str(error).splitlines()[0]} Known by name, without a download: "
            f"{', '.join(KNOWN)}"
        ) from error
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"'{llm}' is of type '{config.model_type}'; strategy=megatron covers {', '.join(ARCHITECTURES)}"
        )
    return path, config
