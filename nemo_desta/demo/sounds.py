"""Sounds and music made with numpy: environmental sounds by class, melodies by instrument, tempo and shape.

Each generator takes a random generator and a length and returns float64 (S,) at 16 kHz of any level. The names of the
instruments say what is imitated.
"""

from collections.abc import Callable

import numpy as np

SAMPLING_RATE = 16000

#: Seconds from one note's start to the next, by tempo.
TEMPOS = {"slow": (0.62, 0.75), "medium": (0.36, 0.44), "fast": (0.17, 0.22)}


#: Frequency ratio, amplitude and decay of a bell's partials.
BELL_PARTIALS = ((0.5, 0.5, 1.0), (1, 1, 1.8), (1.19, 0.7, 2.5), (1.56, 0.4, 3), (2, 0.6, 4))


def make_sound(name: str, rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A clip of one sound class of ``SOUNDS``."""
    return SOUNDS[name](rng, round(seconds * SAMPLING_RATE))


def make_music(instrument: str, tempo: str, melody: str, rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A melody of one instrument of ``INSTRUMENTS``: rising, falling or repeated notes of a major scale."""
    step = rng.uniform(*TEMPOS[tempo])
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 17, 19])
    base = 220.0 * 2 ** (rng.integers(-5, 8) / 12)
    out = np.zeros(round(seconds * SAMPLING_RATE))
    span = rng.integers(5, 9)
    for index in range(int(seconds / step) + 1):
        degree = {"rising": index % span, "falling": span - 1 - index % span, "repeated": 2}[melody]
        hertz = base * 2 ** (scale[degree] / 12)
        _add(out, INSTRUMENTS[instrument](rng, hertz, round(step * 1.15 * SAMPLING_RATE)), index * step)
    return out


def _noise(
    rng: np.random.Generator, length: int, low: float = 0.0, high: float = 8000.0, tilt: float = 0.0
) -> np.ndarray:
    """Noise between ``low`` and ``high`` Hz whose amplitude falls as frequency to the power of ``tilt``."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    hertz = np.fft.rfftfreq(length, 1 / SAMPLING_RATE)
    edge = np.clip((hertz - low) / 100 + 1, 0, 1) * np.clip((high - hertz) / 300 + 1, 0, 1)
    return _unit(np.fft.irfft(spectrum * edge / np.maximum(hertz, 30.0) ** tilt, length))


def _time(length: int) -> np.ndarray:
    return np.arange(length) / SAMPLING_RATE


def _unit(signal: np.ndarray) -> np.ndarray:
    return signal / (np.sqrt(np.mean(signal**2)) + 1e-9)


def _add(out: np.ndarray, piece: np.ndarray, start_secs: float) -> None:
    start = max(0, round(start_secs * SAMPLING_RATE))
    end = min(len(out), start + len(piece))
    if start < end:
        out[start:end] += piece[: end - start]


def _phase(hertz: np.ndarray) -> np.ndarray:
    return 2 * np.pi * np.cumsum(hertz) / SAMPLING_RATE


def _harmonics(phase: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return sum(w * np.sin((k + 1) * phase) for k, w in enumerate(weights))


def _beats(rng: np.random.Generator, length: int, rate: float, jitter: float) -> np.ndarray:
    """Start times in seconds of regular events with some jitter."""
    times = np.arange(rng.uniform(0, 1 / rate), length / SAMPLING_RATE, 1 / rate)
    return times + rng.normal(0, jitter / rate, len(times))


def _rain(rng: np.random.Generator, length: int) -> np.ndarray:
    out = _noise(rng, length, rng.uniform(300, 1200), 8000, rng.uniform(0.0, 0.5))
    for start in rng.uniform(0, length / SAMPLING_RATE, int(length / SAMPLING_RATE * rng.uniform(20, 60))):
        drop = _noise(rng, 240, 1500) * np.exp(-np.arange(240) / 40)
        _add(out, drop * rng.uniform(0.5, 2.5), start)
    return out


def _sea_waves(rng: np.random.Generator, length: int) -> np.ndarray:
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * (rng.uniform(0.15, 0.35) * _time(length) + rng.uniform()))
    return _noise(rng, length, 50, rng.uniform(2500, 5000), 0.8) * (0.15 + swell**2)


def _wind(rng: np.random.Generator, length: int) -> np.ndarray:
    time = _time(length)
    gusts = 0.6 + 0.4 * np.sin(2 * np.pi * (rng.uniform(0.3, 0.9) * time + rng.uniform()))
    low = rng.uniform(150, 350)
    return _noise(rng, length, low, low + rng.uniform(150, 400), 0.3) * gusts + 0.1 * _noise(rng, length, 30, 900, 1)


def _fire(rng: np.random.Generator, length: int) -> np.ndarray:
    out = 0.15 * _noise(rng, length, 50, 2500, 0.7)
    for start in rng.uniform(0, length / SAMPLING_RATE, int(length / SAMPLING_RATE * rng.uniform(12, 30))):
        size = int(rng.uniform(30, 200))
        crack = rng.standard_normal(size) * np.exp(-np.arange(size) / (size / 5))
        _add(out, crack * rng.exponential(1.5), start)
    return out


def _clock(rng: np.random.Generator, length: int) -> np.ndarray:
    out = 0.01 * _noise(rng, length)
    tones = rng.uniform(1800, 5000, 2)
    time = _time(400)
    for index, start in enumerate(_beats(rng, length, rng.choice([1.0, 2.0, 4.0, 5.0]), 0.005)):
        tick = np.sin(2 * np.pi * tones[index % 2] * time) + 0.5 * rng.standard_normal(400)
        _add(out, tick * np.exp(-time * 500), start)
    return out


def _knocking(rng: np.random.Generator, length: int) -> np.ndarray:
    out = 0.003 * _noise(rng, length)
    tone, time = rng.uniform(120, 320), _time(1600)
    for start in _beats(rng, length, rng.uniform(2.5, 5.0), 0.05):
        if rng.random() < 0.8:
            knock = np.sin(2 * np.pi * tone * time) + 0.4 * _noise(rng, 1600, 100, 1500)
            _add(out, knock * np.exp(-time * rng.uniform(50, 70)), start)
    return out


def _drums(rng: np.random.Generator, length: int) -> np.ndarray:
    out = np.zeros(length)
    time = _time(3200)
    for beat, start in enumerate(_beats(rng, length, rng.uniform(3.0, 5.0), 0.01)):
        if beat % 4 == 2:
            hit = _noise(rng, 3200, 800, 8000) * np.exp(-time * 25)
        elif beat % 2 == 0:
            hit = 2.5 * np.sin(_phase(45 + 110 * np.exp(-time * 35))) * np.exp(-time * 14)
        else:
            hit = 0.4 * _noise(rng, 3200, 5000) * np.exp(-time * 80)
        _add(out, hit, start)
    return out


def _helicopter(rng: np.random.Generator, length: int) -> np.ndarray:
    blades = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(10, 22) * _time(length))
    return _noise(rng, length, 40, rng.uniform(700, 1800), 0.6) * (0.1 + blades**3) + 0.1 * _noise(rng, length, 500)


def _engine(rng: np.random.Generator, length: int) -> np.ndarray:
    time = _time(length)
    hertz = rng.uniform(35, 75) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.1, 0.5) * time))
    return _harmonics(_phase(hertz), 1 / np.arange(1, 16) ** 0.8) + 0.3 * _noise(rng, length, 50, 1500, 0.7)


def _chainsaw(rng: np.random.Generator, length: int) -> np.ndarray:
    time = _time(length)
    rev = np.repeat(rng.uniform(0.6, 1.0, length // 8000 + 2), 8000)[:length]
    rev = np.convolve(np.pad(rev, 1000, mode="edge"), np.ones(2000) / 2000, mode="same")[1000 : 1000 + length]
    phase = _phase(rng.uniform(110, 190) * rev)
    buzz = np.sign(np.sin(phase)) * (0.6 + 0.4 * np.sin(phase / 2)) + 0.3 * np.sin(2 * np.pi * 37 * time)
    return buzz + 0.7 * _noise(rng, length, 1000, 7000)


def _siren(rng: np.random.Generator, length: int) -> np.ndarray:
    sweep = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.25, 1.2) * _time(length) + rng.uniform()))
    if rng.random() < 0.4:
        sweep = np.round(sweep)
    hertz = rng.uniform(450, 700) + rng.uniform(350, 700) * sweep
    return _harmonics(_phase(hertz), np.array([1.0, 0.4, 0.2])) + 0.03 * _noise(rng, length)


def _beeping(rng: np.random.Generator, length: int) -> np.ndarray:
    rate = rng.uniform(1.2, 4.0)
    gate = (np.mod(_time(length) * rate + rng.uniform(), 1.0) < rng.uniform(0.3, 0.55)).astype(float)
    gate = np.convolve(gate, np.ones(80) / 80, mode="same")
    return np.sin(2 * np.pi * rng.uniform(800, 2800) * _time(length)) * gate + 0.01 * _noise(rng, length)


def _bell(rng: np.random.Generator, length: int) -> np.ndarray:
    out, base = 0.003 * _noise(rng, length), rng.uniform(280, 900)
    time = _time(min(length, 40000))
    for start in _beats(rng, length, rng.uniform(0.5, 1.4), 0.03):
        strike = sum(
            amplitude * np.sin(2 * np.pi * base * ratio * time) * np.exp(-time * decay)
            for ratio, amplitude, decay in BELL_PARTIALS
        )
        _add(out, strike, start)
    return out


def _birds(rng: np.random.Generator, length: int) -> np.ndarray:
    out, base = 0.02 * _noise(rng, length, 500), rng.uniform(2500, 5000)
    for start in _beats(rng, length, rng.uniform(2.5, 6.0), 0.15):
        time = _time(round(rng.uniform(0.04, 0.14) * SAMPLING_RATE))
        hertz = base * (1 + rng.uniform(-0.25, 0.3) * time / time[-1] + 0.05 * np.sin(2 * np.pi * 40 * time))
        _add(out, np.sin(_phase(hertz)) * np.hanning(len(time)), start)
    return out


SOUNDS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "rain": _rain,
    "sea waves": _sea_waves,
    "fire crackling": _fire,
    "clock ticking": _clock,
    "helicopter": _helicopter,
    "chainsaw": _chainsaw,
    "engine": _engine,
    "siren": _siren,
    "beeping": _beeping,
    "bell": _bell,
    "birds chirping": _birds,
    "wind": _wind,
    "knocking": _knocking,
    "drum beat": _drums,
}


def _envelope(length: int, attack: float, release: float) -> np.ndarray:
    time = _time(length)
    return np.clip(time / attack, 0, 1) * np.clip((time[-1] - time) / release, 0, 1)


def _flute(rng: np.random.Generator, hertz: float, length: int) -> np.ndarray:
    phase = _phase(2 * hertz * (1 + 0.006 * np.sin(2 * np.pi * 5 * _time(length))))
    breath = 0.06 * _noise(rng, length, 1500, 6000)
    return (_harmonics(phase, np.array([1.0, 0.15, 0.05])) + breath) * _envelope(length, 0.05, 0.06)


def _organ(rng: np.random.Generator, hertz: float, length: int) -> np.ndarray:
    phase = _phase(np.full(length, hertz))
    pipes = sum(w * np.sin(k * phase) for k, w in ((0.5, 0.6), (1, 1), (2, 0.8), (4, 0.6), (8, 0.4)))
    return pipes * _envelope(length, 0.01, 0.02)


def _guitar(rng: np.random.Generator, hertz: float, length: int) -> np.ndarray:
    """A plucked string: noise in a delay line, smoothed at each round (Karplus and Strong, 1983)."""
    period = round(SAMPLING_RATE / hertz)
    string, out = rng.uniform(-1, 1, period), []
    for _ in range(-(-length // period)):
        out.append(string)
        string = 0.996 * (0.5 * string + 0.5 * np.roll(string, 1))
    return 2.5 * np.concatenate(out)


def _clarinet(rng: np.random.Generator, hertz: float, length: int) -> np.ndarray:
    weights = np.array([1, 0.02, 0.7, 0.03, 0.5, 0.03, 0.3, 0.02, 0.15])
    return _harmonics(_phase(np.full(length, hertz)), weights) * _envelope(length, 0.03, 0.04)


def _violin(rng: np.random.Generator, hertz: float, length: int) -> np.ndarray:
    vibrato = 1 + 0.012 * np.sin(2 * np.pi * rng.uniform(5, 6.5) * _time(length))
    return _harmonics(_phase(hertz * vibrato), 1 / np.arange(1, 15) ** 0.9) * _envelope(length, 0.09, 0.05)


def _marimba(rng: np.random.Generator, hertz: float, length: int) -> np.ndarray:
    time = _time(length)
    strike = np.sin(2 * np.pi * hertz * time) * np.exp(-time * 9)
    return 2.0 * (strike + 0.4 * np.sin(2 * np.pi * 3.93 * hertz * time) * np.exp(-time * 25))


INSTRUMENTS: dict[str, Callable[[np.random.Generator, float, int], np.ndarray]] = {
    "flute": _flute,
    "organ": _organ,
    "guitar": _guitar,
    "clarinet": _clarinet,
    "violin": _violin,
    "marimba": _marimba,
}
