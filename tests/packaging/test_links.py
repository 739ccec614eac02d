"""The pages of the documentation: short, and every link, command, file and dotted name in them exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/**/*.md")]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
ENTRY_POINTS = {
    f"nemo_desta.{kind}"
    for kind in ("encoders", "projectors", "engines", "gates", "benchmarks", "readers", "prompt_formats")
}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def defined(module: Path) -> set[str]:
    """Names that a module binds at its top level, imports and names in strings (``__all__``, lazy ones) included."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def exists(dotted: str) -> bool:
    place, parts = ROOT, dotted.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if parts and (place / f"{parts[0]}.py").exists():
        module = place / f"{parts.pop(0)}.py"
    else:
        module = place / "__init__.py"
    return not parts or (len(parts) == 1 and parts[0] in defined(module))


@each_page
def test_a_page_is_short(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 200, "formulas and evidence go to docs/explain/"


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), f"link to {target}"
        assert not anchor or anchor in anchors(found), f"{target}: no such heading, there are {sorted(anchors(found))}"


@each_page
def test_every_name_command_and_path_exists(page):
    text = page.read_text(encoding="utf-8")
    for dotted in set(re.findall(r"(?<![\w/.])(?:nemo_desta|benchmarks)(?:\.\w+)+", text)) - ENTRY_POINTS:
        if not dotted.endswith((".sqsh", ".py")):
            assert exists(dotted), f"no such name: {dotted}"
    for module, names in re.findall(r"^from (nemo_desta[\w.]*) import (.+)$", text, flags=re.MULTILINE):
        for name in names.split(", "):
            assert exists(f"{module}.{name}"), f"no such name: {module}.{name}"
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE))
    assert named <= TARGETS, f"no such make target: {named - TARGETS}"
    path = r"(?<![\w/.])(?:nemo_desta|examples|benchmarks|tests|conf|constraints|docs)/[\w./-]+\.(?:py|yaml|md|txt)\b"
    for file in set(re.findall(path, text)):
        assert (ROOT / file).exists(), f"no such file: {file}"
    for config in re.findall(r"--config-name[= ]([\w-]+)", text):
        places = [ROOT / "conf" / part / f"{config}.yaml" for part in (".", "recipes", "use")]
        assert config in ("mine", "recipe") or any(place.exists() for place in places), f"no such config: {config}"
