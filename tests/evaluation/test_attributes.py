"""Values read from answers, and the figures that an accuracy is read against."""

import pytest

from nemo_desta.evaluation.attributes import (
    Accuracy,
    attribute_accuracy,
    best_constant,
    parse_value,
    render_results,
    render_table,
    shuffled_control,
    task_result,
)

GENDERS = ("male", "female")
INSTRUMENTS = ("clarinet", "bass clarinet", "human non-speech", "French (Belgium)", "French")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("The speaker is female.", "female"),
        ("MALE", "male"),
        ('{"gender": "Female"}', "female"),
        ("female_voice", "female"),
        ("The malefactor speaks.", None),
        ("I cannot tell.", None),
        ("", None),
        ("It is either male or female.", None),
        ("The voice is female, not male.", "female"),
        ("It isn\u2019t a male voice; it is female.", "female"),
        ("A female rather than a male voice.", "female"),
        ("It is not male.", None),
        ("Male. Yes, clearly a male voice.", "male"),
        ("No, male.", "male"),
        ("<think>male or female? I hear a low pitch.</think>\n\nmale", "male"),
        ("male or female? I hear a low pitch.</think>\n\nmale", "male"),
        ("<think>It sounds male", None),
    ],
)
def test_parse_value_of_two(answer: str, value: str | None) -> None:
    assert parse_value(answer, GENDERS) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("I hear a bass clarinet.", "bass clarinet"),
        ("I hear a Bass  Clarinet; the bass-clarinet is low.", "bass clarinet"),
        ("A clarinet.", "clarinet"),
        ("A bass clarinet and a clarinet.", None),
        ("human non speech", "human non-speech"),
        ("Accent: French (Belgium).", "French (Belgium)"),
        ("Accent: French.", "French"),
    ],
)
def test_parse_value_prefers_the_longest_name(answer: str, value: str | None) -> None:
    assert parse_value(answer, INSTRUMENTS) == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("The dog is barking.", "dog barking"),
        ("It is the dog's barking, I think.", "dog barking"),
        ("The sound of a crowing rooster.", "rooster crowing"),
        ("The dog is not barking.", None),
        ("A dog. Somebody is barking orders.", None),
        ("The dog of the neighbours has been barking.", None),
        ("The dog is barking while the rooster is crowing.", None),
        ("A rooster crowing; the dog is barking too.", "rooster crowing"),
        ("It has human, that is non-verbal, speech.", None),
        ("A barking sound.", None),
    ],
)
def test_parse_value_finds_the_words_of_a_value_in_another_order(answer: str, value: str | None) -> None:
    assert parse_value(answer, ("dog barking", "rooster crowing", "rain", "human non-speech")) == value


def test_parse_value_knows_aliases() -> None:
    aliases = {"male": ["man", "boy"], "female": ["woman", "girl"]}
    assert parse_value("A woman speaks.", GENDERS, aliases) == "female"
    assert parse_value("A man, so the voice is male.", GENDERS, aliases) == "male"
    assert parse_value("A man and a girl.", GENDERS, aliases) is None
    with pytest.raises(ValueError, match="'mael', which is none of the values male, female"):
        parse_value("x", GENDERS, {"mael": ["man"]})
    with pytest.raises(ValueError, match="'person' stands for both 'male' and 'female'"):
        parse_value("x", GENDERS, {"male": ["person"], "female": ["person"]})


def test_parse_value_reads_yes_and_no() -> None:
    assert parse_value("No, the digit is not seven.", ("yes", "no")) == "no"
    assert parse_value("Yes.", ("yes", "no")) == "yes"


def test_attribute_accuracy_counts_the_unparsed_as_wrong() -> None:
    accuracy = attribute_accuracy(["a", None, "b", "a"], ["a", "a", "a", "a"])
    assert accuracy == Accuracy(correct=2, total=4, unparsed=1) and accuracy.value == 0.5
    assert accuracy.standard_error == 0.25
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        attribute_accuracy(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="0 predictions"):
        attribute_accuracy([], [])


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Wilson's score interval as published: Newcombe 1998, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_interval_is_wilsons(correct: int, total: int, low: float, high: float) -> None:
    assert Accuracy(correct, total).interval == pytest.approx((low, high), abs=1e-4)


def test_best_constant_is_that_of_the_test_set() -> None:
    assert best_constant(["b", "a", "b", "c"]) == ("b", 0.5)
    assert best_constant(["b", "a"]) == ("a", 0.5)


def test_shuffled_control_falls_to_chance_for_a_perfect_and_for_a_constant_model() -> None:
    references = [str(i % 10) for i in range(200)]
    control = shuffled_control(references, references)
    assert control.mean == pytest.approx(0.1, abs=0.01) and 0.12 < control.max < 0.2
    assert control == shuffled_control(references, references, seed=0)
    assert control != shuffled_control(references, references, seed=1)
    assert shuffled_control(["3"] * 200, references) == (pytest.approx(0.1), pytest.approx(0.1))
    assert shuffled_control([None] * 200, references) == (0.0, 0.0)
    # Off-list answers never match, not even each other.
    assert shuffled_control(["eleven"] * 200, references) == (0.0, 0.0)


def test_table_shows_every_figure_beside_its_controls() -> None:
    references = ["male", "female"] * 20
    results = [task_result("gender", references[:-1] + [None], references)]
    lines = render_results(results, {"probe": {"gender": 0.9825}, "cascade": {}}).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:8] == ["gender", "40", "0.975", "0.025", "0.87-1.00", "1", "0.983", ""]
    assert cells[8] == "0.500 (female)" and cells[9].startswith("0.4")


def test_render_table_is_aligned_markdown() -> None:
    assert render_table(["task", "n"], [["a", "1"], ["longer", "1000"]]).splitlines() == [
        "| task   |    n |",
        "|--------|-----:|",
        "| a      |    1 |",
        "| longer | 1000 |",
    ]
