"""Official mode says of every item, and in every total, what the authors' own scripts said."""

import gzip
import json
import re
from pathlib import Path

import pytest

from nemo_desta.evaluation.scorers import sakura
from nemo_desta.evaluation.scorers.air_bench_chat import average
from nemo_desta.evaluation.scores import ItemError, score

FIXTURES = Path(__file__).parent.parent / "fixtures" / "scorers"


def fixture(name):
    return json.loads(gzip.decompress((FIXTURES / f"{name}.json.gz").read_bytes()))


def percentages(printed):
    """The lines "group : 12.34% over 5 samples" of MMAU's report, block by block."""
    blocks = [re.findall(r"^(.+) : ([\d.]+)% over (\d+) samples", b, re.M) for b in printed.split("*" * 30)]
    total = re.search(r"Total Accuracy: ([\d.]+)% over (\d+) samples", printed)
    return [{k: (a, int(n)) for k, a, n in block} for block in blocks if block], (total[1], int(total[2]))


@pytest.mark.parametrize("benchmark", ["mmau", "mmar"])
def test_the_token_rule_agrees_on_every_row_and_in_every_printed_line(benchmark):
    data = fixture(benchmark)
    scores = score(benchmark, data["rows"])
    assert scores.verdicts == data["verdicts"]
    blocks, total = percentages(data["printed"])
    fields = {"mmau": ("task", "difficulty", "sub-category"), "mmar": ("modality", "category", "sub-category")}
    for field, printed in zip(fields[benchmark], blocks, strict=True):
        ours = {k: (f"{100 * v['accuracy']:.2f}", v["count"]) for k, v in scores.by[field].items()}
        assert ours == printed
    assert (f"{100 * scores.totals['accuracy']:.2f}", scores.totals["counted"]) == total


@pytest.mark.parametrize("commit", ["new", "old"])
def test_mmsu_agrees_with_both_official_scripts(commit):
    data = fixture("mmsu")
    scores = score("mmsu", data["rows"], commit=commit)
    names = {True: "correct", False: "wrong", None: "excluded"}
    assert [names[verdict] for verdict in scores.verdicts] == data[f"verdicts_{commit}"]
    overall = data[f"overall_{commit}"]
    assert scores.totals == {
        "accuracy": overall["accuracy"],
        "correct": overall["correct"],
        "counted": overall["total"],
    }
    printed = data[f"printed_{commit}"]
    pairs = re.findall(r"Category: (\w+), Sub-category: (\w+), Accuracy: ([\d.]+)", printed)
    assert {f"{a} / {b}": f for a, b, f in pairs} == {
        k: f"{v['accuracy']:.4f}" for k, v in scores.by["category / sub-category"].items()
    }
    averages = re.findall(r"Category: (\w+), Average Accuracy: ([\d.]+)", printed)
    assert dict(averages) == {k: f"{v['accuracy']:.4f}" for k, v in scores.by["category"].items()}


def test_the_old_mmsu_script_cannot_start_with_an_empty_answer():
    rows = fixture("mmsu")["rows"][:3]
    with pytest.raises(ItemError, match="'dev-first'.*empty before"):
        score("mmsu", [{**rows[0], "response": ""}, *rows[1:]], commit="old")


def test_an_unknown_benchmark_mode_or_version_is_named():
    with pytest.raises(ValueError, match="Did you mean 'mmau'"):
        score("mmaus", [])
    with pytest.raises(ValueError, match="Did you mean 'strict'"):
        score("mmau", [], mode="strikt")
    with pytest.raises(ValueError, match="known: new"):
        score("mmsu", [], commit="newest")
    with pytest.raises(TypeError, match="comit"):
        score("mmsu", [], comit="new")


def test_air_bench_foundation_agrees_on_every_row_and_every_task():
    data = fixture("airbench")["foundation"]
    scores = score("air_bench", data["rows"])
    names = {"correct": True, "wrong": False, "excluded_fail": None, "excluded_task_none": None}
    assert scores.verdicts == [names[verdict] for verdict in data["verdicts"]]
    printed = re.findall(r"^(\w+): Sum=(\d+), correct=(\d+), acc=([\d.]+)", data["printed"], re.M)
    by = scores.by["task_name_dataset_name"]
    assert {name: (int(n), float(acc)) for name, n, _, acc in printed} == {
        name: (group["count"], group["accuracy"]) for name, group in by.items()
    }
    assert f"total_sum: {scores.totals['foundation_counted']}\n" in data["printed"]
    assert f"fail_num: {scores.totals['foundation_fail_num']}\n" in data["printed"]


def test_air_bench_stops_where_the_official_script_does():
    row = fixture("airbench")["foundation"]["rows"][8]
    with pytest.raises(ItemError, match="'8'.*field 'response' is NoneType"):
        score("air_bench", [{**row, "response": None}])
    with pytest.raises(ItemError, match="none of its options"):
        score("air_bench", [{**row, "answer_gt": "a whale"}])


@pytest.mark.parametrize(("file", "swapped"), [("chat_score.json", False), ("chat_score_cir.json", True)])
def test_air_bench_chat_averages_are_those_of_the_official_script(file, swapped):
    data = fixture("airbench")["chat_cal_score"]
    ours = average(data["rows"], swapped=swapped)
    number = r"([\d.]+)"
    groups = re.findall(
        rf"^(\w+): Sum=(\d+), Win_Rate={number}, gpt4_avg_score={number}, llm_avg_score={number}$",
        data[file]["printed"],
        re.M,
    )
    assert len(groups) == 5
    for name, count, *figures in groups:
        assert list(ours[name].values()) == [int(count), *map(float, figures)]
    last = re.search(rf"fail_num: (\d+), success_num: (\d+), percentage: {number}", data[file]["printed"])
    assert [ours["fail_num"], ours["success_num"], ours["percentage"]] == [int(last[1]), int(last[2]), float(last[3])]


def test_air_bench_chat_points_are_the_models_in_both_orders():
    row = {"task_name": "speech_QA", "gpt-score": "3 9", "gpt-score-swapped": "7 8"}
    scores = score("air_bench", [row])
    assert scores.totals["chat_speech"] == (9 + 7) / 2
    assert scores.verdicts == [True]
    assert score("air_bench", [{"task_name": "speech_QA"}], mode="strict").totals["left_out"].startswith("1 chat row")


def test_sakura_reads_judgements_and_counts_as_the_official_script():
    data = fixture("sakura_nonjudge")
    assert [sakura.parse_judgement(text) for text in data["judge_texts"]] == data["extracted"]
    scores = score("sakura", data["extracted"])
    printed = data["printed"]
    invalid = [int(i) for i in re.findall(r"Invalid judgement for key: (\d+)\.wav", printed)]
    assert scores.totals["invalid"] == len(invalid)
    assert not any(scores.verdicts[i] for i in invalid)
    assert f"Correct count: {scores.totals['correct']}\n" in printed
    assert f"Incorrect count: {scores.totals['incorrect']}\n" in printed
    assert f"Total count: {scores.num_items}\n" in printed
    assert f"Accuracy: {100 * scores.totals['accuracy']:.2f}%" in printed


def test_what_only_a_judge_could_say_is_refused_with_the_reason():
    with pytest.raises(NotImplementedError, match="judged by a language model"):
        score("sakura", [{"instruction": "Which? (a) dog (b) cat", "answer": "(a) dog", "response": "dog"}])
    with pytest.raises(NotImplementedError, match="strict only"):
        score("dynamic_superb", [])
