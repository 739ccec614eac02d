"""Rows of the public ALARM-Corpora: its parquet files hold prompts and answers; the audio comes from own corpora.

ALARM identifies a clip by the corpus' name and two ids (its ``unique_id_1`` and ``unique_id_2``). A card's
``papers.alarm`` says how they follow from the corpus' own files, so a released row is matched with the clip that has
the same ids. Layout of the release (ALARM's upload and merge scripts): splits train, validation, raw_train and
raw_validation with the columns ``dataset_name, context, audio_description, llm_answer_with_context,
llm_answer_no_context, unique_id_1, unique_id_2, dataset_index``.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_desta.config import MISSING, parse
from nemo_desta.data.row_schema import check_row
from nemo_desta.data.rows import expand_paths
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.recipes.corpora import Corpus, load_corpus
from nemo_desta.recipes.corpora.card import read_card
from nemo_desta.recipes.corpora.readers import Table

#: Corpora whose audio is the question itself. HeySQuAD was answered with its passage and without.
QUESTIONS = {"heysquad_human": ("llm_answer_with_context", "llm_answer_no_context")}
LLM = "Qwen/Qwen3-4B-Thinking-2507"
_COLUMNS = ("dataset_name", "context", "audio_description", "unique_id_1", "unique_id_2", "dataset_index")
_ANSWERS = ("llm_answer_with_context", "llm_answer_no_context")
_IDS = ("released_id_1", "released_id_2")


@dataclass(frozen=True)
class ReleasedConfig:
    """conf/recipes/alarm_corpora.yaml."""

    rows: str | list[str] = MISSING
    corpus: str | list[str] = MISSING
    data_root: str | dict[str, str] = MISSING
    audio_locator_tag: str = "<|AUDIO|>"
    output: str = MISSING


@dataclass
class Matched:
    """``rows``: card -> rows written. ``unmatched``: (corpus in the release, why) -> rows without a clip here."""

    output: str
    rows: Counter[str] = field(default_factory=Counter)
    unmatched: Counter[tuple[str, str]] = field(default_factory=Counter)
    roots: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.rows)

    def __str__(self) -> str:
        lines = [f"{count:,} rows of {card}" for card, count in self.rows.most_common()]
        lines += [f"{count:,} rows of {name} left out: {why}" for (name, why), count in self.unmatched.most_common()]
        there = {
            "default": next(map(self.roots.get, self.rows), "-"),
            **{card: self.roots[card] for card in self.rows},
        }
        roots = ", ".join(f"{card}: {root}" for card, root in there.items())
        return "\n".join([*lines, f"{self.output}: train on it with data.audio_roots='{{{roots}}}'"])


def run_released(plain: Mapping[str, Any]) -> Matched:
    """Match the released rows with the clips of ``corpus`` and write them as JSON lines.

    A row whose corpus is not given, or whose clip is not there, is counted and left out. Targets are not ended
    (``truncated``), as in ALARM, since many were cut at 512 tokens.

    Raises:
        ConfigError: a setting, or a card whose clips cannot be matched. FileNotFoundError: no such parquet file.
        FileExistsError: the output is there. CorpusError: an invalid row of a corpus.
    """
    config = parse(ReleasedConfig, plain, where="alarm_corpora")
    output = Path(config.output)
    if output.exists():
        raise FileExistsError(f"{output} exists; remove it or give another output")
    files, result = expand_paths(config.rows), Matched(str(output))
    tables: dict[str, tuple[str, list[bool], Table]] = {}
    for name in [config.corpus] if isinstance(config.corpus, str) else config.corpus:
        corpus, asked = _corpus(name, config.data_root)
        called = corpus.card.papers["alarm"].name
        result.roots[corpus.name] = os.path.abspath(corpus.data_root)
        tables[called] = (corpus.name, asked, Table(_clips(corpus), _key, many=True))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.part")
    with open(partial, "w", encoding="utf-8") as file:
        for split, released in _released(files):
            for row in _rows(released, split, tables, config.audio_locator_tag, result):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(partial, output)
    return result


def _corpus(name: str, data_root: str | Mapping[str, str]) -> tuple[Corpus, list[bool]]:
    """The corpus whose clips carry the ids of the release, and which of the two are compared."""
    card = read_card(name)
    paper = card.papers.get("alarm")
    if paper is None or not any(paper.ids):
        raise ConfigError(f"clips of '{card.name}' cannot be matched with ALARM's rows (card: papers.alarm.ids)")
    root = data_root if isinstance(data_root, str) else data_root.get(card.name)
    if root is None:
        raise ConfigError(f"data_root has no folder for corpus '{card.name}'; it has {', '.join(sorted(data_root))}")
    ids = {key: one for key, one in zip(_IDS, paper.ids, strict=True) if one is not None}
    return load_corpus(name, root, overrides={"attributes": ids}), [one is not None for one in paper.ids]


def _clips(corpus: Corpus) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every clip, of all splits, as a record: what a row needs of it."""
    for clip in corpus:
        ids = [clip["attributes"].get(key) for key in _IDS]
        if any(one is not None for one in ids):
            kept = {key: clip.get(key) for key in ("audio", "transcript", "duration", "language", "group")}
            yield clip["id"], {**kept, "ids": ids}, {}


def _key(fields: Mapping[str, Any]) -> str:
    return json.dumps([None if one is None else str(one).strip() for one in fields["ids"]], ensure_ascii=False)


def _released(files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, row) of all parquet files, a batch at a time."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError("parquet files need pyarrow: pip install pyarrow") from None
    for path in files:
        try:
            table = pyarrow.parquet.ParquetFile(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(f"{path}: not a whole parquet file ({error})") from None
        if lacking := {*_COLUMNS, *_ANSWERS} - set(table.schema_arrow.names):
            raise ConfigError(f"{path}: not a file of ALARM-Corpora, it has no column {', '.join(sorted(lacking))}")
        split = "valid" if "validation" in path.name else "train"
        for batch in table.iter_batches(batch_size=256, columns=[*_COLUMNS, *_ANSWERS]):
            yield from ((split, row) for row in batch.to_pylist())


def _rows(
    released: Mapping[str, Any],
    split: str,
    tables: Mapping[str, tuple[str, list[bool], Table]],
    tag: str,
    result: Matched,
) -> Iterator[dict[str, Any]]:
    """The rows of one released row: none where its clip is not here."""
    name = re.sub("_filtered$", "", str(released["dataset_name"]))
    if name not in tables:
        result.unmatched[name, "its corpus is not given"] += 1
        return
    card, asked, table = tables[name]
    ids = [released[key] if is_asked else None for key, is_asked in zip(_COLUMNS[3:5], asked, strict=True)]
    clips = table.rows(_key({"ids": ids}))
    if len(clips) != 1:
        result.unmatched[name, f"{'no clip has' if not clips else 'several clips have'} its ids"] += 1
        return
    audio = {"audio": clips[0]["audio"], "text": clips[0]["transcript"], "duration": clips[0]["duration"]}
    for column in QUESTIONS.get(name, _ANSWERS[:1]):
        prompt = (released["context"] or "") if column == _ANSWERS[0] else ""
        row = {
            "id": f"alarm-{name}-{split}-{released['dataset_index']}{'' if column == _ANSWERS[0] else '-alone'}",
            "dataset": card,
            "seed_description": released["audio_description"],
            "prompt": prompt,
            "messages": [{"role": "user", "content": f"{tag}{prompt}", "audios": [audio]}],
            "response": released[column],
            "truncated": True,
            **{"stage": "released", "llm": LLM, "split": split, "corpus": card},
            **{key: clips[0][key] for key in ("language", "group")},
        }
        try:
            check_row(row)
        except RowError as error:
            result.unmatched[name, "no answer" if not row["response"] else f"not a row ({error.reason})"] += 1
            continue
        result.rows[card] += 1
        yield row
