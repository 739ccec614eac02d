"""What a card may say, and the words with which a wrong one is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_desta.recipes.corpora import CorpusError, load_corpus, shipped_cards
from nemo_desta.recipes.corpora.card import parse_card, read_card
from nemo_desta.recipes.corpora.template import UnknownField, compile_value

CARD: dict[str, Any] = {
    "name": "mine",
    "version": "1",
    "title": "My corpus",
    "licence": "mine",
    "home": "https://example.org",
    "domain": "speech",
    "reader": {"type": "csv", "files": "meta.csv"},
    "clip": {"id": "{id}", "audio": "{file_name}"},
}
EXPECTED = """fsdd esc50 esc10 ravdess librispeech ljspeech vctk crema_d common_voice libritts_r voxceleb1 meld
audiocaps clotho fsd50k gtzan nsynth jsonl csv
emov_db esd iemocap l2_arctic vocalsound urbansound8k tau_scenes_2019 medley_solos_db mridangam asvspoof2019
asvspoof5 nisqa noisy_vctk opensinger mls speech_commands vocal_imitations globe cameo disfluency_speech ascend
heysquad fleurs speechocean762 musiccaps singmos audioset ami dailytalk meld_dialogues voxceleb1_pairs
alimeeting mucs instructs2s sonicmaster librispeech_mixtures expresso cszs"""


def test_all_shipped_cards_are_whole_and_say_where_they_come_from() -> None:
    assert shipped_cards() == sorted(EXPECTED.split())
    for name in shipped_cards():
        card = read_card(name)
        assert card.name == name and card.home.startswith("https://") and card.licence and card.obtain
        if name not in ("jsonl", "csv"):
            assert card.citation and card.domain and (card.split.by or card.split.shares)
            assert card.hours or card.seen == "description"
            for paper in card.papers.values():
                assert paper.name and len(paper.ids) in (0, 2) and (paper.rows is None) == (paper.hours is None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "x"}, "unknown key 'card.licens'. Did you mean 'licence'"),
        (
            {"reader": {"type": "csv", "files": "a", "delimeter": ";"}},
            "'card.reader.delimeter'. Did you mean 'delimiter'",
        ),
        ({"reader": {"type": "cvs", "files": "a"}}, "reader.type 'cvs' is not known. Did you mean 'csv'"),
        ({"reader": {"type": "csv"}}, "'card.reader.files' must be given"),
        ({"reader": {"type": "csv", "files": 7}}, "reader.files must be a glob or a list of globs, found 7"),
        ({"reader": {"type": "files", "files": "a", "pattern": "("}}, "reader.pattern is not a regular expression"),
        (
            {"reader": {"type": "csv", "files": "a", "tables": {"t": {"kee": "x"}}}},
            "'reader.tables.t.kee'. Did you mean 'key'",
        ),
        ({"cut": {"end": "{to}"}}, "'card.cut.start' must be given"),
        ({"cut": {"start": "{at}", "stop": "{to}"}}, "unknown key 'card.cut.stop'"),
        ({"papers": {"alarm": {"rows": 3}}}, "'card.papers.alarm.name' must be given"),
        ({"papers": {"alarm": {"name": "x", "hours": "many"}}}, "papers.alarm"),
        ({"join": {"kind": "mix"}}, "join.kind 'mix' is not known. Known: dialogue, mixtures, pairs"),
        ({"domain": "speach"}, "domain 'speach' is not known. Did you mean 'speech'"),
        ({"clip": {"id": "a", "audio": "b", "transkript": "c"}}, "'clip.transkript'. Did you mean 'transcript'"),
        ({"clip": {"id": "a"}}, "clip needs at least id and audio"),
        (
            {"attributes": {"gender": "m"}, "values": {"gendre": {"m": "male"}}},
            "'values.gendre'. Did you mean 'gender'",
        ),
        ({"attributes": {"a": "m"}, "values": {"a": {True: "x"}}}, "unquoted yes, no, on or off as True"),
        ({"split": {"shares": {"train": 0.5, "test": 0.4}}}, "split.shares must be 0 or more and add up to 1"),
        ({"split": {"by": "{x}", "values": {"dev": None}}}, "there are no shares"),
        ({"seen": "filed"}, "seen 'filed' is not known. Did you mean 'files'"),
        ({"reader": {"type": "lines", "files": "a"}}, "reader.line"),
        ({"reader": {"type": "csv", "files": "a", "line": "(?P<id>.*)"}}, "reader.line"),
        ({"version": 2}, "'card.version' must be text, found 2"),
    ],
)
def test_a_wrong_card_is_refused_naming_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError) as error:
        parse_card({**CARD, **change}, where="x.yaml")
    assert message in str(error.value) and str(error.value).startswith("card x.yaml: ")


def test_everything_that_is_missing_or_wrong_is_named_at_once() -> None:
    wrong = {"name": "x", "licens": "y", "version": 1, "reader": {"type": "csv"}, "split": {"shares": 3}}
    with pytest.raises(CorpusError) as error:
        parse_card(wrong, where="x.yaml")
    for part in (
        "'card.title' must be given",
        "'card.licence' must be given",
        "'card.reader.files' must be given",
        "unknown key 'card.licens'. Did you mean 'licence'",
        "'card.version' must be text, found 1",
        "'card.split.shares' must be a mapping of numbers",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(CorpusError, match="domain 'x' is not known.*clip needs at least id and audio"):
        parse_card({**CARD, "domain": "x", "clip": {"id": "a"}}, where="x.yaml")


def test_a_private_corpus_needs_no_home() -> None:
    assert parse_card({key: value for key, value in CARD.items() if key != "home"}, where="x.yaml").home == ""


@pytest.mark.parametrize("template", ["{a", "a}", "{}", "{a|upper}"])
def test_a_wrong_template_is_refused_before_any_row_is_read(tmp_path: Path, template: str) -> None:
    (tmp_path / "meta.csv").write_text("id,file_name\n")
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({**CARD, "attributes": {"a": template}}))
    with pytest.raises(CorpusError, match="card mine: attributes.a: "):
        list(load_corpus(tmp_path / "card.yaml", tmp_path))


def test_an_unknown_corpus_names_the_nearest() -> None:
    with pytest.raises(CorpusError, match="no corpus 'libri_speech'. Did you mean 'librispeech'"):
        load_corpus("libri_speech", ".")


def test_a_card_that_is_no_yaml_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text("name: [")
    with pytest.raises(CorpusError, match=r"card\.yaml: not YAML"):
        load_corpus(tmp_path / "card.yaml", tmp_path)
    with pytest.raises(CorpusError, match=r"other\.yaml does not exist"):
        load_corpus(tmp_path / "other.yaml", tmp_path)


def test_without_the_files_the_card_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"corpus 'fsdd': no file matches 'recordings/\*\.wav' below .*Clone the repo"
    ):
        load_corpus("fsdd", tmp_path)
    with pytest.raises(FileNotFoundError, match="data root .*nowhere does not exist"):
        load_corpus("fsdd", tmp_path / "nowhere")


def test_overrides_reach_into_the_card() -> None:
    card = read_card("vctk", {"reader": {"texts": {"text": {"required": True}}}, "domain": "audio"})
    assert card.reader.texts["text"].required and card.reader.texts["text"].path.startswith("txt/")
    assert card.domain == "audio" and card.reader.files == read_card("vctk").reader.files
    with pytest.raises(CorpusError, match="'reader.texts.text.require'. Did you mean 'required'"):
        read_card("vctk", {"reader": {"texts": {"text": {"require": True}}}})


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{n}", 7),
        ("{n}-{text}", "7-Two Words"),
        ("{text|lower}", "two words"),
        ("{text|sentence}", "Two words"),
        ("{path|stem}", "c.d"),
        ("{labels|list|words}", ["a b", "c"]),
        ("{empty}", None),
        ("{n} {empty}", None),
        ("{n} {empty?}", "7"),
        ("{gone?}{n}", "7"),
        ("{gone?}", None),
        ("{table.column}", "joined"),
        ("{Sr No.}", "dotted"),
        ("constant", "constant"),
    ],
)
def test_templates(template: str, value: Any) -> None:
    record = {
        "n": 7,
        "text": " Two Words ",
        "path": "a/b/c.d.wav",
        "labels": "a_b, c",
        "empty": "",
        "table": {"column": "joined"},
        "Sr No.": "dotted",
    }
    assert compile_value(template, where="x")(record) == value


def test_an_unknown_field_names_the_nearest_also_of_a_joined_table() -> None:
    with pytest.raises(UnknownField, match="no field 'table.colum'. Did you mean 'table.column'"):
        compile_value("{table.colum}", where="x")({"a": 1, "table": {"column": "joined"}})


def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "corpora.md").read_text(encoding="utf-8")
    (tmp_path / "birds.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    (tmp_path / "labels.csv").write_text("clip,species,place,rec,set\na1.wav,blackbird,my_garden,r17,test\n")
    (tmp_path / "recorders.csv").write_text("rec,model\nr17,x\n")
    (clip,) = load_corpus(tmp_path / "birds.yaml", tmp_path)
    assert clip["id"] == "birds_a1" and clip["split"] == "test" and clip["group"] == "r17"
    assert clip["attributes"] == {"species": "a blackbird", "place": "my garden", "recorder": "x"}


def test_the_documentation_lists_every_card() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cards.md").read_text(encoding="utf-8")
    assert not [name for name in shipped_cards() if f"`{name}`" not in text]
