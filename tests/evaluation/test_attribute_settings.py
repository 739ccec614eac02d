"""What ``rows.attributes`` may be, and how mistakes in it are named."""

import pytest

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.attribute_settings import Attribute, read_attributes
from nemo_desta.evaluation.settings import EvaluateSettings, RowsSettings

FILE = """
digit:
  question: Which digit is spoken?
  values: [0, 1, 7]
  aliases: {0: [nil], 7: [seven, sieben]}
mood: {}
"""


def test_a_yaml_file_gives_names_and_settings(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    found = read_attributes(str(path))
    aliases = {"0": ["nil"], "7": ["seven", "sieben"]}
    assert found["digit"] == Attribute("Which digit is spoken?", None, ["0", "1", "7"], aliases)
    assert found["mood"] == Attribute()
    path.write_text("[mood, digit]")
    assert list(read_attributes(str(path))) == ["mood", "digit"]


def test_numbers_are_text_and_one_alias_needs_no_list():
    assert read_attributes({"digit": {"aliases": {0: "nil", 1.5: [2]}}})["digit"].aliases == {
        "0": ["nil"],
        "1.5": ["2"],
    }
    assert read_attributes(None) == {} and list(read_attributes([3])) == ["3"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gender", "rows.attributes must be names, name -> settings, or a YAML file, found 'gender'"),
        ({"gender": {"aliasses": {}}}, "unknown key 'rows.attributes.gender.aliasses'. Did you mean 'aliases'"),
        ({"speech": {"values": [True, False]}}, "'rows.attributes.speech.values' holds True; .*'yes', 'no'"),
        ({"../x": {}}, "an attribute's name is .*found '../x'"),
        ({"a": 3}, "'rows.attributes.a' must be a mapping"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(ConfigError, match=message):
        read_attributes(given)


def test_a_file_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="rows.attributes: no file 'gone.yaml'"):
        read_attributes("gone.yaml")
    (tmp_path / "bad.yaml").write_text("digit: {values: [")
    with pytest.raises(ConfigError, match="bad.yaml: not YAML in UTF-8"):
        read_attributes(str(tmp_path / "bad.yaml"))
    (tmp_path / "code.yaml").write_text("!!python/object/apply:os.getcwd []")
    with pytest.raises(ConfigError, match="code.yaml: not YAML in UTF-8"):
        read_attributes(str(tmp_path / "code.yaml"))


def test_settings_are_checked_before_the_rows_are_read():
    with pytest.raises(ConfigError, match="Did you mean 'aliases'"):
        RowsSettings(rows="gone", attributes={"a": {"aliasses": {}}}).check()
    with pytest.raises(ConfigError, match="rows.transcripts is 'wisper'. Did you mean 'whisper'"):
        RowsSettings(rows="gone", transcripts="wisper").check()


def test_rows_as_the_config_has_them_are_off_and_a_setting_without_rows_is_an_error():
    plain = {"output": "x", "model": "y", "benchmarks": ["mmau"]}
    assert parse(EvaluateSettings, {**plain, "rows": {"rows": None, "attributes": None}}, "evaluate").rows is None
    lost = parse(EvaluateSettings, {**plain, "rows": {"split": "test"}}, "evaluate").rows
    with pytest.raises(ConfigError, match="give either rows.rows"):
        lost.check()
