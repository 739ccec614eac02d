"""Code in an export (``carry_code=true``): the package's modules as flat files, so that transformers opens it alone.

``trust_remote_code=True`` then loads the folder on a machine with torch and transformers, without this package. The
files are the modules that `nemo_desta.hf` needs, with their imports rewritten; there is no second version of the code.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from nemo_desta.core.folder import ARCHITECTURE, AUTO_MODELS
from nemo_desta.package_info import __version__

PACKAGE = "nemo_desta"
ROOT = Path(__file__).resolve().parents[1]
#: The file that transformers opens first, and what it holds for which auto class.
ENTRY = "modeling_nemo_desta"
CLASSES = {"configuration": "DestaConfig", "processing": "DestaProcessor", "modeling": ARCHITECTURE}
AUTO_MAP = {
    "AutoConfig": f"{ENTRY}.DestaConfig",
    "AutoProcessor": f"{ENTRY}.DestaProcessor",
    **{name: f"{ENTRY}.{ARCHITECTURE}" for name in AUTO_MODELS},
}
#: What is there wherever torch and transformers are. Imports of other packages may fail.
ALWAYS_THERE = {*sys.stdlib_module_names, "torch", "transformers", "numpy", "safetensors", "huggingface_hub"} | {
    "tokenizers",
    "jinja2",
}
ABSENT = f"{PACKAGE}.sharing.absent_package"


def write_code(folder: Path) -> list[Path]:
    """Write the files into an export's folder; returns their paths."""
    open_modules = [ABSENT, *(f"{PACKAGE}.hf.{module}" for module in CLASSES)]
    trees: dict[str, ast.Module] = {}
    while open_modules:
        module = open_modules.pop()
        if module not in trees:
            rewriting = _Rewriting(late=False)
            trees[module] = rewriting.visit(ast.parse(_file_of(module).read_text(encoding="utf-8")))
            open_modules += rewriting.needed
    written = []
    for module, tree in sorted(trees.items()):
        written.append(folder / f"{_flat(module)}.py")
        note = f"# {module} of nemo_desta {__version__} (Apache-2.0), written by `desta export carry_code=true`.\n"
        written[-1].write_text(note + ast.unparse(ast.fix_missing_locations(tree)) + "\n", encoding="utf-8")
    # transformers finds the files to copy by the text of their imports.
    lines = [f'"""Opens this folder with transformers alone; nemo_desta {__version__} (Apache-2.0)."""\n']
    lines += [f"from .{_flat(f'{PACKAGE}.hf.{module}')} import {name}" for module, name in CLASSES.items()]
    lines += ["\n", "def _files():", *(f"    from .{_flat(module)} import __name__" for module in sorted(trees))]
    written.append(folder / f"{ENTRY}.py")
    written[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written


class _Rewriting(ast.NodeTransformer):
    """Imports of this package become relative ones of flat files; other packages may be absent.

    ``needed``: the modules of this package that were found. ``late``: inside a function.
    """

    def __init__(self, *, late: bool) -> None:
        self.late = late
        self.needed: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        inside = _Rewriting(late=True)
        node = inside.generic_visit(node)
        self.needed |= inside.needed
        return node

    def visit_Import(self, node: ast.Import) -> ast.AST:
        if any(_is_ours(alias.name) for alias in node.names):
            raise ValueError(
                f"write 'from {PACKAGE}... import', not '{ast.unparse(node)}', in code that exports carry"
            )
        return self._maybe_absent(node, [alias.name for alias in node.names])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | list[ast.AST]:
        if not _is_ours(node.module or ""):
            return self._maybe_absent(node, [node.module or ""])
        return list(self._relative(node))

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """``"nemo_desta.module:name"``, as in registries, becomes the name of the flat file."""
        module, colon, name = node.value.partition(":") if isinstance(node.value, str) else ("", "", "")
        if not (colon and name.isidentifier() and module.startswith(f"{PACKAGE}.") and _file_of(module).is_file()):
            return node
        self.needed.add(module)
        return ast.parse(f"__package__ + {f'.{_flat(module)}:{name}'!r}", mode="eval").body

    def _relative(self, node: ast.ImportFrom) -> Iterator[ast.AST]:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if _file_of(inner).is_file():
                self.needed.add(inner)
                name = ast.alias(_flat(inner), alias.asname or alias.name)
                yield ast.ImportFrom(module=None, names=[name], level=1)
            else:
                self.needed.add(str(node.module))
                yield ast.ImportFrom(module=_flat(str(node.module)), names=[alias], level=1)

    def _maybe_absent(self, node: ast.Import | ast.ImportFrom, modules: list[str]) -> ast.AST:
        packages = [module.partition(".")[0] for module in modules]
        if all(package in ALWAYS_THERE for package in packages):
            return node
        instead = ["raise"]
        if not self.late:
            self.needed.add(ABSENT)
            names = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
            instead = [f"from .{_flat(ABSENT)} import AbsentPackage"]
            instead += [f"{name} = AbsentPackage({packages[0]!r})" for name in names]
        # transformers demands the packages of every import that is not in a `try`.
        lines = ["try:", f"    {ast.unparse(node)}", "except ImportError:", *(f"    {line}" for line in instead)]
        return ast.parse("\n".join(lines)).body[0]


def _is_ours(module: str) -> bool:
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")


def _file_of(module: str) -> Path:
    """The file of a module of this package, which may not exist."""
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _flat(module: str) -> str:
    return f"desta_{module.removeprefix(f'{PACKAGE}.').replace('.', '_')}"
