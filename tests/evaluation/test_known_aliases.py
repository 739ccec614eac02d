"""Wordings that an answer may use without aliases of the user."""

import pytest

from nemo_desta.evaluation.attributes import parse_value
from nemo_desta.evaluation.known_aliases import language_of, with_known_aliases
from nemo_desta.recipes.languages import ENGLISH, load_language

DIGITS = [str(n) for n in range(11)]


def parsed(answer, attribute, values, language=ENGLISH, own=()):
    return parse_value(answer, values, with_known_aliases(attribute, values, dict(own), language))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("The digit is seven.", "7"),
        ("Seven, written 7.", "7"),
        ("Oh.", "0"),
        ("It is ten.", "10"),
        ("seven or 8", None),
        ("seventeen", None),
        ("not seven but six", "6"),
    ],
)
def test_a_digit_may_be_named_by_its_word_whatever_the_attribute_is_called(answer, value):
    assert parsed(answer, "digit", DIGITS) == parsed(answer, "number_heard", DIGITS) == value


def test_a_value_in_words_may_be_named_by_its_digit():
    assert parsed("I hear 7.", "digit", ["seven", "six"]) == "seven"


def test_number_words_of_the_clips_language_count_as_well_as_english_ones():
    german, french = load_language("de"), load_language("fr")
    assert parsed("Die Ziffer ist sieben.", "digit", DIGITS, german) == "7"
    assert parsed("The digit is seven.", "digit", DIGITS, german) == "7"
    assert parsed("dix-sept", "number", ["7", "10", "17"], french) == "17"
    assert parsed("sieben", "digit", DIGITS, french) is None
    assert parsed("sieben", "digit", ["seven", "six"], german) == "seven"


def test_synonyms_of_other_attributes_count():
    assert parsed("A woman speaks.", "gender", ["male", "female"]) == "female"
    assert parsed("He is afraid.", "emotion", ["fearful", "happy"]) == "fearful"
    assert parsed("Eine Frau.", "gender", ["male", "female"], load_language("de")) == "female"
    assert parsed("A woman speaks.", "voice", ["male", "female"]) is None, "the table is of another attribute"


def test_known_wordings_give_way_to_values_and_to_the_users_aliases():
    assert parsed("seven", "digit", ["7", "seven"]) == "seven"
    assert parsed("oh", "digit", ["0", "1"], own={"1": ["oh"]}) == "1"
    assert parsed("joyful", "emotion", ["happy", "happiness"]) is None, "two values could claim it"


def test_the_language_is_the_clips_or_that_of_the_rows_text():
    assert language_of({"language": "de-DE"}).code == "de"
    assert language_of({"language": "German"}).code == "de"
    assert language_of({"text_language": "fr"}).code == "fr"
    assert language_of({}).code == language_of({"language": None}).code == "en"
    assert language_of({"language": "../../x.yaml"}).facts is None, "a row names no file"
