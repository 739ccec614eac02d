"""The pool that ships: how much there is, that it does not repeat itself, and that it speaks of sound."""

import re
from collections import Counter
from itertools import combinations

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.languages import load_language
from nemo_desta.recipes.prompts import Prompt, answerable, obeys, prompt_set
from nemo_desta.recipes.prompts.fill import _known_values
from nemo_desta.recipes.prompts.prompt import SLOT
from nemo_desta.recipes.prompts.wording import leak

POOL = prompt_set("pool")
KINDS = ("describe", "ask", "explain", "compare", "role_play", "create", "translate", "continue", "yes_no")
ATTRIBUTES = {
    "speech": {"gender", "age", "accent", "emotion", "intensity", "language", "digit", "speaking_speed", "pitch"}
    | {"volume", "noise_level", "style", "number_of_speakers", "transcript"},
    "sound": {"sound_class", "sound_group", "caption", "noise_level", "volume"},
    "music": {"instrument", "instrument_family", "genre", "tempo", "melody", "mood", "key", "pitch", "caption"},
}


def words(prompt: Prompt) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", prompt.prompt.casefold()))


def of(domain: str) -> list[Prompt]:
    return [prompt for prompt in POOL if prompt.domains == (domain,)]


@pytest.mark.parametrize(("domain", "least"), [("speech", 300), ("sound", 200), ("music", 200)])
def test_each_domain_has_its_number_of_different_prompts_of_every_kind(domain: str, least: int) -> None:
    assert len({words(prompt) for prompt in of(domain)}) == len(of(domain)) >= least
    counts = Counter(prompt.kind for prompt in of(domain))
    assert set(counts) == {*KINDS, "multiple_choice", "format"} and min(counts.values()) >= 10
    asked = {name for prompt in of(domain) for name in prompt.requires}
    assert asked == ATTRIBUTES[domain]


def test_no_two_prompts_of_a_domain_differ_in_one_word_only() -> None:
    for domain in ATTRIBUTES:
        texts = [words(prompt) for prompt in POOL if prompt.domains in ((), (domain,))]
        near = [
            (" ".join(a), " ".join(b))
            for a, b in combinations(texts, 2)
            if len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) < 2
        ]
        assert near == []


def test_ids_are_unique_and_every_prompt_speaks_of_sound() -> None:
    assert len({prompt.prompt_id for prompt in POOL}) == len(POOL)
    assert {prompt.prompt: leak(prompt.prompt) for prompt in POOL if leak(prompt.prompt)} == {}
    strict = re.compile(r"\b(text|descriptions?|metadata|transcripts?|captions?|label\w*|tags?|attributes?)\b", re.I)
    assert [prompt.prompt for prompt in POOL if strict.search(prompt.prompt)] == []


def test_open_prompts_of_every_domain_need_nothing_known() -> None:
    for domain in ATTRIBUTES:
        bare = {"id": "x", "domain": domain, "transcript": None, "attributes": {}}
        assert len(answerable(POOL, bare)) >= 80


def test_every_template_is_about_an_attribute_whose_values_are_known() -> None:
    about = {prompt.requires[0] for prompt in POOL if SLOT.search(prompt.prompt)}
    assert about >= {"emotion", "gender", "digit", "sound_class", "instrument", "genre"}
    assert about <= set(_known_values())
    left = re.compile(r"\{(?!\"|\.\.\.)\w")
    assert [p.prompt for p in POOL if left.search(SLOT.sub("", p.prompt))] == []


def test_prompts_of_kind_format_say_which_format() -> None:
    formats = [prompt for prompt in POOL if prompt.kind == "format"]
    assert len(formats) >= 60 and all(prompt.constraint for prompt in formats)
    assert all(obeys(prompt.constraint, "") is False for prompt in formats)
    assert all(prompt.constraint is None for prompt in POOL if prompt.kind != "format")


@pytest.mark.parametrize(
    ("prompt", "betrays"),
    [
        ("What does the description say about the speaker?", True),
        ("According to the metadata, who speaks?", True),
        ("Translate the provided transcript.", True),
        ("Sum up the text in one line.", True),
        ("Based on the information, guess the age.", True),
        ("What is the emotion tag?", True),
        ("Repeat [00:00-00:02] as a poem.", True),
        ("Is it as described above?", True),
        ("Write a description of what you hear.", False),
        ("Transcribe the speech.", False),
        ("Describe the recording to someone who cannot hear it.", False),
        ("Write a text message to the speaker.", False),
        ("Does the voice sound tired?", False),
    ],
)
def test_the_lexical_check_tells_prompts_about_texts_from_prompts_about_sound(prompt: str, betrays: bool) -> None:
    assert (leak(prompt) is not None) is betrays


def test_the_plain_prompts_are_short_questions_about_one_thing() -> None:
    plain = prompt_set("plain")
    assert len({words(prompt) for prompt in plain}) == len(plain) >= 40
    for prompt in plain:
        assert len(words(prompt)) <= 11 and len(prompt.requires) <= 1 and prompt.constraint is None, prompt
        assert not leak(prompt.prompt) and not SLOT.search(prompt.prompt), prompt
        assert prompt.kind == {(): "describe", ("transcript",): "repeat"}.get(prompt.requires, "ask"), prompt
        assert all(set(prompt.requires) <= ATTRIBUTES[domain] for domain in prompt.domains), prompt
    with pytest.raises(ConfigError, match="prompts=plain is English"):
        prompt_set("plain", language=load_language("de"))
