"""Seed descriptions, in both papers' dialects."""

import pytest

from nemo_desta.recipes import describe

SPEECH = {
    "id": "r-1",
    "duration": 1.78,
    "domain": "speech",
    "transcript": "Kids are talking by the door.",
    "attributes": {"gender": "male", "accent": None, "emotion": "happy"},
}
SOUND = {"id": "s-1", "duration": 5.001, "domain": "sound", "transcript": None}
SOUND["attributes"] = {"sound_class": "dog barking"}


def test_describe_speech_when_transcript_is_known() -> None:
    assert (
        describe(SPEECH) == "[00:00-00:02] Kids are talking by the door. (Gender: male, Emotion: happy, Duration: 2s)"
    )
    assert describe(SPEECH, "alarm") == (
        "[00:00-00:02] Kids are talking by the door. (duration: 2s, gender: male, emotion: happy)"
    )


def test_describe_leaves_the_text_out_when_there_is_none() -> None:
    assert describe(SOUND) == "[00:00-00:05] (Sound class: dog barking, Duration: 5s)"
    assert describe(SOUND, "alarm") == "[00:00-00:05] |Sound| (duration: 5s, sound class: dog barking)"
    unknown = {**SPEECH, "transcript": None}
    assert describe(unknown) == "[00:00-00:02] (Gender: male, Emotion: happy, Duration: 2s)"
    assert describe(unknown, "alarm") == "[00:00-00:02] |Speech| (duration: 2s, gender: male, emotion: happy)"


def test_describe_uses_the_caption_when_there_is_one() -> None:
    row = {"id": "c", "duration": 10, "domain": "sound", "caption": ["a dog barks", "rain\nfalls"]}
    assert describe(row) == "[00:00-00:10] (a dog barks, rain falls, Duration: 10s)"
    assert describe(row, "alarm") == "[00:00-00:10] |a dog barks/rain falls| (duration: 10s)"


@pytest.mark.parametrize(
    ("secs", "span", "whole"),
    [(0.143, "00:00-00:01", 1), (1.5, "00:00-00:02", 2), (2.5, "00:00-00:03", 3), (95.2, "00:00-01:35", 95)]
    + [(3725, "00:00-62:05", 3725)],
)
def test_describe_rounds_seconds(secs: float, span: str, whole: int) -> None:
    row = {"id": "x", "duration": secs, "domain": "sound", "attributes": {}}
    assert describe(row) == f"[{span}] (Duration: {whole}s)"


def test_describe_writes_every_kind_of_value() -> None:
    values = {"digit": 0, "genre": ["rock", "jazz"], "noisy": False, "snr": 12.50, "tags": [], "age": "young adult"}
    row = {"id": "v", "duration": 1.0, "domain": "speech", "attributes": values}
    expected = "Digit: 0, Genre: rock/jazz, Noisy: no, Snr: 12.5, Age: young adult"
    assert describe(row) == f"[00:00-00:01] ({expected}, Duration: 1s)"


def test_describe_leaves_out_what_cannot_be_heard() -> None:
    hidden = {"speaker_id": "p225", "name": "Ann", "age": 23, "min_age": "31", "title": "Blue"}
    row = {"id": "h", "duration": 1.0, "domain": "speech", "attributes": {**hidden, "gender": "female"}}
    assert describe(row) == "[00:00-00:01] (Gender: female, Duration: 1s)"
    assert "Age: 23" in describe(row, exclude=()) and "Name: Ann" in describe(row, exclude=())
    assert describe(row, exclude={"*"}) == "[00:00-00:01] (Duration: 1s)"


def test_describe_conversation_in_time_order() -> None:
    row = {
        "id": "d",
        "duration": 6.2,
        "domain": "speech",
        "attributes": {"noise": "low"},
        "segments": [
            {"start": 2.1, "end": 6.0, "speaker": "Bob", "transcript": "Fine.", "attributes": {"emotion": "sad"}},
            {"start": 0.0, "end": 2.0, "speaker": "Ann", "transcript": "How are you?"},
        ],
        "speakers": {"Ann": {"gender": "female"}, "Bob": {"gender": "male", "name": "Bob"}},
    }
    assert describe(row).split("\n") == [
        "[00:00-00:02] How are you? (Speaker: first, Gender: female, Duration: 2s)",
        "[00:02-00:06] Fine. (Speaker: second, Gender: male, Emotion: sad, Duration: 4s)",
        "(Number of speakers: 2, Noise: low, Duration: 6s)",
    ]
    assert describe(row, "alarm").split("\n") == [
        "[00:00-00:02, the first speaker] How are you?",
        "[00:02-00:06, the second speaker, emotion: sad] Fine.",
        "(duration: 6s, number of speakers: 2, noise: low, the first speaker gender: female, "
        "the second speaker gender: male)",
    ]


def test_describe_names_row_and_rule_when_it_cannot() -> None:
    with pytest.raises(ValueError, match="desta25, alarm"):
        describe(SPEECH, "desta3")
    for bad in (None, "2", -1.0, float("nan"), float("inf"), 0):
        with pytest.raises(ValueError, match="row 'r-1'.*duration"):
            describe({**SPEECH, "duration": bad})
    backwards = {"start": 3.0, "end": 1.0, "transcript": "?"}
    with pytest.raises(ValueError, match="row 'r-1': segment ends at 1 s"):
        describe({**SPEECH, "segments": [backwards]})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"segments": "abc"}, {"segments": [5]}, {"segments": [{"start": 0, "end": 1, "attributes": 5}]}),
        *({"segments": [{"start": 0, "end": 1, "speaker": ["A"]}], "speakers": {"A": "x"}}, {"speakers": [1]}),
        *({"attributes": ["x"]}, {"attributes": {"x": {}}}, {"caption": {}}, {"transcript": ["hi"]}),
    ],
)
def test_describe_names_the_row_when_a_field_is_of_the_wrong_type(wrong: dict) -> None:
    with pytest.raises(ValueError, match="row 'r-1': .* must be"):
        describe({**SPEECH, **wrong})
