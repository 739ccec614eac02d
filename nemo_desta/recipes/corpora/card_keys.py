"""The keys of a corpus card, as dataclasses. `card` reads and checks them."""

from dataclasses import dataclass, field
from typing import Any

from nemo_desta.config import MISSING

DOMAINS = ("speech", "sound", "music", "audio")
SEEN = ("", "files", "description")
JOINS = ("dialogue", "pairs", "mixtures")
CLIP_FIELDS = ("id", "audio", "duration", "transcript", "caption", "speaker_id", "group", "segments", "speakers")


@dataclass(frozen=True)
class SourceConfig:
    """Metadata on disk, read row by row.

    ``type``: csv, tsv (no quotes), jsonl, json (one object of objects, or one list of objects), files (each matched
    file is a row), lines (each line of text that ``line``, a regular expression, matches in full; its named groups
    are the columns), textgrid (each labelled interval is a row: ``tier, start, end, text``), lhotse (cuts, or
    recordings with ``supervisions``), huggingface (parquet, or a saved dataset).
    ``files``: glob or globs below the data root, ``**`` for any depth. ``pattern``: regular expression for each
    file's path; its named groups are fields. Every row also has the fields ``file``, ``folder``, ``stem``. A column
    of the row wins over a group, a group over these three.

    csv and tsv only: ``delimiter`` ("whitespace" for runs of blanks; null: found in the header of a csv file);
    ``columns``: names, where the file has no header, the last one takes the rest of the line (huggingface: the columns
    to read); ``comment``: how lines to skip start; ``quoted``: whether double quotes hold fields together.
    ``missing`` (huggingface, too): cells that have no value; null: `readers.MISSING_MARKERS` in tables by our own
    names, none where the card has a ``clip``.
    ``where``: field -> value or values; other rows do not belong to the corpus. ``nested`` (json): an object of
    objects of objects, whose innermost are the rows; the keys are the fields ``outer`` and ``key``.
    ``json_columns``: columns whose cells hold JSON objects, read as ``{column.key}``. ``turns``: a column with the
    turns of a chat, a list of objects; each becomes a row, with its number ``turn`` and the text ``before`` it.
    """

    type: str = MISSING
    files: Any = MISSING
    pattern: str | None = None
    line: str | None = None
    delimiter: str | None = None
    columns: list[str] | None = None
    comment: str | None = None
    quoted: bool | None = None
    missing: list[str] | None = None
    where: dict[str, Any] = field(default_factory=dict)
    nested: bool = False
    json_columns: list[str] | None = None
    turns: str | None = None

    @property
    def globs(self) -> list[str]:
        return [self.files] if isinstance(self.files, str) else list(self.files)


@dataclass(frozen=True)
class TableConfig(SourceConfig):
    """A table joined to each row as ``{<name>.<column>}``: its ``key`` (template on the table's row) equals ``match``
    (template on the corpus' row). ``required``: a row without a partner is an error, else its columns are unknown.
    """

    key: str = MISSING
    match: str = MISSING
    required: bool = True


@dataclass(frozen=True)
class TextConfig:
    """A text file per row, ``path`` a template below the data root; its content is the field of this name."""

    path: str = MISSING
    required: bool = True


@dataclass(frozen=True)
class ReaderConfig(SourceConfig):
    """The rows of the corpus. ``parts``: field -> regular expression; its named groups are further fields.
    ``tables`` and ``texts``: what is joined to each row. ``supervisions`` (lhotse): glob of the manifest that goes
    with recordings. ``extract_to`` (huggingface): folder below the data root for audio that is inside the dataset.
    ``strict_keys`` (jsonl and json by our own names): false keeps keys that look like misspelt ones of ours.
    """

    parts: dict[str, str] = field(default_factory=dict)
    tables: dict[str, TableConfig] = field(default_factory=dict)
    texts: dict[str, TextConfig] = field(default_factory=dict)
    supervisions: str | None = None
    extract_to: str = "extracted_audio"
    strict_keys: bool = True


@dataclass(frozen=True)
class SplitConfig:
    """Which split a clip is in. ``by``: template of the official split, ``values``: what it says -> split name,
    ``"*"`` for all others; null leaves the clip to ``shares``: split -> share, drawn by a hash of the clip's group.
    ``disjoint``: documentation of what never crosses a split (speaker, recording, ...).
    """

    by: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    disjoint: str = ""


@dataclass(frozen=True)
class JoinConfig:
    """Several utterances become one clip, whose audio is written below the data root; see `join.Joiner`.

    ``kind``: dialogue (consecutive clips of one ``group``), pairs (two clips of the same or of different speakers) or
    mixtures (clips of 2 to ``num_speakers`` speakers who start together).
    Dialogues: a clip ends with the utterance that reaches ``max_secs``. ``start``: template of an utterance's start
    in its recording, in seconds; without it, each utterance starts where the one before ends. ``segment``: attributes
    of one utterance; all others belong to its speaker. Pairs: ``num_pairs`` per speaker with the same speaker, and as
    many with another speaker of each gender, drawn by ``seed``. Mixtures: ``num_pairs`` per speaker. ``extract_to``:
    folder below the data root.
    """

    kind: str = MISSING
    max_secs: float = 25.0
    start: str | None = None
    segment: list[str] = field(default_factory=list)
    num_pairs: int = 50
    num_speakers: int = 3
    seed: int = 123
    extract_to: str = "joined_audio"


@dataclass(frozen=True)
class CutConfig:
    """Each clip is a part of a longer recording: from ``start`` to ``end``, templates in seconds (null: to the end).

    The part is written once, to ``extract_to`` below the data root; see `Cutter`.
    """

    start: str = MISSING
    end: str | None = None
    extract_to: str = "cut_audio"


@dataclass(frozen=True)
class PaperConfig:
    """What a paper says about the corpus: its ``name`` for it, ``rows`` and ``hours`` (null: not published).

    ``ids``: templates that make the ids of the paper's released rows, or one of them (null: not compared); empty
    where clips cannot be matched with released rows.
    """

    name: str = MISSING
    rows: int | None = None
    hours: float | None = None
    ids: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """One corpus. ``domain`` and ``language`` may be templates. ``clip``: clip field -> template; empty where the
    rows carry the fields of a clip by our own names already. ``attributes``: what can be said about the sound.
    ``values``: attribute or clip field -> {value as found: value}, null = not known, ``"*"`` = all others.
    ``not_audible``: attributes (shell patterns) that are not audible. ``home`` (address), ``obtain`` (how to get a
    copy) and ``seen`` (what the card was written from: ``files``, or their ``description``) are for public corpora.
    ``cut``: rows are parts of recordings. ``join``: several rows make one clip. ``papers``: name of a paper ->
    `PaperConfig`, for ``count=true`` and for released rows.
    """

    name: str = MISSING
    version: str = MISSING
    title: str = MISSING
    licence: str = MISSING
    home: str = ""
    citation: str = ""
    hours: float | None = None
    domain: str | None = None
    language: str | None = None
    obtain: str = ""
    seen: str = ""
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    clip: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_audible: list[str] = field(default_factory=list)
    split: SplitConfig = field(default_factory=SplitConfig)
    cut: CutConfig | None = None
    join: JoinConfig | None = None
    papers: dict[str, PaperConfig] = field(default_factory=dict)
