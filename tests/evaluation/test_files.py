"""Official files, as their authors lay them out, become items; what is missing or double is named."""

import csv
import json

import numpy as np
import pytest
import soundfile

from nemo_desta.evaluation.files import prediction_key, read_items, read_predictions
from nemo_desta.evaluation.scores import SCORERS, ItemError, score

LETTERED = {"question": "Which?", "choice_a": "a dog", "choice_b": "a cat", "answer_gt": "a cat"}
LISTED = {"question": "Which?", "choices": ["a dog", "a cat"], "answer": "a cat", "task": "sound"}
SPOKEN = {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": ["fox"]}], "metric": "accuracy"}


def clip(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(160, np.float32), 16_000)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows))


def mmau(root):
    folder = root / "MMAU"
    clip(folder / "test-mini-audios/1.wav")
    write(folder / "mmau-test-mini.json", [{"id": "a1", "audio_id": "./test-mini-audios/1.wav", **LISTED}])


def mmar(root):
    clip(root / "audio/1.wav")
    write(root / "MMAR-meta.jsonl", [{"id": "a1", "audio_path": "./audio/1.wav", **LISTED}])


def mmsu(root):
    clip(root / "x.wav")
    audio = {"bytes": (root / "x.wav").read_bytes(), "path": "1.wav"}
    write(root / "mmsu/data/train-00000-of-00001.parquet", [{"id": "a1", "audio": audio, **LETTERED}])


def air_bench(root):
    clip(root / "air_bench/Foundation/Audio_Grounding_set/1.flac")
    clip(root / "air_bench/Chat/speech_QA_set/1.wav")
    about = {"path": "1.wav", "dataset_name": "set", "uniq_id": 0}
    write(root / "air_bench/Foundation/Foundation_meta.json", [{**about, "task_name": "Audio_Grounding", **LETTERED}])
    chat = {"task_name": "speech_QA", "question": "Who?", "answer_gt": "A man.", "meta_info": "A man speaks."}
    write(root / "air_bench/Chat/Chat_meta.json", [{**about, **chat}])


def sakura(root):
    clip(root / "sakura/data/Animal/audio/1.wav")
    clip(root / "sakura/data/Gender/audio/1.wav")
    single = {"single_instruction": "Which? (a) a dog (b) a cat", "single_answer": "(b) a cat"}
    multi = {"multi_instruction": "Which purrs? (a) a dog (b) a cat", "multi_answer": "(b) a cat"}
    write(root / "sakura/data/Animal/metadata.json", {"1.wav": {"attribute_label": "cat", **single, **multi}})
    write(root / "sakura/data/Gender/metadata.csv", [{"file": "1.wav", **single, **multi}])


def speech_ifeval(root):
    folder = root / "Speech-IFEval/data"
    clip(folder / "audios/MMAU/1.wav")
    row = {"audio_filepath": "MMAU/1.wav", "instruction": "Say fox.", "textual_audio": "x"}
    write(folder / "eval_data/closed_ended_questions.jsonl", [{"id": 7, **row, **SPOKEN, "label": "fox"}])
    write(folder / "eval_data/creative_writing.jsonl", [{"id": 7, **row, **SPOKEN, "metric": "open"}])
    write(folder / "eval_data/chain-of-thought.jsonl", [{**row, "metric": "cot"}])


def voicebench(root):
    clip(root / "x.wav")
    audio = {"bytes": (root / "x.wav").read_bytes(), "path": None}
    row = {"prompt": "Which? A. a dog B. a cat C. a cow D. a bird", "reference": "B", "audio": audio}
    write(root / "voicebench/openbookqa/test-00000-of-00001.parquet", [row, row])
    for region in ("aus", "usa"):
        write(root / f"voicebench/sd-qa/{region}-00000-of-00001.parquet", [{**row, "reference": "a cat"}])


def dynamic_superb(root):
    clip(root / "dynamic_superb/Emotion_Set/1.wav")
    row = {"audio": "1.wav", "instruction": "Happy or sad?", "label": "sad"}
    write(root / "dynamic_superb/Emotion_Set/test.jsonl", [row])


COPIES = {f.__name__: f for f in (mmau, mmar, mmsu, air_bench, sakura, speech_ifeval, voicebench, dynamic_superb)}
COUNTS = {"air_bench": 2, "sakura": 4, "speech_ifeval": 3, "voicebench": 4}
benchmarks = pytest.mark.parametrize("benchmark", list(SCORERS))


@benchmarks
def test_the_published_layout_becomes_items(benchmark, tmp_path):
    COPIES[benchmark](tmp_path)
    items = read_items(benchmark, tmp_path)
    assert len({item.id for item in items}) == len(items) == COUNTS.get(benchmark, 1)
    for item in items:
        assert item.audio.is_file() and item.audio.is_absolute() and soundfile.info(item.audio).frames == 160
        assert item.question or benchmark == "voicebench"
        assert not item.choices or any(item.answer == choice for choice in item.choices)
        json.dumps(item.fields)
    assert [item.id for item in read_items(benchmark, tmp_path)] == [
        item.id for item in items
    ]  # also with its clips out


@benchmarks
def test_an_item_with_its_answer_can_be_scored(benchmark, tmp_path):
    COPIES[benchmark](tmp_path)
    rows = [{**item.fields, prediction_key(benchmark): item.answer} for item in read_items(benchmark, tmp_path)]
    scores = score(benchmark, rows, mode="strict")
    closed = [v for row, v in zip(rows, scores.verdicts, strict=True) if "meta_info" not in row and v is not None]
    assert closed and sum(closed) >= len(closed) / 2


@benchmarks
def test_files_that_are_not_there_are_named_with_where_to_get_them(benchmark, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"(?s){benchmark}: none of its files.*Expected: .*(GitHub|Hugging Face)"
    ):
        read_items(benchmark, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_id": "./test-mini-audios/2.wav"}, "item 'a2': its audio cannot be used: no file"),
        ({"audio_id": "../../../etc/hostname"}, "item 'a2': its audio cannot be used: .*outside every audio root"),
        ({"question": None}, "item 'a2': field 'question' is NoneType, expected str"),
        ({"choices": "a dog"}, "item 'a2': field 'choices' is str, expected list"),
        ({"id": "a1"}, "item 'a1': occurs twice"),
        ({"answer": ...}, "item 'a2': has no field 'answer'"),
    ],
)
def test_an_item_that_cannot_be_used_is_named(change, message, tmp_path):
    mmau(tmp_path)
    row = {"id": "a2", "audio_id": "./test-mini-audios/1.wav", **LISTED, **change}
    row = {key: value for key, value in row.items() if value is not ...}
    good = {"id": "a1", "audio_id": "./test-mini-audios/1.wav", **LISTED}
    write(tmp_path / "MMAU/mmau-test-mini.json", [good, row])
    with pytest.raises(ItemError, match=message):
        read_items("mmau", tmp_path)


def test_a_folder_behind_a_link_is_read(tmp_path):
    mmau(tmp_path / "elsewhere")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/mmau").symlink_to(tmp_path / "elsewhere/MMAU")
    assert len(read_items("mmau", tmp_path / "root")) == 1


def test_other_benchmarks_files_are_not_taken_for_a_benchmarks_own(tmp_path):
    write(tmp_path / "notes.jsonl", [{"id": "a1", **LETTERED}])
    with pytest.raises(FileNotFoundError, match="mmsu: none of its files"):
        read_items("mmsu", tmp_path)


def test_predictions_are_read_from_files_and_folders(tmp_path):
    write(tmp_path / "one.jsonl", [{"id": "a1", **LISTED, "model_output": "a cat"}, {"id": "a2", **LISTED}])
    assert [row.get("model_output") for row in read_predictions("mmau", tmp_path / "one.jsonl")] == ["a cat", None]
    folder = tmp_path / "voice"
    write(folder / "naive-alpacaeval_full-test-audio.jsonl", [{"prompt": "x", "response": "y"}])
    write(folder / "naive-sd-qa-usa-audio.jsonl", [{"prompt": "x", "reference": "z", "response": "y"}])
    assert [row["subset"] for row in read_predictions("voicebench", folder)] == ["alpacaeval_full", "sd-qa"]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"id": "a1", "model_output": "x"}] * 2, ItemError, "item 'a1': occurs twice"),
        ([{"id": "a1"}], ValueError, "no row has 'model_output'"),
        ([], ValueError, "no row has 'model_output'"),
        (["x"], ValueError, "row 0: a row must be an object"),
    ],
)
def test_predictions_that_cannot_be_used_are_named(rows, error, message, tmp_path):
    write(tmp_path / "p.json", rows)
    with pytest.raises(error, match=message):
        read_predictions("mmau", tmp_path / "p.json")
    with pytest.raises(FileNotFoundError, match="no file of predictions for mmau"):
        read_predictions("mmau", tmp_path / "q.json")


def test_a_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id": "a1"}\n{"id": \n')
    with pytest.raises(ValueError, match="p.jsonl:2: not JSON"):
        read_predictions("mmau", tmp_path / "p.jsonl")
