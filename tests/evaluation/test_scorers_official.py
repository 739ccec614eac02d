"""Official mode says of every item, and in every total, what the authors' own scripts said."""

import gzip
import json
import re
from pathlib import Path

import pytest

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
