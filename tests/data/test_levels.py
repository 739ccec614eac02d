"""Levels and rates of files: the same rule wherever a file is looked at."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_desta.data.audio_io import AudioError, count_samples, load_audio, to_clip
from nemo_desta.recipes.corpora import check_audio


@pytest.mark.parametrize("read", [load_audio, count_samples])
@pytest.mark.parametrize("ending", ["wav", "flac"])
@pytest.mark.parametrize("rate", [1, 999])
def test_a_file_with_a_rate_that_is_none_is_named(tmp_path: Path, read: Callable, ending: str, rate: int) -> None:
    path = tmp_path / f"slow.{ending}"
    soundfile.write(path, np.zeros(1600), rate)
    with pytest.raises(AudioError, match=rf"slow\.{ending} has the sampling rate {rate}; it must be") as caught:
        read(path)
    assert caught.value.reason == "rate"
    verdict, _ = check_audio({"audio": path.name}, tmp_path)
    assert verdict is not None and f"sampling rate {rate}" in verdict.detail


def test_warnings_about_levels_stop_after_a_thousand_clips_and_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nemo_desta.data.levels._said", set())
    for i in range(1003):
        to_clip(np.full((10, 1), 1.5, np.float32), 16_000, 16_000, f"clip {i}")
    assert len(caplog.records) == 1001
    assert "1000 clips with wrong levels were named" in caplog.records[-1].getMessage()


def test_a_clip_is_a_copy_of_what_was_handed_in() -> None:
    samples = np.full((10, 1), 0.5, np.float32)
    clip = to_clip(samples, 16_000, 16_000, "clip")
    samples[:] = 0.0
    assert (clip == 0.5).all()
