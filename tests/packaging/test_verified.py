"""The cards of what was run where: their schema, the tables made from them, and that their commands exist."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nemo_desta.cli.commands import COMMANDS
from nemo_desta.doctor import main
from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.scores import SCORERS
from nemo_desta.perception.encoders.registry import ENCODERS
from nemo_desta.sharing.released import KINDS
from nemo_desta.verified import ALWAYS, FOLDER, STATUSES, cards, other_versions, read, report

ROOT = Path(__file__).resolve().parents[2]
KERNEL = yaml.safe_load((FOLDER / "kernel.yaml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
each_card = pytest.mark.parametrize("card", cards(), ids=lambda card: card.capability)


def unknown_in(command: str) -> list[str]:
    """Words of a command that name no make target, job, module, file or config of the checkout."""
    name, *words = shlex.split(command)
    rest = words[1:]
    if name == "make":
        target = re.search(rf"^{re.escape(words[0])}:", MAKEFILE, flags=re.MULTILINE)
        files = [word for part in rest for word in part.removeprefix("ARGS=").split() if "/" in word]
        return [*([] if target else words[:1]), *(file for file in files if not (ROOT / file).exists())]
    if name == "desta":
        job = COMMANDS.get(words[0])
        config = rest[rest.index("--config-name") + 1] if "--config-name" in rest else job and job.config
        there = job and (not config or (ROOT / "conf" / job.folder / f"{config}.yaml").exists())
        return [] if there else words[:2]
    if words[0] == "-m":
        module = ROOT / words[1].replace(".", "/")
        return [] if module.with_suffix(".py").exists() or (module / "__main__.py").exists() else words[1:2]
    file = words[words.index("-f") + 1] if name == "docker" else words[0]
    return [] if name in ("python", "docker") and (ROOT / file).is_file() else [name, file]


@each_card
def test_the_command_of_a_card_exists(card):
    assert not unknown_in(card.command)


@pytest.mark.parametrize(
    "command",
    [
        "make tost",
        'make test ARGS="tests/none.py"',
        "desta trian",
        "desta train --config-name none",
        "python -m benchmarks.none",
        "python benchmarks/none.py",
        "docker build -f None .",
        "rm README.md",
    ],
)
def test_a_command_that_does_not_exist_is_found(command):
    assert unknown_in(command)


@each_card
def test_a_card_of_every_change_names_a_step_of_the_ci_and_its_pinned_versions(card):
    if card.date != ALWAYS:
        return
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert shlex.split(card.command)[1] in re.findall(r"^step make ([\w-]+)", ci, flags=re.MULTILINE)
    assert not any(left_out in card.command for left_out in re.findall(r"--ignore=([\w/.]+)", ci))
    pins = "".join((ROOT / "constraints" / f"{stack}.txt").read_text() for stack in ("latest", "container", "legacy"))
    pinned = {(name.replace("-", "_"), version) for name, version in re.findall(r"^([\w-]+)==(\S+)", pins, re.M)}
    for package in card.versions:
        for version in card.versions_of(package):
            assert (package.replace("-", "_"), version) in pinned, f"{package} {version} is pinned in no stack"


def test_every_strategy_engine_encoder_benchmark_and_import_has_a_card():
    names = {file.stem for file in FOLDER.glob("*.yaml")}
    assert {f"strategy_{file.stem}" for file in (ROOT / "conf" / "strategy").glob("*.yaml")} <= names
    engines = [yaml.safe_load(file.read_text()) for file in (ROOT / "conf" / "recipes" / "engine").glob("*.yaml")]
    assert {f"engine_{one['name']}" for one in engines if "name" in one} <= names  # others change settings of these
    assert {f"encoder_{name}" for name in ENCODERS.built_in} <= names
    assert {f"benchmark_{name}" for name in SCORERS.built_in} <= names
    assert {f"import_{name}" for name in KINDS} <= names


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "verifed"}, "Did you mean 'verified'?"),
        ({"statsu": "verified"}, "Did you mean 'status'?"),
        ({"hardware": None}, "'hardware' must be given for the status 'verified'"),
        ({"status": "unverified"}, "'expected' must be null for the status 'unverified'"),
        ({"date": "yesterday"}, "'date' must be a day"),
        ({"date": "2026-02-31"}, "'date' must be a day"),
        ({"commit": 9282108}, "commit"),
        ({"commit": "HEAD"}, "'commit' must be a hash"),
        ({"versions": {"torch": 2.1}}, "versions"),
        ({"what": "one\ntwo"}, "'what' must be one line"),
        ({"command": None}, "command"),
    ],
)
def test_an_invalid_card_is_refused_with_its_file_and_key(change, said):
    with pytest.raises(ConfigError) as error:
        read(KERNEL | change, "kernel.yaml")
    assert "kernel.yaml" in str(error.value) and said in str(error.value)


@pytest.mark.parametrize("key", KERNEL)
def test_no_key_may_be_left_out(key):
    with pytest.raises(ConfigError, match=key):
        read({name: value for name, value in KERNEL.items() if name != key}, "kernel.yaml")


def test_two_cards_of_one_capability_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(KERNEL))
    with pytest.raises(ConfigError, match="b.yaml: another card"):
        cards(tmp_path)


def test_a_card_that_is_no_mapping_is_refused_and_runs_nothing(tmp_path):
    (tmp_path / "a.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(yaml.YAMLError):
        cards(tmp_path)
    with pytest.raises(ConfigError, match="must be a mapping"):
        read(["verified"], "a.yaml")


def test_tables_of_the_pages_are_current():
    tables = runpy.run_path(str(ROOT / "docs" / "site" / "tables.py"))
    for page, words in tables["PAGES"].items():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert tables["with_table"](text, words) == text, f"{page} differs from the cards: run `make docs-tables`"
        assert any(word in card.capability for card in cards() for word in words), f"no card for {page}"
    with pytest.raises(ValueError, match="found 0"):
        tables["with_table"]("# A page", ("",))


def test_the_page_of_the_site_holds_every_card():
    page = runpy.run_path(str(ROOT / "docs" / "site" / "reference.py"))["verified"]()
    for card in cards():
        assert f"## {card.capability}\n" in page and card.command in page and card.notes in page


def test_other_versions_are_named_and_a_local_build_is_none():
    card = read(KERNEL, "kernel.yaml")
    assert other_versions(card, {"torch": "2.11.0+cu130", "triton": "3.6.0"}.get) == ""
    assert other_versions(card, {"torch": "2.13.0"}.get) == "torch 2.11.0, here 2.13.0; triton 3.6.0, here none"


def test_the_report_parts_what_was_run_with_the_installed_versions_from_the_rest():
    same, other = report({"torch": "2.11.0", "triton": "3.6.0"}.get).split("Run with other versions")
    assert "Projector's Triton kernel" in same and "Training on a GPU" in same
    assert "Latest stack on a CPU" in other and "torch 2.13.0, here 2.11.0" in other


def test_the_doctor_prints_every_card_without_torch(capsys):
    assert main(["--verified"]) == 0
    shown = capsys.readouterr().out
    assert all(card.capability in shown for card in cards()) and all(status in shown for status in STATUSES)
    code = "import sys, nemo_desta.verified as v; v.report({}.get); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
