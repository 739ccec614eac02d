"""Manifests: what is read, what is refused with file and line, and clips that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_desta.recipes.corpus import ManifestError, audio_problem, read_corpus

ROW = {"id": "a", "audio": "audio/a.wav", "duration": 1.0, "domain": "speech", "transcript": None, "attributes": {}}


def write(root: Path, *lines: object) -> str:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (root / "m.jsonl").write_text(text, encoding="utf-8")
    return "m.jsonl"


def test_read_corpus_filters_splits_and_names_the_source(tmp_path: Path) -> None:
    rows = [{**ROW, "id": str(i), "split": split} for i, split in enumerate(["train", "test", "train", "valid"])]
    write(tmp_path, *rows, "")
    assert [row["id"] for row in read_corpus(["m.jsonl"], tmp_path, splits=["train", "valid"])] == ["0", "2", "3"]
    assert [row["source"] for row in read_corpus([tmp_path / "m.jsonl"], tmp_path)] == ["m"] * 4


@pytest.mark.parametrize("audio", ["../../etc/passwd", "/etc/passwd", "audio/../../x.wav", "."])
def test_read_corpus_refuses_audio_outside_the_root(tmp_path: Path, audio: str) -> None:
    write(tmp_path, ROW, {**ROW, "id": "b", "audio": audio})
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: .*below the data root"):
        list(read_corpus(["m.jsonl"], tmp_path))


def test_read_corpus_normalises_audio_inside_the_root(tmp_path: Path) -> None:
    inside = str(tmp_path / "audio" / "b.wav")
    write(tmp_path, {**ROW, "audio": "./audio/x/../a.wav"}, {**ROW, "id": "b", "audio": inside})
    assert [row["audio"] for row in read_corpus(["m.jsonl"], tmp_path)] == ["audio/a.wav", "audio/b.wav"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "audio": "b.w', "not JSON .*is the line cut"),
        ("[1, 2]", "one JSON object per line, found a list"),
        ({**ROW, "id": "a"}, "id 'a' was seen before"),
        ({"id": "b", "audio": "b.wav", "duration": 1}, "domain missing; a clip needs id, audio, domain"),
        ({**ROW, "id": "b", "audio": ""}, "audio missing"),
        ({"id": "b", "audio": "b.wav", "domain": "speech"}, "duration missing"),
        ({**ROW, "id": "b", "domain": "speach"}, "domain 'speach' is not known. Did you mean 'speech'"),
        ({**ROW, "id": "b", "duration": "1"}, "duration must be seconds above 0, found '1'"),
        ({**ROW, "id": "b", "duration": 0}, "duration must be seconds above 0, found 0"),
        ({**ROW, "id": 7}, "id must be text, found int 7"),
        ({**ROW, "id": "b", "attributes": ["x"]}, "attributes must be an object"),
    ],
)
def test_read_corpus_names_file_and_line_of_a_bad_row(tmp_path: Path, line: object, message: str) -> None:
    write(tmp_path, ROW, line)
    with pytest.raises(ManifestError, match=rf"m\.jsonl:2: .*{message}"):
        list(read_corpus(["m.jsonl"], tmp_path))


def test_read_corpus_names_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(json.dumps(ROW).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: not UTF-8"):
        list(read_corpus(["m.jsonl"], tmp_path))


def test_read_corpus_names_a_manifest_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        list(read_corpus(["nowhere.jsonl"], tmp_path))


def test_audio_problem_finds_missing_corrupt_truncated_and_mislabelled_clips(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    for name in ("good.wav", "good.flac", "good.ogg"):
        soundfile.write(tmp_path / name, noise, 16000)
        assert audio_problem({"audio": name, "duration": 1.0}, tmp_path) is None
    whole = (tmp_path / "good.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.wav").write_text("this is no audio")
    soundfile.write(tmp_path / "empty.wav", noise[:0], 16000)

    def reason(name: str, duration: float = 1.0) -> str:
        found = audio_problem({"audio": name, "duration": duration}, tmp_path)
        assert found is not None and name in found[1]
        return found[0]

    assert reason("gone.wav") == "missing audio"
    assert reason("cut.flac") == reason("text.wav") == reason("empty.wav") == "corrupt audio"
    assert reason("good.wav", duration=3.0) == "wrong duration"
