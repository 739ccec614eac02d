"""The numerics, the encoders and the benchmarks run on a bare GPU machine: torch and transformers, no NeMo."""

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from nemo_desta.doctor import ACCELERATORS
from nemo_desta.package_info import EXTRAS, REQUIRES
from tests.blocked_imports import BLOCK

ROOT = Path(__file__).resolve().parents[2]
BARRED = ("nemo", "lhotse", "lightning", "pytorch_lightning", "hydra", "omegaconf", "peft")

#: Run on a CPU before anything else is imported.
POOL_ON_A_CPU = """
import sys, torch
from nemo_desta import ops
from nemo_desta.types import WindowTable
one = torch.ones(1)
windows = WindowTable(torch.tensor([0]), torch.tensor([2]), one.long())
ops.mix_pool([torch.ones(1, 2, 8)], one, torch.ones(8), torch.zeros(8), torch.ones(1, 8), torch.ones(1, 2), windows,
             mode="attention")
assert "triton" not in sys.modules and "nemo_desta.ops.kernels.mix_pool" not in sys.modules, "triton was imported"
"""

IMPORT_ALL = f"""{BLOCK}
for module in {{modules!r}}:
    importlib.import_module(module)
"""


def modules_of(folder: str) -> list[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]


def import_without_nemo(modules: list[str], cwd: Path = ROOT, first: str = "") -> subprocess.CompletedProcess:
    code = first + IMPORT_ALL.format(barred=BARRED, modules=modules)
    ours = ("NEMO_DESTA_KERNEL", "TRITON_INTERPRET")
    env = {name: value for name, value in os.environ.items() if name not in ours} | {"PYTHONPATH": str(cwd)}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, text=True, capture_output=True)


def test_numerics_encoders_and_benchmarks_import_without_nemo_and_a_cpu_never_imports_triton():
    """One process for both: each start imports torch anew, which takes seconds."""
    rooms = {folder: modules_of(folder) for folder in ("nemo_desta/ops", "nemo_desta/perception", "benchmarks")}
    assert rooms["nemo_desta/ops"] and rooms["nemo_desta/perception"]
    assert "benchmarks.train_step" in rooms["benchmarks"]
    result = import_without_nemo(sum(rooms.values(), []), first=POOL_ON_A_CPU)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_barrier_stops_an_import_of_nemo(tmp_path):
    (tmp_path / "needs_nemo.py").write_text("from nemo.collections import speechlm2\n")
    result = import_without_nemo(["needs_nemo"], cwd=tmp_path)
    assert result.returncode != 0 and "No module named 'nemo'" in result.stderr


#: Packages whose files do not say which module they bring.
OTHER_NAMES = {"parselmouth": "praat-parselmouth", "sklearn": "scikit-learn"}  # the latter on Python 3.10


def test_every_import_is_a_requirement():
    """Of this package, torch, the standard library, or a package that package_info.py or the doctor names."""
    declared = {canonicalize_name(Requirement(line).name) for line in REQUIRES + sum(EXTRAS.values(), [])}
    declared |= {canonicalize_name(name) for name in ACCELERATORS}
    provided_by = importlib.metadata.packages_distributions()
    undeclared = []
    for file in sorted((ROOT / "nemo_desta").rglob("*.py")):
        for name, line in imports_of(file):
            sources = {canonicalize_name(source) for source in provided_by.get(name, [OTHER_NAMES.get(name, name)])}
            if name != "nemo_desta" and name not in sys.stdlib_module_names and not sources & declared:
                undeclared.append(f"{file.relative_to(ROOT)}:{line}: import {name}")
    assert not undeclared


def imports_of(file: Path) -> list[tuple[str, int]]:
    """(top-level package, line) of every import, inside functions too."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name.partition(".")[0], node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.module.partition(".")[0], node.lineno))
    return found
