"""Settings of `desta evaluate`: the fields of conf/use/evaluate.yaml and their checks."""

from dataclasses import dataclass, field
from typing import Any

from nemo_desta.config import MISSING, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.attribute_settings import read_attributes
from nemo_desta.evaluation.scores import SCORERS
from nemo_desta.models.model_source import ModelSource, check_engine

TRANSCRIPTS = ("given", "whisper")


@dataclass(frozen=True)
class ControlSettings:
    """``items``: number of items per benchmark that are asked again without the right audio; 0: no controls."""

    items: int = 200
    kinds: list[str] = field(default_factory=lambda: ["silence", "shuffled"])


@dataclass(frozen=True)
class JudgeSettings:
    """``llm`` and ``engine`` as in the recipes; ``prices``: per million prompt and new tokens."""

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
    """The comparison with the bare LLM on text: numbers of IFEval-like prompts and of texts; 0: none."""

    prompts: int = 50
    texts: int = 20


@dataclass(frozen=True)
class RowsSettings:
    """Speech recognition and attributes on the user's rows.

    ``rows``: training or manifest rows (files, patterns, a recipe's folder). ``corpus`` instead: a card, or a table,
    by ``card`` or with our field names. ``split``: only these. ``audio_root``: a folder, or dataset -> folder; null:
    the folder of the file. ``attributes``: names, name -> settings, or a YAML file (`read_attributes`).
    ``transcripts``: given or whisper: the bare LLM also reads the transcript instead of the audio.
    """

    rows: Any = None
    corpus: str | None = None
    card: str | None = None
    split: Any = None
    audio_root: Any = None
    transcribe: bool = True
    question: str = "Transcribe the speech. Respond with the words alone."
    attributes: Any = None
    transcripts: str | None = None

    def check(self) -> None:
        """Raise ``ConfigError`` for settings that contradict or have another form; ``FileNotFoundError`` for a file
        of attributes that is missing."""
        if (self.rows is None) == (self.corpus is None):
            raise ConfigError("rows: give either rows.rows (rows or a manifest) or rows.corpus (a table or a card)")
        if self.card is not None and self.corpus is None:
            raise ConfigError("rows.card describes a table: give the table as rows.corpus")
        texts = {"rows.rows": self.rows, "rows.split": self.split}
        for name, value in texts.items():
            if not isinstance(value, str | None) and not (
                isinstance(value, list) and all(isinstance(one, str) for one in value)
            ):
                raise ConfigError(f"{name} must be a text or a list of texts, found {value!r:.80}")
        if not isinstance(self.audio_root, str | dict | None):
            raise ConfigError(f"rows.audio_root must be a folder or dataset -> folder, found {self.audio_root!r:.80}")
        if self.transcripts not in (None, *TRANSCRIPTS):
            raise ConfigError(
                f"rows.transcripts is '{self.transcripts}'.{nearest(str(self.transcripts), TRANSCRIPTS)}"
            )
        read_attributes(self.attributes)


@dataclass(frozen=True)
class EvaluateSettings(ModelSource):
    """See conf/use/evaluate.yaml, which explains every field."""

    output: str = MISSING
    model: str | None = None
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
    controls: ControlSettings | None = field(default_factory=ControlSettings)
    judge: JudgeSettings | None = None
    text_kept: TextSettings | None = field(default_factory=TextSettings)
    rows: RowsSettings | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.controls is None:  # null: off
            object.__setattr__(self, "controls", ControlSettings(items=0))
        if self.text_kept is None:
            object.__setattr__(self, "text_kept", TextSettings(prompts=0, texts=0))
        if self.rows == RowsSettings():  # as the config has it: no rows
            object.__setattr__(self, "rows", None)


def check(settings: EvaluateSettings) -> None:
    """Checks the rules between settings. Raises ConfigError: a rule is broken; the message names the setting."""
    for name in [*settings.benchmarks, *settings.predictions]:
        SCORERS.check(name)
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
        raise ConfigError(f"no task: give benchmarks=[...] of {', '.join(SCORERS)}, predictions or rows")
    if settings.rows is not None:
        if settings.model is None:
            raise ConfigError("'rows' need a model folder: give 'model'")
        settings.rows.check()
    check_engine(settings.engine, settings.vllm)
