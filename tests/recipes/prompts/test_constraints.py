"""Answers that keep to a format and answers that do not."""

import pytest

from nemo_desta.recipes.prompts.constraints import CONSTRAINTS, Constraint, obeys

CASES = [
    (
        "json_keys",
        ["a", "b"],
        ['{"b": 1, "a": [2]}', '```json\n{"a": 1, "b": 2}\n```'],
        ['{"a": 1}', '{"a": 1, "b": 2,}'],
    ),
    ("json_keys", ["a"], ['{"a": "x"}'], ['Here: {"a": "x"}', '{"a": 1, "c": 2}', '["a"]', "a"]),
    ("json_keys", [], ["{}", '{"x": 1}'], ["[]", "x"]),
    ("json_list", [], ['["a", "b"]'], ["[]", "[1]", '{"a": "b"}', '"a"']),
    ("lower_case", [], ["a dog, 2 cats.", "größe", "4 5"], ["A dog", "dOg", ""]),
    ("upper_case", [], ["A DOG!", "GRÖSSE 5"], ["A Dog", ""]),
    ("max_words", [3], ["one two three", "one - two, three."], ["one two three four", ""]),
    ("min_words", [3], ["one two three"], ["one two", "one - two"]),
    ("word_range", [2, 3], ["one two", "a b c"], ["one", "a b c d"]),
    ("exact_words", [2], ["warm voice."], ["warm", "a warm voice"]),
    ("one_word", [], ["Happy.", "  sad "], ["very sad", "", "..."]),
    ("sentences", [2], ["It rains. It pours!", 'She says "no." He left.', "Pi is 3.14. Yes?"], ["One.", "One. Two"]),
    ("paragraphs", [2], ["a\n\nb", "a\nb\n\n\nc"], ["a\nb", "a\n\nb\n\nc"]),
    ("bullets", [2], ["- a\n- b", "* a\n\n• b"], ["- a", "List:\n- a\n- b", "-a\n-b"]),
    ("bullets", [], ["- a", "- a\n- b\n- c"], ["", "a\nb"]),
    ("numbered", [2], ["1. a\n2. b", "1) a\n2) b"], ["1. a\n3. b", "1. a\n2. b\n3. c", "a\nb", "1.a\n2.b"]),
    ("starts_with", ["In this clip"], ["In this clip, a dog barks.", "in this clip: x"], ["In this clips", "A dog"]),
    ("starts_with", ["Yes", "No"], ["Yes. It is", "no, not so"], ["Nothing", "I say yes"]),
    ("ends_with", ["Done."], ["It rains. Done.", "Done.\n"], ["Done", "Done. Really."]),
    ("no_commas", [], ["a b"], ["a, b", ""]),
    ("no_digits", [], ["two"], ["2"]),
    ("quoted", [], ['"all of it."', "\u201call\u201d"], ['"a" b', '"a" and "b"', "a", '""']),
    ("holds", ["ear"], ["My ear hears."], ["I hear.", ""]),
    ("lacks", ["the"], ["They go."], ["The dog", ""]),
    ("titled", [], ["<<Rain>>\nIt rains."], ["<Rain> x", "Rain <<x>>", "<<>> x"]),
    ("letter", [], ["B", "(C)", "d".upper() + "."], ["b", "AB", "B is right"]),
    ("one_of", ["Yes", "No"], ["yes", "No."], ["Yes, it is", "maybe"]),
    ("question", [], ["Who is it?"], ["It is.", ""]),
]


@pytest.mark.parametrize(("name", "args", "good", "bad"), CASES)
def test_good_answers_pass_and_bad_ones_do_not(name: str, args: list, good: list[str], bad: list[str]) -> None:
    constraint = Constraint(name, tuple(args))
    assert [answer for answer in good if obeys(constraint, answer) is not True] == []
    assert [answer for answer in bad if obeys(constraint, answer) is not False] == []


def test_every_constraint_that_can_be_checked_is_among_the_cases() -> None:
    assert {name for name, check in CONSTRAINTS.items() if check} == {case[0] for case in CASES}
    assert obeys(Constraint("language", ("French",)), "Bonjour") is None


def test_unknown_constraints_and_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="no constraint 'shout'; there are bullets, "):
        obeys(Constraint("shout"), "x")
    with pytest.raises(ValueError, match=r"constraint 'max_words' cannot take \[\]"):
        obeys(Constraint("max_words"), "x")
