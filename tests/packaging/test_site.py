"""The documentation site: every public name and setting is on a page, and the notebooks run."""

import ast
import importlib.util
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ("corpus_to_model", "ask_a_model")  # the second opens the model of the first


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "site" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_with_public_names_is_on_a_page(reference):
    pages = "\n".join(reference.api(room) for room in reference.rooms())
    for file in sorted((ROOT / "nemo_desta").rglob("*.py")):
        public = [
            node.name
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if public and not module.endswith(".__main__"):
            assert f"::: {module}\n" in pages, module


def test_every_job_and_its_config_are_on_the_page_of_commands(reference):
    page = reference.commands()
    assert "## desta train" in page and "### --config-name alarm" in page and "sampling:" in page


def test_settings_have_their_defaults_and_meanings(reference):
    page = reference.settings()
    assert "| `prompts_per_clip` | `int` | `1` |" in page
    line = next(line for line in page.splitlines() if line.startswith("| `max_body_mb`"))
    assert "`64.0`" in line and "limits of one request" in line
    assert all(f"## {section.title}\n" in page for section in reference.SECTIONS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_with_its_outputs_and_pictures(name):
    cells = json.loads((ROOT / "docs" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
def test_the_notebooks_run(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the docs extra is only in the latest stack")
    from nbclient import NotebookClient

    monkeypatch.setenv("RUN", "runs/notebook")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", 4)
        for cell in notebook.cells:
            cell.source = cell.source.replace("max_steps=160", "max_steps=8").replace("interval=160", "interval=8")
            cell.source = cell.source.replace("clips=240", "clips=60")
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "542,695 trained parameters" in said
