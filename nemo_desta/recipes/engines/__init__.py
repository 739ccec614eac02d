"""Engines turn chat messages into an LLM's raw answers.

`base` is their interface. `hf` (local transformers), `vllm` (offline vLLM) and `openai` (any OpenAI-compatible server)
are imported when they are first used, by name or by `build_engine`. `ENGINES` knows them and those of other packages.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines.base import (
    Engine,
    EngineError,
    Generation,
    Messages,
    Request,
    SamplingConfig,
    generate_all,
)
from nemo_desta.recipes.engines.http_client import Connection
from nemo_desta.registry import Registry

if TYPE_CHECKING:
    from nemo_desta.recipes.engines.hf import HFEngine
    from nemo_desta.recipes.engines.openai import OpenAIEngine
    from nemo_desta.recipes.engines.vllm import VLLMEngine

__all__ = [
    "ENGINES",
    "Engine",
    "EngineError",
    "Generation",
    "HFEngine",
    "Messages",
    "OUR_ENGINES",
    "OpenAIEngine",
    "Request",
    "SamplingConfig",
    "VLLMEngine",
    "build_engine",
    "engine_identity",
    "generate_all",
]


@dataclass(frozen=True)
class HFSettings:
    """Knobs of ``engine.name=hf``, see `HFEngine`."""

    name: str = "hf"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 32


@dataclass(frozen=True)
class VLLMSettings:
    """Knobs of ``engine.name=vllm``, see `VLLMEngine`. Null: vLLM's default. ``engine_args``: its other arguments."""

    name: str = "vllm"
    window: int = 2048
    dtype: str | None = None
    tensor_parallel_size: int | None = None
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    engine_args: dict[str, Any] | None = None


@dataclass(frozen=True)
class OpenAISettings(Connection):
    """Knobs of ``engine.name=openai``, see `OpenAIEngine`. ``model``: the LLM's name at the server if it differs from
    ``llm``; then ``llm`` only names the tokenizer."""

    name: str = "openai"
    model: str | None = None
    tokenizer: str | None = None
    api: str = "completions"
    extra_body: dict[str, Any] = field(default_factory=dict)


#: Name -> its settings.
OUR_ENGINES = {"hf": HFSettings, "vllm": VLLMSettings, "openai": OpenAISettings}
_ROOM = "nemo_desta.recipes.engines"
_CLASSES = {"hf": "HFEngine", "vllm": "VLLMEngine", "openai": "OpenAIEngine"}
ENGINES = Registry(
    "engine", "nemo_desta.engines", {name: f"{_ROOM}.{name}:{engine}" for name, engine in _CLASSES.items()}
)
#: Knobs of an engine that change its answers. The others decide where it runs and how fast.
_OF_THE_TEXT = ("name", "model", "api", "extra_body", "dtype", "engine_args")


def engine_identity(settings: Mapping[str, Any], llm: str) -> dict[str, Any]:
    """The part of an engine's ``settings`` that decides about the rows: of ours, the server, its key and its load may
    change; of an engine from elsewhere, nothing. Raises `ConfigError` for an unknown engine or knob."""
    name, own = ENGINES.read(settings)
    if name not in OUR_ENGINES:
        return {"name": name, **ENGINES.settings(name, own, 1)}
    knobs = vars(_parsed(settings))
    kept = {name: knobs[name] for name in _OF_THE_TEXT if name in knobs}
    if kept.get("dtype") == "fastest":
        kept["dtype"] = "auto"  # both are compared by the number format that the loaded LLM has
    if "engine_args" in kept:
        kept["engine_args"] = kept["engine_args"] or {}
    return {**kept, "model": kept["model"] or llm} if "model" in kept else kept


def build_engine(
    settings: Mapping[str, Any],
    llm: str,
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    tokenizer: str | None = None,
) -> Engine:
    """The engine of ``settings``: ``name`` (hf, vllm, openai, or one of `ENGINES`) or ``_target_``, and its knobs.
    Loads the LLM or reaches the server.

    ``llm``: hub id, folder or ``package:<path>``, or a server's name for it. ``tokenizer``: for the openai engine, if
    the server's name for the LLM is not also the tokenizer's. An engine from elsewhere is called as
    ``factory(llm, **knobs)``, with ``chat_template_kwargs`` and ``tokenizer`` if it has these arguments.

    Raises `ConfigError` for an unknown engine or knob, `EngineError` if there is no server or no tokenizer.
    """
    if ENGINES.read(settings)[0] not in OUR_ENGINES:
        return ENGINES.build(settings, llm, chat_template_kwargs=chat_template_kwargs, tokenizer=tokenizer)
    knobs = dict(vars(_parsed(settings)))
    name = knobs.pop("name")
    if tokenizer is not None and name != "openai":
        raise ConfigError(f"the {name} engine reads the LLM's own tokenizer; tokenizer={tokenizer} is for openai only")
    engine_class = ENGINES[name]
    if name == "openai":
        model = knobs.pop("model") or llm
        known_by = knobs.pop("tokenizer") or tokenizer or (llm if knobs["api"] == "completions" else None)
        engine = engine_class(model=model, tokenizer=known_by, chat_template_kwargs=chat_template_kwargs, **knobs)
        engine.connect()
        return engine
    given = [*(knobs.pop("engine_args", None) or {}).items(), *knobs.items()]
    options = {key: value for key, value in given if value is not None}
    return engine_class.from_pretrained(llm, chat_template_kwargs=chat_template_kwargs, **options)


def _parsed(settings: Mapping[str, Any]) -> HFSettings | VLLMSettings | OpenAISettings:
    name, knobs = ENGINES.read(settings)
    return parse(OUR_ENGINES[name], {"name": name, **knobs}, where="engine")


def __getattr__(name: str) -> Any:
    for label, engine_class in _CLASSES.items():
        if engine_class == name:
            return ENGINES[label]
    raise AttributeError(f"module 'nemo_desta.recipes.engines' has no attribute {name!r}")
