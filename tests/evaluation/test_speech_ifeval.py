"""Speech-IFEval: rows, totals and printed report as the official scripts', and what a judge adds."""

import functools
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from nemo_desta.evaluation.scorers import speech_ifeval
from nemo_desta.evaluation.scores import ItemError, score
from tests.evaluation.examples import few_and_many

FIXTURE = Path(__file__).parents[1] / "fixtures" / "scorers" / "speech_ifeval.json.gz"


@functools.cache
def fixture():
    return json.loads(gzip.decompress(FIXTURE.read_bytes()))


@pytest.fixture(scope="module")
def made():
    return fixture()


def chain(number, **fields):
    return {
        "audio_filepath": f"{number}.wav",
        "instruction": "Think.\nWho?",
        "dataset": "MMAU",
        "metric": "cot",
        **fields,
    }


def test_every_row_and_the_printed_report_agree_with_the_official_script(made):
    found = score("speech_ifeval", made["rows"])
    assert [[verdict] for verdict in found.verdicts] == made["verdicts"]
    by = found.by
    lines = [
        f"prompt-level: {found.totals['closed']}",
        f"instruction-level: {found.totals['closed_instruction_level']}",
    ]
    for table in ("category", "kind"):
        lines += ["", *(f"{name} {cell['accuracy']}" for name, cell in by[f"closed / {table}"].items())]
    lines += ["", "===== Speech-IFEval accuracy ====="]
    lines += [f"{name} {cell['accuracy']}" for name, cell in by["closed / group"].items()]
    lines += ["", f"ALL: {found.totals['closed_instruction_level']}", "==================================="]
    assert "\n".join(lines) == made["printed"].strip()


def test_judge_texts_are_read_as_the_official_expression_does(made):
    for text, expected in made["judge_result_regex"]:
        assert speech_ifeval.parse_judgement(text) == expected, text


def test_ifrate_is_the_mean_of_three_parts_and_forgetting_relative_to_the_reference():
    closed = {"metric": "accuracy", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    items = [
        *({**closed, "response": text} for text in ("no comma", "one, two")),
        *({**closed, "metric": "open", "response": text} for text in ("fine", "fine", "fine", "so, so")),
        chain(1, response="Because ...", eval_response="Result: YES"),
        chain(2, response="Bob", eval_response="The reply is short. Result: NO"),
        chain(3, response="Bob", eval_response="I cannot say"),
        chain(4, response="First ...", eval_response="**Result:** YES"),
    ]
    found = score("speech_ifeval", items, reference_ifrate=0.8)
    assert (found.totals["closed"], found.totals["creative"], found.totals["cot"]) == (0.5, 0.75, 0.25)
    assert found.totals["ifrate"] == pytest.approx(0.5)
    assert found.totals["forgetting_rate"] == pytest.approx((0.5 - 0.8) / 0.8)
    assert found.num_unparsed == 2  # the last two have no result that the official expression sees
    strict = score("speech_ifeval", items, mode="strict")
    assert strict.totals["cot"] == 0.5 and strict.num_unparsed == 1
    assert len(strict.verdicts) == strict.num_items == len(items)


def test_judging_asks_for_chains_alone_and_unjudged_ones_are_named(made):
    items = [*made["rows"][:3], chain(1, response="Because ..."), chain(2), chain(3, response="Bob")]
    unjudged = score("speech_ifeval", items)
    assert unjudged.verdicts[3:] == [None] * 3 and "ifrate" not in unjudged.totals
    assert unjudged.totals["left_out"] == ["3 chains of thought without a judgement"]
    asks = speech_ifeval.judge_requests(items)
    assert [ask.index for ask in asks] == [3, 5]
    assert "Because ..." in asks[0].messages[-1]["content"] and "Who?" in asks[0].messages[-1]["content"]
    judged = speech_ifeval.with_judgements(items, asks, ["Result: YES", None])
    assert score("speech_ifeval", judged).verdicts[3:] == [True, None, None]
    assert "eval_response" not in items[3]  # the caller's rows stay as they are


def test_unusable_items_are_named(made):
    row = {**made["rows"][0], "id": "c-7"}
    with pytest.raises(ItemError, match="item 'c-7': has no field 'kwargs'"):
        score("speech_ifeval", [{k: v for k, v in row.items() if k != "kwargs"}])
    with pytest.raises(ItemError, match="item 'c-7': unknown instruction 'keywords:exist'"):
        score("speech_ifeval", [{**row, "instruction_id_list": ["keywords:exist"]}])
    with pytest.raises(ItemError, match="item 'c-7': prediction 'response' is int"):
        score("speech_ifeval", [{**row, "response": 5}])


@few_and_many(texts=st.lists(st.none() | st.text(), min_size=109, max_size=109), judged=st.text(), few=20, many=200)
def test_no_answer_breaks_the_scorer_and_strict_counts_every_item(texts, judged):
    rows = fixture()["rows"]
    items = [{**row, "response": text} for row, text in zip(rows, texts, strict=True)]
    items.append(chain(1, response="x", eval_response=judged))
    for mode in ("official", "strict"):
        found = score("speech_ifeval", items, mode=mode)
        assert len(found.verdicts) == 110 and None not in found.verdicts
