"""Shipped cards of speech corpora on replicas of their folders, file names and metadata headers."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.recipes import describe
from nemo_desta.recipes.corpora import CorpusError, check_audio, load_corpus

Replica = Callable[[Mapping[str, Any]], Path]
SPEAKERS = """;ID  |SEX| SUBSET           |MINUTES| NAME
84   | F | dev-clean        | 8.02  | Christie Nowak
103  | F | train-clean-100  | 25.04 | Karen Savage
1089 | M | test-clean       | 8.03  | Peter Bobbe | a second name
"""


def by_id(card: str, root: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Clips of a corpus by id; every one with sound audio, a split, and no group in two splits."""
    clips = list(load_corpus(card, root, **options))
    groups: dict[str, str] = {}
    for clip in clips:
        assert clip["source"] == card
        assert check_audio(clip, root)[0] is None
        assert clip["split"] in ("train", "valid", "test")
        assert groups.setdefault(clip["group"], clip["split"]) == clip["split"]
    return {clip["id"]: clip for clip in clips}


def splits(clips: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: clip["split"] for name, clip in clips.items()}


def shown(card: str, root: Path) -> Iterable[str]:
    corpus = load_corpus(card, root)
    return [describe({**clip, "duration": 1.0}, exclude=corpus.not_audible) for clip in corpus]


def test_fsdd(replica: Replica) -> None:
    root = replica(
        {
            "recordings/0_jackson_0.wav": 0.02,
            "recordings/7_theo_12.wav": 0.02,
            "recordings/9_nicolas_49.wav": 0.02,
            "metadata.py": "metadata = {}",
        }
    )
    clips = by_id("fsdd", root)
    assert splits(clips) == {"fsdd_0_jackson_0": "train", "fsdd_7_theo_12": "test", "fsdd_9_nicolas_49": "valid"}
    assert clips["fsdd_7_theo_12"]["transcript"] == "seven"
    accents = [clip["attributes"]["accent"] for clip in clips.values()]
    assert accents == ["American English", "American English", "Belgian French"]
    assert clips["fsdd_0_jackson_0"]["audio"] == "recordings/0_jackson_0.wav"


def test_ravdess(replica: Replica) -> None:
    names = ["Actor_01/03-01-06-02-02-01-01", "Actor_18/03-01-05-01-01-02-18", "Actor_20/03-02-02-01-01-01-20"]
    root = replica({f"{name}.wav": 0.02 for name in names})
    clips = by_id("ravdess", root)
    assert list(splits(clips).values()) == ["train", "valid", "test"]
    first, second, song = clips.values()
    assert first["id"] == "ravdess_03-01-06-02-02-01-01"
    assert first["transcript"] == "Dogs are sitting by the door."
    assert first["attributes"] == {
        "gender": "male",
        "accent": "North American English",
        "emotion": "fearful",
        "intensity": "strong",
        "style": "spoken",
    }
    assert second["attributes"]["gender"] == song["attributes"]["gender"] == "female"
    assert song["attributes"]["style"] == "sung" and song["group"] == "ravdess_20"


def test_librispeech(replica: Replica) -> None:
    root = replica(
        {
            "SPEAKERS.TXT": "; Some pipe(|) separated metadata\n" + SPEAKERS,
            "train-clean-100/103/1240/103-1240.trans.txt": "103-1240-0000 CHAPTER ONE MISSUS RACHEL LYNDE\n"
            "103-1240-0001 THAT HAD ITS SOURCE AWAY BACK\n",
            "train-clean-100/103/1240/103-1240-0000.flac": 0.02,
            "train-clean-100/103/1240/103-1240-0001.flac": 0.02,
            "dev-clean/84/121123/84-121123.trans.txt": "84-121123-0000 GO\n",
            "dev-clean/84/121123/84-121123-0000.flac": 0.02,
            "test-clean/1089/134686/1089-134686.trans.txt": "1089-134686-0000 HE HOPED THERE WOULD BE STEW\n",
            "test-clean/1089/134686/1089-134686-0000.flac": 0.02,
        }
    )
    clips = by_id("librispeech", root)
    assert splits(clips) == {
        "librispeech_84-121123-0000": "valid",
        "librispeech_1089-134686-0000": "test",
        "librispeech_103-1240-0000": "train",
        "librispeech_103-1240-0001": "train",
    }
    clip = clips["librispeech_103-1240-0000"]
    assert clip["transcript"] == "Chapter one missus rachel lynde"
    assert clip["attributes"] == {"gender": "female", "style": "read audiobook", "reader_name": "Karen Savage"}
    assert clips["librispeech_1089-134686-0000"]["attributes"]["gender"] == "male"
    assert not any("Karen" in text or "Peter" in text for text in shown("librispeech", root))


def test_librispeech_names_the_row_whose_speaker_is_in_no_table(replica: Replica) -> None:
    root = replica({"SPEAKERS.TXT": SPEAKERS, "dev-clean/85/1/85-1.trans.txt": "85-1-0000 GO\n"})
    with pytest.raises(CorpusError, match=r"85-1\.trans\.txt:1: table 'speakers' \(SPEAKERS\.TXT\) has no row '85'"):
        list(load_corpus("librispeech", root))


def test_libritts_r(replica: Replica) -> None:
    root = replica(
        {
            "SPEAKERS.txt": SPEAKERS,
            "train-clean-100/103/1241/103_1241_000000_000001.wav": 0.02,
            "train-clean-100/103/1241/._103_1241_000000_000001.wav": "a file of another system",
            "train-clean-100/103/1241/103_1241_000000_000001.normalized.txt": "matthew Cuthbert is surprised\n",
            "train-clean-100/103/1241/103_1241_000000_000001.original.txt": "Matthew Cuthbert is surprised\n",
            "train-clean-100/103/1241/103_1241.trans.tsv": "103_1241_000000_000001\t...\t...\n",
            "dev-clean/84/121123/84_121123_000007_000001.wav": 0.02,
            "dev-clean/84/121123/84_121123_000007_000001.normalized.txt": "Maximilian.",
        }
    )
    clips = by_id("libritts_r", root)
    assert splits(clips) == {
        "libritts_r_84_121123_000007_000001": "valid",
        "libritts_r_103_1241_000000_000001": "train",
    }
    assert [clip["transcript"] for clip in clips.values()] == ["Maximilian.", "matthew Cuthbert is surprised"]
    assert {clip["attributes"]["gender"] for clip in clips.values()} == {"female"}


def test_ljspeech(replica: Replica) -> None:
    rows = [
        'LJ001-0001|Printing, in the "only" sense|Printing, in the "only" sense',
        "LJ049-0002|1964|nineteen sixty-four",
    ]
    rows.append("LJ050-0278|the end|the end")
    names = ("LJ001-0001", "LJ049-0002", "LJ050-0278")
    root = replica({"metadata.csv": "\n".join(rows) + "\n", **{f"wavs/{name}.wav": 0.02 for name in names}})
    clips = by_id("ljspeech", root)
    assert splits(clips) == {"LJ001-0001": "train", "LJ049-0002": "valid", "LJ050-0278": "test"}
    assert clips["LJ001-0001"]["transcript"] == 'Printing, in the "only" sense'
    assert clips["LJ049-0002"]["transcript"] == "1964" and clips["LJ049-0002"]["group"] == "LJ049"


def test_vctk(replica: Replica) -> None:
    info = (
        "ID  AGE  GENDER  ACCENTS  REGION COMMENTS \n"
        "p225  23  F    English    Southern  England\n"
        "p280  25  F    Unknown    France   (mic2 files unavailable)\n"
        "p376  22  M    Indian\n"
    )
    audio = {f"wav48_silence_trimmed/{s}/{s}_001_mic1.flac": 0.02 for s in ("p225", "p280", "p376", "s5")}
    texts = {f"txt/{s}/{s}_001.txt": "Please call Stella.\n" for s in ("p225", "p280", "p376")}
    other = {"wav48_silence_trimmed/p225/p225_001_mic2.flac": 0.02, "wav48_silence_trimmed/log.txt": "log"}
    root = replica({"speaker-info.txt": info, **audio, **texts, **other})
    clips = by_id("vctk", root)
    assert list(clips) == ["vctk_p225_001", "vctk_p280_001", "vctk_p376_001", "vctk_s5_001"]
    first = clips["vctk_p225_001"]
    assert first["transcript"] == "Please call Stella."
    assert first["attributes"] == {
        "gender": "female",
        "accent": "English",
        "age": "23",
        "region": "Southern  England",
        "style": "read",
    }
    assert "accent" not in clips["vctk_p280_001"]["attributes"]
    assert clips["vctk_p376_001"]["attributes"]["accent"] == "Indian"
    assert clips["vctk_s5_001"]["attributes"] == {"style": "read"} and clips["vctk_s5_001"]["transcript"] is None
    assert not any("23" in text or "Southern" in text for text in shown("vctk", root))


def test_crema_d(replica: Replica) -> None:
    demographics = '"ActorID","Age","Sex","Race","Ethnicity"\n1001,51,"Male","Caucasian","Not Hispanic"\n'
    demographics += '1040,42,"Male","Caucasian","Not Hispanic"\n'
    names = ("1001_IEO_ANG_HI", "1001_DFA_DIS_XX", "1040_ITH_SAD_X")
    root = replica({"VideoDemographics.csv": demographics, **{f"AudioWAV/{name}.wav": 0.02 for name in names}})
    clips = by_id("crema_d", root)
    first = clips["crema_d_1001_IEO_ANG_HI"]
    assert first["transcript"] == "It's eleven o'clock."
    assert first["attributes"] == {"gender": "male", "emotion": "angry", "intensity": "high", "age": "51"}
    assert "intensity" not in clips["crema_d_1040_ITH_SAD_X"]["attributes"]
    assert not any("51" in text for text in shown("crema_d", root))


def test_common_voice(replica: Replica) -> None:
    header = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\t"
    header += "variant\tlocale\tsegment\n"
    rows = {
        "train": 'aa1\tcommon_voice_en_1.wav\ts1\t"Hi", he says\t\t2\t0\tfourties\tmale_masculine\tScottish\t\ten\t\n',
        "dev": "bb2\tcommon_voice_en_2.wav\ts2\tHi there.\t\t2\t0\t\t\t\t\ten\t\n",
        "test": "cc3\tcommon_voice_en_3.wav\ts3\tBye.\t\t2\t0\tteens\tnon-binary\t\t\ten\t\n",
    }
    audio = {f"clips/common_voice_en_{i}.wav": 0.02 for i in (1, 2, 3)}
    root = replica({**{f"{part}.tsv": header + row for part, row in rows.items()}, **audio, "other.tsv": header})
    clips = by_id("common_voice", root)
    assert splits(clips) == {
        "common_voice_en_1": "train",
        "common_voice_en_2": "valid",
        "common_voice_en_3": "test",
    }
    first, second, third = clips.values()
    assert first["transcript"] == '"Hi", he says' and first["language"] == "en" and first["speaker_id"] == "aa1"
    assert first["attributes"] == {"gender": "male", "age": "forties", "accent": "Scottish"}
    assert second["attributes"] == {} and third["attributes"] == {"age": "teens"}


def test_voxceleb1(replica: Replica) -> None:
    meta = "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\tSet\n"
    speakers = [f"id1{i:04d}" for i in range(1, 61)]
    meta += "".join(f"{name}\tA.J._Buckley\tm\tIreland\tdev\n" for name in speakers)
    meta += "id10270\tEartha_Kitt\tf\tUSA\ttest\n"
    audio = {f"wav/{name}/1zcIwhmdeo4/00001.wav": 0.01 for name in [*speakers, "id10270"]}
    root = replica({"vox1_meta.csv": meta, **audio})
    clips = by_id("voxceleb1", root)
    found = splits(clips)
    assert found.pop("voxceleb1_id10270_1zcIwhmdeo4_00001") == "test"
    assert set(found.values()) == {"train", "valid"}  # 5 % of 60 speakers
    clip = clips["voxceleb1_id10001_1zcIwhmdeo4_00001"]
    assert clip["attributes"]["celebrity"] == "A.J. Buckley" and clip["attributes"]["gender"] == "male"
    assert clip.get("transcript") is None
    assert not any("Buckley" in text or "Ireland" in text for text in shown("voxceleb1", root))


def test_meld(replica: Replica) -> None:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"
    rows = {
        "train": '1,"You must\x92ve, had your hands.",Chandler,joy,positive,0,1,8,21,"00:16:21,940","00:16:23,442"\n',
        "dev": '1,"Oh my God, he\x92s lost it.",Phoebe,sadness,negative,0,0,4,7,"00:20:57,256","00:21:00,049"\n',
        "test": '1,Why do all you\x92re mugs have numbers?,Mark,surprise,positive,0,0,3,19,"0:1:2,3","0:1:4,5"\n',
    }
    tables = {f"{part}_sent_emo.csv": header + row for part, row in rows.items()}
    tables["train/train_sent_emo.csv"] = tables.pop("train_sent_emo.csv")
    audio = {"audio/train/dia0_utt1.wav": 0.02, "audio/dev/dia0_utt0.wav": 0.02, "audio/test/dia0_utt0.wav": 0.02}
    root = replica({**tables, **audio})
    clips = by_id("meld", root)
    assert splits(clips) == {
        "meld_train_dia0_utt1": "train",
        "meld_dev_dia0_utt0": "valid",
        "meld_test_dia0_utt0": "test",
    }
    first = clips["meld_train_dia0_utt1"]
    assert first["transcript"] == "You must\u2019ve, had your hands."
    assert first["attributes"] == {"emotion": "joyful", "sentiment": "positive", "character": "Chandler"}
    assert not any("Chandler" in text for text in shown("meld", root))
