"""What `examples/desta_evaluate.py` can be told: the fields of conf/use/evaluate.yaml, read and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nemo_desta.config import MISSING
from nemo_desta.errors import ConfigError

BENCHMARKS = ("mmau", "mmsu", "mmar", "sakura", "speech_ifeval", "voicebench", "air_bench", "dynamic_superb")


@dataclass(frozen=True)
class ControlSettings:
    """``items``: of each benchmark, asked again without the right audio; 0 switches the controls off."""

    items: int = 200
    kinds: list[str] = field(default_factory=lambda: ["silence", "shuffled"])


@dataclass(frozen=True)
class JudgeSettings:
    """``llm`` and ``engine`` as in the recipes; ``prices``: of a million prompt and new tokens."""

    llm: str = MISSING
    engine: dict[str, Any] = field(default_factory=dict)
    prices: list[float] | None = None


@dataclass(frozen=True)
class EndpointSettings:
    """A model behind an OpenAI-compatible server."""

    base_url: str = MISSING
    model: str = MISSING
    concurrency: int = 16
    timeout_secs: float = 300.0
    api_key_env: str = "OPENAI_API_KEY"


@dataclass(frozen=True)
class TextSettings:
    """The text-only probe: how many IFEval-like prompts and texts the model and its bare LLM are given; 0: none."""

    prompts: int = 50
    texts: int = 20


@dataclass(frozen=True)
class RowsSettings:
    """Recognition and attributes on a rows folder: ``attributes`` maps a name to its question and values."""

    rows: str | list[str] = MISSING
    audio_root: str = MISSING
    transcribe: bool = True
    question: str = "Transcribe the speech. Respond with the words alone."
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateSettings:
    """See conf/use/evaluate.yaml, which explains every field."""

    output: str = MISSING
    model: str | None = None
    llm: str | None = None
    encoders: dict[str, str] | None = None
    device: str | None = None
    check_identity: bool = True
    trust_remote_code: bool = False
    allow_targets: list[str] = field(default_factory=list)
    endpoint: EndpointSettings | None = None
    predictions: dict[str, str] = field(default_factory=dict)
    benchmarks: list[str] = field(default_factory=list)
    data_root: str | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    scorers: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    transcript: str = "none"
    sampling: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_new_tokens": 512})
    batch: dict[str, Any] = field(default_factory=dict)
    engine: str = "hf"
    vllm: dict[str, Any] = field(default_factory=dict)
    controls: ControlSettings = field(default_factory=ControlSettings)
    judge: JudgeSettings | None = None
    text_kept: TextSettings = field(default_factory=TextSettings)
    rows: RowsSettings | None = None
    seed: int = 0
    progress: bool = True


def check(settings: EvaluateSettings) -> None:
    """What no type can say.

    Raises:
        ConfigError: named by the key.
    """
    sources = [name for name in ("model", "endpoint") if getattr(settings, name) is not None]
    if len(sources) > 1:
        raise ConfigError("give 'model' (a folder) or 'endpoint' (a server), not both")
    if not sources and not settings.predictions:
        raise ConfigError("nothing to evaluate: give 'model', 'endpoint', or 'predictions' ({benchmark: file})")
    asked = [name for name in settings.benchmarks if name not in settings.predictions]
    if asked and not sources:
        raise ConfigError(f"no model to ask for {', '.join(asked)}: give 'model' or 'endpoint', or their predictions")
    if asked and settings.data_root is None:
        raise ConfigError("'data_root' must be given: the folder that holds the benchmarks' official files")
    if not (settings.benchmarks or settings.predictions or settings.rows):
        raise ConfigError(f"nothing asked for: give benchmarks=[...] of {', '.join(BENCHMARKS)}, predictions or rows")
    if settings.rows is not None and settings.model is None:
        raise ConfigError("'rows' are asked of a model folder: give 'model'")
    if settings.engine not in ("hf", "vllm"):
        raise ConfigError(f"engine is '{settings.engine}'; known: hf, vllm")


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what says nothing about the result."""
    return {key: value for key, value in values.items() if key not in ("output", "progress", "device")}
