"""DeSTA rows in lhotse's shar format: large corpora as a few big files instead of millions of small ones.

A cut holds the row in its custom field ``row``; the first audio is the cut's ``recording``, the k-th further one its
field ``audio_k``. Any lhotse tool can read the folder; we read rows and audio by position.
"""

import gzip
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nemo_desta.data.audio_io import AudioError, AudioFile, TarSlice
from nemo_desta.data.row_schema import TRAINING
from nemo_desta.data.rows import Row, RowError, RowRules, audio_entries, check_row, load_object
from nemo_desta.data.sources import RowSource


class SharSource:
    """Rows of a shar folder. Only text is kept in memory; audio is read from the tars by offset.

    Raises:
        FileNotFoundError: no ``cuts.*.jsonl.gz`` in the folder. ValueError: shards of different length.
    """

    def __init__(self, folder: str | Path, name: str | None = None, rules: RowRules = TRAINING) -> None:
        self.folder = Path(folder)
        self.rules = rules
        self.name = name or self.folder.name
        cuts = sorted(self.folder.glob("cuts*.jsonl*"))
        if not cuts:
            raise FileNotFoundError(f"{self.folder} is not a lhotse shar folder: no cuts.*.jsonl.gz in it")
        fields = sorted({path.name.split(".")[0] for path in self.folder.glob("*.tar")}, key=_field_order)
        self._lines: list[bytes] = []
        self._where: list[tuple[Path, int]] = []
        self._files: list[list[TarSlice | None]] = []  # per row, per field
        for shard in cuts:
            suffix = shard.name.removeprefix("cuts").removesuffix(".gz").removesuffix(".jsonl")
            columns = [_members(self.folder / f"{field}{suffix}.tar") for field in fields]
            lines = _read_lines(shard)
            for field, column in zip(fields, columns, strict=True):
                if len(column) != len(lines):
                    raise ValueError(f"{shard} has {len(lines)} cuts but {field}{suffix}.tar {len(column)} recordings")
            self._lines += lines
            self._where += [(shard, number) for number in range(1, len(lines) + 1)]
            self._files += [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in lines]

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, i: int) -> Row:
        try:
            row = load_object(self._lines[i])["custom"]["row"]
        except (KeyError, TypeError) as error:
            raise RowError("schema", f"{self.where(i)}: the cut has no custom field 'row' ({error!r})") from error
        try:
            return check_row(row, self.rules)
        except RowError as error:
            raise RowError(error.reason, f"{self.where(i)}: {error}") from error

    def where(self, i: int) -> str:
        path, line = self._where[i]
        return f"{path}:{line}"

    def audio_files(self, i: int, row: Row) -> list[AudioFile]:
        number = len(audio_entries(row))
        files = [file for file in self._files[i] if file is not None]
        if len(files) != number:
            raise AudioError("not_found", f"{self.where(i)}: {number} audios in the row but {len(files)} in the tars")
        return list(files)


def write_shar(
    source: RowSource,
    folder: str | Path,
    *,
    shard_size: int = 1000,
    audio_format: str = "flac",
    progress: bool = False,
) -> Path:
    """Write every row of ``source`` with its audio into a new shar folder.

    Raises:
        RowError: the first row that cannot be used. FileExistsError: the folder holds something already.
    """
    from lhotse import MonoCut
    from lhotse.shar import AudioTarWriter, SharWriter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: give a new folder")
    most = max((len(audio_entries(source.row(i))) for i in range(len(source))), default=0)
    with ExitStack() as stack:
        cuts = stack.enter_context(SharWriter(folder, fields={"recording": audio_format}, shard_size=shard_size))
        # Not fields of the cut for lhotse's writer: it would cut further clips to the length of the first.
        further = [
            stack.enter_context(AudioTarWriter(f"{folder}/audio_{k}.%06d.tar", shard_size, audio_format))
            for k in range(1, most)
        ]
        for i in tqdm(range(len(source)), "rows", unit="row", disable=not progress):
            row, name = source.row(i), f"{i:09d}"
            clips = [_recording(file, name) for file in source.audio_files(i, row)]
            first = clips[0] if clips else None
            duration = first.duration if first else 1.0
            cuts.write(MonoCut(name, 0.0, duration, channel=0, recording=first, custom={"row": row}))
            for k, writer in enumerate(further, 1):
                if k < len(clips):
                    writer.write(name, clips[k].load_audio(), clips[k].sampling_rate, manifest=clips[k])
                else:
                    writer.write_placeholder(name)
    return folder


def _recording(file: AudioFile, name: str) -> Any:
    from lhotse import Recording

    return Recording.from_bytes(file.read(), name) if isinstance(file, TarSlice) else Recording.from_file(file, name)


def _field_order(name: str) -> tuple[bool, int]:
    number = name.removeprefix("audio_")
    return name != "recording", int(number) if number.isdigit() else 0


def _read_lines(path: Path) -> list[bytes]:
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        return [line for line in file if line.strip()]


def _members(archive: Path) -> list[TarSlice | None]:
    """One entry per cut: its data member, None for a placeholder. Names are never used as paths."""
    members: list[TarSlice | None] = []
    with tarfile.open(archive, "r:") as tar:
        for info in tar:
            if info.name.endswith(".nodata"):
                members.append(None)
            elif not info.name.endswith((".json", ".nometa")):
                members.append(TarSlice(archive, info.offset_data, info.size))
    return members
