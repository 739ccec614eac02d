import io
import os
import tracemalloc
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import soundfile

from nemo_desta.data.audio_io import AudioError, AudioRoots, TarSlice, count_samples, load_audio, normalize_level
from nemo_desta.testing.data import with_flac_length, write_tone

FIXTURE = Path(__file__).parents[1] / "fixtures" / "desta25_rows"


@pytest.fixture
def roots(tmp_path: Path) -> AudioRoots:
    for folder in ("main", "libri", "elsewhere"):
        (tmp_path / folder).mkdir()
        write_tone(tmp_path / folder / f"{folder}.wav", 0.1)
    return AudioRoots({"default": tmp_path / "main", "libri": tmp_path / "libri"})


def test_load_audio_equals_the_original_loader_on_24_khz_stereo() -> None:
    audio = load_audio(FIXTURE / "clip5_24k_stereo.wav")
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, np.load(FIXTURE / "clip5_16k.npy"), atol=1e-6)


def test_resolve_takes_the_named_root_then_the_datasets_then_default(roots: AudioRoots, tmp_path: Path) -> None:
    assert roots.resolve("main.wav") == tmp_path / "main" / "main.wav"
    assert roots.resolve("libri.wav", dataset="libri") == tmp_path / "libri" / "libri.wav"
    assert roots.resolve("main.wav", dataset="unknown corpus") == tmp_path / "main" / "main.wav"
    assert roots.resolve("libri.wav", root="libri", dataset="x") == tmp_path / "libri" / "libri.wav"
    assert roots.resolve(str(tmp_path / "libri" / "libri.wav")) == tmp_path / "libri" / "libri.wav"  # inside a root


def test_a_wav_stands_for_a_missing_compressed_file_and_the_log_says_so_once(
    roots: AudioRoots, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("main.mp3", "main.MP3", "main.flac"):
        assert roots.resolve(name).name == "main.wav"
    assert caplog.text.count("'main.mp3' is missing") == 1 and caplog.text.count("is missing") == 1


@pytest.mark.parametrize("path", ["main.2", "main.wav|id", "main.txt", "main", "main."])
def test_no_other_file_stands_for_a_missing_one(roots: AudioRoots, path: str) -> None:
    with pytest.raises(AudioError, match="no file") as caught:
        roots.resolve(path)
    assert caught.value.reason == "not_found"


@pytest.mark.parametrize("path", ["/", "//", "", ".", "..", "a/.", ".mp3", "/.mp3"])
def test_a_path_that_is_no_file_name_is_an_audio_error(roots: AudioRoots, path: str) -> None:
    with pytest.raises(AudioError) as caught:
        roots.resolve(path)
    assert caught.value.reason in ("outside_root", "not_found")


@pytest.mark.parametrize("path", ["../elsewhere/elsewhere.wav", "/etc/passwd", "a/../../elsewhere/elsewhere.wav"])
def test_resolve_refuses_what_leads_outside_every_root(roots: AudioRoots, path: str) -> None:
    with pytest.raises(AudioError, match="outside every audio root") as caught:
        roots.resolve(path)
    assert caught.value.reason == "outside_root"


def test_resolve_refuses_a_symlink_that_leads_outside_unless_its_target_is_a_root(
    roots: AudioRoots, tmp_path: Path
) -> None:
    os.symlink(tmp_path / "elsewhere" / "elsewhere.wav", tmp_path / "main" / "link.wav")
    os.symlink(tmp_path / "elsewhere", tmp_path / "main" / "folder")
    for path in ("link.wav", "folder/elsewhere.wav"):
        with pytest.raises(AudioError, match="outside every audio root"):
            roots.resolve(path)
    wider = AudioRoots({"default": tmp_path / "main", "more": tmp_path / "elsewhere"})
    assert wider.resolve("link.wav").name == "elsewhere.wav"


def test_a_sibling_folder_with_the_same_beginning_is_outside(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data2").mkdir()
    write_tone(tmp_path / "data2" / "a.wav", 0.1)
    with pytest.raises(AudioError, match="outside"):
        AudioRoots({"default": tmp_path / "data"}).resolve(str(tmp_path / "data2" / "a.wav"))


def test_missing_file_and_missing_root_are_named(roots: AudioRoots) -> None:
    with pytest.raises(AudioError, match=r"no file 'gone\.flac' under audio root 'default'"):
        roots.resolve("gone.flac")
    with pytest.raises(AudioError, match="'vctk' is not among"):
        roots.resolve("a.wav", root="vctk")
    for impossible in ("a\0.wav", "a/" * 3000, "a" * 300):
        with pytest.raises(AudioError, match="not a file name|no file"):
            roots.resolve(impossible)


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not audio at all" * 100])
def test_load_audio_names_a_corrupt_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    for read in (load_audio, count_samples):
        with pytest.raises(AudioError, match=r"cannot read .*broken\.wav") as caught:
            read(path)
        assert caught.value.reason == "corrupt"


def test_load_audio_refuses_no_samples_and_nan(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(AudioError, match="holds no samples") as caught:
        load_audio(tmp_path / "empty.wav")
    assert caught.value.reason == "empty"
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.1], dtype=np.float32), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match="NaN"):
        load_audio(tmp_path / "nan.wav")


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_count_samples_agrees_with_what_is_loaded(tmp_path: Path, rate: int) -> None:
    path = write_tone(tmp_path / "a.wav", 1.2345, sampling_rate=rate)
    assert abs(count_samples(path) - load_audio(path).shape[0]) <= 1


def test_load_audio_from_inside_a_tar(tmp_path: Path) -> None:
    path = write_tone(tmp_path / "a.wav", 0.3)
    data = path.read_bytes()
    (tmp_path / "a.tar").write_bytes(b"x" * 512 + data + b"y" * 99)
    inside = TarSlice(tmp_path / "a.tar", 512, len(data))
    np.testing.assert_array_equal(load_audio(inside), load_audio(path))
    assert count_samples(inside) == 4800


def test_normalize_level_sets_rms_but_never_clips() -> None:
    tone = np.sin(np.arange(16000) / 10).astype(np.float32) * 0.01
    level = 20 * np.log10(np.sqrt(np.mean(normalize_level(tone, -26.0) ** 2)))
    assert level == pytest.approx(-26.0, abs=0.01)
    click = np.zeros(16000, dtype=np.float32)
    click[100] = 0.5
    assert np.abs(normalize_level(click, -20.0)).max() == pytest.approx(1.0)
    silence = np.zeros(100, dtype=np.float32)
    assert (normalize_level(silence, -20.0) == silence).all()


SAMPLES = 0.3 * np.sin(np.arange(32000) / 20) * np.abs(np.sin(np.arange(32000) / 3000))
SAMPLES += np.random.default_rng(0).normal(0, 0.02, 32000)

#: Container, encoding: 2 s at 16 kHz.
FORMATS = [
    ("WAV", "PCM_16"),
    ("WAVEX", "PCM_24"),
    ("WAV", "IMA_ADPCM"),
    ("WAV", "GSM610"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("SVX", "PCM_16"),
    ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def encoded(kind: str, subtype: str | None = None, samples: np.ndarray = SAMPLES, rate: int = 16000, **how) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, format=kind, subtype=subtype, **how) as sound:
        sound.write(samples)
    return file.getvalue()


@pytest.mark.parametrize("kind, subtype", FORMATS)
def test_a_cut_file_is_named_wherever_it_is_cut(tmp_path: Path, kind: str, subtype: str) -> None:
    path = tmp_path / "a.audio"
    whole = encoded(kind, subtype)
    path.write_bytes(whole)
    assert load_audio(path, duration=2.0).size == pytest.approx(32000, abs=640)  # ADPCM fills its last block
    for percent in range(5, 100, 5):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(AudioError, match=r"a\.audio") as caught:
            load_audio(path)
        assert caught.value.reason in ("cut", "corrupt")


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AIFF", "AU", "NIST", "MP3"])
def test_the_error_of_a_cut_file_says_what_was_found_and_expected(kind: str) -> None:
    whole = encoded(kind)
    with pytest.raises(AudioError, match=r"clip 7 is cut: it holds [01]\.\d\d s, its header says 2\.00 s") as caught:
        load_audio(io.BytesIO(whole[: len(whole) // 2]), name="clip 7")
    assert caught.value.reason == "cut"
    if kind != "MP3":
        with pytest.raises(AudioError, match="is cut"):
            count_samples(io.BytesIO(whole[: len(whole) // 2]))


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 64044])
def test_a_wav_of_a_writer_that_streams_or_counts_its_header_is_whole(tmp_path: Path, size: int) -> None:
    data = bytearray(encoded("WAV"))
    at = data.index(b"data") + 4
    data[at : at + 4] = pack("<I", size)
    if size != 64044:
        data[4:8] = data[at : at + 4]
    (tmp_path / "a.wav").write_bytes(data)
    assert load_audio(tmp_path / "a.wav").size == count_samples(tmp_path / "a.wav") == 32000


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_an_mp3_without_a_length_is_read_to_its_end(tmp_path: Path, mode: str, rate: int) -> None:
    quiet_then_loud = np.concatenate([0.001 * SAMPLES, np.zeros(rate * 4), SAMPLES, SAMPLES])
    data = encoded("MP3", None, quiet_then_loud, rate, bitrate_mode=mode, compression_level=0.5)
    tag = max(data.find(b"Xing"), data.find(b"Info"))
    bare = data[data.index(data[:2], tag) :]
    id3 = b"ID3\4\0\0\0\0\x20\0" + bytes(4096)
    secs = quiet_then_loud.size / rate
    for content in (bare, id3 + bare, bare + b"TAG" + bytes(125), data, id3 + data):
        (tmp_path / "a.mp3").write_bytes(content)
        found = load_audio(tmp_path / "a.mp3", rate)
        assert found.size / rate == pytest.approx(secs, abs=0.1)
        assert count_samples(tmp_path / "a.mp3", rate) / rate == pytest.approx(secs, abs=0.1)
        assert np.abs(found[-rate // 2 :]).max() > 0.1
    for content in (bare, data):
        for percent in (30, 60, 90):
            within_a_frame = len(content) * percent // 100 | 1
            (tmp_path / "a.mp3").write_bytes(content[:within_a_frame])
            with pytest.raises(AudioError, match="is cut"):
                load_audio(tmp_path / "a.mp3", rate)


@pytest.mark.parametrize("length", [2**36 - 1, 3 << 30, 200_000_000])
@pytest.mark.parametrize("duration", [None, 2.0])
def test_a_header_that_claims_terabytes_takes_no_memory(tmp_path: Path, length: int, duration: float | None) -> None:
    (tmp_path / "a.flac").write_bytes(with_flac_length(encoded("FLAC"), length))
    tracemalloc.start()
    try:
        with pytest.raises(AudioError, match="header") as caught:
            load_audio(tmp_path / "a.flac", duration=duration)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert caught.value.reason == "cut"


def test_a_flac_that_does_not_say_its_length_is_read_and_counted(tmp_path: Path) -> None:
    whole = with_flac_length(encoded("FLAC"), 0)
    (tmp_path / "a.flac").write_bytes(whole)
    np.testing.assert_array_equal(load_audio(tmp_path / "a.flac"), load_audio(io.BytesIO(encoded("FLAC"))))
    assert count_samples(tmp_path / "a.flac", 48000) == 96000
    (tmp_path / "a.flac").write_bytes(whole[: len(whole) // 2])
    for read in (load_audio, count_samples):
        with pytest.raises(AudioError, match=r"cannot read .*a\.flac"):
            read(tmp_path / "a.flac")


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_file_of_another_length_than_said_is_a_wrong_duration(kind: str) -> None:
    data = encoded(kind)
    for right in (1.6, 2.0, 2.45):
        assert load_audio(io.BytesIO(data), duration=right).size == pytest.approx(32000, abs=1)
    for wrong in (0, 0.5, 1.4, 2.6, 1e308, float("nan")):
        with pytest.raises(AudioError, match=r"it is .*s long, the row says") as caught:
            load_audio(io.BytesIO(data), duration=wrong, name="it")
        assert caught.value.reason == "wrong_duration"


def test_a_file_that_is_much_longer_than_said_is_not_decoded_to_its_end(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(600 * 16000, np.int16), 16000)
    tracemalloc.start()
    try:
        with pytest.raises(AudioError, match=r"more than 1\.00 s long, the row says 0\.50 s"):
            load_audio(tmp_path / "a.flac", duration=0.5)
        assert tracemalloc.get_traced_memory()[1] < 2e6  # 600 s are 38 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.raw", "a.RAW", "pipe", "folder"])
def test_what_is_no_audio_file_is_named_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for raw in ("a.raw", "a.RAW"):
        (tmp_path / raw).write_bytes(encoded("WAV"))
    for read in (load_audio, count_samples):
        with pytest.raises(AudioError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("kind, subtype", FORMATS)
def test_a_mutated_file_is_loaded_with_the_right_length_or_named(tmp_path: Path, kind: str, subtype: str) -> None:
    rng = np.random.default_rng(5)
    whole = encoded(kind, subtype)
    outcomes = set()
    for number in range(40):
        data = bytearray(whole)
        for at in rng.integers(0, (48, 128, len(data))[number % 3], size=1 + number % 3):
            data[at] = rng.integers(256)
        (tmp_path / "a.audio").write_bytes(data)
        try:
            found = load_audio(tmp_path / "a.audio", duration=2.0)
            assert 24_000 <= found.size <= 40_000 and np.isfinite(found).all()
            outcomes.add("loaded")
        except AudioError as error:
            outcomes.add(error.reason)
        try:
            count_samples(tmp_path / "a.audio")
        except AudioError as error:
            assert "a.audio" in str(error)
    assert len(outcomes) > 1 or kind == "OGG"
