"""The public ALARM-Corpora in its layout, matched with tiny copies of its corpora; DeSTA-AQA5M as it is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from nemo_desta.data.audio_io import load_audio
from nemo_desta.data.sources import open_input_cfg
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.corpora.card import read_card, shipped_cards
from nemo_desta.recipes.released_rows import run_released
from nemo_desta.testing.data import write_jsonl


def tone(path: Path, secs: float = 0.2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(np.arange(round(secs * 16000)) / 9), 16000)


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, str]:
    """Copies of ESC-50, Clotho, VCTK and HeySQuAD with one or two clips each."""
    roots = {name: tmp_path / name for name in ("esc50", "clotho", "vctk", "heysquad")}
    header = "filename,fold,target,category,esc10,src_file,take\n"
    (roots["esc50"] / "meta").mkdir(parents=True)
    (roots["esc50"] / "meta/esc50.csv").write_text(f"{header}1-100-A-0.wav,1,0,dog,True,100,A\n")
    tone(roots["esc50"] / "audio/1-100-A-0.wav")
    captions = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\nrain.wav,a,b,c,d,e\n"
    roots["clotho"].mkdir()
    (roots["clotho"] / "clotho_captions_development.csv").write_text(captions)
    tone(roots["clotho"] / "development/rain.wav")
    tone(roots["vctk"] / "wav48_silence_trimmed/p225/p225_001_mic1.flac")
    (roots["vctk"] / "speaker-info.txt").write_text("ID AGE GENDER ACCENTS REGION\np225 23 F English Southern\n")
    (roots["heysquad"] / "data").mkdir(parents=True)
    wav = {"bytes": (roots["esc50"] / "audio/1-100-A-0.wav").read_bytes(), "path": "q.wav"}
    asked = {"id": ["q1"], "question": ["Who?"], "context": ["It was Ann."], "transcription": ["who"], "audio": [wav]}
    pyarrow.parquet.write_table(pyarrow.table(asked), roots["heysquad"] / "data/train-0.parquet")
    return {name: str(root) for name, root in roots.items()}


def line(name: str, id_1: str, id_2: str, index: int, **more: Any) -> dict[str, Any]:
    base = {"dataset_name": name, "context": "What is it?", "audio_description": "[00:00-00:01] |x| (duration: 1s)"}
    base |= {"llm_answer_with_context": "I hear.</think>\n\nIt is it.", "llm_answer_no_context": ""}
    return {**base, "unique_id_1": id_1, "unique_id_2": id_2, "dataset_index": index, **more}


RELEASED = [
    line("esc50", "1-100-A-0.wav", "100", 0),
    line("clotho", "rain.wav", "caption_1", 4),
    line("clotho", "rain.wav", "caption_2", 5, context="Describe it."),
    line("vctk", "225", "p225_001", 7, llm_answer_with_context=None),
    line("vctk", "225", "p225_002", 8),
    line("fma", "000001", "A - B", 9),
    line("heysquad_human_filtered", "q1", "False", 3, context="It was Ann.", llm_answer_no_context="I wonder"),
]


def released(folder: Path, rows: list[dict[str, Any]], name: str = "train-00000-of-00001.parquet") -> Path:
    (folder / "data").mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data" / name)
    return folder / "data" / name


def matched(folder: Path, corpora: dict[str, str], **more: Any) -> Any:
    settings = {"rows": f"{folder}/data/*.parquet", "corpus": list(corpora)}
    return run_released({**settings, "data_root": corpora, "output": str(folder / "alarm.jsonl"), **more})


def test_released_rows_find_their_audio_and_can_be_trained_on(tmp_path: Path, corpora: dict[str, str]) -> None:
    released(tmp_path, RELEASED)
    released(tmp_path, [line("esc50", "1-100-A-0.wav", "100", 0)], "validation-00000-of-00001.parquet")
    result = matched(tmp_path, corpora)
    assert result.rows == {"esc50": 2, "clotho": 2, "heysquad": 2}
    assert result.unmatched == {
        ("vctk", "no answer"): 1,
        ("vctk", "no clip has its ids"): 1,
        ("fma", "its corpus is not given"): 1,
    }
    assert "1 rows of fma left out: its corpus is not given" in str(result)
    assert f"data.audio_roots='{{default: {corpora['esc50']}, esc50: {corpora['esc50']}, " in str(result)
    rows = [json.loads(text) for text in (tmp_path / "alarm.jsonl").read_text().splitlines()]
    first = rows[0]
    assert first["id"] == "alarm-esc50-train-0" and first["truncated"] is True and first["split"] == "train"
    (message,) = first["messages"]
    assert message["content"] == "<|AUDIO|>What is it?" and message["audios"][0]["audio"] == "audio/1-100-A-0.wav"
    assert first["response"] == RELEASED[0]["llm_answer_with_context"]
    both = [row for row in rows if row["dataset"] == "heysquad"]
    assert [row["messages"][0]["content"] for row in both] == ["<|AUDIO|>It was Ann.", "<|AUDIO|>"]
    assert [row["response"] for row in both][1] == "I wonder" and both[0]["messages"][0]["audios"][0]["text"] == "Who?"
    assert rows[-1]["split"] == "valid" and len({row["id"] for row in rows}) == len(rows)
    ((source, _),) = open_input_cfg([{"rows": str(tmp_path / "alarm.jsonl")}], corpora)
    for i in range(len(source)):
        (file,) = source.audio_files(i, source.row(i))
        assert len(load_audio(file)) == 3200


def test_clips_with_the_same_ids_are_not_guessed(tmp_path: Path, corpora: dict[str, str]) -> None:
    table = Path(corpora["clotho"], "clotho_captions_evaluation.csv")
    table.write_text(Path(corpora["clotho"], "clotho_captions_development.csv").read_text())
    tone(Path(corpora["clotho"], "evaluation/rain.wav"))
    released(tmp_path, RELEASED[:3])
    result = matched(tmp_path, corpora)
    assert result.unmatched == {("clotho", "several clips have its ids"): 2} and result.rows == {"esc50": 1}


def test_what_cannot_be_matched_is_refused(tmp_path: Path, corpora: dict[str, str]) -> None:
    path = released(tmp_path, RELEASED)
    with pytest.raises(ConfigError, match="clips of 'voxceleb1_pairs' cannot be matched"):
        matched(tmp_path, corpora, corpus=["voxceleb1_pairs"])
    with pytest.raises(ConfigError, match="data_root has no folder for corpus 'gtzan'"):
        matched(tmp_path, corpora, corpus=["gtzan"])
    with pytest.raises(ConfigError, match="'alarm_corpora.rows' must be given"):
        matched(tmp_path, corpora, rows="???")
    (tmp_path / "alarm.jsonl").touch()
    with pytest.raises(FileExistsError, match="alarm.jsonl exists"):
        matched(tmp_path, corpora)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), path)
    with pytest.raises(ConfigError, match="not a file of ALARM-Corpora, it has no column audio_description, context"):
        matched(tmp_path, corpora, output=str(tmp_path / "new.jsonl"))
    path.write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="not a whole parquet file"):
        matched(tmp_path, corpora, output=str(tmp_path / "new.jsonl"))
    assert not (tmp_path / "new.jsonl").exists()


def test_the_ids_on_the_cards_use_fields_of_their_rows() -> None:
    """A field that neither the reader's pattern, columns nor clip name is a column of the corpus' own files."""
    cards = [read_card(name) for name in shipped_cards()]
    matchable = {card.name for card in cards if (paper := card.papers.get("alarm")) and any(paper.ids)}
    assert matchable >= {
        "cameo",
        "vctk",
        "mls",
        "librispeech",
        "nsynth",
        "fsd50k",
        "audiocaps",
        "audioset",
        "heysquad",
    }
    assert len({card.papers["alarm"].name for card in cards if "alarm" in card.papers}) == 32  # HeySQuAD once, no FMA


def test_aqa5m_trains_as_it_is_with_a_root_for_each_corpus(tmp_path: Path) -> None:
    """Shards of several corpora; paths begin with the corpus' name, flac files may be there as wav."""
    names = {"AccentDB": "data/american/s1/a.wav", "ESC-50": "audio/1-1-A-0.flac", "Absent": "x.wav"}
    for number, (name, path) in enumerate(names.items()):
        audio = {"audio": f"{name}/{path}", "text": None if name == "ESC-50" else "Hello."}
        content = "<start_audio><|AUDIO|><end_audio>\nGuess."
        messages = [{"role": "system", "content": "Focus."}, {"role": "user", "content": content, "audios": [audio]}]
        row = {"id": audio["audio"], "dataset": name, "seed_description": "[00:00-00:01] (x)", "prompt": "Guess."}
        shards = tmp_path / f"part-{number % 2}.jsonl"
        write_jsonl(tmp_path / "one.jsonl", [{**row, "messages": messages, "response": "A guess."}] * 2)
        shards.write_text((shards.read_text() if shards.exists() else "") + (tmp_path / "one.jsonl").read_text())
    tone(tmp_path / "accents/data/american/s1/a.wav")
    tone(tmp_path / "esc/ESC-50/audio/1-1-A-0.wav")
    roots = {"AccentDB": str(tmp_path / "accents"), "ESC-50": str(tmp_path / "esc")}
    entry = {"rows": f"{tmp_path}/part-*.jsonl", "datasets": ["AccentDB", "ESC-50"]}
    ((source, _),) = open_input_cfg({"aqa5m": entry}, roots)
    assert len(source) == 4
    for i in range(4):
        (file,) = source.audio_files(i, source.row(i))
        assert len(load_audio(file)) == 3200
