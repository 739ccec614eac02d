"""The official files of each benchmark: their patterns below the data root, and where users get them."""

from dataclasses import dataclass

from nemo_desta.evaluation.official_rows import (
    Reader,
    air_chat,
    air_foundation,
    dynamic_superb,
    listed,
    mmsu,
    sakura,
    speech_ifeval,
    voicebench,
)


@dataclass(frozen=True)
class Part:
    """``patterns``: globs; the first one with a match is used. ``read``: a file's rows and its path -> items."""

    patterns: tuple[str, ...]
    read: Reader


@dataclass(frozen=True)
class Layout:
    """``where``: how a user gets a copy. ``folders``: other folder names of a copy. ``own_folder``: the file names are
    too general to be searched in the data root itself."""

    parts: tuple[Part, ...]
    where: str
    folders: tuple[str, ...] = ()
    own_folder: bool = False


def _under(folders: tuple[str, ...], *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}{name}" for name in names for folder in folders)


#: VoiceBench's sets; SD-QA has one file per region.
_VOICEBENCH = "alpacaeval_full commoneval wildvoice sd-qa mmsu openbookqa bbh ifeval advbench".split()
_EVAL_DATA = ("data/eval_data/", "eval_data/")

LAYOUTS: dict[str, Layout] = {
    "mmau": Layout(
        (Part(("mmau-test-mini.json", "**/mmau-test-mini.json"), listed("audio_id")),),
        "The file is in Sakshi113/MMAU on GitHub (v05.15.25), its audio behind the links of that page; unpack it "
        "beside the file, as test-mini-audios/.",
        ("MMAU",),
    ),
    "mmar": Layout(
        (Part(("MMAR-meta.jsonl", "MMAR-meta.json", "**/MMAR-meta.json*"), listed("audio_path")),),
        "The file is in ddlBoJack/MMAR on GitHub, its audio in the dataset BoJack/MMAR on Hugging Face; unpack it "
        "beside the file, as audio/.",
        ("MMAR",),
    ),
    "mmsu": Layout(
        (Part(("mmsu.json*", "MMSU.json*", "*.jsonl", "data/train-*.parquet", "train-*.parquet"), mmsu),),
        "It is the dataset ddwang2000/MMSU on Hugging Face (split train).",
        ("MMSU",),
        own_folder=True,
    ),
    "sakura": Layout(
        tuple(
            Part(
                _under(("data/", ""), f"{t}/metadata.json", f"{t}/metadata.csv")
                + _under((f"{t}QA/data/", f"{t}QA/"), "test-*.parquet"),
                sakura,
            )
            for t in ("Animal", "Emotion", "Gender", "Language")
        ),
        "It is in ckyang1124/SAKURA on GitHub (folder data), or the datasets SLLM-multi-hop/AnimalQA, EmotionQA, "
        "GenderQA and LanguageQA on Hugging Face.",
        ("SAKURA",),
    ),
    "speech_ifeval": Layout(
        (
            Part(
                (*_under(_EVAL_DATA, "closed_ended_questions.jsonl"), "**/eval_data/close.jsonl"),
                speech_ifeval("closed"),
            ),
            Part(
                (*_under(_EVAL_DATA, "creative_writing.jsonl"), "**/eval_data/open.jsonl"), speech_ifeval("creative")
            ),
            Part(_under(_EVAL_DATA, "chain-of-thought.jsonl"), speech_ifeval("cot")),
        ),
        "The files are in kehanlu/Speech-IFEval on GitHub, the audio (audios.tar) in the dataset "
        "kehanlu/Speech-IFEval on Hugging Face; unpack it as data/audios/.",
        ("Speech-IFEval",),
    ),
    "voicebench": Layout(
        tuple(Part((f"{subset}/*.parquet", f"{subset}/*.jsonl"), voicebench(subset)) for subset in _VOICEBENCH),
        "It is the dataset hlt-lab/voicebench on Hugging Face, one folder per set.",
        ("VoiceBench",),
        own_folder=True,
    ),
    "air_bench": Layout(
        (
            Part(("Foundation/Foundation_meta.json", "**/Foundation_meta.json"), air_foundation),
            Part(("Chat/Chat_meta.json", "**/Chat_meta.json"), air_chat),
        ),
        "It is the dataset qyang1021/AIR-Bench-Dataset on Hugging Face (about 49 GB); either part may be missing.",
        ("AIR-Bench-Dataset", "AIR-Bench"),
    ),
    "dynamic_superb": Layout(
        (Part(("*/data/test-*.parquet", "*/test-*.parquet", "*/test.jsonl", "*/metadata.jsonl"), dynamic_superb),),
        "Its tasks are the datasets of DynamicSuperb on Hugging Face (split test); one folder per task.",
        ("DynamicSuperb",),
        own_folder=True,
    ),
}
