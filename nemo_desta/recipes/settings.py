"""All settings of the generating recipes, as dataclasses; conf/recipes/ explains each."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nemo_desta.config import MISSING, parse
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.ask import TEMPLATE
from nemo_desta.recipes.corpora.splits import TRAIN, VALID, ValidationConfig
from nemo_desta.recipes.engines import engine_identity
from nemo_desta.recipes.engines.base import SamplingConfig
from nemo_desta.recipes.gates import GatesConfig
from nemo_desta.recipes.languages import load_language
from nemo_desta.recipes.spoken import SPOKEN


def _short_answers() -> dict[str, int]:
    short = {"one_word": 64, "letter": 64, "one_of": 64}
    return {"ask": 256, "yes_no": 256, "multiple_choice": 256, **short}


@dataclass(frozen=True)
class DescribeConfig:
    """How a clip becomes text."""

    dialect: str = "desta25"
    measure: list[str] = field(default_factory=list)
    not_audible: list[str] = field(default_factory=list)  # in addition to the card's


@dataclass(frozen=True)
class RequestConfig:
    """The wording of a request, and how the LLM is sampled. ``system``: empty switches off a system prompt that the
    LLM's chat template adds by itself. ``keep_system``: rows hold the system message, so that training sends it.
    ``max_new_tokens_by_kind``: limits below ``sampling.max_new_tokens``, by kind of prompt or name of its format; None
    in folders from before there were any."""

    template: str = TEMPLATE
    system: str | None = None
    keep_system: bool = True
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_new_tokens_by_kind: dict[str, int] | None = field(default_factory=_short_answers)
    max_thinking_tokens: int | None = None


@dataclass(frozen=True)
class ProposalsConfig:
    """Prompts written by an LLM for each clip (``prompts: proposed``)."""

    num_candidates: int = 20
    num_examples: int = 5
    max_new_tokens: int = 4000
    judge: bool = True


@dataclass(frozen=True)
class RephraseConfig:
    """Self-rephrasing. ``instructions``: fields of `RephraseInstructions` that replace ours."""

    enabled: bool = False
    max_thinking_tokens: int = 1536
    max_new_tokens: int = 4096
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(4096, None))
    instructions: dict[str, Any] | None = None


@dataclass(frozen=True)
class JudgeConfig:
    """The LLM judge of leaks. ``llm`` and ``engine`` null: the generating LLM judges its own answers."""

    enabled: bool = False
    llm: str | None = None
    engine: dict[str, Any] | None = None


@dataclass(frozen=True)
class AudioConfig:
    """How audio files are checked before rows are made: header | decode | off. ``max_secs``: clips of this length or
    more are left out."""

    check: str = "header"
    max_secs: float | None = None


@dataclass(frozen=True)
class RecipeConfig:
    """conf/recipes/self_generate.yaml and self_rephrase.yaml."""

    corpus: str | list[str] | None = None  # a card's name, a path, or a list of them
    rows: str | list[str] | None = None  # instead of a corpus: rows of an earlier self-generation
    data_root: str | dict[str, str] | None = None  # a folder, or corpus -> folder
    card: dict[str, Any] | None = None
    language: str = "en"  # a code, a language file, or clip: each clip's own
    splits: list[str] | None = field(default_factory=lambda: ["train", "valid"])
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    describe: DescribeConfig = field(default_factory=DescribeConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    prompts: str | list[dict] = "composed"
    prompts_per_clip: int = 1
    max_wer: float | None = None  # prompts: spoken
    proposals: ProposalsConfig = field(default_factory=ProposalsConfig)
    audio_locator_tag: str = "<|AUDIO|>"
    llm: str = MISSING
    tokenizer: str | None = None
    engine: dict[str, Any] = field(default_factory=lambda: {"name": "hf"})
    chat_template_kwargs: dict[str, Any] | None = None
    request: RequestConfig = field(default_factory=RequestConfig)
    rephrase: RephraseConfig = field(default_factory=RephraseConfig)
    gates: GatesConfig = field(default_factory=GatesConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    decontaminate: list[str] = field(default_factory=list)
    max_attempts: int = 3
    seed: int = 0
    output: str = MISSING
    shard_size: int = 200
    rows_per_file: int = 10_000
    shard: str | None = None
    runner: dict[str, Any] = field(default_factory=lambda: {"name": "local"})
    progress: bool = True
    report: bool = True
    check: bool = False
    count: bool = False


#: Settings that affect how a run works but not its rows: they may change when a killed run resumes. Exceptions: some
#: settings of ``engine`` (see `engine_identity`) and the chat template of ``tokenizer`` must stay the same.
RUNNING = ("output", "shard", "runner", "engine", "progress", "report", "check", "count", "rows_per_file", "tokenizer")


def parse_recipe(plain: Mapping[str, Any]) -> RecipeConfig:
    """The config of a generating recipe. Raises ``ConfigError`` for unknown keys, wrong types, values still ``???``
    (all of them at once), and settings that contradict."""
    if plain.get("count"):  # needs neither
        plain = {**plain, **{key: "-" for key in ("llm", "output") if plain.get(key, MISSING) == MISSING}}
    if missing := sorted(_missing(plain)):
        raise ConfigError(f"these settings are still ??? and must be given: {', '.join(missing)}")
    config = parse(RecipeConfig, plain, where="recipe")
    for engine in (config.engine, config.judge.engine):
        if engine is not None:
            engine_identity(engine, config.llm)  # its knobs are checked here, also where no LLM is loaded
    if (config.corpus is None) == (config.rows is None):
        raise ConfigError("give either corpus (a card or a manifest) or rows (of an earlier self-generation)")
    if config.corpus is not None and config.data_root is None:
        raise ConfigError("data_root must be given: the folder that the corpus' audio paths start from")
    if config.count and config.corpus is None:
        raise ConfigError("count counts the clips of a corpus; for rows: desta train count=true")
    if config.rows is not None and not config.rephrase.enabled:
        raise ConfigError("rows can only be rephrased: use --config-name self_rephrase, or give a corpus")
    if config.prompts == "proposed" and config.prompts_per_clip != 1:
        raise ConfigError("proposed prompts come one per clip; for more, run with another seed and output")
    if config.prompts == SPOKEN and (config.rephrase.enabled or config.prompts_per_clip > 2):
        raise ConfigError("prompts: spoken makes one or two rows per clip, and their answers are not rephrased")
    if config.prompts == "proposed" and config.language != "en":
        raise ConfigError(f"proposed prompts are English; for language {config.language!r} use the pool or a file")
    if not all(place in config.request.template for place in ("{description}", "{prompt}")):
        found = config.request.template
        raise ConfigError(f"request.template must hold {{description}} and {{prompt}}, found {found!r}")
    for name, limit in (config.request.max_new_tokens_by_kind or {}).items():
        if limit < 1:
            raise ConfigError(f"request.max_new_tokens_by_kind.{name} must be at least 1, found {limit}")
    if config.audio.check not in ("header", "decode", "off"):
        raise ConfigError(f"audio.check must be header, decode or off, found {config.audio.check!r}")
    config.validation.check()
    return config


def identity(config: RecipeConfig) -> dict[str, Any]:
    """The settings that the rows follow from, as plain values."""
    settings = {name: value for name, value in asdict(config).items() if name not in RUNNING}
    if (
        config.corpus is None
        or config.validation.share == 0
        or not {TRAIN, VALID} <= set(config.splits or (TRAIN, VALID))
    ):
        del settings["validation"]  # no clip depends on it
    request = dict(settings["request"])
    if config.request.system is None or not request["keep_system"]:
        del request["keep_system"]  # rows as in folders from before there was a choice
    if config.request.max_new_tokens_by_kind is None:
        del request["max_new_tokens_by_kind"]
    settings["request"] = request
    if config.language == "en":
        del settings["language"]  # as in folders from before there was a choice
    elif config.language != "clip":
        settings["language"] = f"{config.language} {load_language(config.language).fingerprint()}"
    return {**settings, "engine": engine_identity(config.engine, config.llm)}


def _missing(values: Mapping[str, Any], where: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        if value == MISSING:
            found.append(where + key)
        elif isinstance(value, Mapping):
            found += _missing(value, f"{where}{key}.")
    return found
