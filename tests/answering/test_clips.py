"""Everything that a caller may call audio becomes the same clip, or an error that says what to do."""

import base64
import io
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from nemo_desta.answering.clips import load_clip
from nemo_desta.data.audio_io import AudioError
from nemo_desta.errors import ConfigError

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
        tone.tolist(),
        [tone.tolist()] * 2,
        {"audio": tone},
        {"audio": tone.tolist(), "text": None, "duration": 0.5},
        {"audio": {"array": tone.tolist(), "sampling_rate": RATE, "path": None}},
        {"bytes": wav, "path": "gone.wav"},
        {"bytes": None, "path": str(tmp_path / "tone.wav")},
        f"data:audio/wav;base64,{base64.b64encode(wav).decode()}",
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


@pytest.fixture
def said(monkeypatch):
    """Messages about levels are logged once; here each test begins anew."""
    monkeypatch.setattr("nemo_desta.data.levels._said", defaultdict(set))


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "nemo_desta.data.levels"]


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("int8", 0, 128), ("uint8", 128, 128), ("int16", 0, 1 << 15), ("int32", 0, 1 << 31)]
)
def test_integers_are_scaled_by_the_range_of_their_type(said, caplog, wrap, dtype, low, high):
    samples = (low + high * 0.25 * np.sin(np.arange(4000) * 0.05)).astype(dtype)
    expected = (samples.astype(np.float64) - low) / high
    np.testing.assert_allclose(load_clip(wrap(samples), RATE).audio, expected, atol=1e-7)
    assert not warnings_of(caplog)


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy, np.ndarray.tolist], ids=["numpy", "torch", "list"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32", "float64"])
def test_16_bit_samples_in_a_wider_type_are_heard_as_they_are_and_named(said, caplog, tone, wrap, dtype):
    held = np.rint(tone * 32768).astype(dtype)
    for _ in range(2):
        np.testing.assert_array_equal(load_clip(wrap(held), RATE, name="audio 3 of message 2").audio, tone)
    (message,) = warnings_of(caplog)
    assert message.startswith("audio 3 of message 2 holds ") and "16-bit" in message


def test_32_bit_samples_in_64_bits_and_24_bit_samples_in_32_bits_are_named(said, caplog, tone):
    held = (tone.astype(np.float64) * (1 << 31)).astype(np.int64)
    np.testing.assert_allclose(load_clip(held, RATE, name="one").audio, tone, atol=1e-7)
    load_clip((held >> 8).astype(np.int32), RATE, name="two")
    assert [message.split()[0] for message in warnings_of(caplog)] == ["one", "two"]
    assert "read as 32-bit" in warnings_of(caplog)[0] and "divide 24-bit samples" in warnings_of(caplog)[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_a_little_too_loud_are_left_alone_and_louder_ones_scaled_and_named(said, caplog, tone, dtype):
    tone = tone / np.abs(tone).max()
    np.testing.assert_array_equal(load_clip((1.04 * tone).astype(dtype), RATE).audio, (1.04 * tone).astype(dtype))
    assert not warnings_of(caplog)
    loud = load_clip((1.5 * tone).astype(dtype), RATE, name="loud").audio
    np.testing.assert_allclose(loud, tone, atol=1e-6 if dtype != np.float16 else 1e-3)
    assert ["loud has a peak of 1.5, floats are in [-1, 1]: scaled to a peak of 1.0"] == warnings_of(caplog)


@pytest.mark.parametrize("peak", [4.5, 12000.3, 40000.0, 1e18, 1e38])
@pytest.mark.parametrize("form", ["array", "file"])
def test_absurd_levels_are_refused_by_name(said, tone, peak, form):
    loud = (peak * tone / np.abs(tone).max()).astype(np.float32)
    item = loud if form == "array" else encoded(loud, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"audio 2 has a peak of .*, but floats are in \[-1, 1\]") as caught:
        load_clip(item, RATE, name="audio 2")
    assert caught.value.reason == "level"


def test_channels_that_cancel_each_other_give_the_loudest_and_say_so(said, caplog, tone, tmp_path):
    np.testing.assert_array_equal(load_clip(np.stack([tone, -tone]), RATE, name="both").audio, tone)
    soundfile.write(tmp_path / "x.wav", np.stack([-0.9 * tone, tone], axis=1), RATE, subtype="FLOAT")
    np.testing.assert_array_equal(load_clip(tmp_path / "x.wav", RATE).audio, tone)
    first, second = warnings_of(caplog)
    assert first.startswith("both: the mix of its 2 channels is inf dB below channel 1")
    assert second.startswith(f"{tmp_path / 'x.wav'}: the mix of its 2 channels is 26 dB below channel 2")


def test_channels_that_do_not_cancel_are_averaged(said, caplog, tone):
    other = np.roll(tone, 40)
    for pair in ([tone, other], [tone, 0 * tone], [0 * tone, 0 * tone], [tone, -0.5 * tone]):
        np.testing.assert_allclose(load_clip(np.stack(pair), RATE).audio, (pair[0] + pair[1]) / 2, atol=1e-7)
    assert not warnings_of(caplog)


@pytest.mark.parametrize("rate", ["16000", -1, 0, 1, 999, 768_001, float("nan"), float("inf"), True, 1e30])
def test_a_rate_that_is_none_is_refused_at_once(tone, rate):
    for item in ({"array": tone, "sampling_rate": rate}, {"audio": encoded(tone), "sampling_rate": rate}):
        with pytest.raises(AudioError, match="audio has the sampling rate .* from 1000 to 768000") as caught:
            load_clip(item, RATE)
        assert caught.value.reason == "rate"


@pytest.mark.parametrize("rate", [1, 100])
def test_a_file_of_one_sample_per_second_is_refused_not_resampled(tone, rate):
    with pytest.raises(AudioError, match=f"audio has the sampling rate {rate}"):
        load_clip(encoded(tone[:1600], rate), RATE)


@pytest.mark.parametrize("rate", [np.int64(8000), np.float32(8000), 8000.0])
def test_rates_of_any_number_type_are_taken(tone, rate):
    assert len(load_clip({"array": tone, "sampling_rate": rate}, RATE).audio) == 2 * len(tone)


class Decoder:
    """The methods of torchcodec's AudioDecoder that matter here; torchcodec itself needs FFmpeg."""

    def __init__(self, samples, rate):
        self.decoded = SimpleNamespace(data=torch.from_numpy(samples), sample_rate=rate)

    def get_all_samples(self):
        return self.decoded

    def __getitem__(self, key):  # as datasets adds it
        return {"array": self.decoded.data.mean(0).numpy(), "sampling_rate": self.decoded.sample_rate}[key]


def test_a_decoder_object_is_heard_at_its_own_rate(tone):
    stereo = np.stack([tone, 0 * tone])
    np.testing.assert_array_equal(load_clip(Decoder(stereo, RATE), RATE).audio, tone / 2)
    assert len(load_clip({"audio": Decoder(stereo, 8000), "text": "hi"}, RATE).audio) == 2 * len(tone)
    two_samples = Decoder(np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32), RATE)
    np.testing.assert_allclose(load_clip(two_samples, RATE).audio, [0.3, 0.4])  # never transposed by a guess


@pytest.mark.parametrize("decode", [False, True])
def test_audios_of_hugging_face_datasets_are_heard(tone, tmp_path, decode):
    datasets = pytest.importorskip("datasets")
    if decode:
        pytest.importorskip("torchcodec", exc_type=ImportError)
    (tmp_path / "tone.wav").write_bytes(encoded(tone))
    audios = [{"bytes": encoded(tone), "path": "inside.wav"}, {"bytes": None, "path": str(tmp_path / "tone.wav")}]
    made = datasets.Dataset.from_dict({"audio": audios, "text": ["one", "two"]})
    rows = made.cast_column("audio", datasets.Audio(decode=decode))
    for row in rows:
        for item in (row["audio"], row, {"audio": row["audio"], "text": row["text"]}):
            clip = load_clip(item, RATE)
            np.testing.assert_array_equal(clip.audio, tone)
            assert clip.text == (None if item is row["audio"] else row["text"])


@pytest.mark.parametrize("address", ["https://example.org/a.wav", "file://server/a.wav", "s3://bucket/a.wav"])
def test_addresses_are_refused_and_never_fetched(address):
    for item in (address, {"audio": address, "text": "x"}, {"path": address}):
        with pytest.raises(AudioError, match="is the address .* nothing is fetched: download it"):
            load_clip(item, RATE)


def test_what_is_no_audio_is_refused(tone):
    with pytest.raises(TypeError, match="audio is a int; it must be a path"):
        load_clip(3, RATE)
    with pytest.raises(TypeError, match="list of other things than numbers"):
        load_clip(["a.wav"], RATE)
    with pytest.raises(AudioError, match="different length"):
        load_clip([[0.1, 0.2], [0.1]], RATE)
    for samples in (tone > 0, tone.astype(np.complex64), np.zeros(9, np.uint32)):
        with pytest.raises(AudioError, match="samples of type (bool|complex64|uint32)"):
            load_clip(samples, RATE)
    with pytest.raises(ConfigError, match="both 'audio' and 'array'"):
        load_clip({"audio": "x.wav", "array": tone}, RATE)
    with pytest.raises(TypeError, match="'text' must be a transcript, found 5"):
        load_clip({"audio": tone, "text": 5}, RATE)
    with pytest.raises(AudioError, match="is no base64"):
        load_clip("data:audio/wav;base64,%%%%", RATE)
    with pytest.raises(TypeError, match="NoneType"):
        load_clip({"text": "only a text"}, RATE)
    with pytest.raises(ConfigError, match="Did you mean 'sampling_rate'"):
        load_clip({"audio": tone, "sample_rate": RATE}, RATE)
