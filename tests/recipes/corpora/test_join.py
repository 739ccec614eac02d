"""Dialogues and pairs: several utterances become one clip with a file of its own."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_desta.recipes import describe
from nemo_desta.recipes.corpora import CorpusError, check_audio, load_corpus
from nemo_desta.recipes.corpora.card import parse_card
from nemo_desta.recipes.corpora.corpus import Corpus

Replica = Callable[[Mapping[str, Any]], Path]
CARD: dict[str, Any] = {
    "name": "talk",
    "version": "1",
    "title": "Talks",
    "licence": "mine",
    "domain": "speech",
    "reader": {"type": "csv", "files": "turns.csv"},
    "clip": {
        "id": "{talk}-{n}",
        "audio": "{talk}-{n}.wav",
        "transcript": "{text}",
        "speaker_id": "{who?}",
        "group": "{talk}",
    },
    "attributes": {"gender": "{gender}", "emotion": "{mood}"},
    "join": {"kind": "dialogue", "max_secs": 0.5, "segment": ["emotion"]},
}
TURNS = "talk,n,who,gender,mood,text,at\n" + "\n".join(
    ["a,0,x,male,calm,Hi.,10.0", "a,1,y,female,sad,No.,10.2", "a,2,x,male,angry,Yes!,10.5", "b,0,z,male,calm,So.,3"]
)


def talk(root: Path, **join: Any) -> list[dict[str, Any]]:
    card = {**CARD, "join": {**CARD["join"], **join}}
    return list(Corpus(parse_card(card, where="talk"), root))


@pytest.fixture
def root(replica: Replica) -> Path:
    return replica({"turns.csv": TURNS, "a-0.wav": 0.3, "a-1.wav": 0.2, "a-2.wav": 0.4, "b-0.wav": 0.1})


def test_turns_follow_each_other_until_the_clip_is_long_enough(root: Path) -> None:
    first, second, third = talk(root)
    assert [clip["id"] for clip in (first, second, third)] == ["a_0", "a_1", "b_0"]
    assert first["duration"] == 0.5 and second["duration"] == 0.4 and first["group"] == "a"
    assert [(s["start"], s["end"], s["transcript"], s["speaker"]) for s in first["segments"]] == [
        (0.0, 0.3, "Hi.", "x"),
        (0.3, 0.5, "No.", "y"),
    ]
    assert first["segments"][1]["attributes"] == {"emotion": "sad"}
    assert first["speakers"] == {"x": {"gender": "male"}, "y": {"gender": "female"}} and first["attributes"] == {}
    parts = [soundfile.read(root / f"a-{n}.wav")[0] for n in (0, 1)]
    np.testing.assert_allclose(soundfile.read(root / first["audio"])[0], np.concatenate(parts), atol=1e-4)
    assert all(check_audio(clip, root)[0] is None for clip in (first, second, third))
    text = describe(first, "alarm")
    assert "[00:00-00:01, the first speaker, emotion: calm] Hi." in text and "number of speakers: 2" in text


def test_with_starts_utterances_keep_their_times_and_are_sorted_and_added_up(replica: Replica, root: Path) -> None:
    header, *rows = TURNS.splitlines()
    replica({"turns.csv": "\n".join([header, rows[1], rows[0], *rows[2:]])})
    first, second = talk(root, start="{at}", max_secs=0.8)
    assert [(s["start"], s["end"]) for s in first["segments"]] == [(0.0, 0.3), (0.2, 0.4), (0.5, 0.9)]
    assert second["id"] == "b_0" and first["duration"] == 0.9 and "start" not in first
    mixed = np.zeros(14400)
    for begin, n in ((0, 0), (3200, 1), (8000, 2)):
        one = soundfile.read(root / f"a-{n}.wav")[0]
        mixed[begin : begin + len(one)] += one
    np.testing.assert_allclose(soundfile.read(root / first["audio"])[0], np.clip(mixed, -1, 1), atol=1e-4)


def test_a_file_that_cannot_be_read_ends_the_clip_and_is_counted(replica: Replica, root: Path) -> None:
    replica({"a-1.wav": "no audio"})
    clips = talk(root)
    assert [clip["id"] for clip in clips] == ["a_0", "a-1", "a_1", "b_0"]
    assert [clip["id"] for clip in clips if check_audio(clip, root)[0] is not None] == ["a-1"]


def test_a_file_that_is_cut_is_in_no_joined_file(root: Path) -> None:
    whole = (root / "a-1.wav").read_bytes()
    talk(root)
    (root / "a-1.wav").write_bytes(whole[: len(whole) // 2])
    (root / "joined_audio/talk/a_0.wav").unlink()
    clips = {clip["id"]: clip for clip in talk(root)}
    assert {name: (check_audio(clip, root)[0] is None, clip["duration"]) for name, clip in clips.items()} == {
        "a_0": (True, 0.3),
        "a-1": (False, None),
        "a_1": (True, 0.4),
        "b_0": (True, 0.1),
    }


def test_a_joined_file_is_written_once_and_again_when_its_length_changes(replica: Replica, root: Path) -> None:
    path = root / talk(root)[0]["audio"]
    before = path.stat().st_mtime_ns
    talk(root)
    assert path.stat().st_mtime_ns == before
    replica({"a-1.wav": 0.25})
    assert talk(root)[0]["duration"] == 0.55 and soundfile.info(path).frames == 8800


def test_rows_of_one_dialogue_follow_each_other(replica: Replica, root: Path) -> None:
    replica({"turns.csv": "\n".join([*TURNS.splitlines(), "a,3,x,male,calm,Hi.,11"]), "a-3.wav": 0.1})
    with pytest.raises(CorpusError, match="dialogue 'a': its rows must follow each other"):
        talk(root)


def test_files_of_one_clip_have_one_sampling_rate(root: Path) -> None:
    soundfile.write(root / "a-1.wav", np.zeros(1600), 8000)
    with pytest.raises(CorpusError, match=r"a-1\.wav has 8000 Hz and a-0\.wav 16000 Hz"):
        talk(root)


@pytest.mark.parametrize("start", ["", "soon", "nan"])
def test_a_start_is_needed_where_the_card_has_one(replica: Replica, root: Path, start: str) -> None:
    replica({"turns.csv": TURNS.replace("10.2", start)})
    with pytest.raises(CorpusError, match=r"utterance 'a-1' has no start in seconds \(join.start\)"):
        talk(root, start="{at}")


def test_after_a_long_silence_a_new_clip_starts(replica: Replica, root: Path) -> None:
    replica({"turns.csv": TURNS.replace("10.5", "1e9")})
    assert [clip["duration"] for clip in talk(root, start="{at}", max_secs=5)] == [0.4, 0.4, 0.1]


def test_joined_files_stay_below_the_data_root_whatever_a_dialogue_is_called(replica: Replica, root: Path) -> None:
    replica({"turns.csv": TURNS.replace("a,", "../a/c,")})
    card = {**CARD, "clip": {**CARD["clip"], "id": "{talk|stem}-{n}", "audio": "a-{n}.wav"}}
    names = [clip["audio"] for clip in Corpus(parse_card(card, where="talk"), root)]
    assert all((root / name).parent == root / "joined_audio/talk" and ".." not in name for name in names)
    with pytest.raises(CorpusError, match="extract_to '../talk' is not a file below the data root"):
        talk(root, extract_to="..")
    (root / "link").symlink_to("/tmp")
    with pytest.raises(CorpusError, match="extract_to leads to /tmp/talk; it must be a folder below the data root"):
        talk(root, extract_to="link")
    (root / "file").write_text("")
    with pytest.raises(CorpusError, match=r"cannot write .*a_0\.wav: .*; set join.extract_to"):
        replica({"turns.csv": TURNS})
        talk(root, extract_to="file")


def pairs_of(replica: Replica, num_speakers: int = 6, **join: Any) -> list[dict[str, Any]]:
    rows = [
        {"id": f"{who}{n}", "audio": f"{who}{n}.wav", "speaker_id": f"s{who}", "domain": "speech", "split": "train"}
        | {"attributes": {"gender": "male" if who % 2 else "female"}, "group": f"s{who}"}
        for who in range(num_speakers)
        for n in "abc"
    ]
    audio = {row["audio"]: 0.05 for row in rows}
    root = replica({"manifest.jsonl": "\n".join(map(json.dumps, rows)), **audio})
    return list(load_corpus("jsonl", root, overrides={"join": {"kind": "pairs", "num_pairs": 2, **join}}))


def test_pairs_are_of_the_same_and_of_other_speakers_of_each_gender(replica: Replica) -> None:
    clips = pairs_of(replica)
    assert len(clips) == 6 * (2 + 2 + 2) and len({clip["id"] for clip in clips}) == len(clips)
    for clip in clips:
        first, second = (segment["speaker"] for segment in clip["segments"])
        assert clip["attributes"]["same_speaker"] == ("yes" if first == second else "no")
        assert clip["duration"] == 0.1 and clip["segments"][1]["start"] == 0.05
        assert len(set(clip["id"].split("-"))) == 2  # never an utterance with itself
    of_first = [clip for clip in clips if clip["segments"][0]["speaker"] == "s0"]
    kinds = [(c["attributes"]["same_speaker"], c["speakers"][c["segments"][1]["speaker"]]["gender"]) for c in of_first]
    expected = {("yes", "female"): 2, ("no", "female"): 2, ("no", "male"): 2}
    assert {kind: kinds.count(kind) for kind in kinds} == expected


def test_pairs_follow_the_seed_and_two_speakers_of_two_splits_make_none(replica: Replica) -> None:
    ids = [clip["id"] for clip in pairs_of(replica)]
    assert ids == [clip["id"] for clip in pairs_of(replica)]
    assert ids != [clip["id"] for clip in pairs_of(replica, seed=1)]
    root = replica(
        {
            "manifest.jsonl": "\n".join(
                json.dumps(
                    {"id": s, "audio": "0a.wav", "domain": "speech", "speaker_id": s, "split": s, "attributes": {}}
                )
                for s in ("train", "test")
            )
        }
    )
    assert list(load_corpus("jsonl", root, overrides={"join": {"kind": "pairs"}})) == []


def test_pairs_need_speakers(replica: Replica) -> None:
    root = replica({"manifest.jsonl": json.dumps({"id": "a", "audio": "a.wav", "domain": "speech"}), "a.wav": 0.1})
    with pytest.raises(CorpusError, match="utterance 'a' has no speaker_id"):
        list(load_corpus("jsonl", root, overrides={"join": {"kind": "pairs"}}))


def test_a_wrong_kind_is_refused() -> None:
    with pytest.raises(CorpusError, match="join.kind 'dialog' is not known. Did you mean 'dialogue'"):
        parse_card({**CARD, "join": {"kind": "dialog"}}, where="talk")
