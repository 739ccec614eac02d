"""Shipped cards of sound and music corpora on replicas of their folders, file names and metadata headers."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nemo_desta.recipes import describe
from nemo_desta.recipes.corpora import check_audio, load_corpus

Replica = Callable[[Mapping[str, Any]], Path]
ESC50 = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
3-145382-A-1.wav,3,1,rooster,True,145382,A
4-156827-A-33.wav,4,33,door_wood_creaks,False,156827,A
5-9032-A-0.wav,5,0,dog,True,9032,A
"""
ESC50_NAMES = ("1-100032-A-0", "3-145382-A-1", "4-156827-A-33", "5-9032-A-0")


def read(card: str, root: Path) -> list[dict[str, Any]]:
    """Clips of a corpus; every one with sound audio and in its domain."""
    clips = list(load_corpus(card, root))
    for clip in clips:
        assert clip["source"] == card
        assert check_audio({**clip, "duration": None}, root)[0] is None
    return clips


def splits(clips: list[dict[str, Any]]) -> dict[str, str]:
    return {clip["id"]: clip["split"] for clip in clips}


def test_esc50(replica: Replica) -> None:
    root = replica({"meta/esc50.csv": ESC50, **{f"audio/{name}.wav": 0.02 for name in ESC50_NAMES}})
    clips = read("esc50", root)
    assert splits(clips) == {
        "esc50_1-100032-A-0": "train",
        "esc50_3-145382-A-1": "train",
        "esc50_4-156827-A-33": "valid",
        "esc50_5-9032-A-0": "test",
    }
    classes = [clip["attributes"]["sound_class"] for clip in clips]
    assert classes == ["dog barking", "rooster crowing", "wooden door creaking", "dog barking"]
    assert clips[0]["group"] == "freesound_100032" and clips[0]["domain"] == "sound"


def test_esc10_is_the_part_of_esc50_that_is_marked(replica: Replica) -> None:
    root = replica({"meta/esc50.csv": ESC50, **{f"audio/{name}.wav": 0.02 for name in ESC50_NAMES}})
    clips = read("esc10", root)
    assert splits(clips) == {
        "esc10_1-100032-A-0": "train",
        "esc10_3-145382-A-1": "train",
        "esc10_5-9032-A-0": "test",
    }


def test_audiocaps(replica: Replica) -> None:
    header = "audiocap_id,youtube_id,start_time,caption\n"
    tables = {
        "dataset/train.csv": header + "91139,r1nicOVtvkQ,130,A woman talks nearby as water pours\n",
        "dataset/val.csv": header + '97151,vfY_TJq7n_U,130,"Rustling, then a bird"\n97152,vfY_TJq7n_U,130,A bird\n',
        "dataset/test.csv": header + "103549,7fmOlUlwoNg,20,Constant rattling noise\n",
        "dataset/README.md": "# AudioCaps",
    }
    root = replica({**tables, **{f"audio/{name}.wav": 0.02 for name in ("r1nicOVtvkQ", "vfY_TJq7n_U", "7fmOlUlwoNg")}})
    clips = {clip["id"]: clip for clip in read("audiocaps", root)}
    assert splits(list(clips.values())) == {
        "audiocaps_103549": "test",
        "audiocaps_91139": "train",
        "audiocaps_97151": "valid",
        "audiocaps_97152": "valid",
    }
    assert clips["audiocaps_97151"]["caption"] == "Rustling, then a bird"
    assert clips["audiocaps_97151"]["group"] == clips["audiocaps_97152"]["group"]


def test_clotho(replica: Replica) -> None:
    header = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    tables, audio = {}, {}
    for part, name in (
        ("development", "Distorted AM Radio noise"),
        ("validation", "01 hospital"),
        ("evaluation", "x y"),
    ):
        tables[f"clotho_captions_{part}.csv"] = header + f'{name}.wav,"A muddled, noise",B,C,D,E\n'
        tables[f"clotho_metadata_{part}.csv"] = b"file_name,keywords\nx,caf\xe9\n"  # Latin-1, and not read
        audio[f"{part}/{name}.wav"] = 0.02
    clips = read("clotho", replica({**tables, **audio}))
    assert splits(clips) == {
        "clotho_development_Distorted AM Radio noise": "train",
        "clotho_evaluation_x y": "test",
        "clotho_validation_01 hospital": "valid",
    }
    assert clips[0]["caption"] == ["A muddled, noise", "B", "C", "D", "E"]


def test_fsd50k(replica: Replica) -> None:
    dev = 'fname,labels,mids,split\n64760,"Electric_guitar,Guitar,Music","/m/02sgy,/m/0342h,/m/04rlf",train\n'
    dev += "16399,Speech,/m/09x0r,val\n"
    root = replica(
        {
            "FSD50K.ground_truth/dev.csv": dev,
            "FSD50K.ground_truth/eval.csv": "fname,labels,mids\n37199,Electric_guitar,/m/02sgy\n",
            "FSD50K.ground_truth/vocabulary.csv": "0,Accelerating,/m/07q2z82\n",
            "FSD50K.dev_audio/64760.wav": 0.02,
            "FSD50K.dev_audio/16399.wav": 0.02,
            "FSD50K.eval_audio/37199.wav": 0.02,
        }
    )
    clips = read("fsd50k", root)
    assert splits(clips) == {"fsd50k_64760": "train", "fsd50k_16399": "valid", "fsd50k_37199": "test"}
    assert clips[0]["attributes"]["sound_class"] == ["Electric guitar", "Guitar", "Music"]


def test_gtzan(replica: Replica) -> None:
    names = [f"blues/blues.{i:05d}.au" for i in range(40)] + ["hiphop/hiphop.00000.au"]
    clips = read("gtzan", replica(dict.fromkeys(names, 0.01)))
    assert clips[0]["id"] == "gtzan_blues.00000" and clips[-1]["attributes"] == {"genre": "hip hop"}
    assert {clip["split"] for clip in clips} == {"train", "valid", "test"}
    assert {clip["domain"] for clip in clips} == {"music"}


def test_nsynth(replica: Replica) -> None:
    def note(name: str, family: str, velocity: int) -> dict[str, Any]:
        return {
            "qualities": [0, 1],
            "pitch": 82,
            "note": 169250,
            "instrument_source_str": "acoustic",
            "velocity": velocity,
            "instrument_str": name.rsplit("-", 2)[0],
            "instrument": 417,
            "sample_rate": 16000,
            "qualities_str": ["fast_decay", "percussive"],
            "instrument_source": 0,
            "note_str": name,
            "instrument_family": 3,
            "instrument_family_str": family,
        }

    notes = {
        "train": [note("guitar_acoustic_001-082-050", "guitar", 50), note("bass_synthetic_033-082-127", "bass", 127)],
        "valid": [note("keyboard_acoustic_004-082-025", "keyboard", 25)],
        "test": [note("synth_lead_synthetic_011-082-075", "synth_lead", 75)],
    }
    files: dict[str, Any] = {}
    for part, entries in notes.items():
        files[f"nsynth-{part}/examples.json"] = json.dumps({entry["note_str"]: entry for entry in entries}, indent=2)
        files.update({f"nsynth-{part}/audio/{entry['note_str']}.wav": 0.01 for entry in entries})
    root = replica(files)
    clips = {clip["id"]: clip for clip in read("nsynth", root)}
    assert splits(list(clips.values())) == {
        "nsynth_synth_lead_synthetic_011-082-075": "test",
        "nsynth_guitar_acoustic_001-082-050": "train",
        "nsynth_bass_synthetic_033-082-127": "train",
        "nsynth_keyboard_acoustic_004-082-025": "valid",
    }
    guitar = clips["nsynth_guitar_acoustic_001-082-050"]
    assert guitar["audio"] == "nsynth-train/audio/guitar_acoustic_001-082-050.wav" and guitar["duration"] == 4.0
    assert guitar["attributes"] == {
        "instrument": "guitar",
        "sound_source": "acoustic",
        "pitch": "MIDI note 82",
        "dynamics": "soft",
        "qualities": ["fast decay", "percussive"],
        "instrument_name": "guitar_acoustic_001",
    }
    assert "acoustic_001" not in describe(guitar, exclude=load_corpus("nsynth", root).not_audible)
