"""Readers of each benchmark's official files: a row becomes an item with id, paths of its clip, question, options.

A reader takes a file's rows and its path relative to the benchmark's folder. A scorer's fields stay in the row.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.evaluation.scorers.multiple_choice import lettered_choices, listed_choices
from nemo_desta.evaluation.scorers.sakura import options_of
from nemo_desta.evaluation.scores import ItemError, need
from nemo_desta.evaluation.tables import EXTRACT_TO

Row = dict[str, Any]


class Raw(NamedTuple):
    """An item before its clip is located. ``audio``: candidate paths relative to the benchmark's folder."""

    id: str
    audio: tuple[str, ...]
    question: str
    choices: tuple[str, ...]
    answer: str
    fields: Row


Reader = Callable[[Iterable[Row], Path], Iterator[Raw]]


def listed(audio: str) -> Reader:
    """MMAU and MMAR; ``audio``: the field of the clip's path."""

    def read(rows: Iterable[Row], file: Path) -> Iterator[Raw]:
        for i, row in enumerate(rows):
            choices, answer = listed_choices(row, i)
            name, question = str(need(row, "id", i, (str, int))), need(row, "question", i)
            yield Raw(name, _beside(file, need(row, audio, i)), question, tuple(choices), answer, row)

    return read


def mmsu(rows: Iterable[Row], file: Path) -> Iterator[Raw]:
    for i, row in enumerate(rows):
        choices, answer = lettered_choices(row, i)
        name, clip = str(need(row, "id", i, (str, int))), _clip(row, i, "audio", "audio_path")
        places = _beside(file, clip, f"audio/{clip}", f"../{clip}", f"../audio/{clip}")
        yield Raw(name, places, need(row, "question", i), tuple(choices), answer, _lean(row, clip))


def air_foundation(rows: Iterable[Row], file: Path) -> Iterator[Raw]:
    for i, row in enumerate(rows):
        choices, answer = lettered_choices(row, i)
        folder, clip = _air_folder(row, i), need(row, "path", i)
        if row["task_name"] == "Audio_Grounding":  # listed as .wav, published as .flac
            clip = f"{clip[:-3]}flac"
        name = f"foundation/{folder}/{need(row, 'uniq_id', i, (str, int))}"
        places = _beside(file, f"{folder}/{clip}", f"{folder}/{row['path']}")
        yield Raw(name, places, need(row, "question", i), tuple(choices), answer, row)


def air_chat(rows: Iterable[Row], file: Path) -> Iterator[Raw]:
    for i, row in enumerate(rows):
        folder, clip = _air_folder(row, i), need(row, "path", i)
        need(row, "meta_info", i)
        name = f"chat/{folder}/{need(row, 'uniq_id', i, (str, int))}"
        yield Raw(
            name, _beside(file, f"{folder}/{clip}"), need(row, "question", i), (), need(row, "answer_gt", i), row
        )


def _air_folder(row: Row, position: int) -> str:
    return f"{need(row, 'task_name', position)}_{need(row, 'dataset_name', position)}"


def sakura(rows: Iterable[Row], file: Path) -> Iterator[Raw]:
    """Two items per clip: a question about the audio, and one that reasons from it."""
    track = next(track for track in ("Animal", "Emotion", "Gender", "Language") if track in str(file))
    for i, row in enumerate(rows):
        clip = _clip(row, i, "file", "audio")
        for hop in ("single", "multi"):
            question, answer = need(row, f"{hop}_instruction", i), need(row, f"{hop}_answer", i)
            fields = {"track": track, "hop": hop, "instruction": question, "answer": answer, **_lean(row, clip)}
            fields["id"] = f"{track}/{hop}/{clip}"
            places = _beside(file, f"audio/{clip}", clip, f"../audio/{clip}")
            yield Raw(fields["id"], places, question, tuple(options_of(question, answer)), answer, fields)


def speech_ifeval(part: str) -> Reader:
    def read(rows: Iterable[Row], file: Path) -> Iterator[Raw]:
        for i, row in enumerate(rows):
            clip = need(row, "audio_filepath", i)
            fields = {"id": f"{part}/{i}", "part": part, **row} if row.get("id") is None else {"part": part, **row}
            if part != "cot":
                need(row, "instruction_id_list", i, list), need(row, "kwargs", i, list)
            places = _beside(file, f"../audios/{clip}", f"audios/{clip}", clip, f"../{clip}")
            answer = row.get("label")
            yield Raw(
                f"{part}/{i}", places, need(row, "instruction", i), (), "" if answer is None else str(answer), fields
            )

    return read


def voicebench(subset: str) -> Reader:
    """The question is spoken in the audio; its text (``prompt``) is for the scorer and the judge."""

    def read(rows: Iterable[Row], file: Path) -> Iterator[Raw]:
        for i, row in enumerate(rows):
            need(row, "prompt", i)
            clip = _clip(row, i, "audio", "audio_path")
            fields = {**_lean(row, clip), "subset": subset}
            answer = row.get("reference", row.get("output"))
            name = f"{subset}/{file.stem}/{i}"
            yield Raw(name, _beside(file, clip), "", (), "" if answer is None else str(answer), fields)

    return read


def dynamic_superb(rows: Iterable[Row], file: Path) -> Iterator[Raw]:
    parents = [name for name in file.parts[:-1] if name not in ("data", "test", ".")]
    task = parents[-1] if parents else file.stem
    for i, row in enumerate(rows):
        if row.get("audio2") is not None:
            raise ItemError(
                f"'{task}/{i}'", "has two clips (audio2); such tasks are not supported: move their folder away"
            )
        label, clip = need(row, "label", i, (str, int, float)), _clip(row, i, "audio", "file")
        fields = {**_lean(row, clip), "id": f"{task}/{i}", "task": task, "label": str(label)}
        yield Raw(fields["id"], _beside(file, clip, f"../{clip}"), need(row, "instruction", i), (), str(label), fields)


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
