"""Everything that a caller may call audio becomes the same clip, or an error that says what to do."""

import io

import numpy as np
import pytest
import soundfile
import torch

from nemo_desta.config import ConfigError
from nemo_desta.data.audio_io import AudioError
from nemo_desta.models.answering.clips import load_clip

RATE = 16_000


@pytest.fixture(scope="module")
def tone():
    """0.5 s of a quiet tone, representable in 16 bits."""
    samples = np.round(8000 * np.sin(np.arange(RATE // 2) * 0.05)) / 32768
    return samples.astype(np.float32)


def encoded(samples, rate=RATE, format="WAV", **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, **options)
    return file.getvalue()


def test_path_bytes_file_array_tensor_and_mapping_are_one_clip(tone, tmp_path):
    (tmp_path / "tone.wav").write_bytes(encoded(tone))
    wav = encoded(tone)
    items = [
        tmp_path / "tone.wav",
        str(tmp_path / "tone.wav"),
        wav,
        bytearray(wav),
        io.BytesIO(wav),
        encoded(tone, format="FLAC"),
        tone,
        tone.astype(np.float64),
        torch.from_numpy(tone),
        (tone * 32768).astype(np.int16),
        np.stack([tone, tone]),
        np.stack([tone, tone], axis=1),
        {"audio": tone},
        {"array": tone, "sampling_rate": RATE, "path": None},
        {"audio": tmp_path / "tone.wav", "text": None},
    ]
    clips = [load_clip(item, RATE) for item in items]
    for item, clip in zip(items, clips, strict=True):
        np.testing.assert_array_equal(clip.audio, tone, err_msg=str(type(item)))
    assert len({clip.key for clip in clips}) == 1


def test_the_text_comes_along_and_does_not_change_the_key(tone):
    clip = load_clip({"audio": tone, "text": "hello"}, RATE)
    assert clip.text == "hello"
    assert clip.key == load_clip(tone, RATE).key != load_clip(tone[:-1], RATE).key


@pytest.mark.parametrize("format", ["MP3", "OGG"])
def test_lossy_files_are_read(tone, format):
    clip = load_clip(encoded(np.tile(tone, 4), format=format), RATE)
    assert abs(len(clip.audio) - 4 * len(tone)) < 2500  # an encoder may pad
    assert np.abs(clip.audio).max() == pytest.approx(8000 / 32768, rel=0.1)


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_other_rates_are_resampled(rate):
    seconds = 1.5
    tone = np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate).astype(np.float32)
    for item in ({"array": tone, "sampling_rate": rate}, encoded(tone, rate, subtype="FLOAT")):
        clip = load_clip(item, RATE)
        assert len(clip.audio) == pytest.approx(seconds * RATE, abs=1)
        expected = np.sin(2 * np.pi * 440 * np.arange(len(clip.audio)) / RATE)
        middle = slice(2000, -2000)
        assert np.abs(clip.audio[middle] - expected[middle]).max() < 1e-3


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (b"", "audio 2: it holds no bytes"),
        (b"RIFF not really", "cannot read audio 2"),
        (np.zeros(0, np.float32), "audio 2 holds no samples"),
        (np.array([0.0, np.nan], np.float32), "NaN"),
        (np.zeros((2, 3, 4), np.float32), "shape"),
        ("/no/such/file.wav", "no file '/no/such/file.wav'"),
    ],
)
def test_what_cannot_be_heard_is_named(item, message):
    with pytest.raises(AudioError, match=message):
        load_clip(item, RATE, name="audio 2")


def test_what_is_no_audio_is_refused(tone):
    with pytest.raises(TypeError, match="audio is a int; it must be a path"):
        load_clip(3, RATE)
    with pytest.raises(TypeError, match="NoneType"):
        load_clip({"text": "only a text"}, RATE)
    with pytest.raises(ConfigError, match="Did you mean 'sampling_rate'"):
        load_clip({"audio": tone, "sample_rate": RATE}, RATE)
