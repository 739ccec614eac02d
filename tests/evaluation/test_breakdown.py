"""Figures by true value and by corpus, counted by hand."""

import pytest

from nemo_desta.evaluation.breakdown import (
    Scored,
    by_class,
    by_corpus,
    confusion,
    corpus_of,
    unparsed_examples,
    worst_classes,
)

#: corpus, true value, answer, value that it names
ROWS = [
    ("a", "rain", "Rain.", "rain"),
    ("a", "rain", "The sea.", "sea"),
    ("a", "rain", "Sea.", "sea"),
    ("b", "rain", "A natural sound.", None),
    ("b", "sea", "Sea.", "sea"),
    ("b", "sea", "A natural sound.", None),
    ("b", "dog", "A dog.", "dog"),
]
SCORED = [Scored(f"r{i}", *row) for i, row in enumerate(ROWS)]


def test_each_class_has_its_count_interval_and_most_frequent_mistake():
    found = by_class(SCORED)
    assert list(found) == ["dog", "rain", "sea"]
    rain = found["rain"]
    assert (rain["n"], rain["right"], rain["unparsed"], rain["accuracy"]) == (4, 1, 1, 0.25)
    assert rain["interval"] == pytest.approx((0.0456, 0.6994), abs=1e-4)  # Wilson, 1 of 4
    assert rain["answers"] == {"sea": 2, "rain": 1} and rain["mistaken_for"] == ("sea", 2)
    assert found["sea"]["mistaken_for"] is None and found["sea"]["unparsed"] == 1
    assert found["dog"]["interval"] == pytest.approx((0.2065, 1.0), abs=1e-4)  # Wilson, 1 of 1


def test_each_corpus_has_its_own_best_constant_and_one_corpus_alone_has_no_table():
    found = by_corpus(SCORED)
    assert (found["a"]["n"], found["a"]["right"], found["a"]["best_constant"]) == (3, 1, ("rain", 1.0))
    assert (found["b"]["n"], found["b"]["right"], found["b"]["unparsed"]) == (4, 2, 2)
    assert found["b"]["best_constant"] == ("sea", 0.5)
    assert found["b"]["interval"] == pytest.approx((0.1500, 0.8500), abs=1e-4)  # Wilson, 2 of 4
    assert by_corpus(SCORED[:3]) == {}


def test_a_corpus_is_named_by_the_row():
    assert corpus_of({"source": "fsdd", "dataset": "train"}) == "fsdd"
    assert corpus_of({"dataset": "fsdd"}) == corpus_of({"source": None, "corpus": "fsdd"}) == "fsdd"
    assert corpus_of({"source": {"x": 1}}) == ""


def test_confusion_has_true_values_as_lines():
    head, lines = confusion(by_class(SCORED))
    assert head == ["true value", "dog", "rain", "sea", "unparsed"]
    assert lines == [["dog", "1", "", "", ""], ["rain", "", "1", "2", "1"], ["sea", "", "", "1", "1"]]
    many = [Scored(str(i), "", str(i), "", str(i)) for i in range(31)]
    assert confusion(by_class(many)) is None and confusion(by_class(many[:30])) is not None


def test_the_worst_classes_are_named_with_their_mistakes():
    assert worst_classes(by_class(SCORED)) == "rain 1 of 4 (as sea 2, unparsed 1); sea 1 of 2 (unparsed 1)"
    assert worst_classes(by_class(SCORED[-1:])) == ""
    four = [Scored(str(i), "", value, "", None) for i, value in enumerate("ccabd")]
    assert worst_classes(by_class(four)).split("; ")[:2] == ["c 0 of 2 (unparsed 2)", "a 0 of 1 (unparsed 1)"]
    assert worst_classes(by_class(four)).count(";") == 2, "three classes"


def test_unparsed_examples_differ():
    answers = ["a", "a", None, "b", "c"]
    scored = [Scored(f"r{i}", "", "rain", answer, None) for i, answer in enumerate(answers)]
    found = unparsed_examples([SCORED[0], *scored])
    assert [(one["id"], one["answer"]) for one in found] == [("r0", "a"), ("r2", None), ("r3", "b")]
    assert found[0]["true"] == "rain"
