"""Speech cards of DeSTA2.5-Audio's and ALARM's corpora on replicas of the described layouts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_desta.recipes.corpora import load_corpus
from tests.recipes.corpora.check_replica import check_replica

Replica = Callable[[Mapping[str, Any]], Path]
TURN = "[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]"
EVALUATION = f"% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n{TURN}\nC-E2:\tNeutral;\t()\n\n"
VOICES = "p226_001 cafeteria 5\np226_002 ssn 0\n"

# card -> its files, and of each clip: id -> (split, transcript, attributes)
CASES: dict[str, tuple[dict[str, Any], dict[str, tuple[str | None, str | None, dict[str, Any]]]]] = {
    "emov_db": (
        {"bea_Amused/amused_1-28_0001.wav": 0.02, "sam_Sleepy/sleepy_1-28_0001.wav": 0.02, "sam_Sleepy/readme": "x"},
        {
            "emov_db_bea_Amused_amused_1-28_0001": ("test", None, {"gender": "female", "emotion": "amused"}),
            "emov_db_sam_Sleepy_sleepy_1-28_0001": ("train", None, {"gender": "male", "emotion": "sleepy"}),
        },
    ),
    "esd": (
        {"ESD/0011/Angry/0011_000351.wav": 0.02, "ESD/0010/Surprise/test/0010_001441.wav": 0.02, "ESD/0011.txt": "x"},
        {
            "esd_0010_001441": ("test", None, {"emotion": "surprised"}),
            "esd_0011_000351": ("train", None, {"emotion": "angry"}),
        },
    ),
    "iemocap": (
        {
            "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt": EVALUATION,
            "Session5/dialog/EmoEvaluation/Ses05M_script01_1b.txt": TURN.replace(
                "Ses01F_impro01_F000\tneu", "Ses05M_script01_1b_M002\txxx"
            ),
            "Session1/dialog/EmoEvaluation/Attribute/Ses01F_impro01_atr.txt": "other annotations",
            "Session1/dialog/transcriptions/Ses01F_impro01.txt": "Ses01F_impro01_F000 [006.2901-008.2357]: Excuse "
            "me.\nM: a line without a turn\n",
            "Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav": 0.02,
            "Session5/sentences/wav/Ses05M_script01_1b/Ses05M_script01_1b_M002.wav": 0.02,
        },
        {
            "iemocap_Ses01F_impro01_F000": (
                "train",
                "Excuse me.",
                {
                    "gender": "female",
                    "emotion": "neutral",
                    "valence": "2.5000",
                    "activation": "2.5000",
                    "dominance": "2.5000",
                },
            ),
            "iemocap_Ses05M_script01_1b_M002": (
                "test",
                None,
                {"gender": "male", "valence": "2.5000", "activation": "2.5000", "dominance": "2.5000"},
            ),
        },
    ),
    "l2_arctic": (
        {
            "ABA/wav/arctic_a0051.wav": 0.02,
            "ABA/transcript/arctic_a0051.txt": "Author of the danger trail\n",
            "ABA/textgrid/arctic_a0051.TextGrid": "x",
            "suitcase_corpus/wav/aba.wav": 0.02,
        },
        {
            "l2_arctic_ABA_arctic_a0051": (
                "train",
                "Author of the danger trail",
                {"gender": "male", "accent": "Arabic", "style": "read"},
            )
        },
    ),
    "asvspoof2019": (
        {
            "ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.train.trn.txt": "LA_0079 LA_T_1138215 - - bonafide\n"
            "LA_0079 LA_T_1272637 - A05 spoof\n",
            "ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.eval.trl.txt": "LA_0039 LA_E_2834763 - A11 spoof\n",
            **{f"ASVspoof2019_LA_train/flac/LA_T_{n}.flac": 0.02 for n in (1138215, 1272637)},
            "ASVspoof2019_LA_eval/flac/LA_E_2834763.flac": 0.02,
        },
        {
            "asvspoof2019_LA_T_1138215": ("train", None, {"authenticity": "real voice"}),
            "asvspoof2019_LA_T_1272637": (
                "train",
                None,
                {"authenticity": "synthetic voice", "synthesis": "voice conversion"},
            ),
            "asvspoof2019_LA_E_2834763": ("test", None, {"authenticity": "synthetic voice"}),
        },
    ),
    "asvspoof5": (
        {
            "ASVspoof5.train.tsv": "T_4850 T_0000000000 F - - - AC3 A05 spoof -\n",
            "ASVspoof5.dev.track_1.tsv": "D_0461 D_0000000190 M - - - - bonafide bonafide -\n",
            "flac_T/T_0000000000.flac": 0.02,
            "flac_D/D_0000000190.flac": 0.02,
        },
        {
            "asvspoof5_T_0000000000": (
                "train",
                None,
                {"gender": "female", "authenticity": "synthetic voice", "synthesis": "text-to-speech"},
            ),
            "asvspoof5_D_0000000190": ("valid", None, {"gender": "male", "authenticity": "real voice"}),
        },
    ),
    "nisqa": (
        {
            "NISQA_corpus_file.csv": "db,con,con_description,filename_deg,filename_ref,mos,noi,dis,col,loud\n"
            "NISQA_TRAIN_SIM,1,low bitrate,c1.wav,r1.wav,2.75,2.4,3.1,2.0,2.6\n"
            "NISQA_VAL_LIVE,2,,c1.wav,,4.1,4,4,4,4\n",
            "NISQA_TRAIN_SIM/deg/c1.wav": 0.02,
            "NISQA_VAL_LIVE/deg/c1.wav": 0.02,
        },
        {
            "nisqa_NISQA_TRAIN_SIM_c1": (
                "train",
                None,
                {"quality_score": "2.75 of 5", "degradation": "low bitrate", "noise_score": "2.4"}
                | {"coloration_score": "2.0", "discontinuity_score": "3.1", "loudness_score": "2.6"},
            ),
            "nisqa_NISQA_VAL_LIVE_c1": (
                "valid",
                None,
                {"quality_score": "4.1 of 5", "noise_score": "4"}
                | {"coloration_score": "4", "discontinuity_score": "4", "loudness_score": "4"},
            ),
        },
    ),
    "noisy_vctk": (
        {
            "log_trainset_28spk.txt": VOICES,
            "log_testset.txt": "p232_001 bus 17.5\n",
            "log_readme.txt": "x",
            **{f"noisy_trainset_28spk_wav/p226_00{n}.wav": 0.02 for n in (1, 2)},
            **{f"trainset_28spk_txt/p226_00{n}.txt": "Please call Stella.\n" for n in (1, 2)},
            "noisy_testset_wav/p232_001.wav": 0.02,
            "testset_txt/p232_001.txt": "Ask her.\n",
        },
        {
            "noisy_vctk_trainset_28spk_p226_001": (
                None,
                "Please call Stella.",
                {"noise_type": "cafeteria", "snr": "5 dB", "style": "read"},
            ),
            "noisy_vctk_trainset_28spk_p226_002": (
                None,
                "Please call Stella.",
                {"noise_type": "speech-shaped noise", "snr": "0 dB", "style": "read"},
            ),
            "noisy_vctk_testset_p232_001": (
                "test",
                "Ask her.",
                {"noise_type": "bus", "snr": "17.5 dB", "style": "read"},
            ),
        },
    ),
    "mls": (
        {
            "mls_german_opus/train/transcripts.txt": "10148_10119_000000\tdie sonne scheint\n",
            "mls_german_opus/metainfo.txt": "x",
            "mls_german_opus/train/audio/10148/10119/10148_10119_000000.opus": 0.02,
        },
        {"mls_german_10148_10119_000000": ("train", "die sonne scheint", {"style": "read audiobook"})},
    ),
    "speech_commands": (
        {
            "validation_list.txt": "bed/026290a7_nohash_0.wav\n",
            "testing_list.txt": "bed/0c40e715_nohash_0.wav\n",
            "_background_noise_/pink_noise.wav": 0.02,
            **{f"bed/{name}_nohash_0.wav": 0.02 for name in ("00176480", "026290a7", "0c40e715")},
        },
        {
            "speech_commands_bed_00176480_nohash_0": ("train", "bed", {}),
            "speech_commands_bed_026290a7_nohash_0": ("valid", "bed", {}),
            "speech_commands_bed_0c40e715_nohash_0": ("test", "bed", {}),
        },
    ),
}


@pytest.mark.parametrize("card", CASES)
def test_a_replica_of_the_layout_reads_to_its_clips(card: str, replica: Replica) -> None:
    files, expected = CASES[card]
    opus = {name for name in files if name.endswith(".opus")}
    root = replica({name: content for name, content in files.items() if name not in opus})
    for name in opus:  # libsndfile knows the formats of the suffixes .wav and .flac only
        (root / name).parent.mkdir(parents=True)
        soundfile.write(root / name, np.zeros(960), 48000, format="OGG", subtype="OPUS")
    check_replica(card, root, expected)


def test_languages_of_the_speakers(replica: Replica) -> None:
    root = replica({"0010/Sad/0010_000001.wav": 0.02, "0011/Sad/0011_000001.wav": 0.02})
    assert [clip["language"] for clip in load_corpus("esd", root)] == ["zh", "en"]
