import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_desta.data.audio_io import AudioError, AudioRoots, TarSlice, count_samples, load_audio, normalize_level
from nemo_desta.data.testing import write_tone

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


def test_resolve_falls_back_to_wav(roots: AudioRoots) -> None:
    assert roots.resolve("main.mp3").name == "main.wav"


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
