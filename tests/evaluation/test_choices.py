"""Which option an answer chooses: one or none, whatever is written, and whatever the options' order."""

import time

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from nemo_desta.evaluation.choices import choose
from tests.evaluation.examples import few_and_many

ANIMALS = ["a dog", "a cat", "a hot dog vendor", "a cow"]
YES_NO = ["Yes", "No"]
MOODS = ["happiness", "not happy", "anger", "neutral"]
KEYS = ["C minor", "C# minor", "E flat major", "G major"]
CHORDS = ["E:hdim7(11)/4", "A#:maj/5", "A:7/1", "D:min/5"]
SPEECH = ["I didn't say that", "I did say that", "They said that", "None"]

READ = [
    # the option's text
    ("a dog", ANIMALS, "a dog"),
    ("NOT HAPPY.", MOODS, "not happy"),
    ("not-happy", MOODS, "not happy"),
    ('The correct answer is: "a cat".', ANIMALS, "a cat"),
    ("**A hot dog vendor**", ANIMALS, "a hot dog vendor"),
    ("\u200bthe dog\u00a0", ANIMALS, "a dog"),
    ("I hear barking, so I would say it is a dog that comes first.", ANIMALS, "a dog"),
    ("a cow\n\nExplanation: the sound is low.", ANIMALS, "a cow"),
    ('{"answer": "No"}', YES_NO, "No"),
    ("Is the audience applauding? No", YES_NO, "No"),
    ("答案是中文。", ["日本語", "中文", "한국어"], "中文"),
    ("the piece is in C# minor", KEYS, "C# minor"),
    ("I didn’t say that", SPEECH, "I didn't say that"),
    ("none", SPEECH, "None"),
    # the option's letter
    ("B", ANIMALS, "a cat"),
    ("b", ANIMALS, "a cat"),
    ("(B)", ANIMALS, "a cat"),
    ("B. a cat", ANIMALS, "a cat"),
    ("b) a cat", ANIMALS, "a cat"),
    ("Ｂ．a cat", ANIMALS, "a cat"),
    ("B\ta cat", ANIMALS, "a cat"),
    ("C, since it is clear", ANIMALS, "a hot dog vendor"),
    ("The answer is D.", ANIMALS, "a cow"),
    ("The answer is D", ANIMALS, "a cow"),
    ("the correct answer is d", ANIMALS, "a cow"),
    ("Answer: D", ANIMALS, "a cow"),
    ("I would choose option C", ANIMALS, "a hot dog vendor"),
    ("**Final answer:** (C)", ANIMALS, "a hot dog vendor"),
    ("So the result is \\boxed{C}.", ANIMALS, "a hot dog vendor"),
    ("\\boxed{\\text{a cow}}", ANIMALS, "a cow"),
    ("It barks. <answer>A</answer>", ANIMALS, "a dog"),
    ("<answer>a cat</answer>", ANIMALS, "a cat"),
    ("答案是B。", ANIMALS, "a cat"),
    ("option C", KEYS, "E flat major"),
    ("B", ["(c) harp", "(b) drum", "(a) flute"], "(b) drum"),
    # chords, times and numbers
    ("(D) D:min/5", CHORDS, "D:min/5"),
    ("D:min/5", CHORDS, "D:min/5"),
    ("D:min/5 is the chord after it.", CHORDS, "D:min/5"),
    ("The chord is A:7/1.", CHORDS, "A:7/1"),
    ("(A) B Major", ["B Major", "C# Major", "G# minor"], "B Major"),
    ("between 2.18 - 4.36", ["0.00 - 2.18", "2.18 - 4.36", "4.36 - 6.55"], "2.18 - 4.36"),
    ("It lasts 2.14 seconds.", ["2.14 seconds", "2.14 minutes", "1.14 seconds"], "2.14 seconds"),
    ("Cooking a meal", ["1. Building a house", "2. Cooking a meal"], "2. Cooking a meal"),
    ("2. Cooking a meal", ["1. Building a house", "2. Cooking a meal"], "2. Cooking a meal"),
    ("B", ["1. Building a house", "2. Cooking a meal"], "2. Cooking a meal"),
    # what is weighed and dropped before the choice
    ("<think>a cow? no</think>a cat", ANIMALS, "a cat"),
    ("It is not a dog; it is a cow.", ANIMALS, "a cow"),
    ("It does not sound like a dog, rather like a cow.", ANIMALS, "a cow"),
    ("I am not sure, but it may be a cow.", ANIMALS, "a cow"),
    ("Yes, there is no music.", YES_NO, "Yes"),
    ("Let me see:\nB. a cat", ANIMALS, "a cat"),
    ("A dog is unlikely. A cat, then.", ANIMALS, "a cat"),
    ("It could be a dog or a cat. The answer is: a cat", ANIMALS, "a cat"),
    ("Option: A? No. Final answer: B", ANIMALS, "a cat"),
    ("The answer is B. The others, A and C, do not fit.", ANIMALS, "a cat"),
    # nothing, or more than one thing
    ("", ANIMALS, None),
    ("I cannot hear any audio.", ANIMALS, None),
    ("", ["?", "!"], None),
    ("a dog or a cat", ANIMALS, None),
    ("B and C", ANIMALS, None),
    ("B. a dog", ANIMALS, None),
    ("The answer is A. No, the answer is B.", ANIMALS, None),
    ("not a dog", ANIMALS, None),
    ("I do not think it is a dog.", ANIMALS, None),
    ("There is no dog here.", ANIMALS, None),
    ("A dog cannot be heard.", ANIMALS, None),
    ("Neither a dog nor a cat.", ANIMALS, None),
    ("yes and no", YES_NO, None),
    ("A. a dog\nB. a cat\nC. a hot dog vendor\nD. a cow", ANIMALS, None),
    ("A: Hello there.\nB: Hello.", ANIMALS, None),
    ("dogs", ANIMALS, None),
    ("E", ANIMALS, None),
    ("Answer: A1", ANIMALS, None),
    ("A good question.", ANIMALS, None),
    ("I have no idea.", YES_NO, None),
    ("I think it is C", KEYS, None),
    ("<think>a dog", ANIMALS, None),
    ("<answer>A</answer> or <answer>B</answer>", ANIMALS, None),
    ("the year 1.5", ["5", "7"], None),
    ("-5", ["5", "7"], None),
    ("A", ["B", "C", "D"], None),
]


@pytest.mark.parametrize(("answer", "options", "expected"), READ)
def test_an_answer_chooses_one_option_or_none(answer, options, expected):
    chosen = choose(answer, options)
    assert (None if chosen is None else options[chosen]) == expected


def test_letters_say_nothing_where_no_order_was_shown():
    assert choose("B", ANIMALS, letters=False) is None
    assert choose("B. a dog", ANIMALS, letters=False) == 0


def test_options_of_one_wording_are_one_option():
    assert choose("a cat", ["a cat", "a dog", "a cat"]) == 0
    assert choose("C", ["a cat", "a dog", "a cat"]) == 0


pieces = [
    "A",
    "B",
    "C",
    "(b)",
    "answer",
    "is",
    ":",
    "not",
    "no",
    "a dog",
    "cat",
    "hot dog vendor",
    "\n",
    ".",
    "<answer>",
]
pieces += [
    "</answer>",
    "\\boxed{",
    "}",
    "<think>",
    "</think>",
    "option",
    '"',
    "**",
    "and",
    "or",
    ",",
    "C#",
    "1.5",
    "-",
    "答案是",
]
answers = st.one_of(st.text(max_size=200), st.lists(st.sampled_from(pieces), max_size=30).map(" ".join))
words = st.text(st.characters(categories=("Ll", "Lu", "Nd"), max_codepoint=0x24F), min_size=2, max_size=8)
texts = st.lists(words, min_size=1, max_size=3).map(" ".join)
any_options = st.lists(st.one_of(texts, st.text(max_size=20), st.sampled_from(pieces)), min_size=1, max_size=8)


@few_and_many(answers, any_options)
def test_no_answer_and_no_options_crash_it(answer, options):
    chosen = choose(answer, options)
    assert chosen is None or 0 <= chosen < len(options)


@few_and_many(
    answers, st.lists(texts, min_size=2, max_size=6, unique_by=str.casefold), st.randoms(use_true_random=False)
)
def test_the_order_of_the_options_does_not_decide_what_a_text_chooses(answer, options, random):
    shuffled = random.sample(options, len(options))
    first, second = choose(answer, options, letters=False), choose(answer, shuffled, letters=False)
    assert (None if first is None else options[first]) == (None if second is None else shuffled[second])


FORMS = [
    "{letter}",
    "({letter})",
    "{letter}. {text}",
    "The answer is {letter}.",
    "Option {letter}",
    "\\boxed{{{letter}}}",
]
FORMS += ["{text}", "The correct answer is: {text}.", '"{text}"', "<answer>{text}</answer>", "not {other}, but {text}"]
FORMS += ["{text} or {other}", "{letter} and {text}", "I hear {text}", "({letter}) {other}", "it is {letter}!"]


@few_and_many(
    st.sampled_from(FORMS),
    st.lists(texts, min_size=2, max_size=6, unique_by=str.casefold),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_options_does_not_decide_the_verdict(form, options, random):
    """The same answer, its letter told as the options now stand, is right in every order or in none."""
    truth, other = options[0], options[1]

    def verdict(order):
        letter = "ABCDEF"[order.index(truth)]
        chosen = choose(form.format(letter=letter, text=truth, other=other), order)
        return None if chosen is None else order[chosen] == truth

    assert verdict(options) == verdict(random.sample(options, len(options)))


@few_and_many(texts, texts)
def test_the_options_own_words_choose_it(truth, other):
    assume(truth.casefold() not in other.casefold() and other.casefold() not in truth.casefold())
    assert choose(truth, [other, truth]) == 1


@pytest.mark.parametrize(
    "piece", ["a ", "A ", '"', "(A", "<answer>", "answer is ", "option A, ", "\\boxed{", "not ", "- "]
)
def test_an_answer_that_ran_away_takes_no_time(piece):
    start = time.perf_counter()
    choose(piece * 50_000, ["a dog", "a cat", "a", "Yes"])
    assert time.perf_counter() - start < 2  # 0.3 s at most where it was written; patterns that blow up take minutes
