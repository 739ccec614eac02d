"""An export that carries its code: transformers opens it on a machine without this package."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch

from nemo_desta.sharing.carry_code import ALWAYS_THERE, ENTRY, write_code
from nemo_desta.sharing.export import export_model
from tests.blocked_imports import BLOCK
from tests.hf.conftest import TWO

BARRED = ("nemo_desta", "nemo", "lhotse", "lightning", "pytorch_lightning", "hydra", "omegaconf") + (
    "soundfile",
    "soxr",
    "peft",
    "triton",
    "liger_kernel",
)
#: Run in a process in which nothing of BARRED can be imported.
OPEN = (
    f"import torch\n{BLOCK}"
    + """
from transformers import AutoModel, AutoProcessor
where = {{"llm": {llm!r}, "encoders": {encoders!r}, "trust_remote_code": True}}
model, processor = (auto.from_pretrained({folder!r}, **where) for auto in (AutoModel, AutoProcessor))
inputs = processor.apply_chat_template(torch.load({folder!r} + "/chat.pt"), tokenize=True)
ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
model.save_pretrained({folder!r} + "/again")
try:
    processor("<|AUDIO|> x", audio=torch.zeros(8000), sampling_rate=8000)
except Exception as error:
    assert "pip install soxr" in str(error), error
assert not barred & {{name.partition(".")[0] for name in sys.modules}}
torch.save(ids, {folder!r} + "/ids.pt")
"""
)


def imports_outside_try(tree):
    if isinstance(tree, ast.Try):
        return
    if isinstance(tree, ast.Import | ast.ImportFrom):
        yield tree
    for child in ast.iter_child_nodes(tree):
        yield from imports_outside_try(child)


def test_the_files_import_each_other_torch_and_transformers_alone(tmp_path):
    files = write_code(tmp_path)
    names = {file.stem for file in files}
    assert ENTRY in names and {"desta_core_splice", "desta_perception_encoders_beats_model"} <= names
    assert not any("megatron" in name or "training" in name for name in names)
    listed = (tmp_path / f"{ENTRY}.py").read_text()
    for file in files:
        assert file.stem == ENTRY or f"from .{file.stem} import" in listed
        for node in imports_outside_try(ast.parse(file.read_text())):
            if getattr(node, "level", 0):
                found = [node.module] if node.module else [alias.name for alias in node.names]
                assert set(found) <= names, (file.name, found)
            else:
                packages = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                assert {name.partition(".")[0] for name in packages} <= ALWAYS_THERE, (file.name, packages)


@pytest.mark.slow  # a process that imports torch anew
def test_it_opens_and_answers_where_this_package_is_not_installed(place, inputs, tmp_path):
    folder = export_model(place.folder, tmp_path / "export", carry_code=True)
    assert "AutoProcessor" in json.loads((folder / "config.json").read_text())["auto_map"]
    parts = place.path / "parts"
    torch.save([{**message, "audios": message.get("audios", [])} for message in TWO], folder / "chat.pt")
    encoders = {"whisper": str(parts / "whisper"), "beats": str(parts / "beats.pt")}
    code = OPEN.format(barred=BARRED, llm=str(parts / "llm"), encoders=encoders, folder=str(folder))
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = place.model.generate(**inputs(TWO), do_sample=False, max_new_tokens=8)
    assert torch.equal(torch.load(folder / "ids.pt"), expected)


def test_without_being_asked_an_export_has_no_code(place, tmp_path):
    folder = export_model(place.folder, tmp_path / "export")
    assert not list(folder.glob("*.py")) and "auto_map" not in json.loads((folder / "config.json").read_text())
