"""A model with encoders of 16 and 24 kHz: each hears a file resampled once, to its own rate, on every way in."""

import base64
import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import AutoModel, AutoProcessor

import nemo_desta.hf  # noqa: F401  registers the classes
from nemo_desta.answering import chat
from nemo_desta.answering.audio_embeddings import encode_clips
from nemo_desta.answering.engine import prepare
from nemo_desta.answering.sampling import Sampling
from nemo_desta.config import FeatureCacheConfig, ModelConfig, parse
from nemo_desta.core.feature_identity import open_feature_cache
from nemo_desta.core.folder import is_trained_name, save_folder
from nemo_desta.core.model import SpeechLM
from nemo_desta.data.costs import RowRef
from nemo_desta.data.dataset import RowDataset
from nemo_desta.data.sampler import PlannedBatch
from nemo_desta.data.sources import JsonlSource
from nemo_desta.models.desta import DestaModel
from nemo_desta.perception.encoders.muq_mel import MuqMel
from nemo_desta.perception.resample import resample
from nemo_desta.serving.request_parsing import RequestParser
from nemo_desta.serving.session import ChatSession
from nemo_desta.serving.settings import ServerSettings
from nemo_desta.testing.data import tiny_row, write_jsonl
from nemo_desta.testing.models import tiny_llm
from nemo_desta.testing.perception import tiny_muq, tiny_whisper
from nemo_desta.training.feature_precompute import precompute

FILE_RATE, RATES = 44_100, {"whisper": 16_000, "muq": 24_000}
SAMPLES = 30_001


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model folder, its model, and a file of noise at 44.1 kHz."""
    path = tmp_path_factory.mktemp("rates")
    tiny_llm(path / "llm")
    encoders = {
        "whisper": {"path": tiny_whisper(path / "whisper", window_secs=1.0)},
        "muq": {"path": tiny_muq(path / "muq")},
    }
    config = parse(ModelConfig, {"llm": {"path": str(path / "llm")}, "perception": {"encoders": encoders}})
    torch.manual_seed(0)
    model = SpeechLM.from_config(config).eval()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if is_trained_name(name)}
    folder = save_folder(path / "model", config, tensors, model.tokenizer)
    samples = 0.1 * np.random.default_rng(0).standard_normal(SAMPLES).astype(np.float32)
    soundfile.write(path / "x.wav", samples, FILE_RATE, subtype="FLOAT")
    rows = write_jsonl(path / "rows.jsonl", [tiny_row("x", "x.wav")])
    return SimpleNamespace(
        path=path, config=config, model=model, folder=folder, file=path / "x.wav", samples=samples, rows=rows
    )


def heard_by(perception):
    """What each encoder gets from now on, by name."""
    found = {}
    for name, encoder in perception.encoders.items():
        encoder._forward_pre_hooks.clear()
        encoder.register_forward_pre_hook(lambda _, given, name=name: found.update({name: given}))
    return found


def check_heard(found, samples):
    for name, rate in RATES.items():
        expected = torch.from_numpy(soxr.resample(samples, FILE_RATE, rate, quality="HQ"))
        audio, lens = found[name]
        assert abs(int(lens[0]) - len(expected)) <= 1 and audio.shape[1] >= lens[0]
        same = min(int(lens[0]), len(expected))
        assert torch.equal(audio[0, :same], expected[:same]), name
    found.clear()


QUESTION = {"role": "user", "content": "<|AUDIO|>\nWhat is it?"}


def test_training_and_the_feature_cache_hear_the_file_at_each_rate(place, tmp_path):
    assert place.model.audio_rates == (24_000, 16_000) and place.model.sampling_rate == 24_000
    assert DestaModel(place.config).audio_rates == (24_000, 16_000)
    dataset = RowDataset([JsonlSource(place.rows)], place.model.prompts, sampling_rate=place.model.audio_rates)
    dataset.hash_audio = True
    batch = dataset[PlannedBatch(0, 0, True, [RowRef(0, 0)], [])]
    heard = heard_by(place.model.perception)
    vectors, _ = place.model.perceive(batch["audio"], batch["audio_lens"])
    check_heard(heard, place.samples)
    filler = dataset[PlannedBatch(0, 0, True, [], [])]
    place.model.perceive(filler["audio"], filler["audio_lens"])
    place.model.perception.feature_cache = open_feature_cache(FeatureCacheConfig(folder=str(tmp_path)), place.config)
    heard.clear()
    try:
        assert precompute(place.model.perception, {place.file: 0.7}, device=torch.device("cpu")) == 1
        check_heard(heard, place.samples)
        cached, _ = place.model.perceive(batch["audio"], batch["audio_lens"], batch["audio_keys"])
        assert not heard and torch.equal(cached, vectors)
    finally:
        place.model.perception.feature_cache = None


def test_chat_session_and_server_hear_it_too(place):
    heard = heard_by(place.model.perception)
    given = {**QUESTION, "audios": [str(place.file)]}
    batch = chat.encode(place.model, [[given]])
    expected, _ = place.model.perceive(batch["audio"], batch["audio_lens"])
    check_heard(heard, place.samples)
    assert torch.equal(encode_clips(place.model, prepare(place.model, [given], Sampling()).clips)[0], expected[0])
    check_heard(heard, place.samples)

    ours = DestaModel.from_pretrained(place.folder, device="cpu")
    in_session = heard_by(ours.perception)
    session = ChatSession(ours, sampling={"max_new_tokens": 1})
    assert session.attach(place.file) == pytest.approx(SAMPLES / FILE_RATE, abs=1e-3)
    list(session.ask("What is it?"))
    check_heard(in_session, place.samples)

    place.model.audio_cache.clear()
    data = base64.b64encode(place.file.read_bytes()).decode()
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    parser = RequestParser(place.model, "it", ServerSettings())
    request = {"model": "it", "messages": [{"role": "user", "content": [part]}]}
    encode_clips(place.model, parser.prepare(parser.parse(json.dumps(request).encode())).chat.clips)
    check_heard(heard, place.samples)


def test_transformers_hears_it_too(place):
    processor, model = AutoProcessor.from_pretrained(place.folder), AutoModel.from_pretrained(place.folder)
    assert processor.sampling_rate == 24_000
    heard = heard_by(model.perception)
    inputs = processor.apply_chat_template([{**QUESTION, "audios": [place.file]}], tokenize=True)
    with torch.no_grad():
        model(**inputs)
    check_heard(heard, place.samples)
    broken = {**inputs, "audio": torch.nn.functional.pad(inputs["audio"], (0, 0, 0, 1), value=0.5)}
    with pytest.raises(ValueError, match="samples behind the length"):
        model(**broken)
    with torch.no_grad():  # an array at the processor's own rate, as datasets cast to it
        array = soxr.resample(place.samples, FILE_RATE, 24_000)
        model(**processor("<|AUDIO|> x", audio=array, sampling_rate=24_000))
    torch.testing.assert_close(heard["muq"][0][0], torch.from_numpy(array))
    assert heard["whisper"][1].tolist() == [-(-len(array) * 2 // 3)]


def test_a_transcriber_gets_16_khz(place):
    calls = []
    given = [{**QUESTION, "audios": [str(place.file)]}]
    transcriber = lambda clips: calls.extend(clips) or ["a word"]  # noqa: E731
    prepare(place.model, given, Sampling(), transcript="whisper", transcriber=transcriber)
    assert np.array_equal(calls[0], soxr.resample(place.samples, FILE_RATE, 16_000, quality="HQ"))


def test_muq_hears_the_upper_band_of_a_file_of_44_khz(place):
    """A tone of 10 kHz: from the file it has the level of one of 1 kHz; by way of 16 kHz it is gone."""
    time = np.arange(FILE_RATE) / FILE_RATE
    tones = (0.1 * np.sin(2 * np.pi * np.outer([1_000.0, 10_000.0], time))).astype(np.float32)
    mel = MuqMel(0.0, 1.0)

    def loudest(audio):
        return mel(audio)[:, 20:80].mean(1).max(1).values  # (2,) decibels

    def at(rate):
        return torch.from_numpy(np.stack([soxr.resample(tone, FILE_RATE, rate, quality="HQ") for tone in tones]))

    direct, twice = loudest(at(24_000)), loudest(resample(at(16_000), 16_000, 24_000))
    print("dB at 1 and 10 kHz, from the file:", direct.tolist(), "by way of 16 kHz:", twice.tolist())
    assert abs(direct[1] - direct[0]) < 12 and abs(direct[0] - twice[0]) < 0.1
    assert direct[1] - twice[1] > 80
