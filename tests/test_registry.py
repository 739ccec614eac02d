"""One mechanism for all open sets of parts: names, entry points, dotted names, arguments."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.registry import Registry

ROOT = Path(__file__).resolve().parents[1]


class Clock:
    def __init__(self, zone, *, hours: int = 24):
        self.zone, self.hours = zone, hours


@pytest.fixture
def clocks():
    return Registry("clock", "nemo_desta.clocks", {"ours": f"{__name__}:Clock", "far": "no_such_module:Far"})


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current folder, with a module of one's own."""
    (tmp_path / "my_clock_of_a_test.py").write_text(
        "class Sun:\n    def __init__(self, zone):\n        self.zone = zone\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    sys.modules.pop("my_clock_of_a_test", None)


def test_a_name_imports_only_its_own_part(clocks):
    assert list(clocks) == ["far", "ours"] and "far" in clocks and len(clocks) == 2
    assert clocks["ours"] is Clock
    assert clocks.build({"name": "ours", "hours": 12}, "utc").hours == 12


def test_a_registered_name_may_not_hide_one_of_ours(clocks):
    clocks.register("mine")(Clock)
    clocks.register("ours")(Clock)  # the same class: a module that is imported twice
    assert clocks.build("mine", "utc").zone == "utc"
    with pytest.raises(ValueError, match="clock 'ours' is registered already, by .*Clock"):
        clocks.register("ours")(dict)


def test_an_unknown_name_names_the_nearest(clocks):
    with pytest.raises(ConfigError, match=r"unknown clock 'our'. Did you mean 'ours'\? Known: far, ours."):
        clocks["our"]
    with pytest.raises(ConfigError, match="unknown clock None"):
        clocks.check(None)
    with pytest.raises(ConfigError, match=r"clock: its config needs 'name' or '_target_', found the keys \['hours'\]"):
        clocks.build({"hours": 3})


def test_arguments_are_checked(clocks):
    with pytest.raises(ConfigError, match="clock 'ours' has no argument 'hour'. Did you mean 'hours'"):
        clocks.build({"name": "ours", "hour": 3}, "utc")
    with pytest.raises(ConfigError, match="clock 'ours' has no argument 'zone'"):  # the caller gives it
        clocks.build({"name": "ours", "zone": "cet"}, "utc")
    with pytest.raises(ConfigError, match="clock 'ours' needs 'zone'"):
        clocks.build("ours")


def test_an_offered_argument_goes_to_parts_that_name_it(clocks):
    assert clocks.build("ours", "utc", hours=6, colour="red").hours == 6
    assert clocks.build({"name": "ours", "hours": 5}, "utc", hours=6).hours == 5


def test_entry_points_are_loaded_when_their_name_is_asked_for(clocks, monkeypatch):
    given = {"sun": f"{__name__}:Clock", "x": "none:y"}
    points = [importlib.metadata.EntryPoint(*point, "nemo_desta.clocks") for point in given.items()]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: points if group == "nemo_desta.clocks" else []
    )
    assert list(clocks) == ["far", "ours", "sun", "x"] and clocks["sun"] is Clock


def test_a_dotted_name_is_found_in_the_current_folder(clocks, workplace):
    assert clocks.build({"_target_": "my_clock_of_a_test.Sun"}, "utc").zone == "utc"
    assert sys.path[-1] == str(workplace) and sys.path[0] != str(workplace)  # it hides nothing that is installed
    with pytest.raises(ConfigError, match="'Moon' is not in my_clock_of_a_test"):
        clocks["my_clock_of_a_test.Moon"]
    with pytest.raises(ConfigError, match="no module 'my_clok' is installed, and there is no my_clok.py in /"):
        clocks["my_clok.Sun"]


def test_a_name_without_dot_imports_nothing(clocks, workplace):
    with pytest.raises(ConfigError, match="unknown clock 'my_clock_of_a_test'"):
        clocks["my_clock_of_a_test"]
    assert str(workplace) not in sys.path


def test_a_closed_registry_imports_no_dotted_name(workplace):
    closed = Registry("clock", "nemo_desta.clocks", {"ours": Clock}, dotted=False)
    with pytest.raises(ConfigError, match="unknown clock 'my_clock_of_a_test.Sun'. Known: ours."):
        closed["my_clock_of_a_test.Sun"]
    assert "my_clock_of_a_test" not in sys.modules


def test_the_names_of_encoders_and_projectors_are_known_without_torch():
    code = (
        "import sys; from nemo_desta.perception.registry import ENCODERS, PROJECTORS\n"
        "assert 'beats' in ENCODERS and 'conv' in PROJECTORS and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_installed_packages_are_not_searched_for_our_own_names(clocks, monkeypatch):
    """The search reads the metadata of every package, which takes milliseconds."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: pytest.fail("packages are searched"))
    clocks.register("mine")(Clock)
    assert "ours" in clocks and clocks["ours"] is Clock and clocks["mine"] is Clock


def test_an_installed_package_needs_no_dotted_name(clocks, tmp_path, monkeypatch):
    """A package as pip installs it: a module and its metadata."""
    info = tmp_path / "clocks_of_a_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: clocks_of_a_test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nemo_desta.clocks]\nmoon = clocks_of_a_test:Moon\n")
    (tmp_path / "clocks_of_a_test.py").write_text("class Moon:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "moon" in clocks and "clocks_of_a_test" not in sys.modules
    assert type(clocks.build({"name": "moon"})).__name__ == "Moon"
