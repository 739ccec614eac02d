"""Clips that are parts of recordings, and the readers that give their times."""

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
    "name": "parts",
    "version": "1",
    "title": "Parts",
    "licence": "mine",
    "domain": "speech",
    "reader": {"type": "csv", "files": "segments.csv"},
    "clip": {"id": "{id}", "audio": "{wav}.wav", "transcript": "{text}", "group": "{wav}"},
    "cut": {"start": "{from}", "end": "{to}"},
}
HEADER = "id,wav,from,to,text\n"


def parts(root: Path, **cut: Any) -> list[dict[str, Any]]:
    return list(Corpus(parse_card({**CARD, "cut": {**CARD["cut"], **cut}}, where="parts"), root))


def test_a_part_is_written_once_and_equals_its_samples(replica: Replica) -> None:
    root = replica({"segments.csv": f"{HEADER}a,long,0.1,0.25,Hi.\nb,long,0.25,0.5001,No.\n", "long.wav": 0.5})
    first, second = parts(root)
    samples, rate = soundfile.read(root / "long.wav")
    for clip, (begin, end) in zip((first, second), ((1600, 4000), (4000, 8000)), strict=True):
        assert clip["duration"] == (end - begin) / rate and clip["audio"].startswith("cut_audio/parts/")
        np.testing.assert_allclose(soundfile.read(root / clip["audio"])[0], samples[begin:end], atol=1e-4)
        assert check_audio(clip, root)[0] is None and not {"cut_start", "cut_end"} & clip.keys()
    written = (root / first["audio"]).stat().st_mtime_ns
    assert parts(root)[0] == first and (root / first["audio"]).stat().st_mtime_ns == written
    (root / "segments.csv").write_text(f"{HEADER}a,long,0.2,0.35,Hi.\n")
    (moved,) = parts(root)  # the same length, another place
    np.testing.assert_allclose(soundfile.read(root / moved["audio"])[0], samples[3200:5600], atol=1e-4)


def test_without_an_end_the_part_reaches_to_the_end(replica: Replica) -> None:
    root = replica({"segments.csv": f"{HEADER}a,long,0.3,,Hi.\n", "long.wav": 0.5})
    assert parts(root)[0]["duration"] == pytest.approx(0.2)
    assert parts(root, end=None)[0]["duration"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ("0.3,0.3", "clip 'a' ends at 0.3 s, before or at its start 0.3 s (cut)"),
        ("soon,1", "clip 'a': cut.start must be seconds, found 'soon'"),
        ("0,nan", "clip 'a': cut.end must be seconds, found 'nan'"),
        ("-1,1", "cut.start must be seconds"),
        ("0.2,1.3", "clip 'a' is 0.2 to 1.3 s of long.wav, which has 0.5 s (cut)"),
        ("0.5,0.6", "which has 0.5 s (cut)"),
    ],
)
def test_a_part_that_is_not_there_is_an_error(replica: Replica, times: str, words: str) -> None:
    root = replica({"segments.csv": f"{HEADER}a,long,{times},Hi.\n", "long.wav": 0.5})
    with pytest.raises(CorpusError) as caught:
        parts(root)
    assert words in str(caught.value)


def test_parts_of_a_missing_or_damaged_recording_are_counted_as_missing(replica: Replica) -> None:
    root = replica({"segments.csv": f"{HEADER}a,gone,0,0.2,Hi.\nb,bad,0,0.2,No.\n", "bad.wav": b"RIFF1234WAVE"})
    for clip in parts(root):
        assert clip["duration"] == 0.2 and check_audio(clip, root)[0].reason == "missing audio"


def test_parts_are_written_only_below_the_data_root(
    replica: Replica, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = replica({"segments.csv": f"{HEADER}../../x,long,0,0.2,Hi.\n", "long.wav": 0.5})
    assert "/" not in parts(root)[0]["audio"].removeprefix("cut_audio/parts/")
    with pytest.raises(CorpusError, match="not a file below the data root"):
        parts(root, extract_to="../elsewhere")
    (root / "link").symlink_to(tmp_path_factory.mktemp("outside"))
    with pytest.raises(CorpusError, match="must be a folder below the data root"):
        parts(root, extract_to="link")


GRID = """File type = "ooTextFile"
Object class = "TextGrid"
xmin = 0
xmax = 2
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "{name}"
        xmin = 0
        xmax = 2
        intervals: size = 3
        intervals [1]:
            xmin = {first[0]}
            xmax = {first[1]}
            text = "{first[2]}"
        intervals [2]:
            xmin = 1.9
            xmax = 1.95
            text = ""
        intervals [3]:
            xmin = {last[0]}
            xmax = {last[1]}
            text = "{last[2]}"
"""


def test_alimeeting_is_cut_and_joined(replica: Replica) -> None:
    one = GRID.format(name="SPK1", first=(0.2, 0.6, "\u4f60\u597d"), last=(1.0, 1.4, 'said ""so""\nand more'))
    two = GRID.format(name="SPK2", first=(0.5, 0.9, "\u597d"), last=(41.0, 41.2, "late"))
    root = replica(
        {
            "Train_Ali_near/textgrid_dir/R1_M1_F_SPK1.TextGrid": one,
            "Train_Ali_near/textgrid_dir/R1_M1_M_SPK2.TextGrid": two,
            "Train_Ali_near/audio_dir/R1_M1_F_SPK1.wav": 2.0,
            "Train_Ali_near/audio_dir/R1_M1_M_SPK2.wav": 42.0,
        }
    )
    first, second = load_corpus("alimeeting", root)
    assert [(s["start"], s["end"], s["transcript"]) for s in first["segments"]] == [
        (0.0, 0.4, "\u4f60\u597d"),
        (0.3, 0.7, "\u597d"),
        (0.8, 1.2, 'said "so" and more'),
    ]
    assert first["speakers"]["alimeeting_SPK1"]["gender"] == "female" and first["split"] == "train"
    assert second["segments"][0]["transcript"] == "late" and second["duration"] == pytest.approx(0.2)
    assert check_audio(first, root)[0] is None and "the second speaker" in describe(first, "alarm")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('item []:\n name = "x"\n intervals [1]:\n xmin = 0\n xmax = 1\n text = "open\n', "no closing quote"),
        ('"ooTextFile"\n0\n2\n', "no tier"),
        ('name = "x"\nintervals [1]:\n xmin = soon\n', ":3: expected seconds, found 'soon'"),
    ],
)
def test_a_textgrid_that_is_cut_is_named(replica: Replica, content: str, words: str) -> None:
    card = {**CARD, "reader": {"type": "textgrid", "files": "a.TextGrid"}, "cut": None}
    card |= {"clip": {"id": "{start}", "audio": "a.wav"}}
    with pytest.raises(CorpusError) as caught:
        list(Corpus(parse_card(card, where="grid"), replica({"a.TextGrid": content})))
    assert "a.TextGrid" in str(caught.value) and words in str(caught.value)


def test_mucs_cuts_its_tutorials(replica: Replica) -> None:
    folder = "Hindi-English/train/transcripts"
    root = replica(
        {
            f"{folder}/segments": "u1 r1 0.1 0.3\nu2 r1 0.3 0.6\n",
            f"{folder}/text": "u1 \u0928\u092e\u0938\u094d\u0924\u0947 bash\nu2 and so on\n",
            "Hindi-English/train/r1.wav": 1.0,
        }
    )
    clips = list(load_corpus("mucs", root))
    assert [clip["id"] for clip in clips] == ["mucs_u1", "mucs_u2"]
    assert clips[1]["transcript"] == "and so on" and clips[1]["duration"] == pytest.approx(0.3)
    assert clips[0]["group"] == "mucs_r1" and "Hindi" in clips[0]["attributes"]["languages"]
    assert all(check_audio(clip, root)[0] is None for clip in clips)


def test_each_question_of_a_chat_is_a_clip_with_what_was_said_before(replica: Replica) -> None:
    turns = [
        {"from": "human", "speech": "data/en/wav/x/x-0.wav", "text": "What is a tree?"},
        {"from": "gpt", "text": "A plant."},
        {"from": "human", "speech": "data/en/wav/x/x-2.wav", "text": "How tall?"},
    ]
    rows = [{"id": "chat1", "conversation": turns}]
    root = replica({"s2s.json": json.dumps(rows), "en/wav/x/x-0.wav": 0.1, "en/wav/x/x-2.wav": 0.1})
    first, second = load_corpus("instructs2s", root)
    assert (first["id"], first["transcript"]) == ("instructs2s_chat1_0", "What is a tree?")
    assert first["attributes"] == {} and first["group"] == second["group"]
    assert second["attributes"] == {"passage": "User: What is a tree?\nAssistant: A plant."}
    assert second["id"] == "instructs2s_chat1_2" and check_audio(second, root)[0] is None
    (root / "s2s.json").write_text(json.dumps([{"id": "a", "conversation": "none"}]))
    with pytest.raises(CorpusError, match=r"'conversation' \(reader.turns\) must be a list of objects"):
        list(load_corpus("instructs2s", root))


def test_sonicmaster_reads_its_json_and_only_its_columns(replica: Replica, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    root = replica({"one.wav": 0.1})
    meta = {"name": "Song", "genres": ["rock", "pop"], "vocalinstrumental": "instrumental", "vartags": ["loud"]}
    meta |= {"degradations": ["reverb"], "split": "train"}
    wav = (root / "one.wav").read_bytes()
    table = {"id": ["7"], "input_flac": [wav], "gt_flac": [wav], "meta": [json.dumps(meta)]}
    (root / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), root / "data" / "train-0.parquet")
    (clip,) = load_corpus("sonicmaster", root)
    assert clip["attributes"]["genre"] == ["rock", "pop"] and clip["attributes"]["degradation"] == ["reverb"]
    assert clip["split"] in ("train", "valid") and check_audio(clip, root)[0] is None
    assert len(list((root / "extracted_audio").rglob("*.wav"))) == 1
    pyarrow.parquet.write_table(pyarrow.table({**table, "meta": ["[1]"]}), root / "data" / "train-0.parquet")
    with pytest.raises(CorpusError, match=r"column 'meta' \(reader.json_columns\) holds no JSON object"):
        list(load_corpus("sonicmaster", root))


def test_mixtures_start_together_and_follow_from_the_seed(replica: Replica) -> None:
    speakers = "".join(f"{n} | {sex} | train-clean-100 | 1 | N\n" for n, sex in ((1, "F"), (2, "M"), (3, "M")))
    files: dict[str, Any] = {"SPEAKERS.TXT": speakers}
    for n in (1, 2, 3):
        files[f"train-clean-100/{n}/5/{n}-5.trans.txt"] = f"{n}-5-0000 HELLO {n}\n{n}-5-0001 GOOD BYE\n"
        files |= {f"train-clean-100/{n}/5/{n}-5-{k:04d}.flac": 0.1 * n + 0.05 * k for k in (0, 1)}
    root = replica(files)
    one_split = {"split": {"shares": {"train": 1.0, "valid": 0.0}}}
    clips = list(load_corpus("librispeech_mixtures", root, overrides=one_split))
    assert len(clips) == 6 and {len(clip["speakers"]) for clip in clips} <= {2, 3}
    assert [clip["id"] for clip in load_corpus("librispeech_mixtures", root, overrides=one_split)] == [
        clip["id"] for clip in clips
    ]
    other = load_corpus("librispeech_mixtures", root, overrides={**one_split, "join": {"seed": 5}})
    assert [clip["id"] for clip in other] != [clip["id"] for clip in clips]
    for clip in clips:
        assert {segment["start"] for segment in clip["segments"]} == {0.0}
        assert clip["duration"] == pytest.approx(max(segment["end"] for segment in clip["segments"]), abs=1e-3)
        parts = [soundfile.read(next(root.rglob(f"{name}.flac")))[0] for name in _utterances(clip["id"])]
        mixed = np.zeros(max(map(len, parts)))
        for part in parts:
            mixed[: len(part)] += part
        mixed /= max(1.0, np.abs(mixed).max())
        np.testing.assert_allclose(soundfile.read(root / clip["audio"])[0], mixed, atol=2e-4)
        assert "number of speakers" in describe(clip, "alarm")


def _utterances(name: str) -> list[str]:
    words = name.split("-")
    return ["-".join(words[i : i + 3]) for i in range(0, len(words), 3)]
