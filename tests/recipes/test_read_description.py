"""Descriptions are read back as they are written, in both dialects."""

import pytest

from nemo_desta.recipes.describe import describe
from nemo_desta.recipes.read_description import read_description

CLIP = {"id": "a", "duration": 2.2, "domain": "speech", "transcript": "Kids (two) talk: now."}


@pytest.mark.parametrize("dialect", ["desta25", "alarm"])
def test_attributes_come_back_from_a_description(dialect: str) -> None:
    clip = {**CLIP, "attributes": {"gender": "male", "accent": "English, American", "speaking_speed": "slow (calm)"}}
    facts = read_description(describe(clip, dialect))
    assert dict(facts.attributes) == {
        "gender": "male",
        "accent": "English, American",
        "speaking speed": "slow (calm)",
    }
    assert facts.duration == 2


@pytest.mark.parametrize("dialect", ["desta25", "alarm"])
def test_attributes_of_all_speakers_count_under_one_name(dialect: str) -> None:
    segments = [
        {"start": 0, "end": 2, "transcript": "Hello.", "speaker": "x", "attributes": {"emotion": "sad"}},
        {"start": 2, "end": 5, "transcript": "Well.", "speaker": "y", "attributes": {"emotion": "glad"}},
    ]
    speakers = {"x": {"gender": "male"}, "y": {"gender": "female"}}
    clip = {"id": "a", "duration": 5.0, "domain": "speech", "segments": segments, "speakers": speakers}
    facts = read_description(describe(clip, dialect))
    assert set(facts.attributes) == {
        ("emotion", "sad"),
        ("emotion", "glad"),
        ("gender", "male"),
        ("gender", "female"),
        ("number of speakers", "2"),
    }
    assert facts.duration == 5


def test_a_caption_is_no_attribute_and_other_text_gives_none() -> None:
    facts = read_description("[00:00-00:05] (a dog (large) barks, twice, Sound class: dog, Duration: 5s)")
    assert facts.attributes == (("sound class", "dog"),)
    assert read_description("just words (unclosed: x").attributes == ()
    assert read_description("").attributes == ()
