"""A clip's waveform as a small, self-contained SVG."""

import html

import numpy as np

WIDTH, HEIGHT = 320, 48


def waveform(audio: np.ndarray, *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """(S,) in [-1, 1] -> an SVG: per point of ``width`` a line from minimum to maximum, scaled to the peak."""
    bounds = np.linspace(0, len(audio), width + 1).astype(int)[:-1]
    bounds = np.minimum(bounds, max(0, len(audio) - 1))
    low, high = np.minimum.reduceat(audio, bounds), np.maximum.reduceat(audio, bounds)
    loudest = max(float(np.abs(audio).max()), 1e-4)  # silence becomes a flat line
    middle = height / 2
    top, bottom = (middle - (middle - 1) * values / loudest for values in (high, low))
    lines = "".join(
        f"M{x}.5 {y0:.1f}V{max(y1, y0 + 1):.1f}" for x, (y0, y1) in enumerate(zip(top, bottom, strict=True))
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="waveform" preserveAspectRatio="none">'
        f'<path d="{lines}" stroke="currentColor" fill="none"/></svg>'
    )


def card(name: str, audio: np.ndarray, secs: float, text: str | None = None) -> str:
    """A clip with its name, length, waveform and transcript, as HTML."""
    said = f"<p>{html.escape(text.strip() or 'no speech')}</p>" if text is not None else ""
    return (
        f'<figure class="clip"><figcaption><b>{html.escape(name)}</b> <span>{secs:.1f} s</span></figcaption>'
        f"{waveform(audio)}{said}</figure>"
    )
