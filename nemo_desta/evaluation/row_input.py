"""The user's own rows for `row_eval`, from any form that this package reads.

``rows``: training rows (a recipe's folder or JSONL files), manifest rows, or a NeMo manifest. ``corpus``: a card, or a
table with a card or with our field names. Each becomes ``{"id", "audio", "transcript", "description", "row"}``; no
model is needed for this.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_desta.data.audio_io import AudioRoots
from nemo_desta.data.bad_rows import BadRowLog
from nemo_desta.data.row_schema import row_id
from nemo_desta.data.rows import JsonlIndex, load_object
from nemo_desta.errors import ConfigError, RowError, row_guard
from nemo_desta.evaluation.settings import RowsSettings
from nemo_desta.recipes.corpora import Corpus, check_audio, load_corpus
from nemo_desta.recipes.corpora.card import read_card
from nemo_desta.recipes.corpora.corpus import manifest_type
from nemo_desta.recipes.describe import NOT_AUDIBLE, describe
from nemo_desta.recipes.report.sources import find_rows, split_of

#: NeMo's names -> ours.
_NEMO = {"audio_filepath": "audio", "text": "transcript"}


def read_own_rows(settings: RowsSettings, log: BadRowLog) -> list[dict[str, Any]]:
    """``id, audio`` (absolute), ``transcript, description`` ("" where there is none) and ``row``, for each row with
    one clip. Rows that cannot be used go to ``log``; several prompts of a recipe about one clip count once.

    Raises:
        ConfigError: no row can be used. CorpusError: a row of a table that cannot be read. FileNotFoundError: no rows.
    """
    path = settings.corpus or (settings.rows if isinstance(settings.rows, str) else None)
    is_table = isinstance(path, str) and not Path(path).is_dir() and manifest_type(Path(path)) in ("csv", "tsv")
    if settings.corpus is not None or is_table:
        found = list(_of_corpus(settings, path, log))
    else:
        found = list(_of_rows(settings, log))
    if not found:
        split = f" in split {settings.split}" if settings.split else ""
        raise ConfigError(f"no row with one clip in {path or settings.rows}{split}")
    return found


def value_of(one: Mapping[str, Any], name: str, field: str | None = None) -> str | None:
    """The true value of attribute ``name``: under ``field`` (dots for nesting), or else in the row's ``attributes``,
    in a field of this name, or in its seed description, as rows that recipes write have it."""
    row = one["row"]
    if field is not None:
        found = _look_up(row, field.split("."))
    else:
        found = _look_up(row, ["attributes", name])
        if found in (None, "") and not isinstance(row.get(name), (list, dict)):
            found = row.get(name)
        if found in (None, "") and isinstance(row.get("seed_description"), str):
            found = _described(row["seed_description"], name)
    return None if found in (None, "") else str(found)


def _of_corpus(settings: RowsSettings, path: str, log: BadRowLog) -> Iterator[dict[str, Any]]:
    root = Path(settings.audio_root if isinstance(settings.audio_root, str) else Path(path).parent)
    splits = [settings.split] if isinstance(settings.split, str) else settings.split
    corpus = load_corpus(path, root, splits=splits) if settings.card is None else _with_card(settings, root, splits)
    for clip in corpus:
        problem, seconds = check_audio(clip, root)
        if problem is not None:
            log.update(
                0,
                [{"id": clip["id"], "where": clip["audio"], "reason": problem.reason, "detail": str(problem.detail)}],
            )
            continue
        log.update(1, [])
        clip["duration"] = clip.get("duration") or seconds
        yield {
            "id": clip["id"],
            "audio": str((root / clip["audio"]).absolute()),
            "transcript": (clip.get("transcript") or "").strip(),
            "description": _description(clip, corpus.not_audible),
            "row": clip,
        }


def _with_card(settings: RowsSettings, root: Path, splits: list[str] | None) -> Corpus:
    """The card's corpus, with ``corpus`` as the table that it describes."""
    table = Path(settings.corpus)
    if not table.is_file():
        raise FileNotFoundError(f"rows.corpus: no file '{table}'")
    kind = manifest_type(table) or read_card(settings.card).reader.type
    overrides = {"reader": {"type": kind, "files": str(table.absolute())}}
    return load_corpus(settings.card, root, splits=splits, overrides=overrides)


def _of_rows(settings: RowsSettings, log: BadRowLog) -> Iterator[dict[str, Any]]:
    source = find_rows(settings.rows)
    index = JsonlIndex(source.rows)
    given = settings.audio_root if settings.audio_root is not None else source.rows[0].parent
    roots = AudioRoots(given)
    splits = {settings.split} if isinstance(settings.split, str) else set(settings.split or ())
    seen: set[tuple[str, str]] = set()
    last: deque[str] = deque(maxlen=3)
    used = 0
    for i in range(len(index)):
        name = "?"
        try:
            with row_guard():
                row = load_object(index.line(i))
                row, folder = _own_names(row, Path(index.where(i).rpartition(":")[0]).parent)
                name = row_id(row)
                if splits and split_of(row, Path(index.where(i).rpartition(":")[0])) not in splits:
                    continue
                one = _one_clip(
                    row, AudioRoots({"default": folder}) if folder and settings.audio_root is None else roots
                )
        except RowError as error:
            detail = str(error)
            if error.reason == "not_found" and settings.audio_root is None:
                detail += f"; give audio_root{_said_by(source.rows[0])}"
            log.update(0, [{"id": name, "where": index.where(i), "reason": error.reason, "detail": detail}])
            if not used and i + 1 == len(index):
                raise ConfigError(f"no row can be used. The last one: {index.where(i)}: {detail}") from error
            continue
        log.update(1, [])
        used += 1
        if one is None or "prompt_id" in row and (one["audio"], one["description"]) in seen:
            continue  # a recipe's rows may be several prompts about one clip
        seen.add((one["audio"], one["description"]))
        number = f"{name}#{used - 1}" if name in last else name
        last.append(number)
        yield {"id": number, **one, "row": row}


def _own_names(row: dict[str, Any], folder: Path) -> tuple[dict[str, Any], Path | None]:
    """A NeMo manifest's row with our names, and the folder that its path starts from."""
    if not isinstance(row.get("audio_filepath"), str) or "audio" in row:
        return row, None
    if row.get("offset"):
        raise RowError("schema", f"offset {row['offset']!r}: a clip must be a whole file")
    return {"id": row["audio_filepath"], **{_NEMO.get(key, key): value for key, value in row.items()}}, folder


def _one_clip(row: Mapping[str, Any], roots: AudioRoots) -> dict[str, Any] | None:
    """``audio, transcript, description`` of a row; None for a row with no clip or several."""
    audios = [a for m in row.get("messages") or () for a in m.get("audios") or ()]
    if "audio" in row:
        audios = [{"audio": row["audio"], "text": row.get("transcript")}]
    if len(audios) != 1:
        return None
    audio = str(roots.resolve(audios[0]["audio"], dataset=row.get("dataset")))
    described = row
    if row.get("duration") is None and row.get("attributes"):
        described = {**row, "duration": check_audio({"audio": audio}, "")[1]}
    return {
        "audio": audio,
        "transcript": (audios[0].get("text") or "").strip(),
        "description": row.get("seed_description") or _description(described, NOT_AUDIBLE),
    }


def _description(row: Mapping[str, Any], hidden: Any) -> str:
    try:
        return describe(row, exclude=hidden)
    except (ValueError, TypeError, KeyError):  # the row lacks the fields for a description
        return ""


def _described(description: str, name: str) -> str | None:
    """The value of an attribute in a description of one line: ``[00:00-00:02] text (Mood: calm, Duration: 2s)``."""
    key = re.escape(name.replace("_", " "))
    last = description.rstrip().rpartition("\n")[2]
    found = re.findall(rf"(?:\(|, ){key}: (.+?)(?=, [^,:()]+: |\)$)", last, re.IGNORECASE)
    return found[-1] if found else None


def _said_by(rows: Path) -> str:
    """What the recipe beside the rows says about its audio. It is only a hint: a stranger's folder sets no root."""
    recipe = rows.parent.parent / "recipe.json"
    try:
        root = load_object(recipe.read_bytes()).get("data_root") if recipe.is_file() else None
    except (OSError, RowError):
        root = None
    return f" (its recipe read {root})" if isinstance(root, str) else ""


def _look_up(row: Any, path: list[str]) -> Any:
    for key in path:
        row = row.get(key) if isinstance(row, Mapping) else None
    return row
