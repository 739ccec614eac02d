"""A shar folder gives every row its own audio, or says which file or line is wrong."""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_desta.data.audio_io import load_audio
from nemo_desta.data.shar import SharSource, write_shar
from nemo_desta.data.sources import JsonlSource
from nemo_desta.errors import RowError
from nemo_desta.testing.data import tiny_row, tiny_rows, write_jsonl, write_tone

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
    with pytest.raises(RowError, match=r"jsonl\.gz:1: "):
        SharSource(folder).row(0)


def heard(source: JsonlSource | SharSource) -> list[np.ndarray]:
    return [load_audio(file) for i in range(len(source)) for file in source.audio_files(i, source.row(i))]


def test_rows_of_any_channels_train_on_the_same_audio_from_jsonl_and_from_shar(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one, two, none = 0.1 * rng.standard_normal(8000), 0.2 * rng.standard_normal(8000), np.zeros(8000)
    clips = {
        "mono": (one[:, None], 16_000),
        "left": (np.stack([one, none], 1), 16_000),
        "right": (np.stack([none, two], 1), 16_000),
        "stereo": (np.stack([one, two], 1), 16_000),
        "stereo_44": (np.stack([one, two], 1), 44_100),
        "antiphase": (np.stack([one, -one], 1), 16_000),
        "three": (np.stack([one, two, one], 1), 8_000),
        "loud": (1.5 * one[:, None] / np.abs(one).max(), 16_000),
    }
    rows = []
    for name, (samples, rate) in clips.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, rate, subtype="FLOAT")
        rows.append(tiny_row(name, f"{name}.wav"))
    rows[1]["messages"][-1]["content"] += " and <|AUDIO|>"
    rows[1]["messages"][-1]["audios"].append({"audio": "right.wav"})  # a further clip takes another way
    source = JsonlSource(write_jsonl(tmp_path / "rows.jsonl", rows))
    packed = SharSource(write_shar(source, tmp_path / "out"))
    for ours, theirs in zip(heard(packed), heard(source), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1.2 / (1 << 15))  # 16 bits, and their resampling


def test_a_peak_that_16_bits_cannot_hold_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    soundfile.write(tmp_path / "a.wav", np.array([0.0, 1.03, -0.5, 0.0]), 16_000, subtype="FLOAT")
    source = JsonlSource(write_jsonl(tmp_path / "rows.jsonl", [tiny_row("a", "a.wav")]))
    write_shar(source, tmp_path / "out")
    assert f"{tmp_path / 'a.wav'} has a peak of 1.030" in caplog.text


@pytest.mark.parametrize(
    ("kind", "reason"), [("half an mp3", "cut"), ("no audio", "corrupt"), ("too short", "wrong_duration")]
)
def test_a_file_that_cannot_be_written_is_a_bad_row_named_by_file_line_and_id(
    tmp_path: Path, kind: str, reason: str
) -> None:
    row = tiny_row("second", "bad.mp3")
    tone = 0.1 * np.sin(np.arange(32_000) * 0.05)
    soundfile.write(tmp_path / "bad.mp3", tone, 16_000)
    content = (tmp_path / "bad.mp3").read_bytes()
    if kind == "too short":
        row["messages"][-1]["audios"][0]["duration"] = 5.0
    else:
        (tmp_path / "bad.mp3").write_bytes(content[: len(content) // 2] if kind == "half an mp3" else b"?" * 99)
    write_tone(tmp_path / "good.wav", 0.2)
    source = JsonlSource(write_jsonl(tmp_path / "rows.jsonl", [tiny_row("first", "good.wav"), row]))
    with pytest.raises(RowError, match=r"rows\.jsonl:2: row 'second': .*bad\.mp3") as caught:
        write_shar(source, tmp_path / "out")
    assert caught.value.reason == reason


def test_a_folder_whose_writing_was_killed_is_not_read_and_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for k in range(6):
        write_tone(tmp_path / f"{k}.wav", 0.2 + 0.1 * k)
        rows.append(tiny_row(f"row-{k}", f"{k}.wav"))
    source = JsonlSource(write_jsonl(tmp_path / "rows.jsonl", rows))
    audio_files = source.audio_files

    def killed(i: int, row: dict) -> list:
        if i == 4:
            raise KeyboardInterrupt
        return audio_files(i, row)

    monkeypatch.setattr(source, "audio_files", killed)
    with pytest.raises(KeyboardInterrupt):
        write_shar(source, tmp_path / "out", shard_size=2)  # two shards are whole
    monkeypatch.undo()
    with pytest.raises(ValueError, match="out is not complete"):
        SharSource(tmp_path / "out")
    packed = SharSource(write_shar(source, tmp_path / "out", shard_size=2))
    assert [packed.row(i)["id"] for i in range(len(packed))] == [f"row-{k}" for k in range(6)]
    with pytest.raises(FileExistsError, match="not empty"):
        write_shar(source, tmp_path / "out")
