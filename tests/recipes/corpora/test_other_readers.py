"""Lhotse manifests and Hugging Face data, written by the real libraries."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_desta.recipes.corpora import CorpusError, check_audio, load_corpus

Replica = Callable[[Mapping[str, Any]], Path]


def card(root: Path, **changes: Any) -> Path:
    base = {"name": "mine", "version": "1", "title": "t", "licence": "l", "home": "h", "domain": "speech"}
    (root / "card.yaml").write_text(yaml.safe_dump({**base, **changes}))
    return root / "card.yaml"


@pytest.fixture
def recordings(replica: Replica) -> tuple[Path, Any, Any]:
    """Data root with two clips, lhotse recordings and supervisions of them: one speaker, and two in turn."""
    lhotse = pytest.importorskip("lhotse")
    root = replica({"audio/one.wav": 0.5, "audio/two.wav": 1.0})
    found = [lhotse.Recording.from_file(root / f"audio/{name}.wav") for name in ("one", "two")]

    def spoken(name: str, clip: str, start: float, end: float, speaker: str, gender: str) -> Any:
        times = {"start": start, "duration": end - start}
        text = f"text {name}"
        return lhotse.SupervisionSegment(
            name, clip, **times, text=text, speaker=speaker, gender=gender, language="en", custom={"mood": "calm"}
        )

    supervisions = [
        spoken("s2", "two", 0.0, 0.4, "x", "male"),
        spoken("s3", "two", 0.5, 1.0, "y", "female"),
        spoken("s1", "one", 0.0, 0.5, "x", "male"),
    ]
    return root, lhotse.RecordingSet.from_recordings(found), lhotse.SupervisionSet.from_segments(supervisions)


def check_conversation(clips: list[dict[str, Any]], root: Path) -> None:
    one, two = clips
    assert all(check_audio(clip, root)[0] is None for clip in clips)
    assert (one["audio"], one["transcript"], one["speaker_id"], one["language"]) == (
        "audio/one.wav",
        "text s1",
        "x",
        "en",
    )
    assert one["attributes"] == {"gender": "male", "mood": "calm"} and one["duration"] == 0.5
    assert [segment["transcript"] for segment in two["segments"]] == ["text s2", "text s3"]
    assert two["segments"][1] == {"start": 0.5, "end": 1.0, "transcript": "text s3", "speaker": "y"}
    assert two["speakers"]["y"] == {"gender": "female", "mood": "calm"} and two["group"] == "two"


def test_recordings_and_supervisions_of_any_order(recordings: tuple[Path, Any, Any]) -> None:
    root, audio, supervisions = recordings
    audio.to_file(root / "x_recordings_all.jsonl.gz")
    supervisions.to_file(root / "x_supervisions_all.jsonl.gz")
    reader = {"type": "lhotse", "files": "*_recordings_*.jsonl.gz", "supervisions": "*_supervisions_*.jsonl.gz"}
    check_conversation(list(load_corpus(card(root, reader=reader), root)), root)


def test_cuts_of_whole_recordings(recordings: tuple[Path, Any, Any]) -> None:
    import lhotse

    root, audio, supervisions = recordings
    cuts = lhotse.CutSet.from_manifests(recordings=audio, supervisions=supervisions)
    cuts.to_file(root / "cuts.jsonl")
    path = card(root, reader={"type": "lhotse", "files": "cuts.jsonl"})
    check_conversation(list(load_corpus(path, root)), root)


def test_a_cut_that_is_no_file_of_its_own_is_refused(recordings: tuple[Path, Any, Any]) -> None:
    import lhotse

    root, audio, supervisions = recordings
    cuts = lhotse.CutSet.from_manifests(recordings=audio, supervisions=supervisions)
    path = card(root, reader={"type": "lhotse", "files": "cuts.jsonl"})
    cuts.trim_to_supervisions(keep_overlapping=False).to_file(root / "cuts.jsonl")
    with pytest.raises(CorpusError, match=r"cuts\.jsonl:\d: cut .* is only part of a recording of 1\.0 s; save it"):
        list(load_corpus(path, root))
    lhotse.CutSet.from_cuts([cut.pad(duration=3) for cut in cuts]).to_file(root / "cuts.jsonl")
    with pytest.raises(CorpusError, match=r"cuts\.jsonl:1: MixedCut has no audio file of its own"):
        list(load_corpus(path, root))
    cuts.perturb_speed(1.1).to_file(root / "cuts.jsonl")
    with pytest.raises(CorpusError, match=r"cuts\.jsonl:1: .*has transforms .* which are not applied"):
        list(load_corpus(path, root))


def test_a_cut_of_one_channel_is_refused_and_one_of_all_channels_is_read(tmp_path: Path) -> None:
    """Telephone speech: each side has a cut, a transcript, and half of the file."""
    lhotse = pytest.importorskip("lhotse")
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "call.wav", [[0.1, -0.2]] * 8000, 16_000)
    recording = lhotse.Recording.from_file(tmp_path / "call.wav")
    sides = [lhotse.MonoCut(f"side-{i}", 0, recording.duration, channel=i, recording=recording) for i in (0, 1)]
    path = card(tmp_path, reader={"type": "lhotse", "files": "cuts.jsonl"})
    lhotse.CutSet.from_cuts(sides).to_file(tmp_path / "cuts.jsonl")
    with pytest.raises(CorpusError, match=r"cuts\.jsonl:1: cut 'side-0' is channel 0 of a recording with .*\[0, 1\]"):
        list(load_corpus(path, tmp_path))
    both = lhotse.MultiCut("both", 0, recording.duration, channel=[0, 1], recording=recording)
    lhotse.CutSet.from_cuts([both]).to_file(tmp_path / "cuts.jsonl")
    assert [clip["audio"] for clip in load_corpus(path, tmp_path)] == ["call.wav"]


HF_CLIP = {"id": "{name}", "audio": "{audio}", "transcript": "{text}"}


@pytest.fixture
def dataset(replica: Replica) -> tuple[Path, Any]:
    """Data root and a dataset of three clips that carries their bytes, with a class label."""
    datasets = pytest.importorskip("datasets")
    root = replica({f"{name}.wav": 0.1 for name in "abc"})
    rows = {
        "name": ["a", "b", "c"],
        "text": ["one", "two", None],
        "mood": [0, 1, 0],
        "audio": [{"bytes": (root / f"{name}.wav").read_bytes(), "path": f"{name}.wav"} for name in "abc"],
    }
    made = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    made = made.cast_column("mood", datasets.ClassLabel(names=["calm", "angry"]))
    for name in "abc":
        (root / f"{name}.wav").unlink()
    return root, made


def check_dataset(clips: list[dict[str, Any]], root: Path) -> None:
    assert [clip["id"] for clip in clips] == ["a", "b", "c"]
    assert [clip["transcript"] for clip in clips] == ["one", "two", None]
    assert [clip["attributes"]["mood"] for clip in clips] == ["calm", "angry", "calm"]
    for clip in clips:
        assert check_audio(clip, root) == (None, 0.1)


def test_parquet_with_audio_inside_is_written_out_once(dataset: tuple[Path, Any]) -> None:
    root, made = dataset
    (root / "data").mkdir()
    made.to_parquet(root / "data" / "train-00000-of-00001.parquet")
    reader = {"type": "huggingface", "files": "data/*.parquet", "pattern": r"data/(?P<part>\w+)-.*"}
    split = {"by": "{part}", "values": {"train": "train", "validation": "valid"}}
    corpus = load_corpus(card(root, reader=reader, clip=HF_CLIP, attributes={"mood": "{mood}"}, split=split), root)
    clips = list(corpus)
    check_dataset(clips, root)
    assert {clip["split"] for clip in clips} == {"train"}
    folder = r"extracted_audio/data/train-00000-of-00001\.parquet-[0-9a-f]{12}"
    assert re.fullmatch(rf"{folder}/00000001\.wav", clips[1]["audio"])
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.wav")}
    assert list(corpus) == clips and {path: path.stat().st_mtime_ns for path in root.rglob("*.wav")} == times


def contents(clips: list[dict[str, Any]], root: Path) -> dict[str, bytes]:
    return {clip["id"]: (root / clip["audio"]).read_bytes() for clip in clips}


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_replaced_dataset_gives_its_own_audio_and_the_old_files_stay(dataset: tuple[Path, Any], kind: str) -> None:
    """All clips have the same number of bytes, as in every corpus of fixed length."""
    root, made = dataset
    expected = {row["name"]: row["audio"]["bytes"] for row in made}
    expected["a"] = expected["a"][:-1] + bytes([expected["a"][-1] ^ 1])
    path, reader = root / "x.parquet", {"type": "huggingface", "files": "x.parquet"}

    def write(data: Any) -> None:
        if kind == "parquet":
            data.to_parquet(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
            data.save_to_disk(str(path))

    made = made.map(lambda row: {"audio": {"bytes": expected[row["name"]], "path": f"{row['name']}.wav"}})
    write(made)
    corpus = card(root, reader=reader, clip=HF_CLIP)
    first = list(load_corpus(corpus, root))
    assert contents(first, root) == expected
    write(made.select([2, 1, 0]))
    second = list(load_corpus(corpus, root))
    assert [clip["id"] for clip in second] == ["c", "b", "a"]
    assert contents(second, root) == contents(first, root) == expected


def test_a_clip_that_was_changed_on_disk_is_written_again(dataset: tuple[Path, Any]) -> None:
    root, made = dataset
    made.to_parquet(root / "x.parquet")
    corpus = load_corpus(card(root, reader={"type": "huggingface", "files": "x.parquet"}, clip=HF_CLIP), root)
    clips = list(corpus)
    whole = (root / clips[0]["audio"]).read_bytes()
    (root / clips[0]["audio"]).write_bytes(b"?" * len(whole))
    assert list(corpus) == clips and (root / clips[0]["audio"]).read_bytes() == whole


def test_a_file_and_a_folder_of_one_name_and_two_audio_columns_have_files_of_their_own(
    dataset: tuple[Path, Any],
) -> None:
    import datasets

    root, made = dataset
    turned = [{"bytes": row["audio"]["bytes"] + b"end", "path": row["audio"]["path"]} for row in made]
    both = made.add_column("other", turned).cast_column("other", datasets.Audio(decode=False))
    both.to_parquet(root / "a.parquet")
    both.select([0, 1]).save_to_disk(str(root / "a"))
    expected = {row["name"]: row["audio"]["bytes"] for row in made}
    for files, ids in (("a.parquet", "abc"), ("a", "ab")):
        for column, more in (("audio", b""), ("other", b"end")):
            reader = {"type": "huggingface", "files": files}
            path = card(root, reader=reader, clip={**HF_CLIP, "audio": f"{{{column}}}"})
            clips = list(load_corpus(path, root))
            assert contents(clips, root) == {one: expected[one] + more for one in ids}


@pytest.mark.parametrize("way", ["above", "absolute", "symlink", "hidden symlink"])
def test_a_folder_outside_the_data_root_is_refused_before_anything_is_written(
    dataset: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory, way: str
) -> None:
    root, made = dataset
    outside = tmp_path_factory.mktemp("outside")
    (root / "data").mkdir()
    made.to_parquet(root / "data" / "x.parquet")
    if way == "symlink":
        (root / "link").symlink_to(outside)
    elif way == "hidden symlink":
        (root / "link").mkdir()
        (root / "link" / "data").symlink_to(outside)
    to = {"above": f"../{outside.name}", "absolute": str(outside)}.get(way, "link")
    reader = {"type": "huggingface", "files": "data/x.parquet", "extract_to": to}
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(CorpusError, match=r"x\.parquet:1: reader\.extract_to '.*' leads to .*below the data root"):
        list(load_corpus(card(root, reader=reader, clip=HF_CLIP), root))
    assert list(outside.iterdir()) == []
    assert sorted(root.parent.rglob("*")) == sorted([*before, root / "card.yaml"])


def test_a_saved_dataset_with_splits(dataset: tuple[Path, Any]) -> None:
    import datasets

    root, made = dataset
    parts = {"train": made.select([0, 1]), "validation": made.select([2])}
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))
    split = {"by": "{hf_split}", "values": {"train": "train", "validation": "valid"}}
    reader = {"type": "huggingface", "files": "saved"}
    path = card(root, reader=reader, clip=HF_CLIP, attributes={"mood": "{mood}"}, split=split)
    clips = list(load_corpus(path, root))
    check_dataset(clips, root)
    assert [clip["split"] for clip in clips] == ["train", "train", "valid"]


def test_columns_by_our_own_names_need_no_templates(dataset: tuple[Path, Any]) -> None:
    root, made = dataset
    made.rename_columns({"name": "id", "text": "transcript"}).save_to_disk(str(root / "saved"))
    check_dataset(list(load_corpus(card(root, reader={"type": "huggingface", "files": "saved"}), root)), root)


def test_a_parquet_file_that_is_cut_is_named(dataset: tuple[Path, Any]) -> None:
    root, made = dataset
    made.to_parquet(root / "x.parquet")
    (root / "x.parquet").write_bytes((root / "x.parquet").read_bytes()[:-20])
    path = card(root, reader={"type": "huggingface", "files": "x.parquet"}, clip=HF_CLIP)
    with pytest.raises(CorpusError, match=r"x\.parquet: not a whole parquet file"):
        list(load_corpus(path, root))


def test_missing_libraries_are_named_with_the_line_that_installs_them(
    dataset: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, made = dataset
    made.to_parquet(root / "x.parquet")
    made.save_to_disk(str(root / "saved"))
    for name, library, files in (("pyarrow.parquet", "pyarrow", "x.parquet"), ("datasets", "datasets", "saved")):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        path = card(root, reader={"type": "huggingface", "files": files}, clip=HF_CLIP)
        with pytest.raises(ImportError, match=f"pip install {library}"):
            list(load_corpus(path, root))
