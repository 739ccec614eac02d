"""Weights, checkpoints, archives, tables, cards and rows of strangers: read as data, whatever they hold."""

import io
import json
import pickle
import shutil
import tarfile

import pytest
import torch
from safetensors.torch import save_file

from nemo_desta.config import PerceptionConfig
from nemo_desta.core.trust import UntrustedConfig
from nemo_desta.data.rows import read_rows
from nemo_desta.data.shar import SharSource
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.models import checkpoint
from nemo_desta.models.desta import DestaModel
from nemo_desta.perception.build import build_encoders
from nemo_desta.perception.encoders import BeatsEncoder
from nemo_desta.perception.encoders.weights import load_part
from nemo_desta.perception.tensor_files import load_tensors
from nemo_desta.recipes.corpora import CorpusError, load_corpus
from nemo_desta.sharing.export import export_model
from nemo_desta.testing.data import tiny_row, write_tone
from nemo_desta.training.checkpoint_io import SafeCheckpointIO
from tests.security.conftest import Touch, change

REFUSED = "is not opened: it holds more than tensors and plain types"


@pytest.fixture(params=["torch", "pickle"])
def poisoned(request, canary):
    """Writes a file of torch's, or a bare pickle, whose opening makes the canary."""

    def write(path, around=lambda payload: payload):
        value = around(Touch(canary))
        if request.param == "torch":
            torch.save(value, path)
        else:
            path.write_bytes(pickle.dumps(value))
        return path

    return write


def test_a_poisoned_file_of_tensors_is_refused_and_named(poisoned, tmp_path, canary):
    file = poisoned(tmp_path / "x.pt")
    with pytest.raises(ConfigError, match=f"x.pt' {REFUSED}"):
        load_tensors(file)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(1000), b"not a file of torch", b"\x80\x04"])
def test_a_damaged_file_of_tensors_is_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.pt' is not opened: .* or is damaged"):
        load_tensors(tmp_path / "x.pt")


def test_beats(poisoned, tmp_path, canary):
    file = poisoned(tmp_path / "beats.pt", lambda payload: {"cfg": {}, "model": payload})
    with pytest.raises(ConfigError, match=REFUSED):
        BeatsEncoder.from_checkpoint(str(file))
    config = PerceptionConfig(encoders={"beats": {"name": "beats", "path": str(file)}})
    with pytest.raises(ConfigError, match=REFUSED):
        build_encoders(config)
    assert not canary.exists()


def test_weights_of_an_encoder_or_llm(poisoned, tmp_path, canary):
    poisoned(tmp_path / "pytorch_model.bin", lambda payload: {"a": payload})
    with pytest.raises(ConfigError, match=REFUSED):
        load_part(str(tmp_path), ["a"])
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(ConfigError, match="outside its folder"):
        load_part(str(tmp_path), ["a"])
    assert not canary.exists()


def test_safetensors_are_read_and_the_pickle_beside_them_is_not_opened(poisoned, tmp_path, canary):
    poisoned(tmp_path / "pytorch_model.bin", lambda payload: {"a": payload})
    save_file({"model.a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert load_part(str(tmp_path), ["a"]) == {"a": torch.ones(1)}
    assert not canary.exists()


def test_an_llm_whose_weights_are_a_pickle(poisoned, folder, canary):
    (folder / "llm" / "model.safetensors").unlink()
    poisoned(folder / "llm" / "pytorch_model.bin", lambda payload: {"model.embed_tokens.weight": payload})
    with pytest.raises(Exception):  # noqa: B017 (transformers' own)
        DestaModel.from_pretrained(folder, device="cpu", check_identity=False)
    assert not canary.exists()


def test_a_checkpoint_to_resume_from(poisoned, tmp_path, canary):
    file = poisoned(tmp_path / "step=1-last.ckpt", lambda payload: {"state_dict": {}, "callbacks": payload})
    with pytest.raises(ValueError):
        SafeCheckpointIO().load_checkpoint(file)
    with pytest.raises(ConfigError, match="load_from_checkpoint can run code"):
        DestaModel.load_from_checkpoint(file)
    assert not canary.exists()


def test_a_checkpoint_to_export(poisoned, tmp_path, canary, tiny):
    file = poisoned(tmp_path / "x.ckpt", lambda payload: {"nemo_desta": payload, "state_dict": {}})
    with pytest.raises(ConfigError, match=REFUSED):
        export_model(file, tmp_path / "out")
    model = {**tiny, "llm": {**tiny["llm"], "trust_remote_code": True}}
    torch.save({"nemo_desta": {"model": model, "frozen": {}}, "state_dict": {}}, tmp_path / "y.ckpt")
    with pytest.raises(UntrustedConfig, match=r"y\.ckpt' holds settings that only you .*trust_remote_code"):
        export_model(tmp_path / "y.ckpt", tmp_path / "out")
    assert not canary.exists() and not (tmp_path / "out").exists()


def test_a_projector_to_start_from(poisoned, tmp_path, tiny, saved, canary):
    file = poisoned(tmp_path / "projector.safetensors", lambda payload: {"a": payload})
    started = {**tiny, "perception": {**tiny["perception"], "init_from": str(file)}}
    with pytest.raises(Exception, match="(?i)header"):
        DestaModel(started)
    foreign = shutil.copytree(saved, tmp_path / "foreign")  # of a folder, nothing but its tensors is read
    change(foreign, lambda model: model["llm"].update(trust_remote_code=True))
    DestaModel({**tiny, "perception": {**tiny["perception"], "init_from": str(foreign)}})
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["desta2", "desta25", "alarm"])
@pytest.mark.parametrize("name", ["qformer_connector.pth", "pytorch_model.bin", "model.pt", "connector.pt"])
def test_released_weights(poisoned, tmp_path, canary, kind, name):
    (tmp_path / "config.json").write_text("{}")
    poisoned(tmp_path / name, lambda payload: {"state_dict": {"a": payload}})
    with pytest.raises(ConfigError, match=REFUSED):
        checkpoint.import_released(kind, tmp_path)
    assert not canary.exists()


def test_members_of_a_shar_archive_are_no_paths(tmp_path):
    folder = tmp_path / "a" / "shar"
    folder.mkdir(parents=True)
    clip = write_tone(tmp_path / "clip.wav", 0.2).read_bytes()
    with tarfile.open(folder / "recording.000000.tar", "w") as tar:
        info = tarfile.TarInfo("../../outside.wav")
        info.size = len(clip)
        tar.addfile(info, io.BytesIO(clip))
    cut = {"id": "../../outside", "custom": {"row": tiny_row("x", "../../outside.wav")}}
    (folder / "cuts.000000.jsonl").write_text(json.dumps(cut) + "\n")
    before = sorted(path for path in tmp_path.rglob("*"))
    try:
        source = SharSource(folder)
        files = source.audio_files(0, source.row(0))
        assert files[0].read() == clip
    except ValueError as error:
        assert "outside" in str(error)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def card(folder, **changes):
    """A card on disk."""
    values = {
        "name": "mine",
        "version": "1",
        "title": "Mine",
        "licence": "mine",
        "home": "https://example.org",
        "domain": "speech",
        "reader": {"type": "jsonl", "files": "meta.jsonl"},
        "clip": {"id": "{id}", "audio": "{file}"},
        **changes,
    }
    path = folder / "card.yaml"
    path.write_text(json.dumps(values))  # which is YAML, too
    return path


def test_a_card_with_tags_of_yaml_is_refused(tmp_path, canary):
    file = card(tmp_path)
    file.write_text(f"!!python/object/apply:builtins.open [{str(canary)!r}, w]\n")
    with pytest.raises(Exception, match="python/object"):
        load_corpus(file, tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "text", ["{id.__class__}", "{__class__}", "{id!r:>10000000000}", "{0}", "{id|eval}", "${oc.env:HOME}"]
)
def test_the_templates_of_a_card_are_fields_and_nothing_else(tmp_path, text):
    (tmp_path / "meta.jsonl").write_text('{"id": "a", "file": "a.wav"}\n')
    with pytest.raises(CorpusError, match="no field|unknown filter|brace"):
        list(load_corpus(card(tmp_path, clip={"id": "{id}", "audio": "{file}", "transcript": text}), tmp_path))


def test_a_parquet_file_with_a_pickled_type(tmp_path, canary):
    """Arrow once stored Python types as pickles; such a column is read as what it holds."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    meta = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Touch(canary)),
    }
    fields = [pyarrow.field("id", pyarrow.string(), metadata=meta), pyarrow.field("file", pyarrow.string())]
    table = pyarrow.table([["a"], ["a.wav"]], schema=pyarrow.schema(fields))
    parquet.write_table(table, tmp_path / "x.parquet")
    file = card(tmp_path, reader={"type": "huggingface", "files": "x.parquet"})
    try:
        assert [clip["id"] for clip in load_corpus(file, tmp_path)] == ["a"]
    except CorpusError as error:
        assert "x.parquet" in str(error)
    assert not canary.exists()


@pytest.mark.parametrize(
    "row",
    [
        {"id": {"_target_": "os.system"}, "messages": [], "response": "x"},
        {"id": "a", "messages": [{"role": "user", "content": {"_target_": "os.system"}}], "response": "x"},
        {"id": "a", "messages": "{{ ''.__class__ }}", "response": "x"},
    ],
)
def test_rows_hold_texts(tmp_path, row):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RowError):
        list(read_rows(tmp_path / "rows.jsonl"))
