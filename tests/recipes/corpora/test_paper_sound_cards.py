"""Sound, voice and music cards of DeSTA2.5-Audio's and ALARM's corpora on replicas of the described layouts."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.recipes.corpora import load_corpus
from tests.recipes.corpora.check_replica import check_replica

Replica = Callable[[Mapping[str, Any]], Path]

# card -> its files, and of each clip: id -> (split, transcript, attributes)
CASES: dict[str, tuple[dict[str, Any], dict[str, tuple[str | None, str | None, dict[str, Any]]]]] = {
    "vocalsound": (
        {
            "audio_16k/f0003_0_cough.wav": 0.02,
            "audio_16k/m0004_0_throatclearing.wav": 0.02,
            "meta/tr_meta.csv": "f0003,female,31,USA,English,no\n",
            "meta/te_meta.csv": "m0004,male,24,India,Hindi,no\n",
            "meta/all_meta.json": "[]",
        },
        {
            "vocalsound_f0003_0_cough": (
                "train",
                None,
                {"sound_class": "coughing", "gender": "female", "age": "31", "country": "USA"}
                | {"native_language": "English", "health": "no"},
            ),
            "vocalsound_m0004_0_throatclearing": (
                "test",
                None,
                {"sound_class": "throat clearing", "gender": "male", "age": "24", "country": "India"}
                | {"native_language": "Hindi", "health": "no"},
            ),
        },
    ),
    "urbansound8k": (
        {
            "metadata/UrbanSound8K.csv": "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
            "101415-3-0-2.wav,101415,0.0,4.0,1,1,3,dog_bark\n180937-7-3-27.wav,180937,1.5,5.5,2,10,7,jackhammer\n",
            "audio/fold1/101415-3-0-2.wav": 0.02,
            "audio/fold10/180937-7-3-27.wav": 0.02,
        },
        {
            "urbansound8k_101415-3-0-2": ("train", None, {"sound_class": "dog bark", "position": "foreground"}),
            "urbansound8k_180937-7-3-27": ("test", None, {"sound_class": "jackhammer", "position": "background"}),
        },
    ),
    "tau_scenes_2019": (
        {
            "TAU-urban-acoustic-scenes-2019-development/meta.csv": "filename\tscene_label\tidentifier\tsource_label\n"
            "audio/street_traffic-lyon-1012-a.wav\tstreet_traffic\tlyon-1012\ta\n",
            "TAU-urban-acoustic-scenes-2019-development/audio/street_traffic-lyon-1012-a.wav": 0.02,
        },
        {
            "tau_scenes_2019_street_traffic-lyon-1012-a": (
                None,
                None,
                {"scene": "street traffic", "city": "lyon"},
            )
        },
    ),
    "medley_solos_db": (
        {
            "annotation/Medley-solos-DB_metadata.csv": "subset,instrument,instrument_id,song_id,uuid4\n"
            "training,violin,7,139,163fd2b1-8e98-515a-f501-4742cc6d066f\n",
            "audio/Medley-solos-DB_training-7_163fd2b1-8e98-515a-f501-4742cc6d066f.wav": 0.02,
        },
        {"medley_solos_db_163fd2b1-8e98-515a-f501-4742cc6d066f": ("train", None, {"instrument": "violin"})},
    ),
    "mridangam": (
        {"mridangam_stroke_1.5/C#/224030__akshaylaya__bheem-csh-001.wav": 0.02, "mridangam_stroke_1.5/README": "x"},
        {"mridangam_224030": (None, None, {"instrument": "mridangam", "stroke": "bheem", "tonic": "C#"})},
    ),
    "opensinger": (
        {
            "WomanRaw/46_喜欢你/46_喜欢你_0.wav": 0.02,
            "WomanRaw/46_喜欢你/46_喜欢你_0.txt": "细雨带风",
            "WomanRaw/46_喜欢你/46_喜欢你_0.lab": "x",
        },
        {
            "opensinger_Woman_46_喜欢你_0": (
                None,
                "细雨带风",
                {"gender": "female", "style": "sung", "song": "喜欢你"},
            )
        },
    ),
    "vocal_imitations": (
        {
            "vocal_imitations.txt": "imitation_id\timitation_filename\tcategory_id\tcategory_d1\tcategory_d2\t"
            "category_d3\tcategory_d4\tcategory_d5\tcategory_d6\tincluded\tparticipant_id\n"
            "1\t000Animal-1.wav\t0\tAnimal\tDog\t\t\t\t\tTrue\t7\n2\t000Animal-2.wav\t0\tAnimal\t\t\t\t\t\tFalse\t7\n",
            "vocal_imitations/included/000Animal-1.wav": 0.02,
        },
        {
            "vocal_imitations_1": (
                None,
                None,
                {"sound_class": "vocal imitation", "imitated_sound": ["Animal", "Dog"]},
            )
        },
    ),
    "musiccaps": (
        {
            "musiccaps-public.csv": "ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,"
            "is_balanced_subset,is_audioset_eval\n-0Gj8,30,40,/m/04rlf,\"['pop']\",A calm song.,4,False,True\n",
            "audio/-0Gj8.wav": 0.02,
        },
        {"musiccaps_-0Gj8": ("test", None, {})},
    ),
    "singmos": (
        {
            "wavs/sys0001-utt0001.wav": 0.02,
            "info/score.json": json.dumps(
                {
                    "utterance": {"sys0001-utt0001": {"sys_id": "sys0001", "score": {"mos": 3.4}}},
                    "system": {"sys0001": {"score": {"mos": 4}}},
                }
            ),
            "info/sys_info.json": json.dumps({"sys0001": {"type": "svs"}}),
        },
        {
            "singmos_sys0001-utt0001": (
                None,
                None,
                {"quality_score": "3.4 of 5", "authenticity": "synthetic voice", "style": "sung"},
            )
        },
    ),
}


@pytest.mark.parametrize("card", CASES)
def test_a_replica_of_the_layout_reads_to_its_clips(card: str, replica: Replica) -> None:
    files, expected = CASES[card]
    check_replica(card, replica(files), expected)


def test_musiccaps_has_captions(replica: Replica) -> None:
    root = replica(CASES["musiccaps"][0])
    assert [clip["caption"] for clip in load_corpus("musiccaps", root)] == ["A calm song."]
