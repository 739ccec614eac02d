"""A benchmark's official files as items that can be asked, and files of predictions that can be scored.

Nothing is downloaded: users fetch the files, `layouts` says which and from where.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.data.audio_io import AudioError, AudioRoots
from nemo_desta.evaluation.layouts import LAYOUTS, Layout, Part
from nemo_desta.evaluation.official_rows import Raw
from nemo_desta.evaluation.scores import SCORERS, ItemError
from nemo_desta.evaluation.tables import read_table


@dataclass(frozen=True)
class Item:
    """One question of a benchmark. ``fields``: the official row, to which the prediction is added for scoring."""

    id: str
    audio: Path | None
    question: str
    choices: tuple[str, ...]
    answer: str
    fields: dict[str, Any]


def prediction_key(benchmark: str) -> str:
    """Where the official file has the model's answer."""
    return import_module(SCORERS[_known(benchmark, SCORERS)]).KEY


def read_items(benchmark: str, data_root: str | Path) -> list[Item]:
    """Every item of a benchmark below ``data_root`` (or below a folder in it that is called like the benchmark).

    Raises:
        FileNotFoundError: the official files are not there; says which, and where users get them.
        ItemError: an item without a field, without its audio file, or with the id of another one; named.
    """
    layout = LAYOUTS[_known(benchmark, LAYOUTS)]
    folder, found = _find(benchmark, layout, Path(data_root).expanduser())
    roots = AudioRoots({"default": folder, "data_root": data_root})
    items: dict[str, Item] = {}
    for part, file in found:
        for raw in part.read(_rows(file), file.relative_to(folder)):
            if raw.id in items:
                raise ItemError(f"'{raw.id}'", f"comes twice in {file.relative_to(folder)}; ids must be unique")
            items[raw.id] = Item(raw.id, _audio(raw, roots), raw.question, raw.choices, raw.answer, raw.fields)
    if not items:
        raise ValueError(f"{benchmark}: no row in {', '.join(str(file) for _, file in found)}")
    return list(items.values())


def read_predictions(benchmark: str, path: str | Path) -> list[dict[str, Any]]:
    """The rows of a file of predictions (the official file with the answers under `prediction_key`), or of all such
    files in a folder. A VoiceBench file that is named as its authors name them says which set its rows are of.

    Raises:
        FileNotFoundError: nothing there. ValueError: no rows, or nobody answered. ItemError: an id comes twice.
    """
    key, path = prediction_key(benchmark), Path(path).expanduser()
    files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise FileNotFoundError(
            f"no file of predictions for {benchmark} at {path} (.json, .jsonl or a folder of them)"
        )
    rows, seen = [], set()
    for file in files:
        for row in _rows(file):
            if benchmark == "voicebench":
                row = {**_subset(file), **row}
            name = tuple(str(row.get(k)) for k in ("id", "uniq_id", "task_name", "dataset_name", "subset", "hop"))
            if row.get("id", row.get("uniq_id")) is not None and (file, name) in seen:
                raise ItemError(f"'{row.get('id', row.get('uniq_id'))}'", f"comes twice in {file}; ids must be unique")
            seen.add((file, name))
            rows.append(row)
    if not any(key in row for row in rows):
        raise ValueError(f"{path}: no row has '{key}', where {benchmark} keeps the model's answer")
    return rows


def _known(benchmark: str, known: Mapping[str, Any]) -> str:
    if benchmark not in known:
        raise ValueError(f"unknown benchmark '{benchmark}'.{nearest(benchmark, known)}")
    return benchmark


def _find(benchmark: str, layout: Layout, data_root: Path) -> tuple[Path, list[tuple[Part, Path]]]:
    """The folder of the benchmark, and its files in order; the first folder that has any."""
    names = (benchmark, *layout.folders)
    folders = [data_root / name for name in names]
    if not layout.own_folder or data_root.resolve().name in names:
        folders.append(data_root)
    for folder in folders:
        if folder.is_dir():
            found = [(part, file) for part in layout.parts for file in _files(folder, part.patterns)]
            if found:
                return folder, found
    wanted = "; ".join(" or ".join(part.patterns) for part in layout.parts)
    raise FileNotFoundError(
        f"{benchmark}: none of its files is in {', '.join(map(str, folders))}. Expected: {wanted}. "
        f"{layout.where} Nothing is downloaded here."
    )


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """What the first pattern that matches anything matches."""
    return next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    yield from read_table(file)


def _audio(raw: Raw, roots: AudioRoots) -> Path | None:
    """The first of the places where the clip may be."""
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
