"""Readers of each benchmark's official files: a row becomes an item with id, paths of its clip, question, options.

A reader takes a row, its number, and its file relative to the benchmark's folder. A scorer's fields stay in the row.
The files are tables as benchmarks publish them: JSON, JSON Lines, CSV, parquet (also with embedded audio).
"""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.evaluation.scorers.multiple_choice import lettered_choices, listed_choices
from nemo_desta.evaluation.scorers.sakura import options_of
from nemo_desta.evaluation.scores import ItemError, need

Row = dict[str, Any]
EXTRACT_TO = "extracted_audio"


class Raw(NamedTuple):
    """An item before its clip is located. ``audio``: candidate paths relative to the benchmark's folder."""

    id: str
    audio: tuple[str, ...]
    question: str
    choices: tuple[str, ...]
    answer: str
    fields: Row


def listed(row: Row, i: int, file: Path, audio: str) -> Iterator[Raw]:
    """MMAU and MMAR; ``audio``: the field of the clip's path."""
    choices, answer = listed_choices(row, i)
    name, question = str(need(row, "id", i, (str, int))), need(row, "question", i)
    yield Raw(name, _beside(file, need(row, audio, i)), question, tuple(choices), answer, row)


def mmsu(row: Row, i: int, file: Path) -> Iterator[Raw]:
    choices, answer = lettered_choices(row, i)
    name, clip = str(need(row, "id", i, (str, int))), _clip(row, i, "audio", "audio_path")
    places = _beside(file, clip, f"audio/{clip}", f"../{clip}", f"../audio/{clip}")
    yield Raw(name, places, need(row, "question", i), tuple(choices), answer, _lean(row, clip))


def air_foundation(row: Row, i: int, file: Path) -> Iterator[Raw]:
    choices, answer = lettered_choices(row, i)
    folder, clip = _air_folder(row, i), need(row, "path", i)
    if row["task_name"] == "Audio_Grounding":  # listed as .wav, published as .flac
        clip = f"{clip[:-3]}flac"
    name = f"foundation/{folder}/{need(row, 'uniq_id', i, (str, int))}"
    places = _beside(file, f"{folder}/{clip}", f"{folder}/{row['path']}")
    yield Raw(name, places, need(row, "question", i), tuple(choices), answer, row)


def air_chat(row: Row, i: int, file: Path) -> Iterator[Raw]:
    folder, clip = _air_folder(row, i), need(row, "path", i)
    need(row, "meta_info", i)
    name = f"chat/{folder}/{need(row, 'uniq_id', i, (str, int))}"
    places = _beside(file, f"{folder}/{clip}")
    yield Raw(name, places, need(row, "question", i), (), need(row, "answer_gt", i), row)


def _air_folder(row: Row, position: int) -> str:
    return f"{need(row, 'task_name', position)}_{need(row, 'dataset_name', position)}"


def sakura(row: Row, i: int, file: Path) -> Iterator[Raw]:
    """Two items per clip: a question about the audio, and one that reasons from it."""
    track = next(track for track in ("Animal", "Emotion", "Gender", "Language") if track in str(file))
    clip = _clip(row, i, "file", "audio")
    places = _beside(file, f"audio/{clip}", clip, f"../audio/{clip}")
    for hop in ("single", "multi"):
        question, answer = need(row, f"{hop}_instruction", i), need(row, f"{hop}_answer", i)
        fields = {"track": track, "hop": hop, "instruction": question, "answer": answer, **_lean(row, clip)}
        fields["id"] = f"{track}/{hop}/{clip}"
        yield Raw(fields["id"], places, question, tuple(options_of(question, answer)), answer, fields)


def speech_ifeval(row: Row, i: int, file: Path, part: str) -> Iterator[Raw]:
    name, clip = f"{part}/{i}", need(row, "audio_filepath", i)
    fields = {"id": name, "part": part, **row} if row.get("id") is None else {"part": part, **row}
    if part != "cot":
        need(row, "instruction_id_list", i, list), need(row, "kwargs", i, list)
    places = _beside(file, f"../audios/{clip}", f"audios/{clip}", clip, f"../{clip}")
    yield Raw(name, places, need(row, "instruction", i), (), _text(row.get("label")), fields)


def voicebench(row: Row, i: int, file: Path, subset: str) -> Iterator[Raw]:
    """The question is spoken in the audio; its text (``prompt``) is for the scorer and the judge."""
    need(row, "prompt", i)
    clip = _clip(row, i, "audio", "audio_path")
    answer = _text(row.get("reference", row.get("output")))
    yield Raw(f"{subset}/{file.stem}/{i}", _beside(file, clip), "", (), answer, {**_lean(row, clip), "subset": subset})


def dynamic_superb(row: Row, i: int, file: Path) -> Iterator[Raw]:
    parents = [name for name in file.parts[:-1] if name not in ("data", "test", ".")]
    task = parents[-1] if parents else file.stem
    if row.get("audio2") is not None:
        raise ItemError(
            f"'{task}/{i}'", "has two clips (audio2); such tasks are not supported: move their folder away"
        )
    label, clip = str(need(row, "label", i, (str, int, float))), _clip(row, i, "audio", "file")
    fields = {**_lean(row, clip), "id": f"{task}/{i}", "task": task, "label": label}
    yield Raw(fields["id"], _beside(file, clip, f"../{clip}"), need(row, "instruction", i), (), label, fields)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _clip(row: Row, position: int, *keys: str) -> str:
    """The path of the row's clip, from the first of ``keys`` that holds one."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, dict):
            value = value.get("path")
        if isinstance(value, str) and value:
            return value
    return need(row, keys[0], position)


def _beside(file: Path, *paths: str) -> tuple[str, ...]:
    """Paths relative to the folder of ``file``; if clips were extracted from a parquet file, only these."""
    inside = [path for path in paths if path.startswith(f"{EXTRACT_TO}/")]
    return tuple((file.parent / path).as_posix() for path in inside or paths)


def _lean(row: Row, clip: str) -> Row:
    """The row with the clip's path in place of an audio object."""
    return {key: clip if isinstance(value, dict) and "path" in value else value for key, value in row.items()}


def read_table(path: Path) -> list[Row]:
    """The rows of a file. A JSON object of objects is a table; its keys become the rows' ``file``.

    Audio inside a parquet file is written once to ``extracted_audio`` beside it; the column becomes its path.

    Raises:
        ValueError: the file is no such table; the message names file and line.
    """
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a table of rows ends in {', '.join(readers)}")
    rows = []
    for where, row in readers[path.suffix](path):
        if not isinstance(row, Mapping):
            raise ValueError(f"{where}: a row must be an object, found {type(row).__name__}")
        rows.append(dict(row))
    return rows


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if isinstance(data, dict):
        data = [{"file": key, **row} if isinstance(row, dict) else row for key, row in data.items()]
    if not isinstance(data, list):
        raise ValueError(f"{path}: must hold a list of objects, found {type(data).__name__}")
    for i, row in enumerate(data):
        yield f"{path}, row {i}", row


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield f"{path}:{number}", json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}:{number}: not JSON ({error})") from None


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            yield f"{path}, row {i}", row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    from nemo_desta.recipes.corpora.card_keys import ReaderConfig
    from nemo_desta.recipes.corpora.huggingface_reader import HuggingFaceReader

    yield from HuggingFaceReader(ReaderConfig(extract_to=EXTRACT_TO), path.parent).rows(path.name)
