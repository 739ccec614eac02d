import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperFeatureExtractor, WhisperModel

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import WhisperEncoder
from nemo_desta.perception.encoders.log_mel import LogMel
from nemo_desta.testing.perception import tiny_whisper

FIXTURE = Path(__file__).parents[2] / "fixtures" / "whisper"


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_log_mel_equals_the_feature_extractor(num_mel_bins, noise, read_wav):
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    clips = [noise(2.0), read_wav("whisper/clip0.wav"), torch.zeros(1000), noise(30)]
    expected = extractor([c.numpy() for c in clips], sampling_rate=16_000, return_tensors="pt").input_features
    padded = torch.stack([torch.nn.functional.pad(c, (0, 480_000 - len(c))) for c in clips])
    torch.testing.assert_close(LogMel(num_mel_bins)(padded), expected, atol=1e-4, rtol=0)


def test_block_outputs_equal_the_reference(read_wav, read_arrays):
    clip, taps = read_wav("whisper/clip0.wav"), read_arrays("whisper/taps.npz")
    layers, lens = WhisperEncoder.from_pretrained(str(FIXTURE))(clip[None], torch.tensor([len(clip)]))
    assert lens.tolist() == [85]
    for number, layer in enumerate(layers, 1):
        torch.testing.assert_close(layer, taps[f"block{number}"], atol=2e-5, rtol=0)


def test_chunks_equal_whisper_run_on_each_window(tmp_path, noise):
    folder = tiny_whisper(tmp_path, window_secs=4)
    clip = noise(9.3)
    layers, lens = WhisperEncoder.from_pretrained(folder, layer_ids=(2,))(clip[None], torch.tensor([len(clip)]))
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    windows = [window.numpy() for window in clip.split(64_000)]
    features = extractor(windows, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        outputs = WhisperModel.from_pretrained(folder).eval().encoder(features, output_hidden_states=True)
    expected = outputs.hidden_states[2].flatten(0, 1)[:465]
    assert lens.tolist() == [465]
    torch.testing.assert_close(layers[0][0], expected, atol=2e-5, rtol=0)


def test_a_window_that_fits_the_clip_equals_a_whisper_of_that_window(tmp_path, noise):
    folder = tiny_whisper(tmp_path / "whole", window_secs=6)
    small = WhisperModel.from_pretrained(folder)
    small.encoder.embed_positions.weight.data = small.encoder.embed_positions.weight.data[:200]
    small.encoder.config.max_source_positions = 200
    small.encoder.embed_positions.num_embeddings = 200
    clip = noise(2.9)  # and 1 s of silence at least: 4 s
    layers, lens = WhisperEncoder.from_pretrained(folder, (2,), window_secs="clip")(clip[None], torch.tensor([46_400]))
    with torch.no_grad():
        features = LogMel(80)(torch.nn.functional.pad(clip, (0, 64_000 - len(clip)))[None])
        expected = small.eval().encoder(features, output_hidden_states=True).hidden_states[2][:, :145]
    assert lens.tolist() == [145]
    torch.testing.assert_close(layers[0], expected, atol=2e-5, rtol=0)


def test_clips_in_windows_of_their_own_do_not_depend_on_the_batch(tmp_path, noise):
    folder = tiny_whisper(tmp_path, window_secs=6)
    clips = [noise(secs) for secs in (0.3, 13.5, 4.9, 5.3, 6.0)]  # windows of 2; 6, 6 and 4; 6 s
    lens = torch.tensor([len(clip) for clip in clips])
    whole, fitted = (WhisperEncoder.from_pretrained(folder, (1, 3), window_secs=secs) for secs in (None, "clip"))
    together = fitted(torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lens)
    for number, clip in enumerate(clips):
        alone, plain = (encoder(clip[None], lens[number : number + 1]) for encoder in (fitted, whole))
        size = int(together.lens[number])
        assert size == int(alone.lens[0]) == int(plain.lens[0])
        for layer, one, other in zip(together.layers, alone.layers, plain.layers, strict=True):
            torch.testing.assert_close(layer[number, :size], one[0], atol=2e-5, rtol=0)
            same = 600 if number == 1 else size if number > 1 else 0  # frames of whole windows
            torch.testing.assert_close(one[0, :same], other[0, :same], atol=2e-5, rtol=0)
            if same < size:
                assert not torch.allclose(one[0, same:], other[0, same:], atol=1e-4)


def test_a_window_is_whispers_own_or_the_clips(whisper_folder):
    with pytest.raises(ConfigError, match="window_secs of a Whisper is null .* or clip, found 5"):
        WhisperEncoder.from_pretrained(whisper_folder, window_secs=5)
    with pytest.raises(ConfigError, match="whole_windows .* window_secs=clip"):
        WhisperEncoder.from_pretrained(whisper_folder, window_secs="clip", whole_windows=True)


def test_final_norm_gives_the_last_hidden_state(tmp_path, noise):
    folder = tiny_whisper(tmp_path, window_secs=2)
    clip, lens = noise(2.0), torch.tensor([32_000])
    normed = WhisperEncoder.from_pretrained(folder, (2, 3), final_norm=True)(clip[None], lens).layers
    plain = WhisperEncoder.from_pretrained(folder, (2, 3))(clip[None], lens).layers
    whisper = WhisperModel.from_pretrained(folder).eval()
    features = LogMel(80)(clip[None])
    with torch.no_grad():
        expected = whisper.encoder(features).last_hidden_state
    torch.testing.assert_close(normed[1], expected, atol=2e-5, rtol=0)
    assert torch.equal(normed[0], plain[0])
    assert not torch.allclose(normed[1], plain[1], atol=1e-2)


def test_nothing_after_the_last_chosen_block_is_loaded(whisper_folder):
    encoder = WhisperEncoder.from_pretrained(whisper_folder, layer_ids=[2])
    names = list(encoder.state_dict())
    assert encoder.num_layers == 3 and encoder.layer_ids == (2,)
    assert any("layers.1." in name for name in names)
    assert not any(name.startswith(("model.layers.2.", "model.layer_norm.")) for name in names)
    assert not any("decoder" in name for name in names)


def test_order_of_layer_ids_is_kept(whisper_folder, noise):
    clip, lens = noise(1.0)[None], torch.tensor([16_000])
    forward = WhisperEncoder.from_pretrained(whisper_folder, (1, 3))(clip, lens).layers
    backward = WhisperEncoder.from_pretrained(whisper_folder, (3, 1))(clip, lens).layers
    assert torch.equal(forward[0], backward[1]) and torch.equal(forward[1], backward[0])


def test_copies_do_not_share_taps(whisper_folder, noise):
    original = WhisperEncoder.from_pretrained(whisper_folder, (1,))
    twin = copy.deepcopy(original)
    with torch.no_grad():
        twin.model.conv1.weight.mul_(2.0)
    clip, lens = noise(1.0)[None], torch.tensor([16_000])
    assert not torch.allclose(twin(clip, lens).layers[0], original(clip, lens).layers[0])


@pytest.mark.parametrize("form", ["sharded", "pickle", "encoder only", "bare names"])
def test_other_weight_files(form, tmp_path, whisper_folder, noise):
    tensors = load_file(Path(whisper_folder) / "model.safetensors")
    (tmp_path / "config.json").write_text((Path(whisper_folder) / "config.json").read_text())
    if form == "sharded":
        encoder_part = {k: v for k, v in tensors.items() if ".encoder." in k}
        names = sorted(encoder_part)
        shards = {
            "model-00001.safetensors": names[: len(names) // 2],
            "model-00002.safetensors": names[len(names) // 2 :],
        }
        for shard, keys in shards.items():
            save_file({key: tensors[key] for key in keys}, tmp_path / shard)
        weight_map = {key: shard for shard, keys in shards.items() for key in keys}
        weight_map["model.decoder.layer_norm.weight"] = "model-00003.safetensors"  # not there, and not needed
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    elif form == "pickle":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    else:
        cut = len("model.") if form == "encoder only" else len("model.encoder.")
        save_file({k[cut:]: v for k, v in tensors.items() if ".encoder." in k}, tmp_path / "model.safetensors")
    clip, lens = noise(1.0)[None], torch.tensor([16_000])
    expected = WhisperEncoder.from_pretrained(whisper_folder)(clip, lens).layers
    for a, b in zip(WhisperEncoder.from_pretrained(str(tmp_path))(clip, lens).layers, expected, strict=True):
        assert torch.equal(a, b)


def test_pickle_with_code_is_refused(tmp_path, whisper_folder):
    (tmp_path / "config.json").write_text((Path(whisper_folder) / "config.json").read_text())

    class Malicious:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"model.encoder.conv1.weight": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="holds more than tensors and plain types.*GLOBAL print"):
        WhisperEncoder.from_pretrained(str(tmp_path))


def test_dtype(whisper_folder):
    assert WhisperEncoder.from_pretrained(whisper_folder).dtype == torch.float32
    assert WhisperEncoder.from_pretrained(whisper_folder, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("layer_ids", [(0,), (4,), (1, 1), ()])
def test_bad_layer_ids(whisper_folder, layer_ids):
    with pytest.raises(ValueError, match="1-based number, 1 to 3"):
        WhisperEncoder.from_pretrained(whisper_folder, layer_ids)


def test_final_norm_without_the_last_block(whisper_folder):
    with pytest.raises(ValueError, match="output of the last block, 3"):
        WhisperEncoder.from_pretrained(whisper_folder, (1,), final_norm=True)


def test_folder_without_weights(tmp_path, whisper_folder):
    (tmp_path / "config.json").write_text((Path(whisper_folder) / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="no model.safetensors, model.safetensors.index.json or"):
        WhisperEncoder.from_pretrained(str(tmp_path))


def test_weights_of_another_model(tmp_path, whisper_folder):
    (tmp_path / "config.json").write_text((Path(whisper_folder) / "config.json").read_text())
    save_file({"bert.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="tensors are not in the checkpoint, first 'conv1.weight'.*bert.weight"):
        WhisperEncoder.from_pretrained(str(tmp_path))
