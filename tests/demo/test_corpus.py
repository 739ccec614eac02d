"""The corpus made on the spot: deterministic, split-disjoint, at random levels."""

import json

import numpy as np
import pytest
import soundfile

from nemo_desta.demo import corpus as corpus_module
from nemo_desta.demo.corpus import build_corpus, generate
from nemo_desta.demo.speech import Utterance, synth, synth_all
from nemo_desta.demo.world import tasks_of

CLIPS = 60


@pytest.fixture(scope="module")
def corpus():
    return list(generate(seed=5, clips=CLIPS))


def test_the_same_seed_gives_the_same_rows_and_samples(corpus):
    again = list(generate(seed=5, clips=CLIPS))
    assert [row for row, _ in corpus] == [row for row, _ in again]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(corpus, again, strict=True))
    assert [row for row, _ in generate(seed=6, clips=CLIPS)] != [row for row, _ in corpus]


def test_groups_never_cross_splits(monkeypatch):
    silence = np.full(1600, 0.1, np.float32)  # rows do not depend on how their audio sounds
    monkeypatch.setattr(corpus_module.speech, "synth_all", lambda utterances: (silence for _ in utterances))
    monkeypatch.setattr(corpus_module, "make_sound", lambda *args: silence)
    monkeypatch.setattr(corpus_module, "make_music", lambda *args: silence)
    splits: dict[str, set[str]] = {}
    for row, _ in generate(seed=0, clips=400):
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert set().union(*splits.values()) == {"train", "valid", "test"}


def test_every_clip_is_audible_short_and_labelled(corpus):
    assert {row["domain"] for row, _ in corpus} == {"speech", "sound", "music"}
    for row, audio in corpus:
        assert audio.dtype == np.float32 and np.isfinite(audio).all() and np.abs(audio).max() <= 1
        assert 0.15 < len(audio) / 16000 < 5 and abs(row["duration"] - len(audio) / 16000) < 1e-3
        assert len(tasks_of(row)) >= 3


def test_the_level_is_random_whatever_the_class(corpus):
    levels = [20 * np.log10(np.sqrt(np.mean(audio**2))) for row, audio in corpus if row["domain"] == "speech"]
    assert min(levels) < -30 and max(levels) > -22


def test_a_second_call_reuses_and_another_recipe_is_refused(tmp_path):
    manifest = build_corpus(tmp_path, seed=1, clips=20)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert len(rows) == 20 and len({row["id"] for row in rows}) == 20
    audio, rate = soundfile.read(tmp_path / rows[0]["audio"])
    assert rate == 16000 and len(audio) > 1000
    stamp = (tmp_path / rows[0]["audio"]).stat().st_mtime_ns
    build_corpus(tmp_path, seed=1, clips=20)
    assert (tmp_path / rows[0]["audio"]).stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="choose another folder"):
        build_corpus(tmp_path, seed=2, clips=20)


def test_espeak_is_deterministic_in_a_fresh_process_and_follows_its_arguments():
    asked = [Utterance("seven", "en+f2"), Utterance("seven", "en+f2", 320), Utterance("Guten Morgen.", "de+m3")]
    first, again = list(synth_all(asked)), list(synth_all(asked))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(first[1]) < 0.8 * len(first[0])


def test_unknown_voices_and_rates_are_errors_in_words():
    with pytest.raises(ValueError, match="no voice 'xx\\+f1'"):
        synth("seven", "xx+f1")
    with pytest.raises(ValueError, match="rate 20 is out of range"):
        synth("seven", rate=20)
