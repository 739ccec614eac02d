"""Encoders of transformers: tiny random models of every architecture against transformers itself."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoFeatureExtractor, AutoModel

from nemo_desta.config import FeatureCacheConfig, PerceptionConfig
from nemo_desta.errors import ConfigError
from nemo_desta.perception.build import build_encoders, token_counter
from nemo_desta.perception.dry_run import dry_run
from nemo_desta.perception.encoders import build_encoder, encoder_shape
from nemo_desta.perception.encoders.hf import HFEncoder
from nemo_desta.perception.encoders.hf_probe import measure
from nemo_desta.perception.feature_cache import FeatureCache
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import build_projector
from nemo_desta.testing.hf_encoders import SMALL_LLM, TINY, WHISPER, feature_extractor, tiny_hf_encoder

FIXTURE = Path(__file__).parents[2] / "fixtures" / "alarm_encoders" / "w2vbert"


def needs(model_type: str) -> pytest.MarkDecorator:
    missing = model_type.removesuffix("_layer_norm") not in CONFIG_MAPPING
    return pytest.mark.skipif(missing, reason=f"transformers {transformers.__version__} has no {model_type}")


NATIVE = {name: pytest.param(name, marks=needs(name)) for name in TINY}
#: Frames per second, where it is not 50.
RATES = {"sew": 25, "parakeet_encoder": 12.5, "lasr_encoder": 25, "moonshine": 16_000 / 384, "pe_audio_encoder": 25}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name of `TINY` -> folder, written when it is first asked for."""
    written = {}

    def folder(name: str) -> str:
        if name not in written:
            written[name] = tiny_hf_encoder(tmp_path_factory.mktemp(name), name)
        return written[name]

    return folder


def clip_of(secs: float, rate: int) -> torch.Tensor:
    return torch.randn(round(secs * rate), generator=torch.Generator().manual_seed(3)) * 0.1


def run(encoder, *clips):
    """Clips in one batch, with NaN beyond each -> its output."""
    lens = torch.tensor([len(clip) for clip in clips])
    audio = torch.full((len(clips), int(lens.max())), float("nan"))
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip)] = clip
    return encoder(audio, lens)


def transformers_answers(folder: str, clip: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`hidden_states` of the model for the clip alone, with its own feature extractor."""
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    needs_mask = type(extractor).__name__ == "WhisperFeatureExtractor"
    options = {"return_attention_mask": True} if needs_mask else {}
    found = extractor(clip.numpy(), sampling_rate=extractor.sampling_rate, return_tensors="pt", **options)
    model = AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if model.config.is_encoder_decoder else model
    values = next(found[key] for key in found if key in ("input_features", "input_values"))
    inputs = {"input_features_mask": found["attention_mask"]} if "audioflamingo3" in model.config.model_type else {}
    if model.config.model_type in ("wav2vec2-bert", "parakeet_encoder"):
        inputs["attention_mask"] = found["attention_mask"]
    with torch.no_grad():
        return model(values, output_hidden_states=True, **inputs).hidden_states


@pytest.mark.parametrize("name", [param for name, param in NATIVE.items() if name != "sew"])
def test_blocks_equal_transformers_on_the_clip_alone(name, folders):
    # Qwen2-Audio's mask is made outside of its encoder, so its clip fills the window; hidden_states of SEW have
    # another rate than its blocks.
    encoder = HFEncoder.from_pretrained(folders(name))
    clip = clip_of(2.0 if name == "qwen2_audio_encoder" else 1.3, encoder.sampling_rate)
    layers, lens = run(encoder, clip)
    assert lens.tolist() == [encoder.num_frames(len(clip))]
    expected = transformers_answers(folders(name), clip)
    prefix = encoder.facts.prefix_tokens
    for layer, block in zip(layers[:2], expected[1:3], strict=True):  # the last entry may be normed or pooled
        torch.testing.assert_close(layer[0], block[0, prefix : prefix + int(lens[0])], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NATIVE.values())
def test_a_clip_in_a_batch_equals_the_clip_alone_at_any_length(name, folders):
    window_secs = None if TINY[name][1] == "whisper" else 1.0
    encoder = HFEncoder.from_pretrained(folders(name), layer_ids=[1, 3], window_secs=window_secs)
    rate = encoder.sampling_rate
    clips = [torch.zeros(0), torch.full((1,), 0.1), clip_of(0.7, rate), clip_of(2.5, rate)]
    together = run(encoder, *clips)
    assert encoder.frame_rate == RATES.get(name, 50) and encoder.hidden_size == 32 and encoder.num_layers == 3
    for row, clip in enumerate(clips):
        alone = run(encoder, clip)
        frames = encoder.num_frames(len(clip))
        assert frames == alone.lens[0] == together.lens[row]
        # Convolutions without padding give fewer frames than the rate says: LASR's 3.5 fewer.
        assert abs(frames - max(1, len(clip) / rate * encoder.frame_rate)) < 4
        for one, other in zip(together.layers, alone.layers, strict=True):
            assert other[0].isfinite().all()
            torch.testing.assert_close(one[row, :frames], other[0, :frames], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hubert", "wav2vec2-bert"])
def test_windows_are_the_clip_cut_where_frames_begin(name, folders):
    whole = HFEncoder.from_pretrained(folders(name), [1])
    windows = HFEncoder.from_pretrained(folders(name), [1], window_secs=0.5)
    clip = clip_of(1.7, 16_000)
    (layer,), lens = run(windows, clip)
    assert int(lens[0]) == whole.num_frames(len(clip)) and not torch.equal(layer, run(whole, clip).layers[0])
    values = whole.features(clip[None])  # normalised over the whole clip
    inner = whole.facts.inner
    second = values[:, 25 * inner.hop : 49 * inner.hop + inner.first]
    with torch.no_grad():
        expected = whole.model(second, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(layer[:, 25:50], expected, atol=1e-5, rtol=1e-4)


def test_the_tower_of_a_composite_is_loaded_alone(tmp_path):
    audio = {**WHISPER, "model_type": "qwen2_audio_encoder"}
    config = CONFIG_MAPPING["qwen2_audio"](audio_config=audio, text_config=SMALL_LLM)
    whole = transformers.Qwen2AudioForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path)
    feature_extractor("whisper").save_pretrained(tmp_path)
    tower = next(module for module in whole.modules() if type(module).__name__ == "Qwen2AudioEncoder")
    clip = clip_of(2.0, 16_000)
    encoder = HFEncoder.from_pretrained(str(tmp_path), [1, 2])
    features = AutoFeatureExtractor.from_pretrained(tmp_path)(clip.numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = tower(features.input_features, output_hidden_states=True).hidden_states
    for layer, block in zip(run(encoder, clip).layers, expected[1:3], strict=True):
        torch.testing.assert_close(layer, block, atol=2e-5, rtol=1e-4)
    assert not any("q_norm" in name or "embed_tokens" in name for name in encoder.state_dict())


def test_other_spellings_of_the_weights(folders, tmp_path):
    """A prefix, a head, and the older names of a weight-normalised convolution."""
    folder, clip = folders("hubert"), clip_of(0.5, 16_000)
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = {"lm_head.weight": torch.zeros(4, 32)}
    for name, tensor in load_file(f"{folder}/model.safetensors").items():
        for new, old in names.items():
            name = name.replace(new, old)
        tensors[f"hubert.{name}"] = tensor
    save_file(tensors, tmp_path / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        with open(f"{folder}/{name}") as file:
            (tmp_path / name).write_text(file.read())
    for one, other in zip(
        *(run(HFEncoder.from_pretrained(str(f)), clip).layers for f in (folder, tmp_path)), strict=True
    ):
        assert torch.equal(one, other)
    del tensors["hubert.encoder.layers.0.attention.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 of .* tensors are not in the checkpoint, first 'encoder.layers.0"):
        HFEncoder.from_pretrained(str(tmp_path))


def test_final_norm(folders):
    clip = clip_of(2.0, 16_000)
    encoder = HFEncoder.from_pretrained(folders("whisper"), [2, 3], final_norm=True)
    plain = HFEncoder.from_pretrained(folders("whisper"), [2, 3])
    features = AutoFeatureExtractor.from_pretrained(folders("whisper"))(
        clip.numpy(), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        model = AutoModel.from_pretrained(folders("whisper")).eval().get_encoder()
        expected = model(features.input_features).last_hidden_state
    torch.testing.assert_close(run(encoder, clip).layers[1], expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(run(encoder, clip).layers[0], run(plain, clip).layers[0])
    with pytest.raises(ConfigError, match="final_norm needs the last block, 3, .* layer_ids .1, 2."):
        HFEncoder.from_pretrained(folders("whisper"), [1, 2], final_norm=True)
    with pytest.raises(ConfigError, match=r"a norm after it \(hubert: none\)"):  # its norm comes before the blocks
        HFEncoder.from_pretrained(folders("hubert"), final_norm=True)


PATCHES = "its tokens are patches of time and frequency"


@pytest.mark.parametrize(
    ("model_type", "refused"),
    [
        pytest.param("audio-spectrogram-transformer", f"audio-spectrogram-transformer .*{PATCHES}"),
        pytest.param("clap", f"clap .*{PATCHES}"),
        pytest.param("clap_audio_model", f"clap_audio_model .*{PATCHES}", marks=needs("clap_audio_model")),
        pytest.param("qwen3_asr", "qwen3_asr_encoder .*its frames come in uneven steps", marks=needs("qwen3_asr")),
    ],
)
def test_an_encoder_without_one_even_time_line_is_refused_by_name(model_type, refused, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    config = PerceptionConfig(encoders={"a": {"name": "hf", "path": str(tmp_path)}})
    with pytest.raises(ConfigError, match=refused.replace(" .*", " cannot be an encoder here: .*")):
        build_encoders(config)


def test_what_cannot_be_an_encoder_is_refused(folders, tmp_path):
    def config(name, **keys):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.json").write_text(json.dumps(keys))
        return str(tmp_path / name)

    code = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    with pytest.raises(ConfigError, match="has no such model itself, and code from a model's folder is not run"):
        build_encoder("hf", path=config("remote", model_type="my_ear", auto_map=code))
    with pytest.raises(ConfigError, match="none of preprocessor_config.json, processor_config.json"):
        build_encoder("hf", path=config("bare", model_type="hubert"))
    feature_extractor("wave").save_pretrained(tmp_path / "wrong")
    with pytest.raises(ConfigError, match="Wav2Vec2FeatureExtractor does not fit: wav2vec2-bert needs input_features"):
        build_encoder("hf", path=config("wrong", model_type="wav2vec2-bert"))
    with pytest.raises(ValueError, match="1-based number, 1 to 3"):
        build_encoder("hf", path=folders("hubert"), layer_ids=[4])
    with pytest.raises(ConfigError, match="window_secs=0.001 is shorter than a frame"):
        build_encoder("hf", path=folders("hubert"), window_secs=0.001)
    with pytest.raises(ConfigError, match="window_secs=1: whisper has a fixed input of 2 s"):
        build_encoder("hf", path=folders("whisper"), window_secs=1)


def test_blocks_after_the_last_chosen_one_are_dropped_and_the_order_is_kept(folders):
    encoder = HFEncoder.from_pretrained(folders("wavlm"), [2, 1], dtype="bfloat16")
    assert not any(".layers.2." in name for name in encoder.state_dict()) and encoder.num_layers == 3
    clip = clip_of(0.5, 16_000)
    found, plain = run(encoder, clip).layers, run(HFEncoder.from_pretrained(folders("wavlm"), [1, 2]), clip).layers
    assert found[0].dtype == torch.bfloat16
    for one, other in zip(found, reversed(plain), strict=True):
        assert (one.float() - other).norm() / other.norm() < 0.05


def test_random_numbers_after_an_encoder_do_not_depend_on_whether_it_was_measured_before(folders):
    measure.cache_clear()
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        HFEncoder.from_pretrained(folders("wavlm"), [1])
        drawn.append(torch.rand(3))  # as the projector's first weights
    assert torch.equal(*drawn)


def test_w2v_bert_equals_alarm(read_wav, read_arrays):
    """Windows of 2 s over features of the whole clip; c is shorter than two frames and a half."""
    stored = read_arrays("alarm_encoders/w2vbert/alarm_single.npz")
    encoder = build_encoder({"name": "w2vbert", "path": str(FIXTURE), "window_secs": 2.0})
    clips = [read_wav(f"alarm_encoders/{name}.wav") for name in "abcd"]
    layers, lens = run(encoder, *clips)
    for row, name in enumerate("abcd"):
        length = int(stored[f"{name}__length"])
        assert lens[row] == length
        for layer, expected in zip(layers, stored[f"{name}__hidden"][1:], strict=True):
            torch.testing.assert_close(layer[row, :length], expected[:length], atol=1e-4, rtol=0)


def test_w2v_bert_equals_alarm_on_its_features(read_wav, read_arrays, monkeypatch):
    stored = read_arrays("alarm_encoders/w2vbert/alarm_single.npz")
    encoder = build_encoder("w2vbert", path=str(FIXTURE))
    clip, length = read_wav("alarm_encoders/a.wav"), int(stored["a__length"])
    features = stored["a__features"][None, :length]
    torch.testing.assert_close(encoder.features(clip[None]), features, atol=1e-3, rtol=0)
    monkeypatch.setattr(encoder, "features", lambda audio: features)
    for layer, expected in zip(run(encoder, clip).layers, stored["a__hidden"][1:], strict=True):
        torch.testing.assert_close(layer[0], expected[:length], atol=1e-5, rtol=0)


def test_shapes_without_weights_inside_the_meta_device(folders):
    for name in ("wavlm", "wav2vec2-bert"):
        knobs = {"name": "hf", "path": folders(name), "layer_ids": [1, 3]}
        with torch.device("meta"):
            shape = encoder_shape(knobs)
        encoder = build_encoder(knobs)
        assert (shape.hidden_size, shape.layer_ids, shape.frame_grid) == (32, (1, 3), encoder.frame_grid)
        assert [shape.num_frames(n) for n in (0, 700, 8000)] == [encoder.num_frames(n) for n in (0, 700, 8000)]
    config = PerceptionConfig(encoders={"a": {"name": "hf", "path": folders("wavlm")}})
    assert token_counter(config, 16)(16_000) == 7


def test_with_the_window_projector_the_feature_cache_and_a_dry_run(folders, tmp_path):
    encoders = {
        "speech": build_encoder("hf", path=folders("wavlm"), layer_ids=[1, 3]),
        "slow": build_encoder("hf", path=folders("sew"), layer_ids=[2]),
        "w2vbert": build_encoder("w2vbert", path=str(FIXTURE)),
    }
    perception = FusedPerception(encoders, build_projector("window", encoders, 16))
    clips = [clip_of(secs, 16_000) for secs in (0.01, 1.3, 2.2)]
    lens = torch.tensor([len(clip) for clip in clips])
    audio = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    vectors, counts = perception(audio, lens)
    assert counts.tolist() == [perception.num_tokens(len(clip)) for clip in clips]
    identities = {name: {"name": name} for name in encoders}
    perception.feature_cache = FeatureCache(FeatureCacheConfig(folder=str(tmp_path)), identities, {})
    for _ in range(2):
        assert torch.equal(perception(audio, lens)[0], vectors)
    assert perception.feature_cache.num_hits == perception.feature_cache.num_encoded == 9
    assert dry_run(encoders, perception.projector, 1.0, 16_000).encoder_flops > 0
