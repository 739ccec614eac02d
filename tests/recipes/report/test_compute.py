"""The statistics of a folder equal a count by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.core.think_tags import split_thought
from nemo_desta.recipes.report import compute_stats
from nemo_desta.recipes.report.counters import CappedCounter, Lengths
from nemo_desta.recipes.unicode_scripts import script_of
from tests.recipes.report.conftest import make_row


def test_rows_attributes_prompts_and_audio_are_counted(folder: Path) -> None:
    found = compute_stats(folder)
    rows = found["rows"]
    assert rows["total"] == 40
    assert rows["by_corpus"] == {"voices": 30, "birds": 10}
    assert rows["by_split"] == {"train": 30, "valid": 10}
    assert rows["by_corpus_and_split"] == {"birds": {"train": 10}, "voices": {"train": 20, "valid": 10}}
    assert found["attributes"] == {"gender": {"rows": 40, "distinct": 2, "values": {"female": 20, "male": 20}}}
    assert found["prompts"]["distinct"] == 2
    assert found["prompts"]["by_kind"] == {"attribute": 20, "describe": 20}
    assert found["prompts"]["openings"] == {"Describe the": 20, "Who speaks": 20}
    assert found["audio"]["clips"] == 20
    assert found["audio"]["hours"] == pytest.approx(20 * 1.5 / 3600, abs=1e-4)
    assert found["audio"]["hours_in_rows"] == pytest.approx(40 * 1.5 / 3600, abs=1e-4)
    assert found["responses"]["answer_words"]["p50"] == 6
    assert json.loads(json.dumps(found)) == found


def test_rejected_rows_are_counted_by_reason_with_examples(folder: Path) -> None:
    found = compute_stats(folder)["rejected"]
    assert found["reasons"] == {"leak": 3, "empty": 1}
    assert found["share"] == pytest.approx(4 / 44, abs=1e-6)
    assert found["examples"]["empty"] == [{"id": "r0", "detail": "detail 0"}]


def test_speed_and_cost_follow_from_the_summary(folder: Path) -> None:
    speed = compute_stats(folder, prices={"prompt": 2.0, "new": 10.0})["speed"]
    assert speed["new_tokens_per_second"] == 50
    assert speed["cost"] == pytest.approx((4000 * 2 + 1000 * 10) / 1e6)
    assert speed["cost_per_1000_rows"] == pytest.approx(speed["cost"] * 25)
    with pytest.raises(ValueError, match="prices: 'output' is not known"):
        compute_stats(folder, prices={"output": 1.0})


def test_thoughts_and_answers_are_measured_apart(write_rows: Callable[..., Path]) -> None:
    closed = [make_row(i, response="one two three\n</think>\n\nfour five") for i in range(4)]
    cut = make_row(4, response="a thought without end that goes on", truncated=True)
    plain = make_row(5, response="a cut answer", truncated=True, llm="other")
    found = compute_stats(write_rows("rows.jsonl", [*closed, cut, plain]))["responses"]
    assert found["thought_words"]["rows"] == 5
    assert found["thought_words"]["max"] == 7
    assert found["answer_words"]["rows"] == 5
    assert found["answer_words"]["max"] == 3
    assert (found["truncated"], found["unfinished_thoughts"]) == (2, 1)


def test_duplicates_leaks_and_formats_are_counted(write_rows: Callable[..., Path]) -> None:
    rows = [make_row(i) for i in range(6)]
    rows[1]["response"] = "According to the description, a bird sings."
    rows[2] |= {"constraint": ["max_words", [5]], "response": "Three words only."}
    rows[3] |= {"constraint": ["max_words", [5]], "response": "These are far more words than five."}
    found = compute_stats(write_rows("rows.jsonl", [*rows, rows[0]]))
    assert found["duplicates"] == {"rows": 1, "responses": 1}
    assert (found["leaks"]["checked"], found["leaks"]["rows"]) == (7, 1)
    assert found["leaks"]["examples"][0]["id"] == rows[1]["id"]
    assert found["constraints"]["by_kind"] == {"max_words": {"rows": 2, "obeyed": 1, "share": 0.5}}


def test_the_leak_check_can_be_held_to_a_draw(write_rows: Callable[..., Path]) -> None:
    path = write_rows("rows.jsonl", [make_row(i) for i in range(400)])
    assert 60 < compute_stats(path, max_leak_checks=100)["leaks"]["checked"] < 140
    assert compute_stats(path, max_leak_checks=None)["leaks"]["checked"] == 400


def test_lines_that_are_no_rows_are_counted_and_passed_over(write_rows: Callable[..., Path]) -> None:
    path = write_rows("rows.jsonl", [make_row(0), {"id": "x"}, make_row(1)])
    with path.open("ab") as file:
        file.write(b'\xff\xfe\n{"id": "half')
    found = compute_stats(path)
    assert found["rows"]["total"] == 2
    assert found["unreadable"]["reasons"] == {"not_json": 2, "schema": 1}
    assert f"{path}:2" in found["unreadable"]["examples"]["schema"][0]


def test_rows_of_another_project_need_no_provenance(write_rows: Callable[..., Path]) -> None:
    bare = [{k: v for k, v in make_row(i).items() if k in ("id", "messages", "response")} for i in range(3)]
    found = compute_stats(write_rows("part-0.jsonl", bare).parent / "part-*.jsonl")
    assert found["rows"]["by_stage"] == {"not said": 3}
    assert found["rejected"] is None and found["speed"] is None


def test_a_folder_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \*\.jsonl"):
        compute_stats(tmp_path)


def test_a_capped_counter_keeps_the_frequent_values() -> None:
    counter = CappedCounter(limit=10)
    for i in range(1000):
        counter.add("often")
        counter.add(i)
    assert counter.total == 2000 and not counter.exact and len(counter) <= 11
    assert counter.most_common(1) == {"often": 1000}


def test_lengths_give_exact_quantiles_and_a_histogram_that_adds_up() -> None:
    lengths = Lengths()
    for n in [*range(1, 101), 10_000]:
        lengths[n] += 1
    found = lengths.to_json()
    assert (found["p5"], found["p50"], found["p95"], found["max"]) == (6, 51, 96, 10_000)
    assert sum(found["histogram"]["counts"]) == 101
    assert found["histogram"]["edges"][-1] <= 120  # the one huge value does not stretch it
    assert Lengths().to_json() == {"rows": 0}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Plain words.", "Latin"),
        ("\u8fd9\u662f\u5f55\u97f3", "Han"),
        ("\u042d\u0442\u043e OK", "Cyrillic"),
        ("42!", "no letters"),
    ]
    + [("\u9332\u97f3\u3067\u3059", "Japanese"), ("\u201cGr\u00fc\u00dfe\u201d", "Latin")],
)
def test_scripts_are_told_apart(text: str, script: str) -> None:
    assert script_of(text) == script


def test_a_thought_is_split_at_its_closing_tag() -> None:
    assert split_thought("<think>\nhm\n</think>\n\nYes.") == ("hm", "Yes.")
    assert split_thought("hm [/THINK] Yes.") == ("hm", "Yes.")
    assert split_thought("Yes.") == (None, "Yes.")


def test_grounded_and_dropped_rows_are_counted_by_prompt_kind_attribute_and_corpus(
    write_rows: Callable[..., Path],
) -> None:
    def ask(number: int, response: str, **changes: Any) -> dict[str, Any]:
        asked = {"prompt": "Who speaks?", "prompt_kind": "ask", "prompt_requires": ["gender"], "corpus": "train"}
        return make_row(number, response=response, **{**asked, **changes})

    said = {"prompt": "Repeat it.", "prompt_kind": "repeat", "prompt_requires": ["transcript"]}
    rows = [
        ask(0, "A man."),  # male
        ask(1, "A person."),
        ask(2, "A lady."),  # female
        ask(20, "The gender is unknown.", dataset="voices"),
        ask(4, "Words: word, 2.", **said),
        ask(6, "Nothing of it.", **said),
        make_row(8, prompt_requires=["pitch"]),  # not in the description
    ]
    dropped = [{"id": "d", "reason": "leak", "detail": "", "row": ask(10, "I read: male")}]
    dropped += [{"id": "e", "reason": "LLM error", "detail": "", "row": None}]
    write_rows("rejected/train-0.jsonl", dropped)
    found = compute_stats(write_rows("rows/train-0.jsonl", rows).parents[1])["outcomes"]
    counted = {name: [tuple(one.values()) for one in table.values()] for name, table in found.items()}
    assert found["by_kind"].keys() == {"ask", "repeat", "describe"}
    assert counted["by_prompt"][0] == (4, 1, 0.2, 4, 2, 0.5) and found["by_prompt"].keys() >= {"Who speaks?"}
    assert tuple(found["by_kind"]["repeat"].values()) == (2, 0, 0.0, 2, 1, 0.5)
    assert tuple(found["by_attribute"]["gender"].values()) == (4, 1, 0.2, 4, 2, 0.5)
    assert tuple(found["by_attribute"]["pitch"].values()) == (1, 0, 0.0, 0, 0, None)
    assert found["by_corpus"].keys() == {"birds", "voices"}  # not the manifest's name
    assert found["by_corpus"]["voices"]["grounded"] == 0
