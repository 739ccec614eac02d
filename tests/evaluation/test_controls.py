"""Controls that can fail a model: silence and other clips' audio, compared item by item."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from nemo_desta.evaluation import controls
from nemo_desta.evaluation.intervals import bootstrap_interval, paired_difference


@dataclass(frozen=True)
class Thing:
    id: str
    audio: Path | None
    answer: str


@pytest.fixture
def things(tmp_path):
    made = []
    for i in range(12):
        file = tmp_path / f"{i}.wav"
        soundfile.write(file, 0.1 * np.random.default_rng(i).standard_normal(1600 * (1 + i)), 16_000)
        made.append(Thing(str(i), file, "ab"[i % 2]))
    return made


def test_silence_is_as_long_as_the_clip_and_silent(things, tmp_path):
    for old, new in zip(things, controls.silenced(things, tmp_path / "silence"), strict=True):
        samples, rate = soundfile.read(new.audio)
        assert not samples.any()
        assert len(samples) / rate == pytest.approx(soundfile.info(old.audio).duration, abs=0.06)
        assert (new.id, new.answer) == (old.id, old.answer)


def test_silent_clips_have_absolute_paths_in_a_relative_folder(things, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(new.audio.is_absolute() and new.audio.is_file() for new in controls.silenced(things, "out/silence"))


def test_nobody_keeps_its_clip_and_nobody_gets_one_of_its_own_answer(things):
    mixed = controls.shuffled(things, seed=3)
    by_clip = {thing.audio: thing.answer for thing in things}
    assert [m.id for m in mixed] == [t.id for t in things]
    assert sorted(m.audio for m in mixed) == sorted(t.audio for t in things)
    for old, new in zip(things, mixed, strict=True):
        assert new.audio != old.audio
        assert by_clip[new.audio] != old.answer
    assert controls.shuffled(things, seed=3) == mixed != controls.shuffled(things, seed=4)


def test_items_that_share_clips_never_keep_theirs(things):
    shared = [Thing(str(i), things[i % 2].audio, "a") for i in range(9)]
    assert all(new.audio != old.audio for old, new in zip(shared, controls.shuffled(shared), strict=True))
    with pytest.raises(ValueError, match="1 different clips cannot be shuffled"):
        controls.shuffled(shared[:1])


def test_a_sample_is_drawn_by_its_seed_among_items_with_audio(things):
    mute = [Thing("mute", None, "a"), *things]
    drawn = controls.sample(mute, 5, seed=1)
    assert len(drawn) == 5 and "mute" not in {d.id for d in drawn}
    assert drawn == controls.sample(mute, 5, seed=1) != controls.sample(mute, 5, seed=2)
    assert len(controls.sample(mute, 100)) == 12


def verdicts(right, total):
    return [True] * right + [False] * (total - right)


def test_the_first_line_names_the_tasks_above_their_controls_and_those_that_are_not():
    above = controls.compare("best constant", verdicts(97, 100), verdicts(14, 100))
    barely = controls.compare("silence", verdicts(97, 100), verdicts(40, 100))
    not_above = controls.compare("silence", verdicts(56, 100), verdicts(60, 100))
    line = controls.first_line({"digit": [above, barely], "gender": [above, not_above], "x": []}, ["gender"])
    assert line == (
        "The model uses the audio in digit (0.970, silence 0.400). "
        "WARNING: the score does not show that the model uses the audio in gender (0.560, silence 0.600; the LLM "
        "cannot read it). No control was run for x."
    )
    assert "WARNING" not in controls.first_line({"digit": [above]})
    assert controls.first_line({"gender": [not_above]}).startswith("WARNING")
    assert controls.first_line({}) == controls.first_line({"x": []})
    assert "not known" in controls.first_line({})
    assert controls.uses_audio([above]) and not controls.uses_audio([above, not_above])
    assert controls.uses_audio([]) is None


def test_a_deaf_models_gain_is_not_certain():
    rng = np.random.default_rng(0)
    guesses = list(rng.random(200) < 0.5)
    assert not controls.compare("silence", guesses, list(rng.permutation(guesses))).hears
    hearing = controls.compare("shuffled", verdicts(150, 200), guesses)
    assert hearing.hears and hearing.low > 0.1
    assert not controls.compare("silence", verdicts(5, 5), verdicts(0, 5)).hears, "five pairs are certain of nothing"
    assert controls.compare("silence", verdicts(6, 6), verdicts(0, 6)).hears


def test_the_bootstrap_interval_is_the_binomial_one():
    verdicts = [1.0] * 70 + [0.0] * 30
    low, high = bootstrap_interval(verdicts)
    assert (low, high) == pytest.approx((0.61, 0.79), abs=0.015)  # .7 +- 1.96 sqrt(.7 * .3 / 100)
    scores = list(np.random.default_rng(0).normal(3.0, 1.0, 400))
    low, high = bootstrap_interval(scores)
    mean = float(np.mean(scores))
    assert (low, high) == pytest.approx((mean - 0.098, mean + 0.098), abs=0.02)
    assert bootstrap_interval([1.0, 1.0]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no value"):
        bootstrap_interval([])


def test_a_paired_difference_sees_what_two_means_do_not():
    first = [1.0, 0.0] * 100
    second = [1.0, 0.0] * 90 + [0.0, 0.0] * 10
    difference, low, high = paired_difference(first, second)
    assert difference == pytest.approx(0.05)
    assert 0 < low < difference < high < 0.1
    with pytest.raises(ValueError, match="pairs are needed"):
        paired_difference(first, second[:-1])
