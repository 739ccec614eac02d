"""A model folder of a stranger, and the file that exists when something of it has run."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import dynamic_module_utils

from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.models import tiny_config


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """NeMo's model section over tiny parts on disk."""
    return tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def saved(tiny, tmp_path_factory):
    """A model folder as `save_pretrained` writes it."""
    torch.manual_seed(1)
    return DestaModel(tiny).save_pretrained(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def canary(tmp_path):
    """Payloads make this file; no test of a refusal may find it."""
    return tmp_path / "code-ran"


@pytest.fixture
def evil(canary, tmp_path, monkeypatch):
    """Python source that makes the canary when it is imported.

    transformers copies such files into a folder of its own, by name: in a shared one a test would import the bytecode
    of the test before it, whose file has the same size and second.
    """
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return f"open({str(canary)!r}, 'w').close()\n"


@pytest.fixture
def folder(saved, tiny, tmp_path):
    """A copy of the model folder with an LLM folder of its own inside, as a stranger may hand out."""
    folder = shutil.copytree(saved, tmp_path / "model")
    shutil.copytree(tiny["llm"]["path"], folder / "llm")
    change(folder, lambda model: model["llm"].update(path=str(folder / "llm")))
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], Any], file: str = "config.json") -> None:
    """Edit the ``model`` section of a folder's config.json, or another JSON file of it as a whole."""
    values = json.loads((folder / file).read_text())
    edit(values["model"] if file == "config.json" and "model" in values else values)
    (folder / file).write_text(json.dumps(values))


class Touch:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")
