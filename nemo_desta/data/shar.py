"""DeSTA rows in lhotse's shar format: large corpora as a few large files instead of millions of small ones.

A cut holds the row in its custom field ``row``; the first audio is the cut's ``recording``, the k-th further one its
field ``audio_k``. Any lhotse tool can read the folder. We read rows and audio by position and compare the ids.
"""

import gzip
import io
import logging
import tarfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import soundfile

from nemo_desta.data.audio_decoding import audio_guard
from nemo_desta.data.audio_io import AudioError, AudioFile, TarSlice, read_audio, to_clip
from nemo_desta.data.remote import check_url, is_url, local_copy
from nemo_desta.data.row_schema import TRAINING
from nemo_desta.data.row_source import RowSource
from nemo_desta.data.rows import Row, RowRules, audio_entries, check_row, expand_braces, expand_paths, load_object
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.progress import track

logger = logging.getLogger(__name__)

#: Marker file in a folder while `write_shar` writes it.
UNFINISHED = ".unfinished"


class Member(NamedTuple):
    """An archive member: the id of its cut, and its audio, None for a placeholder."""

    cut_id: str
    audio: TarSlice | None


class SharSource:
    """Rows of a shar folder, or of its shards: field -> paths, patterns or URLs, with ``cuts`` among the fields. Only
    text is kept in memory; audio is read from the tars by offset. The tar of a URL is copied when one of its clips is
    first read (`local_copy`).

    Raises:
        FileNotFoundError: no ``cuts.*.jsonl.gz`` in the folder. ConfigError: no cuts, or another number of shards.
        ValueError: shards of different length, a truncated or damaged file (named), or an incomplete folder.
    """

    def __init__(
        self, folder: str | Path | Mapping[str, Any], name: str | None = None, rules: RowRules = TRAINING
    ) -> None:
        self.rules = rules
        shards = _shards(folder) if isinstance(folder, Mapping) else _shards_in(Path(folder))
        self._cuts = [_local(cuts) for cuts in shards.pop("cuts")]
        self.folder = self._cuts[0].parent if isinstance(folder, Mapping) else Path(folder)
        self.name = name or (self._cuts[0].name.split(".")[0] if isinstance(folder, Mapping) else self.folder.name)
        self._lines: list[bytes] = []
        self._where: list[tuple[int, int]] = []  # shard, line from 1
        #: Field -> members of each shard; the URL of a tar that is not copied yet.
        self._members: dict[str, list[list[Member] | str]] = {field: [] for field in shards}
        self._counts: list[int] = []
        for number, cuts in enumerate(self._cuts):
            lines = _read_lines(cuts)
            self._counts.append(len(lines))
            self._lines += lines
            self._where += [(number, line) for line in range(1, len(lines) + 1)]
            for field, tars in shards.items():
                tar = tars[number]
                self._members[field].append(tar if isinstance(tar, str) else self._read_tar(tar, number))

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, i: int) -> Row:
        try:
            cut = load_object(self._lines[i])
            for field, shards in self._members.items():
                if not isinstance(members := shards[self._where[i][0]], str):
                    self._check_pair(cut, field, members[self._where[i][1] - 1])
            try:
                row = cut["custom"]["row"]
            except (KeyError, TypeError) as error:
                raise RowError("schema", f"the cut has no custom field 'row' ({error!r})") from error
            return check_row(row, self.rules)
        except RowError as error:
            raise RowError(error.reason, f"{self.where(i)}: {error}") from error

    def where(self, i: int) -> str:
        shard, line = self._where[i]
        return f"{self._cuts[shard]}:{line}"

    def audio_files(self, i: int, row: Row) -> list[AudioFile]:
        number = len(audio_entries(row))
        shard, line = self._where[i]
        found = []
        for field, shards in self._members.items():
            if isinstance(url := shards[shard], str):
                try:
                    shards[shard] = self._read_tar(local_copy(url), shard)
                    self._check_pair(load_object(self._lines[i]), field, shards[shard][line - 1])
                except RowError:
                    raise
                except (OSError, ValueError) as error:
                    raise AudioError("not_found", f"{self.where(i)}: {error}") from error
            found.append(shards[shard][line - 1].audio)
        files = [file for file in found if file is not None]
        if len(files) != number:
            raise AudioError("not_found", f"{self.where(i)}: {number} audios in the row but {len(files)} in the tars")
        return files

    def _read_tar(self, tar: Path, shard: int) -> list[Member]:
        members = _read_members(tar)
        if len(members) != self._counts[shard]:
            raise ValueError(
                f"{self._cuts[shard]} has {self._counts[shard]} cuts but {tar.name} {len(members)} recordings"
            )
        return members

    @staticmethod
    def _check_pair(cut: Mapping[str, Any], field: str, member: Member) -> None:
        if member.cut_id != (cut_id := cut.get("id")):
            raise RowError(
                "mispaired",
                f"cut {cut_id!r}, but at its place in {field}.*.tar lies '{member.cut_id}'; cuts and "
                "archives must be in the same order: write the folder again",
            )


def write_shar(
    source: RowSource,
    folder: str | Path,
    *,
    shard_size: int = 1000,
    audio_format: str = "flac",
    progress: bool = False,
) -> Path:
    """Write every row of ``source`` with its audio into a new shar folder.

    Audio is written as training reads it: mono (`to_clip`), at the file's own rate, in 16 bits. An interrupted folder
    is written again from the start; until then `SharSource` refuses it.

    Raises:
        RowError: the first row that cannot be used, by file, line and id. FileExistsError: the folder is not
            empty.
    """
    from lhotse import MonoCut
    from lhotse.shar import AudioTarWriter, SharWriter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / UNFINISHED
    if not mark.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: give a new folder")
    mark.touch()
    for left in (*folder.glob("cuts.*.jsonl.gz"), *folder.glob("*.tar")):
        left.unlink()
    most = max((len(audio_entries(source.row(i))) for i in range(len(source))), default=0)
    with ExitStack() as stack:
        cuts = stack.enter_context(SharWriter(folder, fields={"recording": audio_format}, shard_size=shard_size))
        # Written separately: lhotse's writer would truncate fields of the cut to the length of the first clip.
        further = [
            stack.enter_context(AudioTarWriter(f"{folder}/audio_{k}.%06d.tar", shard_size, audio_format))
            for k in range(1, most)
        ]
        for i in track(range(len(source)), "rows", len(source), shown=progress):
            row, name = source.row(i), f"{i:09d}"
            entries = audio_entries(row)
            try:
                files = source.audio_files(i, row)
                clips = [_recording(file, e.get("duration"), name) for file, e in zip(files, entries, strict=True)]
            except RowError as error:
                raise RowError(error.reason, f"{source.where(i)}: row '{row['id']}': {error}") from error
            first = clips[0] if clips else None
            duration = first.duration if first else 1.0
            cuts.write(MonoCut(name, 0.0, duration, channel=0, recording=first, custom={"row": row}))
            for k, writer in enumerate(further, 1):
                if k < len(clips):
                    writer.write(name, clips[k].load_audio(), clips[k].sampling_rate, manifest=clips[k])
                else:
                    writer.write_placeholder(name)
    mark.unlink()
    return folder


def _recording(file: AudioFile, duration: float | None, name: str) -> Any:
    """A lhotse recording of ``file`` as training reads it: mono, at the file's own rate."""
    from lhotse import Recording

    samples, rate = read_audio(file, duration=duration)
    with audio_guard(str(file)):
        audio = to_clip(samples, rate, rate, str(file))
        if (peak := float(np.abs(audio).max())) > 1.0:
            logger.warning(
                "%s has a peak of %.3f: a shar folder holds 16 bits, so samples beyond 1.0 are clipped", file, peak
            )
        wav = io.BytesIO()
        soundfile.write(wav, audio, rate, format="WAV", subtype="FLOAT")
        return Recording.from_bytes(wav.getvalue(), name)


def _shards_in(folder: Path) -> dict[str, list[Path | str]]:
    """Field -> files of a folder, one per shard."""
    if (folder / UNFINISHED).exists():
        raise ValueError(f"{folder} is not complete, its writing was stopped: write it again")
    cuts = sorted(folder.glob("cuts*.jsonl*"))
    if not cuts:
        raise FileNotFoundError(f"{folder} is not a lhotse shar folder: no cuts.*.jsonl.gz in it")
    fields = sorted({path.name.split(".")[0] for path in folder.glob("*.tar")}, key=_field_order)
    suffixes = [path.name.removeprefix("cuts").removesuffix(".gz").removesuffix(".jsonl") for path in cuts]
    return {"cuts": cuts, **{field: [folder / f"{field}{suffix}.tar" for suffix in suffixes] for field in fields}}


def _shards(fields: Mapping[str, Any]) -> dict[str, list[Path | str]]:
    """Field -> files and URLs, one per shard, as given."""
    found: dict[str, list[Path | str]] = {}
    for field in sorted(fields, key=lambda name: (name != "cuts", _field_order(name))):
        given = fields[field]
        names = [name for one in ([given] if isinstance(given, str) else given) for name in expand_braces(one)]
        found[field] = [one for name in names for one in ([name] if is_url(name) else expand_paths(name))]
        for url in (one for one in found[field] if isinstance(one, str)):
            check_url(url)
    if not found.get("cuts"):
        raise ConfigError(
            f"a shar needs 'cuts' beside its audio fields, found {', '.join(map(str, fields)) or 'none'}"
        )
    for field, shards in found.items():
        if len(shards) != len(found["cuts"]):
            raise ConfigError(f"a shar of {len(found['cuts'])} cuts files has {len(shards)} of field '{field}'")
    return found


def _local(shard: Path | str) -> Path:
    return local_copy(shard) if isinstance(shard, str) else shard


def _field_order(name: str) -> tuple[bool, int]:
    number = name.removeprefix("audio_")
    return name != "recording", int(number) if number.isdigit() else 0


def _read_lines(path: Path) -> list[bytes]:
    try:
        with open(path, "rb") as file:  # lhotse's backends unpack what they copy and keep its name
            packed = path.suffix == ".gz" and file.read(1) != b"{"
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            return [line for line in file if line.strip()]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is cut or damaged ({error}); copy it again or write the folder again") from error


def _read_members(archive: Path) -> list[Member]:
    """One per cut, in the archive's order. Names are compared with ids and never used as paths."""
    members: list[Member] = []
    try:
        with tarfile.open(archive, "r:") as tar:
            for info in tar:
                name = PurePosixPath(info.name)
                if info.isfile() and name.suffix not in (".json", ".nometa"):
                    audio = None if name.suffix == ".nodata" else TarSlice(archive, info.offset_data, info.size)
                    members.append(Member(str(name.parent / name.stem), audio))
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is cut or damaged ({error}); copy it again or write the folder again") from error
    return members
