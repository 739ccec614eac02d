"""A shar folder gives every row its own audio, or says which file or line is wrong."""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_desta.data.audio_io import load_audio
from nemo_desta.data.rows import RowError
from nemo_desta.data.shar import SharSource, write_shar
from nemo_desta.data.sources import JsonlSource
from nemo_desta.data.testing import tiny_rows, write_jsonl

RATE = 16_000


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows in one shard, each with a clip of another length, the last with a second clip."""
    folder = tmp_path_factory.mktemp("shar")
    path = tiny_rows(folder, 4)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["messages"][-1]["content"] += " and <|AUDIO|>"
    rows[3]["messages"][-1]["audios"].append({"audio": "wavs/000.wav"})
    return write_shar(JsonlSource(write_jsonl(path, rows)), folder / "out")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "out"))


def change_lines(folder: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = folder / "cuts.000000.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(change(gzip.decompress(path.read_bytes()).splitlines(keepends=True)))))


def test_two_swapped_cut_lines_are_bad_rows_named_by_file_and_line(folder: Path) -> None:
    change_lines(folder, lambda lines: [lines[1], lines[0], *lines[2:]])
    source = SharSource(folder)
    for i in (0, 1):
        with pytest.raises(RowError, match=rf"cuts\.000000\.jsonl\.gz:{i + 1}: cut '00000000{1 - i}', but at its pl"):
            source.row(i)
        with pytest.raises(RowError) as caught:
            source.row(i)
        assert caught.value.reason == "mispaired"
    assert [source.row(i)["id"] for i in (2, 3)] == ["row-002", "row-003"]


def test_an_archive_in_another_order_is_named(folder: Path) -> None:
    """Every field is compared: here the further clips, of which three are placeholders."""
    path = folder / "audio_1.000000.tar"
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(path, "w") as tar:
        for info, content in members[-2:] + members[:-2]:
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(RowError, match=r"cut '000000000', but at its place in audio_1\.\*\.tar lies '000000003'"):
        SharSource(folder).row(0)


def test_names_that_begin_with_a_dot_and_a_slash_are_the_same_names(folder: Path) -> None:
    """As `tar cf x.tar ./*` packs them."""
    path = folder / "recording.000000.tar"
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(path, "w") as tar:
        for info, content in members:
            info.name = f"./{info.name}"
            tar.addfile(info, io.BytesIO(content))
    source = SharSource(folder)
    for i in range(4):
        files = source.audio_files(i, source.row(i))
        assert len(load_audio(files[0])) == round(RATE * source.row(i)["messages"][-1]["audios"][0]["duration"])


@pytest.mark.parametrize("name", ["cuts.000000.jsonl.gz", "recording.000000.tar", "audio_1.000000.tar"])
@pytest.mark.parametrize("kept", [0.3, 0.6])
def test_a_file_that_is_cut_is_named(folder: Path, name: str, kept: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=rf"{name} is cut or damaged|{name} \d+ recordings"):
        SharSource(folder)


@pytest.mark.parametrize("name", ["cuts.000000.jsonl.gz", "recording.000000.tar"])
def test_a_file_of_other_bytes_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(ValueError, match=rf"{name} is cut or damaged"):
        SharSource(folder)


def test_deep_json_in_a_cut_is_a_bad_row(folder: Path) -> None:
    change_lines(folder, lambda lines: [b"[" * 100_000 + b"\n", *lines[1:]])
    with pytest.raises(RowError, match=r"jsonl\.gz:1: the cut has no custom field 'row'"):
        SharSource(folder).row(0)
