"""Reads a benchmark's official files as items, and files of predictions as rows to score.

Nothing is downloaded: users fetch the files. benchmark_files.yaml says which files and from where.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.data.audio_io import AudioError, AudioRoots
from nemo_desta.evaluation import official_rows
from nemo_desta.evaluation.official_rows import Raw, read_table
from nemo_desta.evaluation.scores import ItemError, scorer_of


@dataclass(frozen=True)
class Item:
    """One question of a benchmark. ``fields``: the official row; scoring adds the prediction to it."""

    id: str
    audio: Path | None
    question: str
    choices: tuple[str, ...]
    answer: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """The official files of a benchmark, see benchmark_files.yaml."""

    where: str
    parts: list[dict[str, list[Any]]]
    folders: list[str] = field(default_factory=list)
    own_folder: bool = False


LAYOUTS: dict[str, Layout] = {
    name: Layout(**values)
    for name, values in yaml.safe_load(Path(__file__).with_name("benchmark_files.yaml").read_text("utf-8")).items()
}


def prediction_key(benchmark: str) -> str:
    """The field of the official file that holds the model's answer."""
    return scorer_of(benchmark).KEY


def read_items(benchmark: str, data_root: str | Path) -> list[Item]:
    """Every item of a benchmark below ``data_root``, or below a folder in it that has the benchmark's name.

    Raises:
        FileNotFoundError: the official files are missing; the message says which, and where users get them.
        ItemError: an item lacks a field or its audio file, or has the id of another item.
    """
    layout = LAYOUTS.get(benchmark) or Layout(**scorer_of(benchmark).layout())
    folder, found = _find(benchmark, layout, Path(data_root).expanduser())
    roots = AudioRoots({"default": folder, "data_root": data_root})
    items: dict[str, Item] = {}
    for part, file in found:
        place, (reader, *more) = file.relative_to(folder), part["reader"]
        read = reader if callable(reader) else getattr(official_rows, reader)
        for raw in (raw for i, row in enumerate(read_table(file)) for raw in read(row, i, place, *more)):
            if raw.id in items:
                raise ItemError(f"'{raw.id}'", f"occurs twice in {place}; ids must be unique")
            items[raw.id] = Item(raw.id, _audio(raw, roots), raw.question, raw.choices, raw.answer, raw.fields)
    if not items:
        raise ValueError(f"{benchmark}: no row in {', '.join(str(file) for _, file in found)}")
    return list(items.values())


def read_predictions(benchmark: str, path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of predictions (the official file with the answers under `prediction_key`), or of all such
    files in a folder. The name of a VoiceBench file, as its authors name them, gives the subset of its rows.

    Raises:
        FileNotFoundError: no such file. ValueError: no row has an answer. ItemError: an id occurs twice.
    """
    key, path = prediction_key(benchmark), Path(path).expanduser()
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise FileNotFoundError(
            f"no file of predictions for {benchmark} at {path} (.json, .jsonl or a folder of them)"
        )
    rows, seen = [], set()
    for file in files:
        for row in read_table(file):
            if benchmark == "voicebench":
                row = {**_subset(file), **row}
            name = tuple(str(row.get(k)) for k in ("id", "uniq_id", "task_name", "dataset_name", "subset", "hop"))
            if row.get("id", row.get("uniq_id")) is not None and (file, name) in seen:
                raise ItemError(
                    f"'{row.get('id', row.get('uniq_id'))}'", f"occurs twice in {file}; ids must be unique"
                )
            seen.add((file, name))
            rows.append(row)
    if not any(key in row for row in rows):
        raise ValueError(f"{path}: no row has '{key}', where {benchmark} keeps the model's answer")
    return rows


def _find(benchmark: str, layout: Layout, data_root: Path) -> tuple[Path, list[tuple[dict, Path]]]:
    """The first folder that holds files of the benchmark, and these files in order."""
    names = (benchmark, *layout.folders)
    folders = [data_root / name for name in names]
    if not layout.own_folder or data_root.resolve().name in names:
        folders.append(data_root)
    for folder in folders:
        if folder.is_dir():
            found = [(part, file) for part in layout.parts for file in _files(folder, part["files"])]
            if found:
                return folder, found
    wanted = "; ".join(" or ".join(part["files"]) for part in layout.parts)
    raise FileNotFoundError(
        f"{benchmark}: none of its files is in {', '.join(map(str, folders))}. Expected: {wanted}. "
        f"{layout.where} Nothing is downloaded here."
    )


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The matches of the first pattern that has any."""
    return next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])


def _audio(raw: Raw, roots: AudioRoots) -> Path | None:
    """The first existing path of the clip."""
    if not raw.audio:
        return None
    for path in raw.audio:
        try:
            return roots.resolve(path)
        except AudioError as error:
            last = error
    raise ItemError(f"'{raw.id}'", f"its audio cannot be used: {last}")


def _subset(file: Path) -> dict[str, str]:
    from nemo_desta.evaluation.scorers.voicebench import SUBSETS

    named = [subset for subset in SUBSETS if f"-{subset}-" in f"-{file.stem}-"]
    return {"subset": max(named, key=len)} if named else {}
