"""Cards that are proposed from a table: they are read as they are, and guess no more than the table says."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_desta.recipes.corpora import CorpusError, load_corpus
from nemo_desta.recipes.corpora.card_command import main
from nemo_desta.recipes.corpora.propose import propose_card

Replica = Callable[[Mapping[str, Any]], Path]
#: File name, mood, speaker, set and a column that nothing can use.
ROWS = [
    (f"r{i}", "glad" if i % 3 else "sad", f"s{i // 4}", ("train", "dev", "test")[i // 8], f"n{i}") for i in range(24)
]


def proposed(root: Path, table: str) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """The card as a mapping, the clips that it reads, and its text."""
    text = propose_card(root / table)
    (root / "card.yaml").write_text(text, encoding="utf-8")
    return yaml.safe_load(text), list(load_corpus(root / "card.yaml", root)), text


def test_a_table_of_any_names_becomes_a_card_that_reads_it(replica: Replica) -> None:
    table = "Datei;Stimmung;Sprecher;set;Notiz\n" + "".join(f"{';'.join(row)}\n" for row in ROWS)
    root = replica({"labels.csv": table, **{f"wavs/{row[0]}.wav": 0.01 for row in ROWS}})
    card, clips, text = proposed(root, "labels.csv")
    assert card["clip"]["audio"] == "wavs/{Datei}.wav" and card["attributes"] == {"stimmung": "{Stimmung}"}
    assert [clip["audio"] for clip in clips] == [f"wavs/{row[0]}.wav" for row in ROWS]
    assert clips[0]["attributes"] == {"stimmung": "sad"} and clips[9]["split"] == "valid" and clips[9]["group"] == "s2"
    assert {clip["domain"] for clip in clips} == {"speech"}
    assert "2 values: glad 16, sad 8" in text and "#   Notiz: 24 values, all different, such as n0" in text


def test_paths_with_suffix_beside_the_table_and_a_transcript(replica: Replica) -> None:
    root = replica(
        {"m.tsv": "path\tsentence\na/1.wav\tHello there\na/2.wav\tGood bye\n", "a/1.wav": 0.1, "a/2.wav": 0.1}
    )
    card, clips, text = proposed(root, "m.tsv")
    assert card["clip"] == {"id": "{path|stem}", "audio": "{path}", "transcript": "{sentence}"}
    assert [clip["id"] for clip in clips] == ["1", "2"] and clips[1]["transcript"] == "Good bye"
    assert "attributes" not in card and "validation.share" in text


def test_json_rows_with_nested_labels_and_absent_keys(replica: Replica) -> None:
    rows = [{"uid": i, "wav": f"{i}.wav", "labels": {"Gender": "fm"[i % 2]}} for i in range(6)]
    rows[3] |= {"text": "only here"}
    root = replica({"m.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    card, clips, text = proposed(root, "m.jsonl")
    assert card["clip"]["transcript"] == "{text?}" and card["attributes"] == {"gender": "{labels.Gender}"}
    assert [clip["transcript"] for clip in clips].count(None) == 5 and clips[0]["id"] == "0"
    assert "100% of the audio files" in text


def test_a_label_cannot_leave_its_comment(replica: Replica) -> None:
    names = ["a\nname: evil", "b\u2028licence: none", "c: #x"]
    rows = [{"id": str(i), "audio": f"{i}.wav", "note": names[i % 3], "n\nb": "x"} for i in range(9)]
    root = replica({"m.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    card, clips, _ = proposed(root, "m.jsonl")
    assert card["name"] == "m" and card["licence"] == "private" and clips[0]["attributes"]["note"] == names[0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"m.csv": "name,mood\nx,glad\n"}, "no column holds names of audio files; columns: name, mood"),
        ({"m.csv": "name,mood\n"}, "no rows"),
        ({"m.csv": "a,b\n1\n"}, r"m\.csv:2: 1 columns, expected 2"),
        ({"m.txt": "x"}, "not a .csv, .tsv, .jsonl or .json file"),
    ],
)
def test_a_table_without_audio_or_rows_is_refused(replica: Replica, table: dict[str, str], message: str) -> None:
    root = replica(table)
    with pytest.raises(CorpusError, match=message):
        propose_card(root / next(iter(table)))


def test_the_command_prints_or_writes_and_never_replaces(replica: Replica, capsys: pytest.CaptureFixture[str]) -> None:
    root = replica({"m.csv": "path,sentence\n1.wav,Hello you\n"})
    assert main([str(root / "m.csv")]) == 0 and 'audio: "{path}"' in capsys.readouterr().out
    out = ["-o", str(root / "card.yaml")]
    assert main([str(root / "m.csv"), *out]) == 0 and (root / "card.yaml").is_file()
    assert main([str(root / "m.csv"), *out]) == 1 and "--force replaces it" in capsys.readouterr().err
    assert main([str(root / "m.csv"), *out, "--force"]) == 0
    assert main([str(root / "no.csv")]) == 1 and "no file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "desta card" in capsys.readouterr().out
