"""Messages as several libraries write them become the same message, or an error that names the part."""

import base64

import pytest

from nemo_desta.answering.parts import plain_message
from nemo_desta.data.audio_io import AudioError
from nemo_desta.errors import ConfigError, RowError

TAG = "<|AUDIO|>"
TEXT = {"type": "text", "text": "What?"}


def plain(*parts, **more):
    return plain_message({"role": "user", "content": list(parts), **more}, TAG, "message 2")


@pytest.mark.parametrize(
    ("part", "audio"),
    [
        ({"type": "audio", "audio": "x.wav"}, {"audio": "x.wav"}),
        ({"type": "audio", "audio_url": "x.wav"}, {"audio": "x.wav"}),
        ({"type": "audio", "url": "x.wav"}, {"audio": "x.wav"}),
        ({"type": "audio", "path": "x.wav"}, {"path": "x.wav"}),
        ({"type": "audio", "array": [0.1], "sampling_rate": 8000}, {"array": [0.1], "sampling_rate": 8000}),
        ({"type": "audio", "audio": "x.wav", "text": "hi", "duration": 1.0, "array": None}, None),
        ({"type": "audio_url", "audio_url": {"url": "x.wav"}}, {"audio": "x.wav"}),
        ({"type": "audio_url", "audio_url": "x.wav"}, {"audio": "x.wav"}),
        ({"type": "audio", "base64": base64.b64encode(b"RIFF").decode()}, {"bytes": b"RIFF"}),
        (
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}},
            {"bytes": b"RIFF", "text": None},
        ),
    ],
    ids=lambda value: value["type"] + "-" + "-".join(value) if isinstance(value, dict) and "type" in value else "",
)
def test_an_audio_part_is_a_tag_on_a_line_of_its_own_and_an_audio(part, audio):
    expected = audio or {"audio": "x.wav", "text": "hi", "duration": 1.0}
    assert plain(part, TEXT) == {"role": "user", "content": f"{TAG}\nWhat?", "audios": [expected]}


def test_audios_come_in_the_order_of_the_parts():
    parts = [{"type": "audio", "audio": f"{i}.wav"} for i in range(3)]
    message = plain(parts[2], TEXT, parts[0], parts[1])
    assert message["content"] == f"{TAG}\nWhat?\n{TAG}\n{TAG}"
    assert [audio["audio"] for audio in message["audios"]] == ["2.wav", "0.wav", "1.wav"]


def test_parts_without_data_take_the_audios_of_the_message():
    """As transformers' templates: the audios are handed in beside the messages."""
    place = {"type": "audio"}
    message = plain(place, TEXT, place, audios=["a.wav", "b.wav"])
    assert message == {"role": "user", "content": f"{TAG}\nWhat?\n{TAG}", "audios": ["a.wav", "b.wav"]}


def test_a_plain_message_stays_what_it_is():
    message = {"role": "assistant", "content": "Yes.", "audios": None, "reasoning_content": "Hm", "tool_calls": None}
    assert plain_message(message, TAG, "m") == {"role": "assistant", "content": "Yes.", "audios": []}


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        ("Who?", RowError, "message 2 must be .*found str 'Who\\?'"),
        ({"content": "x"}, RowError, "message 2 must be"),
        ({"role": "user"}, RowError, "'content' must be a text or a list of parts, found NoneType"),
        (
            {"role": "user", "content": "x", "audio": ["a.wav"]},
            ConfigError,
            "'message 2.audio'. Did you mean 'audios'",
        ),
        ({"role": "user", "content": "x", "audios": "a.wav"}, RowError, "'audios' must be a list"),
        ({"role": "user", "content": ["x"]}, RowError, "message 2, part 1: must be {'type': ...}, found str"),
        ({"role": "user", "content": [{"text": "x"}]}, RowError, "part 1: must be {'type'"),
        (
            {"role": "user", "content": [TEXT, {"type": "audios", "audio": "x"}]},
            RowError,
            "message 2, part 2: unknown type 'audios'. Did you mean 'audio'",
        ),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, RowError, "unknown type 'image_url'"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, RowError, "part 1: 'text' must be a string"),
        ({"role": "user", "content": [{"type": "text", "txt": "x"}]}, ConfigError, "Did you mean 'text'"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}, RowError, "{'data': base64"),
        ({"role": "user", "content": [{"type": "audio_url"}]}, RowError, "a path or a data URI"),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "%%", "format": "wav"}}]},
            AudioError,
            "part 1 is no base64",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": f"{TAG} x"}, {"type": "audio", "audio": "x"}]},
            RowError,
            "use one of the two",
        ),
    ],
)
def test_what_is_no_message_is_named(message, error, words):
    with pytest.raises(error, match=words):
        plain_message(message, TAG, "message 2")
