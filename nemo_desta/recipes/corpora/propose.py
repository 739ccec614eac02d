"""Proposes a card for a table of labels (CSV, TSV, JSON lines, JSON) from its columns and the values in them.

The proposal is conservative: a column is used only where its name and its values agree, everything else stays in a
comment, and each label's values are counted, so that a person can correct the card in a minute.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from nemo_desta.recipes.corpora.card import parse_card
from nemo_desta.recipes.corpora.card_keys import DOMAINS, SourceConfig
from nemo_desta.recipes.corpora.corpus import manifest_type
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.files import csv_rows, json_entries, json_lines

#: Rows that are read, and files that are looked at, at most.
MOST_ROWS, MOST_FILES = 200_000, 200_000
#: A label has at most so many values, and each of them is in two rows on average.
MOST_VALUES = 60
_AUDIO = re.compile(r".+\.(wav|flac|mp3|ogg|opus|m4a|aac|aiff?|au|sph|wma|webm|mp4)", re.I)
_NAMES = yaml.safe_load(Path(__file__).with_name("propose.yaml").read_text(encoding="utf-8"))
_SPLITS: dict[str, str] = _NAMES["split_values"]


class Column:
    """The values of one column. ``counts`` stops to grow at `MOST_ROWS` values, as the reading does."""

    def __init__(self, name: str) -> None:
        self.name, self.counts, self.filled, self.present, self.odd = name, Counter[str](), 0, 0, 0

    def add(self, value: Any) -> None:
        self.present += 1
        if isinstance(value, (list, dict)):
            self.odd += 1
        elif value is not None and (text := str(value).strip()):
            self.filled += 1
            self.counts[text] += 1

    @property
    def usable(self) -> bool:
        """Whether a template can name the column and its cells are plain values."""
        return self.filled > 0 and not self.odd and not re.search(r"[{}|?]", self.name) and self.name.strip() != ""

    @property
    def unique(self) -> bool:
        return self.filled == len(self.counts)

    def share(self, fits: Any) -> float:
        """The share of filled cells for which ``fits`` holds."""
        return sum(count for text, count in self.counts.items() if fits(text)) / max(1, self.filled)

    def called(self, role: str) -> int | None:
        """The place of this column's name among the names of ``role``; None where it is none of them."""
        plain = re.sub(r"[\W_]+", "_", self.name.rpartition(".")[2]).strip("_").lower()
        names = _NAMES["columns"][role]
        return names.index(plain) if plain in names else None


def propose_card(path: str | os.PathLike[str]) -> str:
    """A card for the table at ``path`` as commented YAML; ``data_root`` is the table's folder.

    Raises ``CorpusError``: not a table, no rows, or no column that holds audio paths; ``FileNotFoundError``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file '{path}'; a card is proposed for a .csv, .tsv, .jsonl or .json file")
    kind = manifest_type(path)
    if kind is None:
        raise CorpusError(f"{path}: not a .csv, .tsv, .jsonl or .json file (also .gz, .zst)")
    columns, total = _columns(path, kind)
    if not total:
        raise CorpusError(f"{path}: no rows, so there is nothing to propose")
    return _Proposal(path, kind, columns, total).text()


class _Proposal:
    def __init__(self, path: Path, kind: str, columns: Mapping[str, Column], total: int) -> None:
        self.path, self.kind, self.total = path, kind, total
        self.left = {name: column for name, column in columns.items() if column.usable}
        self.unusable = [column for column in columns.values() if not column.usable]
        audio = self._take("audio", lambda c: c.share(_AUDIO.fullmatch) > 0.9) or self._take_paths()
        if audio is None:
            raise CorpusError(f"{path}: no column holds names of audio files; columns: {', '.join(columns):.300}")
        self.audio, self.found = _audio_template(path.parent, audio, self._field(audio))
        ident = self._take("id", lambda c: c.unique and c.filled == total)
        stems = {PurePosixPath(text).stem for text in audio.counts}
        self.repeated = ident is None and not audio.unique
        if ident is not None:
            self.id = self._field(ident)
        else:
            self.id = self._field(audio)[:-1] + ("|stem}" if len(stems) == len(audio.counts) else "}")
        self.split = self._take("split", lambda c: c.share(lambda text: text.lower() in _SPLITS) == 1)
        self.domain = self._take("domain", lambda c: c.share(DOMAINS.__contains__) == 1 and c.filled == total)
        self.fields = {"transcript": self._take("transcript", lambda c: c.share(_AUDIO.fullmatch) < 0.5)}
        self.fields["caption"] = self._take("caption", lambda c: c.share(lambda text: " " in text) > 0.5)
        self.fields["duration"] = self._take("duration", lambda c: c.share(_seconds) == 1)
        self.fields["speaker_id"] = self._take("speaker_id", lambda c: True)
        self.fields["group"] = self._take("group", lambda c: True)
        self.language = self._take("language", lambda c: c.share(lambda text: len(text) < 30) == 1)
        self.labels = [c for c in list(self.left.values()) if self._is_label(c)]
        for label in self.labels:
            del self.left[label.name]

    def text(self) -> str:
        """The card. What `parse_card` refuses would be our own slip."""
        spoken = self.fields["transcript"] or self.fields["speaker_id"]
        domain = self._field(self.domain) if self.domain else "speech" if spoken else "audio"
        lines = [
            f"# A card for {_plain(self.path.name)} ({self.total:,} rows), proposed from its columns: read it.",
            f"# The data root is {_plain(str(self.path.parent.absolute()))}; paths start there.",
            *(f"# Careful: {text}" for text in self._warnings()),
            f"name: {_quoted(_slug(self.path.name.split('.')[0]))}",
            'version: "1"                # change it when the labels change: rows remember it',
            f"title: {_quoted(self.path.name)}",
            "licence: private            # the licence of the recordings, if others may use them",
            f"domain: {_quoted(domain):20} # speech, sound, music or audio",
        ]
        if self.language:
            lines.append(f"language: {_quoted(self._field(self.language))}   # {_counts(self.language)}")
        files = re.sub(r"([*?[])", r"[\1]", self.path.name)
        lines += ["reader:", f"  type: {self.kind}", f"  files: {_quoted(files)}"]
        lines += ["clip:", f"  id: {_quoted(self.id)}", f"  audio: {_quoted(self.audio)}"]
        for name, column in self.fields.items():
            if column is not None:
                note = f"   # {len(column.counts):,} values" if name in ("speaker_id", "group") else ""
                lines.append(f"  {name}: {_quoted(self._field(column))}{note}")
        if self.fields["group"] is None and self.fields["speaker_id"] is not None:
            speaker = self._field(self.fields["speaker_id"])
            lines.append(f"  group: {_quoted(speaker)}   # all clips of a group stay in one split")
        lines += self._labels()
        if self.split is not None:
            values = {text: _SPLITS[text.lower()] for text in sorted(self.split.counts)}
            lines += ["split:", f"  by: {_quoted(self._field(self.split))}   # {_counts(self.split)}", "  values:"]
            lines += [f"    {_quoted(text)}: {name}" for text, name in values.items()]
        else:
            lines.append("# No split column: a recipe makes a validation split by itself (validation.share).")
        unused = [*self.left.values(), *self.unusable]
        if unused:
            lines.append("# Columns that are not used; a label of the sound belongs under attributes:")
        lines += [f"#   {_plain(column.name)}: {_counts(column)}" for column in unused]
        text = "\n".join(lines) + "\n"
        parse_card(yaml.safe_load(text), where=f"proposed for {self.path}")
        return text

    def _labels(self) -> list[str]:
        lines = ["attributes:                 # what can be heard, as the LLM is to read it"] if self.labels else []
        names = {}
        for column in self.labels:
            name = _slug(column.name.rpartition(".")[2])
            names[_quoted(name if name not in names else _slug(column.name))] = column
        lines += [f"  {name}: {_quoted(self._field(column))}   # {_counts(column)}" for name, column in names.items()]
        if names:
            name, column = next(iter(names.items()))
            code = _plain(next(iter(column.counts)))
            lines += [
                "# values:                   # codes -> words; null = not known",
                f"#   {name}: {{{_quoted(code)}: the words for it}}",
                "# not_audible: []           # attributes to keep out of descriptions, such as age or place",
            ]
        return lines

    def _warnings(self) -> Iterator[str]:
        if self.found is not None and self.found < 1:
            yield f"{1 - self.found:.0%} of the audio files (of 200 that were looked for) are not below this folder"
        if self.repeated:
            yield "rows share an audio file, so their ids repeat; give each row an id of its own"
        if self.total == MOST_ROWS:
            yield f"only the first {MOST_ROWS:,} rows were read"

    def _field(self, column: Column) -> str:
        return f"{{{column.name}}}" if column.present == self.total else f"{{{column.name}?}}"

    def _take(self, role: str, fits: Any) -> Column | None:
        """The column with the best name for ``role`` whose values fit; it is used for nothing else."""
        named = [(place, c.name) for c in self.left.values() if (place := c.called(role)) is not None and fits(c)]
        return self.left.pop(min(named)[1]) if named else None

    def _take_paths(self) -> Column | None:
        """A column of another name whose cells look like audio files; or a column of a fitting name without suffix,
        whose files are found."""
        for name, column in self.left.items():
            if column.share(_AUDIO.fullmatch) > 0.9:
                return self.left.pop(name)
        places = (
            (place, name)
            for name, column in self.left.items()
            for role in ("audio", "id")
            if (place := column.called(role)) is not None
        )
        for _, name in sorted(places):
            column = self.left[name]
            if _audio_template(self.path.parent, column, "")[1]:
                if column.called("id") is None:
                    del self.left[name]
                return column
        return None

    def _is_label(self, column: Column) -> bool:
        few = 2 <= len(column.counts) <= min(MOST_VALUES, max(2, self.total // 2))
        other = any(column.called(role) is not None for role in ("audio", "id", "split", "duration", "group"))
        return few and not other and all(len(text) <= 60 for text in column.counts)


def _columns(path: Path, kind: str) -> tuple[dict[str, Column], int]:
    """Columns by name, nested objects as ``outer.inner``, and the number of rows."""
    source = SourceConfig(type=kind, files=path.name)
    rows = {"jsonl": lambda: json_lines(path), "json": lambda: json_entries(path)}.get(
        kind, lambda: csv_rows(path, source)
    )
    columns: dict[str, Column] = {}
    total = 0
    for _, row in islice(rows(), MOST_ROWS):
        total += 1
        for name, value in _flat(row):
            columns.setdefault(name, Column(name)).add(value)
    return columns, total


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", one) for inner, one in value.items())
        else:
            yield name, value


def _audio_template(root: Path, audio: Column, field: str) -> tuple[str, float | None]:
    """The template of the audio path below ``root``, and the share of sampled files that were found."""
    sample = list(islice(audio.counts, 200))
    here = sum((root / text).is_file() for text in sample) / len(sample)
    if here:
        return field, here
    files = [Path(folder, name).relative_to(root).as_posix() for folder, name in islice(_files(root), MOST_FILES)]
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(PurePosixPath(file).name, []).append(file)
        by_name.setdefault(PurePosixPath(file).stem, []).append(file)
    around: Counter[tuple[str, str]] = Counter()
    for text in sample:
        for file in by_name.get(PurePosixPath(text).name, ()):
            before, found, after = file.rpartition(text)
            if found and (not before or before.endswith("/")) and (not after or after.startswith(".")):
                around[before, after] += 1
    if not around:
        return field, 0.0
    (before, after), count = around.most_common(1)[0]
    return (f"{before}{field}{after}" if "{" not in before + after else field), count / len(sample)


def _files(root: Path) -> Iterator[tuple[str, str]]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from ((folder, name) for name in sorted(names) if _AUDIO.fullmatch(name))


def _seconds(text: str) -> bool:
    try:
        return 0 < float(text) <= 1_000_000
    except ValueError:
        return False


def _counts(column: Column) -> str:
    """``4 values: happy 20, sad 15, ...`` in one line."""
    if column.odd or not column.counts:
        return "lists or objects" if column.odd else "empty"
    if column.unique and len(column.counts) > 3:
        return f"{len(column.counts):,} values, all different, such as {_plain(next(iter(column.counts))):.40}"
    shown = ", ".join(f"{_plain(text):.40} {count:,}" for text, count in column.counts.most_common(8))
    more = ", ..." if len(column.counts) > 8 else ""
    return f"{len(column.counts):,} values: {shown}{more}"


def _plain(text: str) -> str:
    """One line for a comment: a line break in a label must not end it."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)[:200]


def _quoted(text: str) -> str:
    """A YAML scalar in double quotes, or bare where that is the same text."""
    return text if re.fullmatch(r"[a-z][a-z_]*\w*", text) and yaml.safe_load(text) == text else json.dumps(text)


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name).strip("_").lower() or "label"
