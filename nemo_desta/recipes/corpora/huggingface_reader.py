"""Reads Hugging Face data on disk as rows: parquet files, or folders written by ``save_to_disk``.

Audio is not decoded. A column of audio becomes its path; audio embedded in the dataset is written once to
``<data root>/<extract_to>/<file or folder>-<fingerprint>/<row>.<ending>``, so that every clip has its own file. The
fingerprint is a hash of the dataset's bytes, so another dataset of the same name gets another folder. Class labels
become their names.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from nemo_desta.recipes.corpora.card_keys import ReaderConfig, SourceConfig
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.sources import file_digest

#: (split, further fields of its rows, names of class labels by column, batches of rows)
_Part: TypeAlias = tuple[str, dict[str, Any], dict[str, list[str]], Any]
_BATCH = 64  # rows in memory at a time
_MP3 = dict.fromkeys((b"ID3", b"\xff\xfb", b"\xff\xf3"), ".mp3")
_ENDINGS = {b"fLaC": ".flac", b"OggS": ".ogg", b"RIFF": ".wav", **_MP3}


class HuggingFaceReader:
    """Rows with the dataset's own columns, and ``hf_split`` for a saved dataset that states its split."""

    def __init__(self, source: SourceConfig, root: Path):
        self._root, self._columns = root, source.columns
        self._extract_to = source.extract_to if isinstance(source, ReaderConfig) else None

    def rows(self, relative: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """``(where, row)`` each. Raises ``CorpusError``: an incomplete dataset, or audio that cannot be written."""
        path = self._root / relative
        if not path.is_dir() and path.suffix != ".parquet":
            raise CorpusError(f"{path}: neither a .parquet file nor a folder written by save_to_disk")
        folder = None  # of this dataset's embedded audio
        parts = (_saved if path.is_dir() else _parquet)(path, self._columns)
        for split, extra, names, batches in parts:
            for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                where = f"{path / split}:{number + 1}"
                written = 0
                for column, value in row.items():
                    if isinstance(value, bytes):
                        value = {"bytes": value, "path": None}
                    if isinstance(value, Mapping) and {"bytes", "path"} <= set(value):
                        if value["bytes"] is not None:
                            folder = folder or self._new_folder(relative, where)
                            written += 1
                        name = f"{number:08d}" if written < 2 else f"{number:08d}-{written}"
                        row[column] = self._audio(value, f"{folder}/{split}/{name}", where)
                    elif column in names and isinstance(value, int) and 0 <= value < len(names[column]):
                        row[column] = names[column][value]
                yield where, {**extra, **row}

    def _audio(self, value: Mapping[str, Any], name: str, where: str) -> str:
        """Path of the clip; relative to the data root if it was written here."""
        content, path = value["bytes"], value["path"]
        if content is None:
            if path is None:
                raise CorpusError(f"{where}: an audio column with neither bytes nor a path")
            return path
        if not isinstance(content, bytes):
            raise CorpusError(f"{where}: the bytes of an audio are of type {type(content).__name__}")
        ending = PurePosixPath(path or "").suffix
        if not re.fullmatch(r"\.\w{1,8}", ending):
            ending = next((e for m, e in _ENDINGS.items() if content.startswith(m)), ".audio")
        relative = PurePosixPath(f"{name}{ending}").as_posix()  # a dataset without splits has two slashes
        target = self._root / relative
        try:
            if not (target.is_file() and target.stat().st_size == len(content) and target.read_bytes() == content):
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f"{target.name}.{os.getpid()}.part")
                partial.write_bytes(content)
                os.replace(partial, target)
        except OSError as error:
            raise CorpusError(
                f"{where}: audio is inside the dataset and cannot be written to {target} ({error}); set "
                "reader.extract_to to a folder below the data root that can be written"
            ) from None
        return relative

    def _new_folder(self, dataset: str, where: str) -> str:
        """The folder for the audio of ``dataset``, relative to the data root; it is not created yet."""
        if self._extract_to is None:
            raise CorpusError(f"{where}: a joined table cannot carry audio")
        inside = [part for part in PurePosixPath(dataset).parts if part not in ("/", "..")]
        folder = PurePosixPath(self._extract_to, *inside[:-1], f"{inside[-1]}-{_fingerprint(self._root / dataset)}")
        root, real = Path(os.path.realpath(self._root)), Path(os.path.realpath(self._root / folder))
        if not real.is_relative_to(root) or ".." in folder.parts or folder.is_absolute():
            raise CorpusError(
                f"{where}: reader.extract_to '{self._extract_to}' leads to {real}; it must be a folder below the data "
                f"root {root}"
            )
        return folder.as_posix()


def _parquet(path: Path, columns: list[str] | None = None) -> Iterator[_Part]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError("parquet files need pyarrow: pip install pyarrow") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: not a whole parquet file ({error})") from None
    info = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    features = (info.get("info") or {}).get("features") or {}
    names = {column: kind["names"] for column, kind in features.items() if "names" in kind}
    yield "", {}, names, file.iter_batches(batch_size=_BATCH, columns=columns)


def _saved(path: Path, columns: list[str] | None = None) -> Iterator[_Part]:
    try:
        import datasets
    except ImportError:
        raise ImportError("saved datasets need datasets: pip install datasets") from None
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise CorpusError(f"{path}: not a folder written by save_to_disk ({error})") from None
    for split, data in ({"": loaded} if isinstance(loaded, datasets.Dataset) else loaded).items():
        data = data if columns is None else data.select_columns(columns)
        names = {column: kind.names for column, kind in data.features.items() if hasattr(kind, "names")}
        batches = data.with_format("arrow").iter(batch_size=_BATCH)
        yield split, {"hf_split": split or str(data.split or "") or None}, names, batches


def _fingerprint(path: Path) -> str:
    """12 hex digits: a hash of the bytes of a parquet file, or of the files of a saved dataset."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".arrow", ".json"))
    digest = hashlib.sha256()
    for one in files:
        digest.update(f"{one.relative_to(path).as_posix()} {one.stat().st_size}\n".encode())
        file_digest(one, digest)
    return digest.hexdigest()[:12]
