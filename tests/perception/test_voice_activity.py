"""Silero's detector on speech from espeak-ng and on what is no speech."""

import sys

import numpy as np
import pytest
import torch

from nemo_desta.demo.speech import synth
from nemo_desta.perception.voice_activity import SAMPLING_RATE, VoiceActivity

SENTENCE = "Good morning. The train to the airport leaves from platform nine in ten minutes."


@pytest.fixture(scope="module")
def find_speech():
    return VoiceActivity()


def silence(secs: float) -> np.ndarray:
    return np.zeros(round(secs * SAMPLING_RATE), dtype=np.float32)


def covered(stretches, num_samples: int) -> np.ndarray:
    heard = np.zeros(num_samples, dtype=bool)
    for start, end in stretches:
        heard[start:end] = True
    return heard


def test_speech_between_silences_is_found_where_it_is(find_speech):
    spoken = synth(SENTENCE, "en-us+f3")
    audio = np.concatenate([silence(1), spoken, silence(3), spoken, silence(1)])
    stretches = find_speech(audio)
    assert all(0 <= start < end <= len(audio) for start, end in stretches)
    assert all(a[1] <= b[0] for a, b in zip(stretches, stretches[1:], strict=False))
    heard, second = covered(stretches, len(audio)), SAMPLING_RATE
    first, later = slice(second, second + len(spoken)), slice(4 * second + len(spoken), len(audio) - second)
    assert heard[first].mean() > 0.95 and heard[later].mean() > 0.95
    assert heard[: second // 2].mean() == 0 and heard[first.stop + second : later.start - second].mean() == 0


@pytest.mark.parametrize("kind", ["silence", "white noise", "tone", "clicks", "empty", "short"])
def test_no_speech_is_found_where_nobody_speaks(find_speech, kind):
    rng = np.random.default_rng(0)
    times = np.arange(4 * SAMPLING_RATE) / SAMPLING_RATE
    audio = {
        "silence": silence(4),
        "white noise": 0.1 * rng.standard_normal(len(times)),
        "tone": 0.5 * np.sin(2 * np.pi * 440 * times),
        "clicks": np.where(np.arange(len(times)) % 8000 < 20, 0.9, 0.0),
        "empty": silence(0),
        "short": 0.1 * rng.standard_normal(100),
    }[kind]
    assert find_speech(audio.astype(np.float32)) == []


def test_long_speech_is_cut_and_all_of_it_kept(find_speech):
    spoken = synth(SENTENCE, "en+m3")
    audio = np.tile(spoken, 4)  # 17 s without a long pause
    pieces = find_speech(audio, max_secs=3.0)
    assert len(pieces) >= 5
    whole = covered(find_speech(audio), len(audio))
    assert (covered(pieces, len(audio)) & whole).sum() > 0.97 * whole.sum()


def test_stretches_are_those_of_the_package_s_own_function(find_speech):
    import silero_vad

    audio = np.concatenate(
        [silence(0.7), synth(SENTENCE, "en+f4"), silence(1.2), synth("hello", "de+m1"), silence(0.4)]
    )
    theirs = silero_vad.get_speech_timestamps(
        torch.from_numpy(audio),
        silero_vad.load_silero_vad(),
        threshold=0.5,
        speech_pad_ms=200,
        max_speech_duration_s=2.5,
    )
    assert find_speech(audio, max_secs=2.5) == [(t["start"], t["end"]) for t in theirs] and len(theirs) > 2


def test_a_second_clip_is_judged_as_if_it_were_the_first(find_speech):
    spoken = np.concatenate([silence(0.5), synth("seven birds are singing"), silence(0.5)])
    alone = find_speech(spoken)
    find_speech(synth(SENTENCE, "de+m2"))
    assert alone and find_speech(spoken) == alone


def test_torch_keeps_its_threads(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "silero_vad"]:
        monkeypatch.delitem(sys.modules, name)  # its import sets one thread, which happens once per process
    torch.set_num_threads(2)
    VoiceActivity()
    assert "silero_vad" in sys.modules and torch.get_num_threads() == 2


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(ImportError, match="pip install silero-vad"):
        VoiceActivity()
