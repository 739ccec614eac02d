"""Readers of corpora and prompt formats of installed packages; cards and prompt files import nothing by themselves."""

from pathlib import Path

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.corpora.card_keys import SourceConfig
from nemo_desta.recipes.corpora.reader_types import READERS
from nemo_desta.recipes.corpora.readers import read_records
from nemo_desta.recipes.prompts import Constraint, obeys
from nemo_desta.recipes.prompts.constraints import CONSTRAINTS


@pytest.fixture(autouse=True)
def names_come_and_go(monkeypatch):
    for registry in (READERS, CONSTRAINTS):
        monkeypatch.setattr(registry, "factories", {})


def test_a_registered_reader_reads_a_corpus(tmp_path):
    @READERS.register("words")
    def read_words(path: Path, source: SourceConfig):
        for number, word in enumerate(path.read_text().split(), start=1):
            yield f"{path}:{number}", {"word": word}

    (tmp_path / "a.txt").write_text("one two")
    records = list(read_records(SourceConfig(type="words", files="*.txt"), tmp_path))
    assert [(row["word"], of_file["stem"]) for _, row, of_file in records] == [("one", "a"), ("two", "a")]
    assert records[1][0].endswith("a.txt:2")


def test_a_registered_prompt_format_is_checked():
    CONSTRAINTS.register("rhymes")(lambda answer, end: answer.endswith(end))
    assert obeys(Constraint("rhymes", ("ight",)), "night") and not obeys(Constraint("rhymes", ("ight",)), "day")


@pytest.mark.parametrize("registry", [READERS, CONSTRAINTS], ids=lambda registry: registry.kind)
def test_a_dotted_name_of_a_file_is_not_imported(registry):
    with pytest.raises(ConfigError, match=f"unknown {registry.kind} 'os.system'"):
        registry["os.system"]
