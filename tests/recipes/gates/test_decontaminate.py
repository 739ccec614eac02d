"""Decontamination: the ways in which a list may name a clip."""

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.recipes.gates import Decontamination

CLIP = {
    "id": "ls_1688-142285-0000",
    "audio": "test/1688-142285-0000.flac",
    "group": "ls_1688",
    "recording_id": "142285",
}


def listed(path: Path, *names: str) -> Decontamination:
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return Decontamination([path])


@pytest.mark.parametrize(
    "name",
    [
        "ls_1688-142285-0000",
        "1688-142285-0000",
        "1688-142285-0000.wav",
        "elsewhere/audio/1688-142285-0000.mp3",
        "elsewhere\\1688-142285-0000.WAV",
        "test/1688-142285-0000.flac",
        "LS_1688",
        "142285",
    ],
)
def test_a_clip_is_found_by_id_audio_group_or_recording(name: str, tmp_path: Path) -> None:
    verdict = listed(tmp_path / "bench.txt", "other", name).check(CLIP)
    assert verdict is not None and verdict.reason == "benchmark item" and "bench.txt" in verdict.detail


@pytest.mark.parametrize("name", ["1688-142285-0001", "1688", "ls_1688-142285", "flac", "test"])
def test_other_clips_stay(name: str, tmp_path: Path) -> None:
    assert listed(tmp_path / "bench.txt", name).check(CLIP) is None


def test_short_file_names_need_their_folder(tmp_path: Path) -> None:
    lists = listed(tmp_path / "bench.txt", "mmau/7.wav")
    assert lists.check({"id": "x", "audio": "other/7.wav"}) is None
    assert lists.check({"id": "x", "audio": "deep/mmau/7.flac"}) is not None


def test_tables_and_json_are_read_by_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": "?", "audio_id": "x/clip-0001.wav"}) + "\n\n")
    (tmp_path / "b.csv").write_text("n,source\n1,clip-0002\n")
    (tmp_path / "c.tsv").write_text("id\tanswer\n0003-c\tyes, no\n")
    lists = Decontamination(
        [tmp_path / "a.jsonl", {"path": tmp_path / "b.csv", "field": "source"}, tmp_path / "c.tsv"]
    )
    found = [lists.check({"id": name, "audio": "q.wav"}) for name in ("clip-0001", "clip-0002", "0003-C", "clip-0004")]
    assert [verdict is not None for verdict in found] == [True, True, True, False]
    assert len(lists) == 4


def raised(path: Path, content: bytes | None, field: str | None = None) -> str:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Decontamination([path], field=field)
    return str(error.value)


def test_lists_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    cases: list[tuple[str, bytes | None, Any]] = [
        ("missing.txt", None, "missing.txt does not exist"),
        ("empty.txt", b"\n \n", "empty.txt: no benchmark items"),
        ("empty.csv", b"id,answer\n", "empty.csv: no benchmark items"),
        ("latin.txt", "clip-1\nécole\n".encode("latin-1"), "latin.txt:2: not UTF-8"),
        ("cut.jsonl", b'{"id": "a"}\n{"id": "b', "cut.jsonl:2: not JSON"),
        ("list.jsonl", b'["a"]\n', "list.jsonl:1: expected one JSON object"),
        ("other.jsonl", b'{"name": "a"}\n', "other.jsonl:1: none of the fields id, audio_id"),
        ("sheet.xlsx", b"PK", "sheet.xlsx: a benchmark list is one of"),
    ]
    for name, content, message in cases:
        assert message in raised(tmp_path / name, content)
    assert "no field 'clip'; it has id" in raised(tmp_path / "f.csv", b"id\nx\n", field="clip")
