"""The package itself: nothing in it unpickles, evaluates text or lets a loader decide whether to run code."""

import ast
import functools
from pathlib import Path

import pytest

import nemo_desta

PACKAGE = Path(nemo_desta.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: Modules that run code of what they read.
UNSAFE_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "runpy",
    "code",
}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "pickle.load"}
UNSAFE_CALLS |= {"torch.serialization.add_safe_globals", "numpy.lib.format.open_memmap"}
#: Where a name becomes an import: of the user's config, or one of a list in the file itself.
IMPORT_BY_NAME = {
    "cli/main.py",
    "evaluation/asr.py",
    "core/trust.py",
    "data/remote.py",
    "registry.py",
    "training/strategies.py",
}


@functools.cache
def nodes(file):
    """The imports and the calls in a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)]


def dotted(node):
    """``ast.unparse``, but at once for a plain dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ast.unparse(node)


def calls(file):
    """(dotted name of what is called, keywords of the call, line) for every call in a file."""
    for node in nodes(file):
        if isinstance(node, ast.Call):
            yield dotted(node.func), {word.arg: word.value for word in node.keywords}, node.lineno


def inside(file):
    return file.relative_to(PACKAGE).as_posix()


def test_nothing_is_pickled():
    found = set()
    for file in FILES:
        for node in nodes(file):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if {name.partition(".")[0] for name in names} & UNSAFE_MODULES:
                found.add(inside(file))
    assert not found


@pytest.mark.parametrize("file", FILES, ids=inside)
def test_no_call_runs_what_was_read(file):
    for name, words, line in calls(file):
        where = f"{inside(file)}:{line}: {name}"
        assert name not in UNSAFE_CALLS, where
        assert "shell" not in words and "allow_pickle" not in words, where
        if name == "torch.load":
            assert "weights_only" in words and ast.unparse(words["weights_only"]) == "True", where
        if name in ("yaml.load", "yaml.load_all"):
            assert "Loader" in words and "Safe" in ast.unparse(words["Loader"]), where
        if name.endswith((".extractall", ".unpack_archive")):
            raise AssertionError(where)
        if name.startswith("Auto") and name.endswith((".from_pretrained", ".from_config")):
            assert "trust_remote_code" in words, f"{where}: without it transformers asks on the terminal"
        if name.endswith(".apply_chat_template"):
            assert inside(file) in ("core/template_limits.py", "demo/llm_gates.py"), f"{where}: without limits"
        if name.endswith("import_module"):
            assert inside(file) in IMPORT_BY_NAME, where
