"""Rows of one's own: rates and accuracies by hand count, the cascade, what is refused."""

import json

import numpy as np
import pytest
import soundfile

from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.recognition import quoted_part
from nemo_desta.evaluation.row_eval import evaluate_rows, plan_rows
from nemo_desta.evaluation.run import evaluate
from nemo_desta.evaluation.settings import ControlSettings, EvaluateSettings, RowsSettings
from nemo_desta.evaluation.sources import Source
from nemo_desta.recipes.corpora import CorpusError


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
    heard = [message["content"] for message in source.asked if "audios" in message]
    assert len(heard) == 3 and all(text.startswith("<|AUDIO|>\n") for text in heard)


def test_a_row_without_an_answer_counts_as_silence(rows):
    found = evaluate_rows(Scripted({"r0": "red house"}), settings(rows), rows / "out")["recognition"]
    assert found["unanswered"] == 2 and found["wer"] == pytest.approx(3 / 5)


def test_what_an_answer_quotes_is_scored_beside_the_whole_answer(rows):
    source = Scripted({"r0": 'The man says "red house."', "r1": "blue tree", "r3": 'They say, "doors'})
    found = evaluate_rows(source, settings(rows), rows / "out")["recognition"]
    assert found["wer"] == pytest.approx(6 / 5)
    assert found["quoted"]["answers"] == 2 and found["quoted"]["wer"] == pytest.approx(1 / 5)
    assert found["text_cascade"]["num_rows"] == 3


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ('The words are "one two".', "one two"),
        ("It is “eins” zu hören", "eins"),
        ('He said "a" and "b"', None),
        ("no marks, it's plain", None),
        ('He says, "cut off', "cut off"),
    ],
)
def test_the_quoted_part_is_taken_from_one_pair_of_marks(answer, part):
    assert quoted_part(answer) == part


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


def test_best_constant_and_controls_are_compared_row_by_row(rows):
    class Deaf(Scripted):
        def ask(self, rows, folder):
            answers = super().ask(rows, folder)
            return {} if folder.name == "control_silence" else answers

    source = Deaf({"r0": "male", "r1": "male", "r2": "male"}, {"r0": "male", "r1": "female", "r2": "male"})
    asked = settings(rows, transcribe=False, attributes=["gender"])
    found = evaluate_rows(source, asked, rows / "out", controls=ControlSettings(items=3))
    constant, shuffled = found["attributes"]["gender"]["controls"]
    assert (constant["name"], constant["count"]) == ("best constant", 3)
    assert constant["accuracy"] == pytest.approx(2 / 3) and constant["difference"] == 0.0
    assert (shuffled["name"], shuffled["accuracy"]) == ("shuffled", pytest.approx(2 / 3))
    assert "silence control of gender: 3 of 3 rows were not answered" in found["left_out"]


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


RECIPE = [
    ("c1-p0", "c1.wav", "[00:00-00:01] one (two), three (Mood: very calm, Duration: 1s)", "valid"),
    ("c1-p1", "c1.wav", "[00:00-00:01] one (two), three (Mood: very calm, Duration: 1s)", "valid"),
    ("c2-p0", "c2.wav", "[00:00-00:01] (Speaker age: child, Mood: glad, Duration: 1s)", "valid"),
    ("c3-p0", "c3.wav", "[00:00-00:01] (duration: 1s, mood: glad)", "train"),
]


@pytest.fixture
def recipe(tmp_path):
    """A recipe's folder with rows as they are written, and their clips elsewhere."""
    folder = tmp_path / "out" / "rows"
    folder.mkdir(parents=True)
    for name in ("c1", "c2", "c3"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.ones(1600), 16_000)
    for row_id, audio, description, split in RECIPE:
        message = {"role": "user", "content": "<|AUDIO|>\nWhat?", "audios": [{"audio": audio, "text": None}]}
        row = {"id": row_id, "seed_description": description, "prompt": "What?", "prompt_id": "x", "split": split}
        with (folder / f"{split}-00000.jsonl").open("a") as file:
            file.write(json.dumps({**row, "messages": [message], "response": "A voice."}) + "\n")
    (tmp_path / "out/recipe.json").write_text(json.dumps({"data_root": str(tmp_path)}))
    return tmp_path


def test_rows_that_recipes_write_need_no_attributes(recipe):
    source = Scripted({"c1-p0": "very calm", "c2-p0": "glad"}, {"c1-p0": "very calm", "c2-p0": "very calm"})
    wanted = RowsSettings(rows=str(recipe / "out"), split="valid", audio_root=str(recipe), attributes=["mood"])
    found = evaluate_rows(source, wanted, recipe / "eval")
    mood = found["attributes"]["mood"]
    assert (mood["num_rows"], mood["accuracy"], mood["text_cascade"]) == (2, 1.0, 0.5), "a clip is asked about once"
    question = next(m["content"] for m in source.asked if "audios" in m)
    assert "What is the mood in this recording? Answer with one of these: glad, very calm." in question
    assert found["left_out"] == ["recognition: no row has a transcript"]
    assert "left out: recognition" in found["table"]
    all_splits = evaluate_rows(source, RowsSettings(**{**vars(wanted), "split": None}), recipe / "eval2")
    assert all_splits["attributes"]["mood"]["num_rows"] == 3


def test_a_missing_root_is_asked_for_with_what_the_recipe_read(recipe):
    with pytest.raises(ConfigError, match=f"give audio_root .its recipe read {recipe}."):
        plan_rows(RowsSettings(rows=str(recipe / "out"), attributes=["mood"]), recipe / "eval")


def test_a_table_with_a_card_and_a_table_with_our_names(rows):
    (rows / "labels.csv").write_text("file,sex,set\n0.wav,m,test\n1.wav,f,test\n2.wav,f,train\n")
    card = {"name": "x", "version": "1", "title": "x", "licence": "x", "domain": "speech",
            "reader": {"type": "csv", "files": "gone.csv"}, "clip": {"id": "{file|stem}", "audio": "{file}"},
            "attributes": {"gender": "{sex}"}, "values": {"gender": {"m": "male", "f": "female"}},
            "split": {"by": "{set}"}}  # fmt: skip
    (rows / "card.yaml").write_text(json.dumps(card))
    source = Scripted({"0": "male", "1": "male"}, {"0": "male", "1": "female"})
    table = {"corpus": str(rows / "labels.csv"), "card": str(rows / "card.yaml"), "split": "test"}
    found = evaluate_rows(source, RowsSettings(**table, attributes=["gender"]), rows / "out")["attributes"]["gender"]
    assert (found["num_rows"], found["accuracy"], found["text_cascade"]) == (2, 0.5, 1.0)
    (rows / "own.csv").write_text("id,audio,domain,gender\n0,0.wav,speech,male\n1,1.wav,speech,female\n")
    found = evaluate_rows(source, RowsSettings(rows=str(rows / "own.csv"), attributes=["gender"]), rows / "own")
    assert found["attributes"]["gender"]["accuracy"] == 0.5
    with pytest.raises(CorpusError, match="labels.csv:2: id, audio, domain missing.*desta card"):
        plan_rows(RowsSettings(corpus=str(rows / "labels.csv")), rows / "out")


def test_a_nemo_manifest_is_read_from_its_own_folder(rows):
    (rows / "sub").mkdir()
    (rows / "0.wav").rename(rows / "sub/a.wav")
    (rows / "sub/manifest.json").write_text(json.dumps({"audio_filepath": "a.wav", "text": "red", "mood": "calm"}))
    wanted = RowsSettings(rows=str(rows / "sub/manifest.json"), attributes=["mood"])
    found = evaluate_rows(Scripted({"a.wav": "red"}), wanted, rows / "out")
    assert found["recognition"]["wer"] == 0 and found["attributes"]["mood"]["text_cascade"] is None
    assert any(
        "text cascade of mood: 1 of 1 rows have no description, such as a.wav" in what for what in found["left_out"]
    )


def test_everything_is_checked_before_the_first_question(rows):
    source = Scripted({"r0": "male"})
    good = {"gender": {"question": "?"}}
    wrong = [
        (
            {"attributes": {**good, "age": {}}},
            "attributes.age: no row has a value under 'attributes.age', under 'age'",
        ),
        ({"attributes": {"gender": {"values": ["masculine"]}}}, "no row has one of masculine; has: female, male"),
        ({"attributes": {"gender": {"aliases": {"male": ["x"], "female": ["x"]}}}}, "'x' stands for both"),
        ({"attributes": "gender"}, "rows.attributes must be names, name"),
        ({"corpus": "x.csv"}, "either rows.rows .* or rows.corpus"),
        ({"card": "x.yaml"}, "rows.card describes a table"),
        ({"rows": 3}, "rows.rows must be a text or a list of texts, found 3"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            evaluate_rows(source, settings(rows, **change), rows / "out")
    with pytest.raises(ConfigError, match="unknown control 'silent'. Did you mean 'silence'"):
        controls = ControlSettings(kinds=["silent"])
        evaluate_rows(source, settings(rows, attributes=good), rows / "out", controls=controls)
    assert source.asked == []
    with pytest.raises(ConfigError, match="no row has a value under 'attributes.age'"):  # the model would not be found
        rows_of = settings(rows, attributes=["age"])
        evaluate(EvaluateSettings(output=str(rows / "out"), model="no/model", rows=rows_of))


def test_an_answer_may_hold_what_looks_like_a_line_end(tmp_path):
    class Fixed(Source):
        def _answer(self, prompts, answers, roots):
            answers.write_text(json.dumps({"id": "a", "answer": "one\u2028two"}, ensure_ascii=False) + "\n")

    source = Fixed(EvaluateSettings(output="unused", model="m"))
    rows = [{"id": "a", "messages": [{"role": "user", "content": "x\u2028y"}]}]
    for _ in range(2):  # the second time, the prompts are compared
        assert source.ask(rows, tmp_path) == {"a": "one\u2028two"}
