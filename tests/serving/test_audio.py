"""Audio of a request: every form of base64 that clients send, formats by any name, and what is refused."""

import base64
import json
import sys
import textwrap
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from nemo_desta.serving.audio import AudioBudget
from nemo_desta.serving.errors import ApiError
from nemo_desta.serving.protocol import parse_request
from tests.serving.serving_tools import RATE, audio_part, body_of, encoded, noise, user

WAV = encoded(noise(0.2))
M4A = base64.b64encode(b"\0\0\0\x20ftypM4A " + b"\0" * 400).decode()
WEBM = base64.b64encode(b"\x1aE\xdf\xa3" + b"\0" * 400).decode()


def load(data, format="wav", max_secs=5.0):
    return AudioBudget(max_secs).load(data, format=format, sampling_rate=RATE, where="here")


@pytest.mark.parametrize(
    "data",
    [
        f"data:audio/wav;base64,{WAV}",
        f"DATA:audio/x-wav;codecs=1;BASE64,{WAV}",
        "\n".join(textwrap.wrap(WAV, 76)),
        "\r\n".join(textwrap.wrap(WAV, 64)) + "\r\n",
        WAV.replace("+", "-").replace("/", "_"),
        WAV.rstrip("="),
        WAV.replace("+", "-").replace("/", "_").rstrip("="),
    ],
    ids=["data URI", "shouted data URI", "lines of 76", "CRLF", "url-safe", "no padding", "url-safe, no padding"],
)
def test_every_form_of_base64_is_the_same_audio(data):
    assert WAV.endswith("=") and ("+" in WAV or "/" in WAV), "else this proves nothing"
    np.testing.assert_array_equal(load(data), noise(0.2))


NOT_BASE64 = ["%%%%", "data:audio/wav," + WAV, WAV + "====", WAV[:5], "data:;base64,%", "\ud800", "ä"]


@pytest.mark.parametrize("data", NOT_BASE64, ids=range(len(NOT_BASE64)))
def test_what_is_no_base64_is_refused(data):
    with pytest.raises(ApiError, match=r"here is (no base64|a data URI without base64)") as caught:
        load(data)
    assert caught.value.status == 400 and caught.value.code == "invalid_base64"


@pytest.mark.parametrize(
    ("format", "named"),
    [
        ("wav", "WAV"),
        ("wav", "wave"),
        ("mp3", "MP3"),
        ("mp3", "mpeg"),
        ("flac", "Flac"),
        ("ogg", "oga"),
        ("opus", "OGG"),
    ],
)
def test_formats_go_by_any_usual_name(format, named):
    data = encoded(noise(0.5), format=format)
    assert len(load(data, named)) == pytest.approx(0.5 * RATE, abs=2500)
    assert parse_request(json.dumps(body_of(user(audio_part(data, named)))).encode())


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(ApiError, match="unknown format 'Flca'.* Did you mean 'flac'"):
        parse_request(json.dumps(body_of(user(audio_part(WAV, "Flca")))).encode())


@pytest.mark.parametrize(("data", "format"), [(M4A, "m4a"), (M4A, "mp4"), (WEBM, "WebM")])
def test_without_a_decoder_m4a_and_webm_are_refused_with_what_to_install(monkeypatch, data, format):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ApiError, match="pip install torchcodec") as caught:
        load(data, format)
    assert caught.value.status == 400 and caught.value.code == "unsupported_format"


@pytest.fixture
def torchcodec(monkeypatch):
    """Stands in for torchcodec, which needs FFmpeg: the methods that are used, stereo of ``secs`` at 48 kHz."""
    file = SimpleNamespace(secs=2.0, promised=2.0, asked=[])

    class AudioDecoder:
        def __init__(self, content):
            assert isinstance(content, bytes)
            self.metadata = SimpleNamespace(
                sample_rate=48_000, num_channels=2, duration_seconds_from_header=file.promised
            )

        def get_samples_played_in_range(self, start_seconds=0.0, stop_seconds=None):
            file.asked.append(stop_seconds)
            secs = min(file.secs, stop_seconds) - start_seconds
            return SimpleNamespace(data=torch.full((2, round(48_000 * secs)), 0.25), sample_rate=48_000)

    module = ModuleType("torchcodec.decoders")
    module.AudioDecoder = AudioDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    return file


def test_with_a_decoder_m4a_and_webm_are_heard_up_to_the_limit(torchcodec):
    for data, format in ((M4A, "M4A"), (WEBM, "webm")):
        assert len(load(data, format)) == 2 * RATE
    torchcodec.secs, torchcodec.promised = 1e6, None
    with pytest.raises(ApiError, match="limit is 5 s") as caught:
        load(WEBM, "webm")
    assert caught.value.status == 413 and max(torchcodec.asked) <= 6.0
    torchcodec.secs, torchcodec.promised = 1.0, 4.0
    with pytest.raises(ApiError, match="here is cut: it is 1.00 s long, its header says 4.00 s"):
        load(M4A, "m4a")


@pytest.mark.parametrize("content", [b"#EXTM3U\nhttps://example.org/a", b"ffconcat version 1.0\nfile /etc/passwd"])
def test_a_playlist_never_reaches_the_decoder(torchcodec, content):
    for format in ("m4a", "webm"):
        with pytest.raises(ApiError, match="in no known format"):
            load(base64.b64encode(content).decode(), format)
    assert not torchcodec.asked


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "ogg"])
def test_a_cut_upload_is_refused_by_name(format):
    content = base64.b64decode(encoded(noise(3), format=format))
    with pytest.raises(ApiError, match="here") as caught:
        load(base64.b64encode(content[: len(content) // 2]).decode(), format)
    assert caught.value.status == 400 and caught.value.code in ("cut_audio", "corrupt_audio")


def test_channels_in_antiphase_are_heard():
    samples = noise(0.5)
    np.testing.assert_array_equal(load(encoded(np.stack([samples, -samples], axis=1))), samples)
