"""Levels and rates of files: the same rule wherever a file is looked at."""

from collections import defaultdict
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


def test_ten_clips_with_a_problem_are_named_and_another_problem_still_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nemo_desta.data.levels._said", defaultdict(set))
    for i in range(13):
        to_clip(np.full((10, 1), 1.5, np.float32), 16_000, 16_000, f"clip {i}")
    to_clip(np.full((10, 1), 300.0, np.float32), 16_000, 16_000, "whole")
    *named, last, other = [record.getMessage() for record in caplog.records]
    assert len(named) == 10 and "clip 9" in named[-1]
    assert last == "10 clips with a peak above 1.0 were named; further ones are corrected silently"
    assert other.startswith("whole holds whole numbers")


def test_a_clip_is_a_copy_of_what_was_handed_in() -> None:
    samples = np.full((10, 1), 0.5, np.float32)
    clip = to_clip(samples, 16_000, 16_000, "clip")
    samples[:] = 0.0
    assert (clip == 0.5).all()
