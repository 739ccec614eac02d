"""No module of the package imports itself by way of others, not even late or for its types alone."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import nemo_desta


def imports_of(file: Path, modules: set[str]) -> set[str]:
    """The package's modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & modules or {node.module}
    return found & modules


def check(root: Path) -> int:
    files = {}
    for file in root.rglob("*.py"):
        name = ".".join(file.relative_to(root.parent).with_suffix("").parts)
        files[name.removesuffix(".__init__")] = file
    graph = {name: imports_of(file, set(files)) - {name} for name, file in files.items()}
    TopologicalSorter(graph).prepare()
    return len(graph)


def test_no_circle_of_imports():
    assert check(Path(nemo_desta.__file__).parent) > 200


def test_a_circle_is_found(tmp_path):
    root = tmp_path / "pack"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text("from pack import b\n")
    (root / "b.py").write_text("def late():\n    from pack.a import x\n")
    with pytest.raises(CycleError):
        check(root)
