"""Measured attributes: figures of known signals, and words by the thirds of a corpus."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.acoustics import syllables
from nemo_desta.recipes.measure import MEASURES, Measurements, Quantiles, add_measured, measure, words

pytest.importorskip("parselmouth")
pytest.importorskip("pyloudnorm")

RATE = 16_000


def sine(hertz: float, secs: float = 2.0, level: float = 0.3, rate: int = RATE) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(secs * rate)) / rate)


def voice(hertz: float, secs: float = 2.0, level: float = 0.1) -> np.ndarray:
    """A harmonic tone with the falling spectrum of a voice."""
    return level * sum(sine(hertz * k, secs, 1 / k) for k in range(1, 12))


def noise(secs: float = 2.0, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, round(secs * RATE))


def bursts(count: int, secs: float = 4.0) -> np.ndarray:
    """A voice that rises and falls ``count`` times."""
    time = np.arange(round(secs * RATE)) / RATE
    return voice(150, secs) * (0.02 + np.clip(np.sin(2 * np.pi * count / secs * time), 0, None))


@pytest.mark.parametrize("hertz", [90.0, 200.0, 400.0])
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_pitch_of_a_tone(hertz: float, rate: int) -> None:
    assert measure(sine(hertz, rate=rate), rate).pitch == pytest.approx(hertz, abs=2)


def test_pitch_of_voices_and_of_what_has_none() -> None:
    assert measure(voice(120), RATE).pitch == pytest.approx(120, abs=2)
    assert measure(np.concatenate([noise(1), voice(250, 1)]), RATE).pitch == pytest.approx(250, abs=5)
    assert measure(noise(), RATE).pitch is None


def test_volume_is_loudness_in_lufs() -> None:
    # A tone of 997 Hz at full scale has -3.01 LUFS in one channel (BS.1770), so -20 dBFS have -23.
    reference = sine(997, 5.0, 10 ** (-20 / 20), rate=48_000)
    assert measure(reference, 48_000).volume == pytest.approx(-23.0, abs=0.1)
    assert measure(sine(997, 5.0, 10 ** (-20 / 20)), RATE).volume == pytest.approx(-23.0, abs=0.5)
    assert measure(sine(997, 0.1, 10 ** (-20 / 20)), RATE).volume == pytest.approx(-23.0, abs=0.7)
    gated = np.concatenate([reference, np.zeros(len(reference))])
    assert measure(gated, 48_000).volume == pytest.approx(-23.0, abs=0.5)


@pytest.mark.parametrize("snr", [5.0, 10.0, 20.0])
def test_noise_level_is_the_ratio_of_signal_to_noise(snr: float) -> None:
    tone = sine(440, 1.0, 0.2)
    floor = noise(3.0, 1.0) * np.sqrt(np.mean(tone**2)) * 10 ** (-snr / 20)
    signal = np.concatenate([np.zeros(RATE), tone, np.zeros(RATE)]) + floor
    assert measure(signal, RATE).noise_level == pytest.approx(snr, abs=1.5)


def test_noise_level_where_nothing_stands_out_or_all_is_clean() -> None:
    assert measure(noise(), RATE).noise_level is None
    assert measure(sine(440), RATE).noise_level is None
    assert measure(bursts(8) * 1.0, RATE).noise_level > 20
    padded = np.concatenate([np.zeros(RATE), sine(440, 1.0)])
    assert measure(padded, RATE).noise_level is None


def test_silence_is_the_share_of_pauses() -> None:
    half = np.concatenate([voice(150, 1), np.zeros(RATE), voice(150, 1), 0.001 * noise(1)])
    assert measure(half, RATE).silence == pytest.approx(0.5, abs=0.03)
    assert measure(voice(150), RATE).silence == 0
    short = np.concatenate([voice(150, 0.5), np.zeros(int(0.05 * RATE))] * 4)
    assert measure(short, RATE).silence == 0


def test_speaking_speed_by_transcript_leaves_pauses_out() -> None:
    spoken = voice(150, 2.0)
    assert measure(spoken, RATE, "banana banana").speaking_speed == pytest.approx(3.0)
    paused = np.concatenate([spoken, np.zeros(2 * RATE)])
    assert measure(paused, RATE, "banana banana").speaking_speed == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("count", [8, 16])
def test_speaking_speed_by_sound(count: int) -> None:
    found = measure(bursts(count), RATE)
    seconds = 4.0 * (1 - found.silence)
    assert found.speaking_speed * seconds == pytest.approx(count, abs=1)
    assert measure(noise(), RATE).speaking_speed is None


def test_syllables_of_several_scripts() -> None:
    assert syllables("Kids are talking by the door.") == 8
    assert syllables("説話") == 2 and syllables("안녕") == 2 and syllables("мама") == 2
    assert syllables("") == 0 and syllables("שלום") == 0


@pytest.mark.parametrize(
    ("audio", "silence"),
    [(np.zeros(RATE), 1.0), (np.zeros(800), 1.0), (np.full(RATE, 1e-6), 1.0), (np.zeros(0), None)],
)
def test_nothing_to_hear(audio: np.ndarray, silence: float | None) -> None:
    assert measure(audio, RATE, "words") == Measurements(silence=silence)


@pytest.mark.parametrize("length", [1, 10, 399, 800, 1_600])
def test_tiny_clips_do_not_break_it(length: int) -> None:
    for audio in (voice(150)[:length], noise()[:length]):
        found = measure(audio, RATE, "a")
        assert all(value is None or np.isfinite(value) for value in found)


def test_only_what_is_wanted_is_measured() -> None:
    assert measure(voice(150), RATE, names=["silence"]) == Measurements(silence=0.0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 5\); mix channels"):
        measure(np.zeros((2, 5)), RATE)
    with pytest.raises(ValueError, match="finite"):
        measure(np.array([0.0, np.nan]), RATE)
    with pytest.raises(ValueError, match="'loudness' cannot be measured"):
        measure(np.zeros(5), RATE, names=["loudness"])


def test_missing_libraries_come_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parselmouth", None)
    with pytest.raises(ImportError, match="pip install"):
        measure(voice(150), RATE)


def test_words_follow_the_thirds_of_the_corpus() -> None:
    corpus = [(f"c{n}", Measurements(pitch=100.0 + n, volume=-30.0 + n / 10, noise_level=float(n))) for n in range(90)]
    quantiles = Quantiles.of(corpus)
    assert quantiles.bounds["pitch"] == pytest.approx((129.67, 159.33), abs=0.01)
    assert words(Measurements(pitch=120, volume=-22, noise_level=5), quantiles) == {
        "pitch": "low",
        "volume": "loud",
        "noise_level": "high",
    }
    assert words(Measurements(pitch=140, silence=0.5), quantiles) == {"pitch": "medium"}


def test_no_words_where_nobody_could_hear_the_difference() -> None:
    corpus = [(f"c{n}", Measurements(pitch=100.0 + n / 10, volume=-20.0)) for n in range(90)]
    quantiles = Quantiles.of(corpus)
    assert quantiles.bounds["pitch"] is None and quantiles.bounds["volume"] is None
    assert words(Measurements(pitch=100, volume=-20), quantiles) == {}


def test_quantiles_need_no_order_and_flat_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corpus = [(f"c{n}", Measurements(pitch=float(value))) for n, value in enumerate(rng.uniform(80, 300, 30_000))]
    forward, backward = Quantiles.of(corpus, ["pitch"]), Quantiles.of(reversed(corpus), ["pitch"])
    assert forward.bounds == backward.bounds
    assert forward.bounds["pitch"] == pytest.approx((153.3, 226.7), abs=5)
    forward.save(tmp_path / "bins.json")
    assert Quantiles.load(tmp_path / "bins.json").bounds == forward.bounds


def clips(root: Path, count: int = 9) -> list[dict[str, Any]]:
    rows = []
    for n in range(count):
        soundfile.write(root / f"c{n}.wav", voice(100 + 25 * n, 0.6, 0.02 * (n + 1)), RATE)
        row = {"id": f"c{n}", "audio": f"c{n}.wav", "domain": "speech", "source": "toy", "transcript": "a"}
        rows.append({**row, "attributes": {"gender": None, "style": "hummed"}})
    return rows


def test_clips_get_words_in_order(tmp_path: Path) -> None:
    rows = clips(tmp_path)
    with pytest.raises(TypeError, match="read twice"):
        list(add_measured(iter(rows), tmp_path, ["pitch"], tmp_path / "cache"))
    got = list(add_measured(rows, tmp_path, ["pitch", "volume"], tmp_path / "cache"))
    assert [row["id"] for row in got] == [row["id"] for row in rows]
    assert [row["attributes"]["pitch"] for row in got] == ["low"] * 3 + ["medium"] * 3 + ["high"] * 3
    assert got[0]["attributes"] == {"pitch": "low", "volume": "quiet", "style": "hummed"}
    assert rows[0]["attributes"] == {"gender": None, "style": "hummed"}
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["toy.bins.json", "toy.jsonl"]


def test_what_the_corpus_says_itself_stays_and_sounds_have_no_voice(tmp_path: Path) -> None:
    rows = clips(tmp_path)
    rows[0]["attributes"]["volume"] = "shouted"
    rows[1]["domain"] = "music"
    got = list(add_measured(rows, tmp_path, ["pitch", "volume"], tmp_path / "cache"))
    assert got[0]["attributes"]["volume"] == "shouted"
    assert "pitch" not in got[1]["attributes"] and got[1]["attributes"]["volume"] == "quiet"


def test_a_clip_that_is_cut_or_no_audio_is_not_measured(tmp_path: Path) -> None:
    rows = clips(tmp_path)
    whole = (tmp_path / "c0.wav").read_bytes()
    (tmp_path / "c0.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c1.raw").write_bytes(whole)
    rows[1]["audio"] = "c1.raw"
    got = list(add_measured(rows, tmp_path, ["volume"], tmp_path / "cache"))
    assert ["volume" in row["attributes"] for row in got] == [False, False] + [True] * 7


def test_a_killed_pass_goes_on_and_bins_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clips(tmp_path)
    whole = list(add_measured(rows, tmp_path, ["pitch"], tmp_path / "one"))
    measured: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Measurements:
        measured.append(1)
        if len(measured) == 5:
            raise KeyboardInterrupt
        return measure(*args, **kwargs)

    monkeypatch.setattr("nemo_desta.recipes.measure.measure", counting)
    with pytest.raises(KeyboardInterrupt):
        list(add_measured(rows, tmp_path, ["pitch"], tmp_path / "two"))
    with (tmp_path / "two/toy.jsonl").open("a") as file:
        file.write('{"id": "c8", "pi')  # the kill came in the middle of a line
    assert list(add_measured(rows, tmp_path, ["pitch"], tmp_path / "two")) == whole
    assert len(measured) == 5 + 5
    assert list(add_measured(rows, tmp_path, ["pitch"], tmp_path / "two")) == whole
    assert len(measured) == 10
    lines = [json.loads(line) for line in (tmp_path / "two/toy.jsonl").read_text().splitlines() if line.endswith("}")]
    assert [line["id"] for line in lines] == [row["id"] for row in rows]
    # With bins on the disk a further clip is binned as before, whatever it is.
    (tmp_path / "two/toy.bins.json").write_text('{"pitch": [500.0, 600.0]}')
    assert {row["attributes"]["pitch"] for row in add_measured(rows, tmp_path, ["pitch"], tmp_path / "two")} == {"low"}


def test_unreadable_clips_come_back_unchanged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = clips(tmp_path)
    (tmp_path / "c3.wav").write_bytes(b"RIFF")
    (tmp_path / "c4.wav").unlink()
    got = list(add_measured(rows, tmp_path, ["pitch"], tmp_path / "cache"))
    assert len(got) == 9 and "pitch" not in got[3]["attributes"] and "pitch" not in got[4]["attributes"]
    assert "could not be read" in caplog.text


def test_names_are_checked_and_nothing_is_no_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"'loudness' cannot be measured; there is {', '.join(MEASURES)}"):
        list(add_measured([], tmp_path, ["loudness"], tmp_path / "cache"))
    assert list(add_measured([], tmp_path, ["pitch"], tmp_path / "cache")) == []
    assert list(add_measured([{"id": "x"}], tmp_path, [], tmp_path / "cache")) == [{"id": "x"}]
    assert not (tmp_path / "cache").exists()
