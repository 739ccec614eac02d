"""Instruction checkers against verdicts of the original ones, and with answers that nobody foresaw."""

import gzip
import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import strategies as st

from nemo_desta.evaluation.ifeval import CHECKS, Tools, check, follows, loose_variants
from nemo_desta.evaluation.ifeval.texts import langdetect_detector, split_sentences, split_words, tell_language
from tests.evaluation.examples import few_and_many

FIXTURES = Path(__file__).parents[1] / "fixtures" / "scorers"


def fixture(name):
    return json.loads(gzip.decompress((FIXTURES / f"{name}.json.gz").read_bytes()))


@pytest.mark.parametrize("mode", ["strict", "loose"])
def test_base_checkers_agree_with_the_original_on_every_row(mode):
    made = fixture("ifeval_voicebench_copy")
    assert {i for row in made["rows"] for i in row["instruction_id_list"]} == set(CHECKS)
    for row, expected in zip(made["rows"], made[mode], strict=True):
        found = follows(row["instruction_id_list"], row["kwargs"], row["response"], loose=mode == "loose")
        assert found == expected, row


def test_base_checkers_agree_with_the_original_when_langdetect_tells_the_language():
    pytest.importorskip("langdetect")
    made = fixture("ifeval_voicebench_copy")
    tools = Tools(detect=langdetect_detector(seed=0))
    for row, expected in zip(made["rows"], made["strict"], strict=True):
        assert follows(row["instruction_id_list"], row["kwargs"], row["response"], tools=tools) == expected, row


def test_speech_checkers_agree_with_the_original_on_every_row():
    made = fixture("speech_ifeval")
    for row, expected in zip(made["rows"], made["verdicts"], strict=True):
        found = follows(row["instruction_id_list"], row["kwargs"], row["response"], variant="speech")
        assert found == expected, row


ARGUMENTS = {
    (i, json.dumps(kwargs)): (i, kwargs)
    for row in fixture("ifeval_voicebench_copy")["rows"]
    for i, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
}
PIECES = [
    "*",
    "**",
    "***",
    "******",
    "\n",
    "\n\n",
    "-",
    "<<",
    ">>",
    "[",
    "]",
    "{",
    '"',
    "P.S.",
    "SECTION 1",
    " ",
    "\ud800",
]


@pytest.mark.parametrize("variant", ["base", "speech"])
@few_and_many(
    text=st.one_of(st.text(), st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12).map("".join))
)
def test_no_answer_breaks_a_checker(variant, text):
    for instruction_id, kwargs in ARGUMENTS.values():
        strict = check(instruction_id, kwargs, text, variant=variant)
        assert isinstance(strict, bool)
        if strict:  # what holds as it is holds loosely, too
            assert follows([instruction_id], [kwargs], text, variant=variant, loose=True) == [True]


@pytest.mark.parametrize("text", ["[" * 50_000, "*" * 20_000, " \n" * 20_000, "<<" * 20_000, "a. " * 20_000])
def test_long_repetitions_are_checked_in_linear_time(text):
    begun = time.process_time()
    for instruction_id, kwargs in ARGUMENTS.values():
        if not instruction_id.startswith(("language", "change_case")):
            check(instruction_id, kwargs, text)
    assert time.process_time() - begun < 5  # under a second when linear, minutes when quadratic


def test_unusable_instructions_are_refused_by_name():
    with pytest.raises(
        ValueError, match="unknown instruction 'keywords:existance'. Did you mean 'keywords:existence'"
    ):
        check("keywords:existance", {}, "x")
    with pytest.raises(ValueError, match="'keywords:frequency' lacks relation"):
        check("keywords:frequency", {"keyword": "dog", "frequency": 1}, "x")
    with pytest.raises(ValueError, match="has unknown colour"):
        check("punctuation:no_comma", {"colour": "red"}, "x")
    with pytest.raises(ValueError, match="relation 'exactly' is not"):
        check("keywords:frequency", {"keyword": "dog", "frequency": 1, "relation": "exactly"}, "x")
    with pytest.raises(ValueError, match="2 instructions but 1 kwargs"):
        follows(["punctuation:no_comma", "startend:quotation"], [{}], "x")


def test_a_symbol_is_counted_itself_unless_a_letter_is_drawn_for_it():
    kwargs = {"letter": "!", "let_frequency": 2, "let_relation": "at least"}
    assert check("keywords:letter_frequency", kwargs, "oh! no!")
    assert not check("keywords:letter_frequency", kwargs, "oh! no!", tools=Tools(letters=random.Random(3)))


def test_keywords_are_patterns_or_plain_text():
    kwargs = {"keywords": ["a.c"]}
    assert check("keywords:existence", kwargs, "abc")
    assert not check("keywords:existence", kwargs, "abc", tools=Tools(keywords_are_patterns=False))
    assert check("keywords:forbidden_words", {"forbidden_words": ["c++("]}, "no such thing")
    assert not check("keywords:forbidden_words", {"forbidden_words": ["c++("]}, "it is C++( here")


def test_loose_variants_forgive_first_line_last_line_and_asterisks():
    assert set(loose_variants("Sure:\n*yes*\nBye")) == {
        "Sure:\n*yes*\nBye", "*yes*\nBye", "Sure:\n*yes*", "*yes*", "Sure:\nyes\nBye", "yes\nBye", "Sure:\nyes", "yes",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Dr. Who met Mr. J. Smith at 5 p.m. on Sunday. He left!", 2),
        ("It cost 3.50 dollars, e.g. here. Really? Yes.", 3),
        ('He said "Stop." Then he ran.', 2),
        ("Wait... what? no", 2),
        ("no mark at all", 1),
        (" \n ", 0),
    ],
)
def test_sentences_of_ordinary_text(text, count):
    assert len(split_sentences(text)) == count, split_sentences(text)


def test_words_of_ordinary_text():
    text = "DON'T go, I'M at the U.S. base: \"NASA-ESA\" (3,000 m)."
    assert split_words(text) == [
        *("DO", "N'T", "go", ",", "I", "'M", "at", "the", "U.S.", "base", ":", '"', "NASA-ESA", '"'),
        *("(", "3,000", "m", ")", "."),
    ]


def test_language_of_texts_and_of_none():
    assert tell_language("Guten Tag, heute sprechen wir über das Wetter.") == "de"
    assert tell_language("The weather is nice today and we go out.") == "en"
    assert tell_language("12345 !?") is None
