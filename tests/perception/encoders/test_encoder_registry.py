import importlib.metadata

import pytest
import torch

from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import BeatsEncoder, WhisperEncoder, build_encoder, register_encoder
from nemo_desta.perception.encoders.registry import ENCODERS


class Ear:
    """An encoder of another package."""

    def __init__(self, path: str, size: int = 1):
        self.path, self.size = path, size

    @classmethod
    def big(cls, path: str) -> "Ear":
        return cls(path, size=100)


@pytest.fixture(autouse=True)
def names_come_and_go(monkeypatch):
    monkeypatch.setattr(ENCODERS, "factories", dict(ENCODERS.factories))


def test_by_name(whisper_folder, beats_path):
    whisper = build_encoder({"name": "whisper", "path": whisper_folder, "layer_ids": [1, 2]}, dtype=torch.bfloat16)
    assert isinstance(whisper, WhisperEncoder) and whisper.layer_ids == (1, 2) and whisper.dtype == torch.bfloat16
    assert isinstance(build_encoder("beats", path=beats_path), BeatsEncoder)


def test_own_argument_goes_before_the_shared_one(beats_path):
    encoder = build_encoder({"name": "beats", "path": beats_path, "dtype": "float32"}, dtype=torch.bfloat16)
    assert encoder.dtype == torch.float32


def test_an_encoder_without_the_shared_argument_gets_its_own_alone():
    assert build_encoder({"_target_": f"{__name__}.Ear", "path": "x"}, dtype=torch.bfloat16).path == "x"
    with pytest.raises(ConfigError, match="has no argument 'dtype'"):
        build_encoder({"_target_": f"{__name__}.Ear", "path": "x", "dtype": "float32"})


def test_omegaconf_nodes(beats_path):
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"name": "beats", "path": beats_path, "layer_ids": [2]})
    assert build_encoder(config).layer_ids == (2,)


def test_decorator():
    register_encoder("ear")(Ear)
    assert build_encoder({"name": "ear", "path": "x", "size": 3}).size == 3


def test_name_that_is_taken():
    with pytest.raises(ValueError, match="encoder 'whisper' is registered already, by nemo_desta.*build_whisper"):
        register_encoder("whisper")(Ear)


def test_target_goes_before_name():
    ear = build_encoder({"name": "left", "_target_": f"{__name__}.Ear.big", "path": "x"})
    assert isinstance(ear, Ear) and ear.size == 100


def test_entry_point(monkeypatch):
    point = importlib.metadata.EntryPoint("far_ear", f"{__name__}:Ear", "nemo_desta.encoders")
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == "nemo_desta.encoders" else []
    )
    assert isinstance(build_encoder("far_ear", path="x"), Ear)
    with pytest.raises(ConfigError, match="Did you mean 'far_ear'.*beats, eat, far_ear, hf, muq, .*whisper"):
        build_encoder("far_eer", path="x")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("wisper", "unknown encoder 'wisper'. Did you mean 'whisper'"),
        ({"path": "x"}, r"needs 'name' or '_target_', found the keys \['path'\]"),
        ({"name": "whisper", "path": "x", "layer_id": [1]}, "no argument 'layer_id'. Did you mean 'layer_ids'"),
        ({"name": "beats"}, "encoder 'beats' needs 'path'"),
        ({"_target_": "no_such_package.Encoder"}, "no module 'no_such_package' is installed"),
        ({"_target_": "nemo_desta.perception.encoders.Beat"}, "'Beat' is not in nemo_desta.perception.encoders"),
        ({"name": "beats", "path": "x", "dtype": "bf16"}, "unknown dtype 'bf16'"),
    ],
)
def test_errors_say_what_to_do(config, message, tmp_path, monkeypatch, beats_path):
    if isinstance(config, dict) and config.get("dtype"):
        config = config | {"path": beats_path}
    with pytest.raises(ConfigError, match=message):
        build_encoder(config)


def test_target_whose_module_misses_a_dependency(tmp_path, monkeypatch):
    (tmp_path / "broken_ear.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        build_encoder({"_target_": "broken_ear.Ear"})
