"""Window tables against the slow definition: exact fractions, one frame at a time."""

import functools
from fractions import Fraction
from math import ceil

import pytest
import torch

from nemo_desta.ops import max_window_frames, num_windows, window_table
from nemo_desta.types import FrameGrid

WHISPER = FrameGrid(sampling_rate=16000, hop=320)
BEATS = FrameGrid(sampling_rate=16000, hop=2560, frames_per_step=8, overlap=True)
SLOW = FrameGrid(sampling_rate=24000, hop=1111)
RATES = [6.25, 5, 3, 12.5, 1.7, 25, "1/30", Fraction(7, 3), 100]
SAMPLES = [0, 1, 799, 10_666, 16_000, 31_999, 40_003]


@functools.cache
def step_bounds(grid: FrameGrid, step: int) -> tuple[Fraction, Fraction]:
    """Where a step begins and ends, in seconds."""
    seconds = Fraction(grid.hop, grid.sampling_rate)
    return step * seconds, (step + 1) * seconds


def read_frames(grid: FrameGrid, rate: Fraction, frames: int, windows: int, window: int) -> list[int]:
    """The definition, in words: which frames of a clip does its window read?"""
    begin, end = window / rate, (window + 1) / rate
    steps = range(ceil(frames / grid.frames_per_step))
    taken = []
    for step in steps:
        left, right = step_bounds(grid, step)
        if grid.overlap:
            belongs = left < end and right > begin
        else:
            centre = (left + right) / 2
            belongs = begin <= centre < end or (window == windows - 1 and centre >= end and left < end)
        if belongs:
            taken.append(step)
    if not taken:
        centre = (begin + end) / 2
        taken = [min(steps, key=lambda step: (abs(sum(step_bounds(grid, step)) / 2 - centre), -step))]
    return [
        f
        for step in taken
        for f in range(step * grid.frames_per_step, (step + 1) * grid.frames_per_step)
        if f < frames
    ]


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("grid", [WHISPER, BEATS, SLOW], ids=["whisper", "beats", "slow"])
def test_window_table_equals_the_definition_at_any_rate_and_length(grid, rate):
    exact = Fraction(str(rate))
    steps = [max(1, ceil(Fraction(n * grid.sampling_rate, 16000 * grid.hop))) for n in SAMPLES]
    steps[2] = max(1, steps[2] - 1)  # an encoder may also give less than the samples would fill
    frame_lens = torch.tensor(steps) * grid.frames_per_step
    windows = num_windows(torch.tensor(SAMPLES), 16000, rate)
    max_frames = int(frame_lens.max()) + 3
    table = window_table(frame_lens, windows, max_frames, grid, rate)

    expected = [
        [clip * max_frames + f for f in read_frames(grid, exact, int(frame_lens[clip]), int(windows[clip]), w)]
        for clip in range(len(SAMPLES))
        for w in range(windows[clip])
    ]
    assert [
        list(range(s, s + c)) for s, c in zip(table.starts.tolist(), table.counts.tolist(), strict=True)
    ] == expected
    assert table.lens.tolist() == windows.tolist()
    assert int(table.counts.max()) <= max_window_frames(grid, rate)


@pytest.mark.parametrize("grid", [WHISPER, BEATS], ids=["whisper", "beats"])
@pytest.mark.parametrize("rate", [rate for rate in RATES if Fraction(str(rate)) < 50], ids=str)
def test_every_frame_of_a_clip_is_read_when_windows_are_longer_than_frames(grid, rate):
    frame_lens = torch.tensor([ceil(n / grid.hop) * grid.frames_per_step for n in SAMPLES[1:]])
    table = window_table(frame_lens, num_windows(torch.tensor(SAMPLES[1:]), 16000, rate), 4000, grid, rate)
    read = {f for s, c in zip(table.starts.tolist(), table.counts.tolist(), strict=True) for f in range(s, s + c)}
    assert read == {clip * 4000 + f for clip, n in enumerate(frame_lens.tolist()) for f in range(n)}


def test_max_window_frames_is_reached_and_exact_at_the_default_rate():
    assert max_window_frames(WHISPER, 6.25) == 8
    assert max_window_frames(BEATS, 6.25) == 8
    assert max_window_frames(WHISPER, 3) == 17
    assert max_window_frames(BEATS, 5) == 2 * 8  # windows of 1.25 steps overlap two steps
    assert max_window_frames(BEATS, 3) == 3 * 8  # windows of 25/12 steps begin on twelfths: never four
    lens = torch.tensor([50 * 60])
    for rate in (3, 1.7, 7):
        table = window_table(lens, num_windows(torch.tensor([960_000]), 16000, rate), 3000, WHISPER, rate)
        assert int(table.counts.max()) <= max_window_frames(WHISPER, rate) <= int(table.counts.max()) + 1


@pytest.mark.parametrize(
    ("samples", "rate", "expected"),
    [
        (0, 6.25, 1),
        (1, 6.25, 1),
        (2560, 6.25, 1),
        (2561, 6.25, 2),
        (480_000, 6.25, 188),
        (16_000, 1.7, 2),
        (480_000, "1/30", 1),
    ],
)
def test_num_windows_is_the_exact_ceiling(samples, rate, expected):
    assert num_windows(samples, 16000, rate) == expected
    assert num_windows(torch.tensor([samples]), 16000, rate).tolist() == [expected]


def test_a_rate_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        num_windows(16000, 16000, 0)
