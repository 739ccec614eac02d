"""Rows of one's own: rates and accuracies by hand count, the cascade, what is refused."""

import json

import numpy as np
import pytest
import soundfile

from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.row_eval import evaluate_rows
from nemo_desta.evaluation.settings import EvaluateSettings, RowsSettings
from nemo_desta.evaluation.sources import Source


class Scripted(Source):
    """Says what it is told to, by question and by whether it hears or reads."""

    def __init__(self, heard, read=None):
        super().__init__(EvaluateSettings(output="unused", model="m"))
        self.heard, self.read, self.asked = heard, read or {}, []

    def ask(self, rows, folder):
        self.asked += [row["messages"][-1] for row in rows]
        answers = {}
        for row in rows:
            script = self.heard if "audios" in row["messages"][-1] else self.read
            if row["id"] in script:
                answers[row["id"]] = script[row["id"]]
        return answers


@pytest.fixture
def rows(tmp_path):
    made = []
    for i, (gender, words) in enumerate(
        [("male", "red house"), ("female", "blue tree"), ("male", None), (None, "door")]
    ):
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * np.ones(1600), 16_000)
        made.append({"id": f"r{i}", "audio": f"{i}.wav", "duration": 0.1, "domain": "speech", "transcript": words,
                     "attributes": {"gender": gender}})  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return tmp_path


def settings(folder, **more):
    return RowsSettings(**{"rows": str(folder / "rows.jsonl"), "audio_root": str(folder), **more})


def test_word_errors_are_counted_over_all_spoken_rows(rows):
    source = Scripted({"r0": "Red house.", "r1": "blue", "r3": "door bell"})
    found = evaluate_rows(source, settings(rows), rows / "out")["recognition"]
    assert found["num_rows"] == 3 and found["unanswered"] == 0
    assert found["wer"] == pytest.approx(2 / 5)  # one word lost, one too many, of five
    assert all(message["content"].startswith("<|AUDIO|>\n") for message in source.asked)


def test_a_row_without_an_answer_counts_as_silence(rows):
    found = evaluate_rows(Scripted({"r0": "red house"}), settings(rows), rows / "out")["recognition"]
    assert found["unanswered"] == 2 and found["wer"] == pytest.approx(3 / 5)


def test_attributes_stand_beside_their_bounds(rows):
    heard = {"r0": "A male voice.", "r1": "male", "r2": "I cannot tell."}
    read = {"r0": "male", "r1": "female", "r2": "male"}
    source = Scripted(heard, read)
    asked = settings(rows, transcribe=False, attributes={"gender": {"question": "Male or female?"}})
    found = evaluate_rows(source, asked, rows / "out")
    gender = found["attributes"]["gender"]
    assert gender["num_rows"] == 3, "a row without a value is not asked about"
    assert gender["accuracy"] == pytest.approx(1 / 3) and gender["unparsed"] == 1
    assert gender["best_constant"] == ("male", pytest.approx(2 / 3))
    assert gender["text_cascade"] == 1.0
    described = [m["content"] for m in source.asked if "audios" not in m]
    assert any("(Gender: female, Duration: 1s)" in text for text in described)
    assert "text cascade" in found["table"]


def test_what_cannot_be_scored_is_said(rows, tmp_path):
    with pytest.raises(ConfigError, match="no row has a value under 'attributes.age'"):
        evaluate_rows(Scripted({}), settings(rows, attributes={"age": {"question": "?"}}), rows / "out")
    with pytest.raises(ConfigError, match="Did you mean 'question'"):
        evaluate_rows(Scripted({}), settings(rows, attributes={"gender": {"qestion": "?"}}), rows / "out")
    with pytest.raises(FileNotFoundError, match="no file matches"):
        evaluate_rows(Scripted({}), settings(rows, rows=str(rows / "gone.jsonl")), rows / "out")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"no row can be used. .*bad.jsonl:1: 'id' must be"):
        evaluate_rows(Scripted({}), settings(rows, rows=str(tmp_path / "bad.jsonl")), rows / "out")
    row = {"id": "x", "audio": "../../secret.wav", "transcript": "a"}
    (tmp_path / "out.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match="out.jsonl:1: .*outside every audio root"):
        evaluate_rows(Scripted({}), settings(rows, rows=str(tmp_path / "out.jsonl")), rows / "out")


def test_rows_that_cannot_be_used_are_named_counted_and_the_others_scored(rows):
    good = (rows / "rows.jsonl").read_text()
    bad = [
        '{"id": "torn',
        '{"id": "outside", "audio": "../../secret.wav"}',
        '{"id": "odd", "messages": [5]}',
        '{"id": "list", "audio": "0.wav", "transcript": ["a"]}',
        "[" * 100_000,
    ]
    (rows / "rows.jsonl").write_text(
        good + "\n".join(bad) + '\n{"id": 7, "audio": "0.wav", "transcript": "a\u2028b"}\n'
    )
    found = evaluate_rows(Scripted({"r0": "red house", "7": "a b"}), settings(rows), rows / "out")
    assert found["num_rows"] == 5 and found["recognition"]["num_rows"] == 4
    assert sum(found["bad_rows"].values()) == 5
    named = [json.loads(line)["where"].rpartition(":")[2] for line in open(rows / "out" / "bad_rows.jsonl")]
    assert named == ["5", "6", "7", "8", "9"]


def test_an_answer_may_hold_what_looks_like_a_line_end(tmp_path):
    class Fixed(Source):
        def _answer(self, prompts, answers, roots):
            answers.write_text(json.dumps({"id": "a", "answer": "one\u2028two"}, ensure_ascii=False) + "\n")

    source = Fixed(EvaluateSettings(output="unused", model="m"))
    rows = [{"id": "a", "messages": [{"role": "user", "content": "x\u2028y"}]}]
    for _ in range(2):  # the second time, the prompts are compared
        assert source.ask(rows, tmp_path) == {"a": "one\u2028two"}
