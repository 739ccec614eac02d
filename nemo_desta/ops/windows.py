"""Windows of equal length on the time axis, and the frames of one encoder that each of them reads.

A common grid of ``tokens_per_second`` windows aligns encoders of different frame rates: window w covers the seconds
[w / r, (w + 1) / r). All arithmetic is on integer samples, so no clip loses or gains a frame by rounding.

Letters: B clips, T frames, P windows of the whole batch, K frames of the longest window, r tokens per second.
"""

from fractions import Fraction
from typing import TypeVar

import torch

from nemo_desta.types import FrameGrid, WindowTable

Count = TypeVar("Count", int, torch.Tensor)


def exact_rate(tokens_per_second: int | float | str | Fraction) -> Fraction:
    """The rate as written: 6.25 is 25/4 and "1/30" is one window in 30 seconds; a float is its shortest decimals."""
    try:
        rate = tokens_per_second if isinstance(tokens_per_second, Fraction) else Fraction(str(tokens_per_second))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"tokens_per_second must be a number or text like 25/4, found {tokens_per_second!r}"
        ) from error
    if rate <= 0:
        raise ValueError(f"tokens_per_second is {tokens_per_second}; it must be greater than 0")
    return rate


def num_windows(num_samples: Count, sampling_rate: int, tokens_per_second: int | float | str | Fraction) -> Count:
    """Windows of clips of ``num_samples`` samples: ``max(1, ceil(seconds * r))``; an int for an int, (B,) for (B,)."""
    rate = exact_rate(tokens_per_second)
    count = -(-num_samples * rate.numerator // (sampling_rate * rate.denominator))
    return count.clamp(min=1) if isinstance(count, torch.Tensor) else max(1, count)


def max_window_frames(grid: FrameGrid, tokens_per_second: int | float | str | Fraction) -> int:
    """K: the most frames that any window of any clip reads. Window positions repeat, so one period is checked."""
    rate = exact_rate(tokens_per_second)
    period = (grid.sampling_rate / (rate * grid.hop)).denominator  # windows until the grid is in phase again
    windows = torch.arange(period, device="cpu")  # a number is needed, also inside torch.device("meta")
    first, _, end_if_last = _steps(windows, grid, rate)
    return max(1, int((end_if_last - first).max())) * grid.frames_per_step


def window_table(
    frame_lens: torch.Tensor,
    windows_per_clip: torch.Tensor,
    max_frames: int,
    grid: FrameGrid,
    tokens_per_second: int | float | str | Fraction,
    *,
    total: int | None = None,
) -> WindowTable:
    """The frames of every window of a batch.

    A step belongs to the window that holds its centre, or to every window that it overlaps if ``grid.overlap``. A
    clip's last window also takes a step that begins inside it and has its centre beyond the clip's end. A window
    without a valid step (an encoder slower than the windows, or shorter than the clip) reads the nearest one.

    Args:
        frame_lens: (B,) int64, valid frames of each clip, at least 1.
        windows_per_clip: (B,) int64, see ``num_windows``.
        max_frames: T of the encoder's (B, T, C) layers.
        grid: where the encoder's frames lie.
        tokens_per_second: r.
        total: P if it is known, as in `clip_and_window`.
    """
    rate = exact_rate(tokens_per_second)
    clip, window = clip_and_window(windows_per_clip, total)
    first, end, end_if_last = _steps(window, grid, rate)
    end = torch.where(window == windows_per_clip[clip] - 1, end_if_last, end)

    valid = frame_lens[clip]
    last_step = (valid - 1) // grid.frames_per_step
    end = torch.minimum(end, last_step + 1)
    empty = end <= first
    nearest = torch.minimum(_centre_step(window, grid, rate), last_step)
    first = torch.where(empty, nearest, first)
    end = torch.where(empty, nearest + 1, end)

    start = first * grid.frames_per_step
    counts = torch.minimum(end * grid.frames_per_step, valid) - start
    return WindowTable(starts=clip * max_frames + start, counts=counts, lens=windows_per_clip)


def clip_and_window(windows_per_clip: torch.Tensor, total: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(B,) windows of each clip -> for every packed window its clip (P,) and its number inside that clip (P,).

    ``total``: P, their sum; without it the host waits for the device to count.
    """
    clip = torch.repeat_interleave(windows_per_clip, output_size=total)
    first = windows_per_clip.cumsum(0) - windows_per_clip
    return clip, torch.arange(clip.shape[0], device=clip.device) - first[clip]


def window_index(windows: WindowTable, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat frame index (P, width) and whether the slot is read (P, width); unread slots repeat the window's first
    frame, so that a gather never reads a frame beyond a clip's end."""
    slot = torch.arange(width, device=windows.starts.device)
    valid = slot < windows.counts[:, None]
    return windows.starts[:, None] + slot * valid, valid


def _steps(window: torch.Tensor, grid: FrameGrid, rate: Fraction) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First step, end, and end for a clip's last window, of windows far from either end of the audio.

    In units of 1 / (2 * rate.numerator) samples a window begins at 2 * w * length and step i at 2 * i * step.
    """
    length = rate.denominator * grid.sampling_rate
    step = grid.hop * rate.numerator
    begin, finish = window * length, (window + 1) * length
    overlap_end = -(-finish // step)
    if grid.overlap:
        return begin // step, overlap_end, overlap_end
    return -(-(2 * begin - step) // (2 * step)), -(-(2 * finish - step) // (2 * step)), overlap_end


def _centre_step(window: torch.Tensor, grid: FrameGrid, rate: Fraction) -> torch.Tensor:
    """The step under each window's centre."""
    length = rate.denominator * grid.sampling_rate
    return (2 * window + 1) * length // (2 * grid.hop * rate.numerator)
