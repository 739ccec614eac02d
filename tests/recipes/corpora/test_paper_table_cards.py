"""Cards of tables of Hugging Face and of dialogues and pairs, on rows as their hosts describe them."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_desta.recipes import describe
from nemo_desta.recipes.corpora import check_audio, load_corpus

Replica = Callable[[Mapping[str, Any]], Path]


def sound(value: float = 0.02) -> dict[str, Any]:
    """An audio cell as Hugging Face stores it: the bytes of a file and its name."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(round(value * 16000), 0.1), 16000, format="WAV")
    return {"bytes": buffer.getvalue(), "path": "x.wav"}


# card -> its file (without a suffix: a saved dataset), a row, and id, split ('': any), transcript, attributes
TABLES: dict[str, tuple[str, dict[str, Any], tuple[str, str, str | None, dict[str, Any]]]] = {
    "globe": (
        "data/val-00000-of-00002.parquet",
        {"audio": sound(), "speaker_id": "S_1", "transcript": "Hi.", "accent": "Scottish English", "duration": 0.02}
        | {"age": "teens", "gender": "male"},
        (
            "globe_val-00000-of-00002_00000000",
            "valid",
            "Hi.",
            {"gender": "male", "accent": "Scottish English", "age": "teens"},
        ),
    ),
    "expresso": (
        "read/train-00000-of-00012.parquet",
        {"audio": sound(), "text": "Hi.", "speaker_id": "ex01", "style": "confused", "id": "ex01_confused_00001"},
        ("expresso_ex01_confused_00001", "", "Hi.", {"style": "confused"}),
    ),
    "cszs": (
        "data/dev-00000-of-00005.parquet",
        {"correct_audio": sound(), "correct_transcription": "我 like it", "correct_file": "a/1.wav"}
        | {"wrong_audio": sound(), "wrong_transcription": "it 我 like", "wrong_file": "a/2.wav"},
        ("cszs_dev_1", "valid", "我 like it", {"languages": "Chinese and English"}),
    ),
    "disfluency_speech": (
        "data/validation-00000-of-00001.parquet",
        {"audio": sound(), "transcript_annotated": "{F uh, } no", "transcript_a": "uh, no", "transcript_b": "no"},
        (
            "disfluency_speech_validation-00000-of-00001_00000000",
            "valid",
            "uh, no",
            {"style": "conversational", "annotated": "{F uh, } no"},
        ),
    ),
    "ascend": (
        "main/train-00000-of-00003.parquet",
        {"id": "7", "path": "x", "audio": sound(), "transcription": "我刚刚开始record", "duration": 0.02}
        | {"language": "mixed", "original_speaker_id": 3, "session_id": 1, "topic": "persona"},
        (
            "ascend_train_7",
            "train",
            "我刚刚开始record",
            {"languages": "Chinese and English", "style": "conversational", "topic": "persona"},
        ),
    ),
    "heysquad": (
        "data/validation-00000-of-00002.parquet",
        {"audio": sound(), "transcription": "who was", "question": "Who was it?", "context": "It was he.", "id": "5a"},
        (
            "heysquad_validation-00000-of-00002_00000000",
            "valid",
            "Who was it?",
            {"passage": "It was he.", "heard": "who was"},
        ),
    ),
    "fleurs": (
        "fr_fr/fleurs-test.parquet",
        {"id": 4, "path": "12.wav", "audio": sound(), "transcription": "bonjour", "raw_transcription": "Bonjour."}
        | {"gender": "female", "language": "French"},
        (
            "fleurs_fr_fr_test_12",
            "test",
            "Bonjour.",
            {"language": "French", "gender": "female", "style": "read"},
        ),
    ),
    "cameo": (
        "cameo",
        {"file_id": "a/1.wav", "audio": sound(), "emotion": "Anger", "transcription": "Ja.", "speaker_id": "s1"}
        | {"gender": "female", "age": "29", "dataset": "PAVOQUE", "language": "German"},
        ("cameo_PAVOQUE_1", "", "Ja.", {"emotion": "anger", "gender": "female", "age": "29"}),
    ),
    "speechocean762": (
        "speechocean762",
        {"accuracy": 9, "completeness": 10.0, "fluency": 8, "prosodic": 7, "text": "MARK IS HERE", "total": 9}
        | {"audio": sound()},
        (
            "speechocean762_train_00000000",
            "train",
            "Mark is here",
            {"accent": "Chinese", "pronunciation_score": "9 of 10", "fluency_score": "8 of 10"}
            | {"prosody_score": "7 of 10", "total_score": "9 of 10"},
        ),
    ),
    "audioset": (
        "audioset",
        {"video_id": "--PJ", "audio": sound(), "labels": ["/m/09x0r"], "human_labels": ["Speech", "Gush"]},
        ("audioset_--PJ", "train", None, {"sound_class": ["Speech", "Gush"]}),
    ),
}


@pytest.mark.parametrize("card", TABLES)
def test_rows_of_hugging_face_read_to_their_clips(card: str, tmp_path: Path) -> None:
    name, row, (clip_id, split, transcript, attributes) = TABLES[card]
    save(tmp_path / name, [row])
    corpus = load_corpus(card, tmp_path)
    (clip,) = corpus
    assert clip["id"] == clip_id and check_audio(clip, tmp_path)[0] is None
    assert clip["split"] == split or not split and clip["split"] in ("train", "valid", "test")
    assert (clip.get("transcript"), clip["attributes"]) == (transcript, attributes)


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a parquet file, or as the split train of a saved dataset where the path has no ending."""
    if path.suffix:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        datasets = pytest.importorskip("datasets")
        datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(str(path))


def test_ami_meetings_become_clips_in_which_each_speaks_at_their_time(tmp_path: Path) -> None:
    def row(begin: float, speaker: str, text: str) -> dict[str, Any]:
        times = {"begin_time": begin, "end_time": begin + 0.5, "microphone_id": "H00", "speaker_id": speaker}
        return {"meeting_id": "EN2001a", "audio_id": f"AMI_{begin}", "text": text, "audio": sound(0.5), **times}

    save(tmp_path / "ami", [row(10.25, "MEE068", "OKAY"), row(10.0, "FEO065", "HMM"), row(80.0, "MEE068", "YEAH")])
    first, second = load_corpus("ami", tmp_path, overrides={"join": {"max_secs": 0.7}})
    assert [(s["start"], s["end"], s["transcript"]) for s in first["segments"]] == [
        (0.0, 0.5, "Hmm"),
        (0.25, 0.75, "Okay"),
    ]
    assert first["duration"] == 0.75 and second["duration"] == 0.5 and first["group"] == second["group"] == "EN2001a"
    assert {name: known["gender"] for name, known in first["speakers"].items()} == {
        "FEO065": "female",
        "MEE068": "male",
    }


def test_dailytalk(replica: Replica) -> None:
    def turn(speaker: int, text: str, emotion: str) -> dict[str, Any]:
        return {"speaker": speaker, "text": text, "emotion": emotion, "act": "inform", "topic": "work", "turn": 0}

    talk = {"0": {"0": turn(1, "Hi.", "no emotion"), "1": turn(0, "Hello.", "happiness")}}
    root = replica({"metadata.json": json.dumps(talk), "data/0/0_1_d0.wav": 0.1, "data/0/1_0_d0.wav": 0.2})
    corpus = load_corpus("dailytalk", root)
    (clip,) = corpus
    assert clip["id"] == "dailytalk_0_0" and [s["transcript"] for s in clip["segments"]] == ["Hi.", "Hello."]
    assert [s["attributes"]["emotion"] for s in clip["segments"]] == ["neutral", "happy"]
    assert clip["speakers"]["dailytalk_1"] == {"gender": "female"} and clip["duration"] == pytest.approx(0.3)
    text = describe(clip, exclude=corpus.not_audible)
    assert "work" not in text and "Speech act: inform" in text


def test_meld_dialogues(replica: Replica) -> None:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
    rows = "1,No.,Chandler,joy,positive,0,0,8,21,0,1\n2,Yes.,Joey,sadness,negative,0,1,8,21,1,2\n"
    other = "1,So?,Ross,neutral,neutral,0,0,4,7,0,1\n"
    tables = {"train_sent_emo.csv": header + rows, "dev_sent_emo.csv": header + other, "test_sent_emo.csv": header}
    root = replica(
        {**tables, **{f"audio/{name}.wav": 0.1 for name in ("train/dia0_utt0", "train/dia0_utt1", "dev/dia0_utt0")}}
    )
    corpus = load_corpus("meld_dialogues", root)
    clips = list(corpus)
    assert [(clip["id"], clip["split"]) for clip in clips] == [
        ("meld_train_dia0_0", "train"),
        ("meld_dev_dia0_0", "valid"),
    ]
    assert [s["attributes"] for s in clips[0]["segments"]] == [
        {"emotion": "joyful", "sentiment": "positive"},
        {"emotion": "sad", "sentiment": "negative"},
    ]
    assert "Chandler" not in describe(clips[0], exclude=corpus.not_audible)


def test_voxceleb1_pairs(replica: Replica) -> None:
    meta = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
    speakers = {f"id1000{n}": "mf"[n % 2] for n in range(4)}
    meta += "".join(f"{name}\tA.J._Buckley\t{gender}\tIreland\ttest\n" for name, gender in speakers.items())
    audio = {f"wav/{name}/v/0000{n}.wav": 0.02 for name in speakers for n in (1, 2)}
    corpus = load_corpus("voxceleb1_pairs", replica({"vox1_meta.csv": meta, **audio}))
    clips = list(corpus)
    assert len(clips) == 4 * (2 + 1 + 2) and {clip["split"] for clip in clips} == {"test"}
    same = [clip["attributes"]["same_speaker"] for clip in clips]
    assert (same.count("yes"), same.count("no")) == (8, 12)
    shown = [describe(clip, exclude=corpus.not_audible) for clip in clips]
    assert all("Same speaker: " in text and "Buckley" not in text and "Ireland" not in text for text in shown)
