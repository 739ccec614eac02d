"""All settings of a model as dataclasses; `parse` refuses unknown keys and suggests the nearest known one.

Encoders and projectors are open sets (registries), so their settings stay mappings here and are checked by their
constructors. The data section has its own schema in `nemo_desta.data`.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nemo_desta.errors import ConfigError

T = TypeVar("T")

MISSING = "???"
#: What a YAML file holds, and its name in messages.
PLAIN = (str, int, float, bool, list, tuple, dict, type(None))
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the LLM. Off by default, since they change the answers to text too."""

    r: int = 16
    alpha: int = 16
    dropout: float = 0.1
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj"])


@dataclass(frozen=True)
class LLMConfig:
    """The frozen causal LLM: a hub id, a folder, or ``package:<path inside nemo_desta>``."""

    path: str = MISSING
    tokenizer: str | None = None
    dtype: str = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU; fastest: measured (nemo_desta.ops.dtypes)
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    lora: LoraConfig | None = None


@dataclass(frozen=True)
class PerceptionConfig:
    """Encoders (name -> settings of a registered encoder), the projector, and their audio input.

    ``use``: the encoders to build, all of them when null. ``sampling_rate``: an upper limit of what they hear; null:
    the highest rate among them. Each gets files at its own rate. ``dtype`` as in `LLMConfig`. ``normalize_dbfs``:
    every clip is scaled to this RMS level (dB full scale) before the encoders, null leaves it unchanged.
    ``init_from``: a saved model folder or projector file whose tensors initialise this projector (stage-wise
    training); or one for each encoder by name, of which only that encoder's own tensors are taken, such as its
    adapter.
    """

    encoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    projector: dict[str, Any] = field(default_factory=lambda: {"name": "window"})
    use: list[str] | None = None
    sampling_rate: int | None = None
    dtype: str = "auto"
    normalize_dbfs: float | None = None
    init_from: str | dict[str, str] | None = None


@dataclass(frozen=True)
class TranscriptConfig:
    """The transcript channel: the row's transcript as text tokens right after the audio vectors (DeSTA2.5).

    ``max_tokens``: the limit of a training row's transcript, which is cut there. In a chat it is not cut.
    """

    enabled: bool = False
    dropout: float = 0.0
    noise: float = 0.0
    max_tokens: int = 100


@dataclass(frozen=True)
class PromptConfig:
    """How messages become text; the template itself is the tokenizer's own.

    ``audio_tags``: text before and after every audio, added where it is missing (DeSTA2.5: ``<start_audio>``,
    ``<end_audio>``). ``audio_role``: each audio becomes a message of this role before the message that contained it
    (DeSTA2: ``audio``). ``system_role``: a system message is kept, folded into the next user text, or dropped; "auto"
    probes the template and folds where the template refuses or omits it. All but "keep" also merge consecutive turns
    of one role for a template that refuses them. ``system``: the system message of every conversation without one, in
    training and afterwards; "" leaves out the one that a template adds by itself, None leaves it to the template.
    ``thinking_end``: the text, closing tag included, that ends a thought over its budget; None: a sentence of ours.
    """

    audio_locator_tag: str = "<|AUDIO|>"
    audio_tags: list[str] | None = None
    audio_role: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    system: str | None = None
    system_role: str = "auto"  # auto | keep | fold | drop
    thinking_end: str | None = None
    transcript: TranscriptConfig = field(default_factory=TranscriptConfig)


@dataclass(frozen=True)
class ModelConfig:
    """NeMo's ``model`` section. ``optimizer`` and ``lr_scheduler`` are ``_target_`` mappings, built by NeMo."""

    llm: LLMConfig = field(default_factory=LLMConfig)
    perception: PerceptionConfig = field(default_factory=PerceptionConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    freeze: list[str] = field(default_factory=list)  # regular expressions over the names of trainable parameters
    activation_checkpointing: bool = False
    cross_entropy: str = "auto"  # auto | liger | torch
    optimizer: dict[str, Any] = field(default_factory=dict)
    lr_scheduler: dict[str, Any] | None = None


@dataclass(frozen=True)
class FeatureCacheConfig:
    """Outputs of the frozen encoders on disk; see `nemo_desta.perception.feature_cache`.

    ``folder`` null: ``features`` below ``$NEMO_DESTA_CACHE``. ``max_gb`` (10^9 bytes): of the whole folder; null: no
    limit. ``dtype``: auto (the encoder's own: nothing is rounded), bfloat16, float16 or float32. ``precompute``: all
    clips are encoded before the first step.
    """

    folder: str | None = None
    max_gb: float | None = 50.0
    dtype: str = "auto"
    precompute: bool = False

    def __post_init__(self) -> None:
        known = ("auto", "bfloat16", "float16", "float32")
        if self.dtype not in known:
            raise ConfigError(f"'feature_cache.dtype' is '{self.dtype}'.{nearest(str(self.dtype), known)}")
        if self.max_gb is not None and self.max_gb <= 0:
            raise ConfigError(f"'feature_cache.max_gb' must be above 0, or null for no limit; found {self.max_gb}")


def parse_feature_cache(values: Mapping[str, Any] | None, where: str) -> FeatureCacheConfig | None:
    """The section ``feature_cache``; null switches the cache off."""
    return None if values is None else parse(FeatureCacheConfig, values, where)


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A hint for an unknown name: `` Did you mean 'x'?`` if one is close, and the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Known: {', '.join(known) or 'none'}."


def check_keys(given: typing.Iterable[str], known: typing.Iterable[str], where: str) -> None:
    """Raise `ConfigError` for the first key of ``given`` that is not in ``known``."""
    known = list(known)
    for key in given:
        if key not in known:
            raise ConfigError(f"unknown key '{where}.{key}'.{nearest(str(key), known)}")


def check_type(value: Any, hint: Any, where: str) -> None:
    """Compare a value of a YAML file with a type hint. Values that no YAML file holds are not compared.

    Raises:
        ConfigError: it does not fit; the message names the kinds that do, or the nearest choice.
    """
    if _fits(value, hint):
        return
    words = list(dict.fromkeys(_words(hint)))
    choices = [word for word in words if word not in WORDS.values() and not word.startswith("a ")]
    near = nearest(value, choices) if choices and isinstance(value, str) else ""
    raise ConfigError(f"{where} must be {' or '.join(words) or hint}, found {value!r}{near and '.'}{near}")


def parse(cls: type[T], values: Mapping[str, Any] | None, where: str = "model") -> T:
    """Build dataclass ``cls`` from a plain mapping, recursively.

    Raises:
        ConfigError: unknown key (nearest known one named), missing value (``???``) or wrong type.
    """
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise ConfigError(f"'{where}' must be a mapping, found {type(values).__name__}: {values!r}")
    hints = typing.get_type_hints(cls)
    check_keys(values, hints, where)
    parsed = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    result = cls(**parsed)
    for item in dataclasses.fields(result):
        if isinstance(value := getattr(result, item.name), str) and value == MISSING:
            raise ConfigError(f"'{where}.{item.name}' must be given (it is ???)")
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """The plain mapping that `parse` reads back: only dicts, lists, strings, numbers, booleans and None."""
    return dataclasses.asdict(config)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        options = [option for option in options if option is not type(None)]
        if len(options) > 1:
            check_type(value, hint, f"'{where}'")
            return value
        hint = options[0]
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else parse(hint, value, where)
    origin = typing.get_origin(hint) or hint
    if origin is Any:
        return value
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is int and isinstance(value, bool) or not isinstance(value, origin):
        raise ConfigError(f"'{where}' must be {' or '.join(_words(hint)) or origin}, found {value!r}")
    arguments = typing.get_args(hint)
    if origin is list and arguments:
        return [_convert(arguments[0], item, f"{where}.{i}") for i, item in enumerate(value)]
    if origin is dict and arguments:
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or not isinstance(value, PLAIN):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        kinds = arguments[1:]
        return isinstance(value, Mapping) and all(_fits(item, kind) for item in value.values() for kind in kinds)
    if isinstance(origin, type) and issubclass(origin, Iterable):
        items = arguments[:1] if origin is not tuple or ... in arguments else ()
        return isinstance(value, list | tuple) and all(_fits(item, kind) for item in value for kind in items)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(hint, type) and isinstance(value, hint)


def _words(hint: Any) -> list[str]:
    """A hint as words for a message; kinds that no YAML file holds are left out."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [word for option in typing.get_args(hint) for word in _words(option)]
    if origin is typing.Literal:
        return list(map(str, typing.get_args(hint)))
    if isinstance(origin, type) or hint in (list, tuple, dict):
        of = [word.removeprefix("a ") for kind in typing.get_args(hint)[-1:] for word in _words(kind)][:1]
        return [
            " of ".join(["a mapping" if issubclass(origin or hint, Mapping) else "a list"] + [f"{w}s" for w in of])
        ]
    return [WORDS[hint]] if hint in WORDS else []
