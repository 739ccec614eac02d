"""Which clips can be used: sound, missing, corrupt and mislabelled files; WAV headers as libsndfile reads them."""

import os
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import soundfile

from nemo_desta.recipes.corpora import CorpusError, check_audio, relative_audio
from nemo_desta.recipes.corpora.audio import intact_seconds
from nemo_desta.testing.data import with_flac_length

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 30000)
FORMATS = ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.au", "a.aiff"]


def reason(root: Path, name: str, *, duration: float | None = None, decode: bool = False) -> str | None:
    verdict, _ = check_audio({"audio": name, "duration": duration}, root, decode=decode)
    assert verdict is None or name in verdict.detail
    return verdict and verdict.reason


@pytest.mark.parametrize("name", FORMATS)
def test_a_sound_clip_has_no_verdict_and_the_seconds_of_its_header(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, NOISE, 16000)
    for decode in (False, True):
        verdict, seconds = check_audio({"audio": name, "duration": None}, tmp_path, decode=decode)
        assert verdict is None and seconds == pytest.approx(1.875, abs=0.1 if name == "a.mp3" else 1e-9)
    assert check_audio({"audio": name}, tmp_path)[0] is None


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("kind", ["MP3", "OGG", "W64", "RF64", "CAF", "NIST"])
def test_both_checks_name_a_truncated_clip_of_any_format(tmp_path: Path, kind: str, share: float) -> None:
    soundfile.write(tmp_path / "a.audio", NOISE, 16000, format=kind)
    assert reason(tmp_path, "a.audio") is None and reason(tmp_path, "a.audio", decode=True) is None
    whole = (tmp_path / "a.audio").read_bytes()
    (tmp_path / "a.audio").write_bytes(whole[: int(len(whole) * share)])
    assert reason(tmp_path, "a.audio") == reason(tmp_path, "a.audio", decode=True) == "corrupt audio"


@pytest.mark.parametrize("share", [0.3, 0.7, 0.97, 0.999])
@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.au", "a.aiff"])
def test_a_truncated_clip_is_corrupt_wherever_it_is_cut(tmp_path: Path, name: str, share: float) -> None:
    soundfile.write(tmp_path / name, NOISE, 16000)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    assert reason(tmp_path, name) == "corrupt audio"
    assert reason(tmp_path, name, decode=True) == "corrupt audio"


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "nothing.flac").write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "empty.wav", NOISE[:0], 16000)
    assert reason(tmp_path, "gone.wav") == reason(tmp_path, "folder.wav") == "missing audio"
    assert reason(tmp_path, "text.wav") == reason(tmp_path, "nothing.flac") == "corrupt audio"
    assert reason(tmp_path, "empty.wav") == reason(tmp_path, "empty.wav", decode=True) == "corrupt audio"


def test_a_duration_that_is_far_from_the_files_is_wrong(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE, 16000)
    assert reason(tmp_path, "a.wav", duration=2.3) is None
    assert reason(tmp_path, "a.wav", duration=2.5) == "wrong duration"
    verdict, seconds = check_audio({"audio": "a.wav", "duration": 9.0}, tmp_path)
    assert verdict is not None and "1.88 s long, the metadata says 9.00 s" in verdict.detail and seconds == 1.875


def test_decoding_finds_damage_in_the_middle_and_samples_that_are_not_finite(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", NOISE, 16000)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    (tmp_path / "a.flac").write_bytes(content)
    assert reason(tmp_path, "a.flac") is None
    assert reason(tmp_path, "a.flac", decode=True) == "corrupt audio"
    soundfile.write(tmp_path / "b.wav", np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT")
    assert reason(tmp_path, "b.wav") is None
    assert reason(tmp_path, "b.wav", decode=True) == "corrupt audio"


def test_decoding_stops_behind_the_duration_and_is_not_led_by_the_header(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", NOISE, 16000)
    whole = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(with_flac_length(whole, 2**36 - 1))
    for decode in (False, True):
        assert reason(tmp_path, "a.flac", decode=decode) == "corrupt audio"
    soundfile.write(tmp_path / "b.flac", np.zeros(600 * 16000, np.int16), 16000)
    verdict, seconds = check_audio({"audio": "b.flac", "duration": 0.5}, tmp_path, decode=True)
    assert verdict is not None and verdict.reason == "wrong duration" and seconds < 2


def test_a_flac_that_does_not_say_its_length_is_sound(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", NOISE, 16000)
    (tmp_path / "a.flac").write_bytes(with_flac_length((tmp_path / "a.flac").read_bytes(), 0))
    for decode in (False, True):
        assert check_audio({"audio": "a.flac", "duration": 1.9}, tmp_path, decode=decode) == (None, 1.875)


@pytest.mark.parametrize("decode", [False, True])
def test_a_pipe_and_a_device_are_named_and_not_waited_for(tmp_path: Path, decode: bool) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    os.symlink("/dev/zero", tmp_path / "zero.wav")
    for name in ("pipe.wav", "zero.wav"):
        assert reason(tmp_path, name, decode=decode) == "missing audio"


@pytest.mark.parametrize("duration", [1e24, 10**400, 0])
def test_a_duration_of_any_size_is_wrong_and_no_error(tmp_path: Path, duration: float) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE, 16000)
    for decode in (False, True):
        assert reason(tmp_path, "a.wav", duration=duration, decode=decode) == "wrong duration"


@pytest.mark.parametrize("at, value", [(34, pack("<H", 64)), (24, pack("<I", 2**32 - 1)), (32, pack("<H", 3))])
def test_the_fast_check_leaves_a_header_that_libsndfile_refuses_to_it(tmp_path: Path, at: int, value: bytes) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, NOISE, 16000)
    content = bytearray(path.read_bytes())
    assert intact_seconds(str(path)) == 1.875
    content[at : at + len(value)] = value
    path.write_bytes(content)
    assert intact_seconds(str(path)) is None


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_the_fast_check_knows_every_plain_wav(tmp_path: Path, kind: str, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE, 16000, format=kind, subtype=subtype)
    assert intact_seconds(str(tmp_path / "a.wav")) == 1.875


def test_a_streamed_wav_without_its_size_is_as_long_as_what_is_there(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", NOISE, 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    assert check_audio({"audio": "a.wav"}, tmp_path) == (None, 1.875)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("frames", [1, 4095, 4096, 4097, 600_000])
def test_the_check_agrees_with_libsndfile(
    tmp_path: Path, suffix: str, channels: int, subtype: str, frames: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    samples = np.resize(NOISE, (frames, channels))
    samples[frames // 2 :] = 0  # frames of very different sizes
    soundfile.write(path, samples, 44100, subtype=subtype)
    verdict, seconds = check_audio({"audio": path.name}, tmp_path)
    assert verdict is None and seconds == pytest.approx(soundfile.info(path).duration)
    if suffix == "wav":
        assert intact_seconds(str(path)) == seconds


@pytest.mark.parametrize("audio", ["../../etc/passwd", "/etc/passwd", "a/../../x.wav", "", ".", "a/..", "a\0b.wav"])
def test_audio_outside_the_data_root_is_refused(tmp_path: Path, audio: str) -> None:
    with pytest.raises(CorpusError, match=r"m:3: audio .* is not a file below the data root"):
        relative_audio(audio, tmp_path, where="m:3")


def test_audio_inside_the_data_root_is_normalised(tmp_path: Path) -> None:
    assert relative_audio("./a/x/../b.wav", tmp_path) == "a/b.wav"
    assert relative_audio(str(tmp_path / "a" / ".hidden.wav"), tmp_path) == "a/.hidden.wav"
    assert relative_audio("a/..b.wav", tmp_path) == "a/..b.wav"
    assert relative_audio("a//b c.wav", tmp_path) == "a/b c.wav"
