"""What tells the features of one encoder from those of another: weights and settings, not names of files."""

import json
import shutil

import pytest

from nemo_desta.config import FeatureCacheConfig, ModelConfig, parse
from nemo_desta.core.feature_identity import open_feature_cache
from nemo_desta.core.fingerprint import IdentityMismatch
from nemo_desta.core.frozen import check_identity, identify
from nemo_desta.errors import ConfigError
from nemo_desta.testing.hf_encoders import tiny_hf_encoder
from nemo_desta.testing.perception import tiny_beats, tiny_whisper


def identity(path, name="whisper", **knobs):
    encoder = {"name": name, "path": str(path), **knobs}
    config = parse(ModelConfig, {"llm": {"path": "none"}, "perception": {"encoders": {"ear": encoder}}})
    return open_feature_cache(FeatureCacheConfig(), config).identities["ear"]


def test_weights_and_settings_count_and_names_layers_and_tokenizers_do_not(tmp_path):
    whisper = tiny_whisper(tmp_path / "a", window_secs=2.0)
    shutil.copytree(whisper, tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    assert identity(whisper) == identity(tmp_path / "b") == identity(whisper, layer_ids=[1], dtype="bfloat16")
    assert identity(whisper) != identity(whisper, whole_windows=True)
    assert identity(whisper) != identity(tiny_whisper(tmp_path / "c", window_secs=2.0, seed=1))
    beats = tiny_beats(tmp_path / "beats.pt")
    shutil.copy(beats, tmp_path / "renamed.pt")
    assert identity(beats, "beats") == identity(tmp_path / "renamed.pt", "beats")


def test_an_encoder_without_weights_on_this_machine_is_refused():
    config = parse(ModelConfig, {"llm": {"path": "none"}, "perception": {"encoders": {"ear": {"_target_": "my.Ear"}}}})
    with pytest.raises(ConfigError, match="encoder 'ear' have no 'path' on this machine"):
        open_feature_cache(FeatureCacheConfig(), config)


@pytest.mark.parametrize(("name", "reads"), [("hf", True), ("w2vbert", True), ("whisper", False)])
def test_settings_of_the_features_count_where_they_are_read(tmp_path, name, reads):
    folder = tmp_path / "encoder"
    source = tiny_whisper(folder, window_secs=2.0) if name == "whisper" else tiny_hf_encoder(folder, "wav2vec2-bert")
    config = parse(ModelConfig, {"llm": {"path": "none"}, "perception": {"encoders": {name: {"path": str(source)}}}})
    file = folder / "preprocessor_config.json"
    before = identify(config), identity(source, name)
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, "padding_value": 0.5}))
    assert ("preprocessor_config.json" in before[0][f"encoders.{name}"]) == reads
    assert (identify(config) != before[0]) == (identity(source, name) != before[1]) == reads
    if reads:
        with pytest.raises(IdentityMismatch, match=r"preprocessor_config\.json"):
            check_identity(before[0], config)
