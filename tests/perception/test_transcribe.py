"""Transcripts by a tiny Whisper of the real classes, with random weights: noise, but the right noise."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_desta.data.audio_io import load_audio
from nemo_desta.demo.speech import synth
from nemo_desta.perception.transcribe import WhisperTranscriber, always_speech
from nemo_desta.testing.perception import tiny_speaking_whisper
from tests.perception.projector.recipe import FIXTURES, load_weights

SENTENCE = "The wind carries the smell of rain over the hills, and the birds fall silent one after another."
WINDOW = 32_000  # samples: the tiny Whisper hears 2 s at a time


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_speaking_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def transcriber(folder):
    return WhisperTranscriber.from_pretrained(folder, max_new_tokens=8, batch_size=3)


@pytest.fixture(scope="module")
def clips():
    return [synth("one two three"), synth(SENTENCE, "en+f2"), np.zeros(16_000, np.float32), synth("hello", "en+m4")]


def test_clips_together_read_as_each_alone(transcriber, clips):
    together = transcriber(clips)
    assert together == [transcriber([clip])[0] for clip in clips]
    assert len(set(together)) == len(clips)  # the noise depends on what was heard


def test_nobody_speaking_gives_no_text(transcriber, clips):
    assert transcriber([clips[2]]) == [""]
    assert transcriber([]) == []


def test_a_clip_that_fits_is_heard_whole_and_a_longer_one_in_windows_cut_at_pauses(transcriber, clips):
    assert list(transcriber.windows(clips[0])) == [(0, 0, len(clips[0]))]

    pause = np.zeros(16_000, np.float32)
    audio = np.concatenate([clips[0], pause, clips[3], pause, pause, clips[1]])
    windows = list(transcriber.windows(audio, 7))
    assert all(w.clip == 7 and 0 < w.end - w.start <= WINDOW for w in windows)
    assert all(a.end <= b.start for a, b in zip(windows, windows[1:], strict=False))
    heard = np.zeros(len(audio), dtype=bool)
    for window in windows:
        heard[window.start : window.end] = True
    loud = np.abs(audio) > 0.05  # every loud sample is heard
    assert (heard & loud).sum() == loud.sum()
    quiet_second = len(clips[0]) + 8_000 + len(clips[3]) + 16_000
    assert windows[0].end < quiet_second  # a cut lies in a pause


def test_without_a_detector_nothing_is_left_out(folder):
    everything = WhisperTranscriber.from_pretrained(folder, find_speech=always_speech, max_new_tokens=8)
    audio = np.random.default_rng(0).standard_normal(3 * WINDOW + 5).astype(np.float32) * 0.1
    windows = list(everything.windows(audio))
    assert [w.start for w in windows] == [0, WINDOW, 2 * WINDOW, 3 * WINDOW] and windows[-1].end == len(audio)
    pieces = [everything([audio[w.start : w.end]])[0] for w in windows]
    assert all(pieces) and everything([audio])[0] == "".join(pieces)


def test_a_stretch_longer_than_the_window_is_cut(folder):
    greedy = WhisperTranscriber.from_pretrained(folder, find_speech=lambda audio, max_secs: [(100, len(audio))])
    audio = np.zeros(2 * WINDOW + 300, np.float32)
    windows = [(100, 100 + WINDOW), (100 + WINDOW, 100 + 2 * WINDOW), (100 + 2 * WINDOW, len(audio))]
    assert [(w.start, w.end) for w in greedy.windows(audio)] == windows


def test_a_transcript_that_reaches_its_limit_is_named(folder, clips, caplog):
    short = WhisperTranscriber.from_pretrained(folder, max_new_tokens=2)
    with caplog.at_level(logging.WARNING):
        short([clips[2], clips[0]])
    assert "clip 1, 0.0 to 0.8 s: the transcript reached its limit of 2 tokens" in caplog.text


def test_language_is_told_to_a_multilingual_whisper_or_detected(tmp_path, clips):
    folder = tiny_speaking_whisper(tmp_path, languages=("en", "de"))
    texts = {
        language: WhisperTranscriber.from_pretrained(folder, language=language, max_new_tokens=8)(clips[:2])
        for language in (None, "en", "de")
    }
    assert texts["en"] != texts["de"]
    assert all(text in (en, de) for text, en, de in zip(*texts.values(), strict=True))
    with pytest.raises(ValueError, match="klingon"):
        WhisperTranscriber.from_pretrained(folder, language="klingon")(clips[:1])


def test_an_english_whisper_refuses_another_language(folder):
    with pytest.raises(ValueError, match="knows English only; language is 'fr'"):
        WhisperTranscriber.from_pretrained(folder, language="fr")


def test_an_encoder_without_its_decoder_is_refused(folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(folder) / name, tmp_path)
    tensors = load_file(Path(folder) / "model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if "encoder" in name}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match="lacks .* tensors of a whole Whisper, such as model.decoder"):
        WhisperTranscriber.from_pretrained(tmp_path)


def test_the_transcript_equals_the_original_s(tmp_path):
    """What DeSTA2.5-Audio put into its prompt, with the same tiny Whisper, to the character."""
    fixture = FIXTURES / "whisper_transcript"
    expected = json.loads((fixture / "transcript.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(fixture / name, tmp_path)
    shutil.copy(FIXTURES / "whisper" / "config.json", tmp_path)
    tensors = load_file(FIXTURES / "whisper" / "model.safetensors") | load_weights("whisper_transcript", "decoder")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    transcriber = WhisperTranscriber.from_pretrained(
        tmp_path, find_speech=always_speech, max_new_tokens=expected["max_new_tokens"]
    )
    assert transcriber([load_audio(fixture / "clip2.flac")]) == [expected["clip2.flac"]]


def test_half_precision_writes_text(folder, clips):
    half = WhisperTranscriber.from_pretrained(folder, dtype=torch.bfloat16, max_new_tokens=8)
    assert all(half(clips[:2]))
