"""Strict mode keeps every item in the denominator and never crashes; official mode takes any answer, too."""

import pytest
from hypothesis import strategies as st

from nemo_desta.evaluation.scorers import air_bench, sakura
from nemo_desta.evaluation.scores import ItemError, score
from tests.evaluation.examples import few_and_many

OPTIONS = ["a dog", "a cat", "a hot dog vendor", "a cow"]
LETTERED = {"choice_a": "a dog", "choice_b": "a cat", "choice_c": "a hot dog vendor", "choice_d": "a cow"}
ROWS = {
    "mmau": ({"choices": OPTIONS, "answer": "a cat", "task": "sound"}, "model_output"),
    "mmar": ({"choices": OPTIONS, "answer": "a cat", "modality": "sound"}, "answer_prediction"),
    "mmsu": ({**LETTERED, "answer_gt": "a cat", "category": "Perception", "sub-category": "x"}, "response"),
    "air_bench": ({**LETTERED, "answer_gt": "a cat", "task_name": "x", "dataset_name": "y"}, "response"),
    "sakura": (
        {
            "track": "Animal",
            "hop": "single",
            "instruction": "Which animal? (a) a dog (b) a cat, (c) a hot dog vendor or (d) a cow",
            "answer": "(b) a cat",
        },
        "response",
    ),
    "dynamic_superb": ({"label": "a cat", "choices": OPTIONS, "task": "x"}, "response"),
}
benchmarks = pytest.mark.parametrize("benchmark", list(ROWS))
answers = st.lists(st.one_of(st.text(max_size=60), st.none(), st.just("missing")), min_size=1, max_size=12)


def items(benchmark, given_answers):
    row, key = ROWS[benchmark]
    return [dict(row) if answer == "missing" else {**row, key: answer} for answer in given_answers]


@benchmarks
@few_and_many(given_answers=answers, few=20, many=200)
def test_the_denominator_is_the_number_of_items(benchmark, given_answers):
    scores = score(benchmark, items(benchmark, given_answers), mode="strict")
    assert scores.num_items == len(given_answers)
    assert scores.totals["counted"] == len(given_answers)
    assert None not in scores.verdicts and len(scores.verdicts) == len(given_answers)
    assert scores.totals["correct"] == sum(scores.verdicts)
    assert scores.num_unparsed + sum(scores.verdicts) <= len(given_answers)
    for group in scores.by.values():
        assert sum(one["count"] for one in group.values()) == len(given_answers)


@benchmarks
def test_verdicts_follow_what_was_chosen(benchmark):
    given_answers = ["a cat", "It is a cow.", "I do not know.", None, "missing", "<answer>a cat</answer>"]
    scores = score(benchmark, items(benchmark, given_answers), mode="strict")
    assert scores.verdicts == [True, False, False, False, False, True]
    assert scores.num_unparsed == 3
    assert scores.totals["accuracy"] == 2 / 6


@pytest.mark.parametrize("benchmark", ["mmau", "mmar", "mmsu", "air_bench"])
@few_and_many(given_answers=st.lists(st.text(max_size=60), min_size=1, max_size=12), few=20, many=200)
def test_official_mode_takes_any_text(benchmark, given_answers):
    scores = score(benchmark, items(benchmark, given_answers))
    assert len(scores.verdicts) == len(given_answers)


@few_and_many(st.text(max_size=100))
def test_any_text_of_a_judge_can_be_read(text):
    row = {"track": "Animal", "hop": "single", **sakura.parse_judgement(text)}
    assert score("sakura", [row]).num_items == 1
    chat = {"task_name": "speech_QA", "gpt-score": text, "gpt-score-swapped": text}
    assert score("air_bench", [chat]).num_items == 1
    assert score("air_bench", [chat], mode="strict").totals["counted"] == 1


@benchmarks
def test_an_item_that_cannot_be_used_is_named(benchmark):
    row, key = ROWS[benchmark]
    truth = next(name for name in ("answer", "answer_gt", "label") if name in row)
    with pytest.raises(ItemError, match=f"item 'x-17': has no field '{truth}'"):
        score(benchmark, [{"id": "x-17", **{k: v for k, v in row.items() if k != truth}}], mode="strict")
    with pytest.raises(ItemError, match=f"item at position 0: prediction '{key}' is int"):
        score(benchmark, [{**row, key: 3}], mode="strict")
    with pytest.raises(ItemError, match="at position 1: is str"):
        score(benchmark, [row, "row"], mode="strict")


@pytest.mark.parametrize("benchmark", ["mmau", "mmar", "mmsu", "air_bench", "dynamic_superb"])
def test_a_true_answer_that_is_no_option_is_an_error(benchmark):
    row, _ = ROWS[benchmark]
    truth = next(name for name in ("answer", "answer_gt", "label") if name in row)
    with pytest.raises(ItemError, match="'a whale' is none of the choices 'a dog'"):
        score(benchmark, [{**row, truth: "a whale"}], mode="strict")


@pytest.mark.parametrize("truth", ["(B)", "(B) a cat", "A CAT ", "b"])
def test_a_true_answer_may_be_written_as_an_answer_is(truth):
    row, key = ROWS["mmau"]
    scores = score("mmau", [{**row, "answer": truth, key: "a cat"}, {**row, "answer": truth, key: "a dog"}], "strict")
    assert scores.verdicts == [True, False]


def test_labels_of_a_task_are_its_options_and_open_tasks_are_left_out():
    rows = [{"task": "emotion", "label": label, "response": f"It sounds {label}."} for label in ("happy", "sad")]
    rows += [{"task": "emotion", "label": "sad", "response": "happy or sad"}]
    rows += [{"task": "transcript", "label": f"text {i}", "response": "text"} for i in range(70)]
    scores = score("dynamic_superb", rows, mode="strict")
    assert scores.verdicts == [True, True, False, *[None] * 70]
    assert scores.totals["left_out"] == "transcript (70 items with open answers)"


@pytest.mark.parametrize(
    ("question", "answer", "options"),
    [
        ("Which? (a) dog (b) cat", "(b) cat", ["(a) dog", "(b) cat"]),
        ("Which?\n(a) dog, (b) cat or (c) cow", "(c) cow", ["(a) dog", "(b) cat", "(c) cow"]),
        ("Which? (a) I won. (b) I lost my dog.", "(b) I lost my dog.", ["(a) I won", "(b) I lost my dog."]),
        ("Which animal is it?", "(a) dog", ["(a) dog"]),
    ],
)
def test_options_are_read_from_the_question(question, answer, options):
    assert sakura.options_of(question, answer) == options


def test_the_judge_is_asked_in_order_and_its_texts_come_back_to_their_items():
    row, _ = ROWS["sakura"]
    rows = [{**row, "response": "a cat"}, dict(row), {**row, "response": "a dog"}]
    asks = sakura.judge_requests(rows)
    assert [ask.index for ask in asks] == [0, 2]
    assert "(b) a cat" in asks[0].messages[-1]["content"] and "a dog" in asks[1].messages[-1]["content"]
    judged = sakura.with_judgements(rows, asks, ["Explanation: it is.\nJudgement: correct", None])
    assert score("sakura", judged).verdicts == [True, False, False]
    assert sakura.judge_requests(judged[:1] + judged[2:]) == []


def test_a_chat_row_is_judged_in_both_orders():
    row = {"task_name": "speech_QA", "question": "Who speaks?", "answer_gt": "A man.", "meta_info": "A man speaks."}
    foundation, _ = ROWS["air_bench"]
    rows = [dict(foundation), {**row, "response": "A woman."}, dict(row)]
    asks = air_bench.judge_requests(rows)
    assert [(ask.index, ask.turn) for ask in asks] == [(1, 0), (1, 1)]
    straight, swapped = (ask.messages[0]["content"] for ask in asks)
    assert straight.index("A man.") < straight.index("A woman.") and swapped.index("A woman.") < swapped.index(
        "A man."
    )
    assert {ask.temperature for ask in air_bench.judge_requests([rows[1]] * 50)} == {1.0, 2.0}
    judged = air_bench.with_judgements(rows, asks, ["9 3", "4 8"])
    scores = score("air_bench", judged, mode="strict")
    assert scores.verdicts == [False, False, None]
    assert scores.totals["left_out"].startswith("1 chat row")
    assert score("air_bench", judged[1:2]).totals["chat_speech"] == (3 + 4) / 2
    with pytest.raises(ItemError, match="meta_info"):
        air_bench.judge_requests([{k: v for k, v in rows[1].items() if k != "meta_info"}])
