"""Text instead of the audio: the share of the text cascade, what it means near chance, and the transcript cascade."""

import json

import numpy as np
import pytest
import soundfile

from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.attributes import Accuracy, task_result
from nemo_desta.evaluation.cascades import cascade_figures, cascade_sentence
from nemo_desta.evaluation.report import write_report
from nemo_desta.evaluation.row_eval import evaluate_rows
from nemo_desta.evaluation.settings import EvaluateSettings, RowsSettings
from nemo_desta.evaluation.sources import Source

TRUTH = ["a"] * 5 + ["b"] * 5


def entry(heard, cascade):
    result = task_result("task", heard, TRUTH)
    return {"best_constant": result.constant, **cascade_figures(result, cascade, "text_cascade")}


def test_the_share_is_accuracy_over_the_cascade():
    found = entry(["a"] * 5 + [None] * 5, Accuracy(10, 10))
    assert found["text_cascade"] == 1.0 and found["of_the_text_cascade"] == 0.5
    assert found["text_cascade_interval"] == pytest.approx((0.7225, 1.0), abs=1e-4)  # Wilson, 10 of 10
    assert found["readable"] is True and cascade_sentence(found) == ""


def test_a_cascade_near_chance_says_nothing_about_hearing():
    found = entry(TRUTH, Accuracy(7, 10))  # Wilson: 0.397 to 0.892, and the best constant has 0.5
    assert found["readable"] is False and found["of_the_text_cascade"] == pytest.approx(1 / 0.7)
    said = cascade_sentence(found)
    assert "cannot read" in said and "0.700 (0.40-0.89) is not above the best constant answer 0.500 (a)" in said
    assert entry(TRUTH, Accuracy(0, 10))["of_the_text_cascade"] is None, "nothing is a share of zero"
    assert entry(TRUTH, None) == {
        "best_constant": ("a", 0.5),
        "text_cascade": None,
        "text_cascade_interval": None,
        "of_the_text_cascade": None,
        "readable": None,
    }


class Reader(Source):
    """Hears "seven" in every clip, reads the last word of a transcript."""

    def __init__(self, transcriber=None):
        super().__init__(EvaluateSettings(output="unused", model="m", progress=False))
        self.asked = []
        if transcriber is not None:
            self.model = type(
                "Listener", (), {"audio_locator_tag": "<|AUDIO|>", "transcriber": property(transcriber)}
            )()

    def ask(self, rows, folder):
        texts = {row["id"]: row["messages"][0]["content"] for row in rows}
        self.asked += texts.values()
        if folder.name != "transcript_cascade":
            return dict.fromkeys(texts, "seven")
        return {row_id: text.split('"')[1] for row_id, text in texts.items()}


@pytest.fixture
def rows(tmp_path):
    with (tmp_path / "rows.jsonl").open("w") as file:
        for i, (digit, words) in enumerate([("7", "seven"), ("1", "one"), ("2", "you"), ("2", "two")]):
            soundfile.write(tmp_path / f"{i}.wav", np.full(1600 * (i + 1), 0.1), 16_000)
            row = {"id": f"r{i}", "audio": f"{i}.wav", "transcript": words, "attributes": {"digit": digit}}
            file.write(json.dumps({**row, "source": "one" if i < 2 else "two"}) + "\n")
    return tmp_path


def settings(folder, **more):
    given = {"rows": str(folder / "rows.jsonl"), "transcribe": False, "attributes": ["digit"], "transcripts": "given"}
    return RowsSettings(**{**given, **more})


def test_the_transcript_cascade_reads_the_rows_transcripts(rows):
    source = Reader()
    found = evaluate_rows(source, settings(rows), rows / "out")
    digit = found["attributes"]["digit"]
    assert digit["accuracy"] == digit["text_cascade"] == 0.25 and digit["transcript_cascade"] == 0.75
    assert digit["of_the_transcript_cascade"] == pytest.approx(1 / 3)
    assert digit["transcript_cascade_interval"] == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson, 3 of 4
    assert any(text.startswith('Transcript of the recording: "you"\nWhat is the digit') for text in source.asked)
    assert "transcript cascade" in found["table"] and "0.750 (0.30-0.95)" in found["table"]


def test_a_row_without_a_transcript_leaves_the_column_out(rows):
    lines = (rows / "rows.jsonl").read_text().replace('"you"', "null")
    (rows / "rows.jsonl").write_text(lines)
    found = evaluate_rows(Reader(), settings(rows), rows / "out")
    assert found["attributes"]["digit"]["transcript_cascade"] is None
    assert "transcript cascade of digit: 1 of 4 rows have no transcript" in found["left_out"]


def test_whisper_transcribes_each_clip_once_also_after_a_kill(rows):
    lengths = []

    def whisper(model):
        def transcribe(clips):
            lengths.extend(len(clip) for clip in clips)
            return ["seven", "one", "two", "two"][: len(clips)]

        return transcribe

    evaluation = evaluate_rows(Reader(whisper), settings(rows, transcripts="whisper"), rows / "out")
    assert evaluation["attributes"]["digit"]["transcript_cascade"] == 1.0
    assert lengths == [1600, 3200, 4800, 6400]
    log = rows / "out" / "transcripts.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    lengths.clear()
    again = evaluate_rows(Reader(whisper), settings(rows, transcripts="whisper"), rows / "out")
    assert lengths == [6400] and again["attributes"]["digit"]["transcript_cascade"] == 0.75, "the last text is seven"


def test_a_clip_that_cannot_be_read_has_an_empty_transcript(rows):
    (rows / "2.wav").write_bytes(b"no audio")
    source = Reader(lambda model: lambda clips: [str(len(clip)) for clip in clips])
    evaluate_rows(source, settings(rows, transcripts="whisper"), rows / "out")
    read = [text.split('"')[1] for text in source.asked if text.startswith("Transcript")]
    assert read == ["1600", "3200", "", "6400"]


def test_a_model_without_whisper_fails_before_the_first_question(rows):
    def missing(model):
        raise ValueError("'x' lacks 9 tensors of a whole Whisper")

    source = Reader(missing)
    with pytest.raises(ConfigError, match="rows.transcripts=whisper: 'x' lacks 9 tensors"):
        evaluate_rows(source, settings(rows, transcripts="whisper"), rows / "out")
    assert source.asked == []


def test_the_page_and_the_terminal_show_what_went_wrong(rows):
    found = evaluate_rows(Reader(), settings(rows), rows / "out")
    assert "digit, worst classes: 2 0 of 2 (as 7 2); 1 0 of 1 (as 7 1)" in found["table"]
    assert "digit, by corpus: one 0.500 (0.09-0.91, n 2); two 0.000 (0.00-0.66, n 2)" in found["table"]
    report = {"first_line": "x", "benchmarks": {}, "settings": {}, "rows": found}
    page = write_report(rows / "report.html", report).read_text()
    for part in ("digit: by corpus", "digit: by true value", "most frequent wrong answer", "transcript cascade"):
        assert part in page
    line = (rows / "out" / "digit" / "scored.jsonl").read_text().splitlines()[1]
    assert json.loads(line) == {"id": "r1", "corpus": "one", "truth": "1", "answer": "seven", "value": "7"}
