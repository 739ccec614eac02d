"""From rows to clips: manifests, joins, splits, and errors that name file and row."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_desta.recipes.corpora import CorpusError, load_corpus
from nemo_desta.recipes.corpora.splits import ValidationConfig
from nemo_desta.recipes.describe import NOT_AUDIBLE

Replica = Callable[[Mapping[str, Any]], Path]
ROW = {"id": "a", "audio": "a.wav", "domain": "speech"}
CARD: dict[str, Any] = {
    "name": "mine",
    "version": "3",
    "title": "My corpus",
    "licence": "mine",
    "home": "https://example.org",
    "domain": "speech",
    "reader": {"type": "csv", "files": "meta.csv"},
    "clip": {"id": "{id}", "audio": "{wav}", "group": "{speaker}"},
    "attributes": {"gender": "{sex}"},
    "values": {"gender": {"m": "male", "f": "female", "?": None}},
    "not_audible": ["shoe_size"],
}


def card(root: Path, **changes: Any) -> Path:
    (root / "card.yaml").write_text(yaml.safe_dump({**CARD, **changes}))
    return root / "card.yaml"


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_manifest_needs_no_card(replica: Replica) -> None:
    long = {**ROW, "id": "b", "duration": 2.5, "split": "test", "source": "else", "attributes": {"x": 1}, "extra": [1]}
    root = replica({"m.jsonl": lines(ROW, long)})
    corpus = load_corpus("m.jsonl", root)
    assert (corpus.name, corpus.version, corpus.not_audible) == ("m", "1", NOT_AUDIBLE)
    assert list(corpus) == [{**ROW, "source": "m", "attributes": {}, "duration": None}, long]
    assert list(corpus) == list(corpus)
    assert [clip["id"] for clip in load_corpus(root / "m.jsonl", root, splits=["test"])] == ["b"]


def test_columns_of_a_table_that_are_no_field_of_a_clip_are_attributes(replica: Replica) -> None:
    table = (
        'id,audio,duration,domain,transcript,gender,mood\n1,a.wav,1.5,speech,"Yes, sir",male,\n2,b.wav,,sound,,,calm\n'
    )
    root = replica({"m.csv": table, "m.tsv": table.replace(",", "\t").replace('"Yes\t sir"', '"Yes", sir')})
    first, second = load_corpus("m.csv", root)
    assert first["transcript"] == "Yes, sir" and first["duration"] == 1.5 and first["attributes"] == {"gender": "male"}
    assert second["transcript"] is None and second["duration"] is None and second["attributes"] == {"mood": "calm"}
    assert next(iter(load_corpus("m.tsv", root)))["transcript"] == '"Yes", sir'


def test_a_card_names_maps_and_excludes(replica: Replica) -> None:
    root = replica(
        {"meta.csv": "id,wav,speaker,sex\n1,x/1.wav,s1,m\n2,x/2.wav,s1,f\n3,x/3.wav,s2,?\n4,4.wav,s2,other\n"}
    )
    corpus = load_corpus(card(root), root)
    assert [clip["attributes"] for clip in corpus] == [
        {"gender": "male"},
        {"gender": "female"},
        {},
        {"gender": "other"},
    ]
    assert corpus.version == "3" and "shoe_size" in corpus.not_audible and "speaker" in corpus.not_audible
    assert {clip["source"] for clip in corpus} == {"mine"}


def test_a_json_document_is_read_in_its_order(replica: Replica) -> None:
    entries = {f"käy{i}": {"wav": f"{i}.wav", "speaker": f"s{i}", "sex": "m", "n": {"deep": i}} for i in range(50)}
    root = replica({"meta.json": json.dumps(entries, ensure_ascii=False, indent=1), "list.json": "[]"})
    path = card(root, reader={"type": "json", "files": "meta.json"}, clip={"id": "{key}", "audio": "{wav}"})
    assert [clip["id"] for clip in load_corpus(path, root)] == list(entries)
    listed = load_corpus(path, root, overrides={"reader": {"files": "list.json"}})
    assert list(listed) == []


def test_shares_keep_groups_together_and_do_not_depend_on_other_groups(replica: Replica) -> None:
    rows = [f"{i},{i}.wav,s{i // 4},m" for i in range(800)]
    root = replica({"meta.csv": "id,wav,speaker,sex\n" + "\n".join(rows) + "\n"})
    path = card(root, split={"shares": {"train": 0.5, "valid": 0.25, "test": 0.25}})
    split_of = {clip["group"]: clip["split"] for clip in load_corpus(path, root)}
    shares = [list(split_of.values()).count(name) / 200 for name in ("train", "valid", "test")]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.1)
    replica({"meta.csv": "id,wav,speaker,sex\n" + "\n".join(rows[400:420]) + "\n"})
    assert all(split_of[clip["group"]] == clip["split"] for clip in load_corpus(path, root))


def test_tables_are_joined_and_a_key_twice_is_named(replica: Replica) -> None:
    table = {"files": "people.jsonl", "type": "jsonl", "key": "{who}", "match": "{speaker}"}
    reader = {"type": "csv", "files": "meta.csv", "tables": {"people": table}}
    root = replica({"meta.csv": "id,wav,speaker\n1,a.wav,7\n2,b.wav,8\n"})
    replica({"people.jsonl": lines({"who": 7, "sex": "m"}, {"who": 8, "sex": "f"})})
    path = card(root, reader=reader, attributes={"gender": "{people.sex}"})
    assert [clip["attributes"]["gender"] for clip in load_corpus(path, root)] == ["male", "female"]
    replica({"people.jsonl": lines({"who": 7, "sex": "m"}, {"who": 7, "sex": "f"})})
    with pytest.raises(CorpusError, match=r"people\.jsonl:2: key '7' was seen before"):
        list(load_corpus(path, root))


def test_asking_for_a_split_that_no_clip_is_in_is_an_error(replica: Replica) -> None:
    root = replica({"m.jsonl": lines({**ROW, "split": "train"}, {**ROW, "id": "b", "split": "valid"})})
    with pytest.raises(CorpusError, match="no clip in validation; its splits: train, valid"):
        list(load_corpus("m.jsonl", root, splits=["validation"]))


def valid_ids(root: Path, share: float = 0.1, seed: int = 0, splits: list[str] | None = None) -> set[str]:
    corpus = load_corpus("m.jsonl", root, splits=splits, validation=ValidationConfig(share, seed))
    return {clip["id"] for clip in corpus if clip.get("split") == "valid"}


def test_a_corpus_without_a_validation_split_gets_one_by_whole_groups(replica: Replica) -> None:
    rows = [{**ROW, "id": f"c{i}", "split": "train", "speaker_id": f"s{i // 3}"} for i in range(90)]
    rows += [{**ROW, "id": f"t{i}", "split": "test"} for i in range(9)]
    root = replica({"m.jsonl": lines(*rows)})
    corpus = load_corpus("m.jsonl", root, splits=["train", "valid"], validation=ValidationConfig(0.1, 0))
    speakers = {name: {c["speaker_id"] for c in corpus if c["split"] == name} for name in ("train", "valid")}
    assert not speakers["train"] & speakers["valid"] and (len(speakers["train"]), len(speakers["valid"])) == (27, 3)
    made, left = corpus.said_of_splits()
    assert "9 of 90 training clips (10%), whole groups, became 'valid'" in made and left == "m: left out: test 9 clips"
    found = valid_ids(root)
    assert found == valid_ids(root) == valid_ids(root, splits=["train", "valid"]) != valid_ids(root, seed=1)
    replica({"m.jsonl": lines(*reversed(rows))})
    assert valid_ids(root) == found, "the choice depends on ids and seed alone"
    assert valid_ids(root, share=0.0) == valid_ids(root, splits=["train"]) == set()


def test_a_small_corpus_gets_one_whole_speaker_and_a_single_group_stays_whole(replica: Replica) -> None:
    rows = [
        {**ROW, "id": f"c{i}", "speaker_id": f"s{min(i // 4, 2)}"} for i in range(13)
    ]  # 4, 4 and 5 clips, no split
    root = replica({"m.jsonl": lines(*rows)})
    assert valid_ids(root) in ({f"c{i}" for i in range(4)}, {f"c{i}" for i in range(4, 8)})
    replica({"m.jsonl": lines(*({**row, "speaker_id": "one"} for row in rows))})
    corpus = load_corpus("m.jsonl", root, splits=["train", "valid"], validation=ValidationConfig())
    assert {clip["split"] for clip in corpus} == {"train"} and "all clips are one group" in corpus.said_of_splits()[0]


@pytest.mark.parametrize("name", ["valid", "dev"])
def test_a_validation_split_of_the_corpus_is_kept_as_it_is(replica: Replica, name: str) -> None:
    rows = [{**ROW, "id": f"c{i}", "split": "train" if i < 8 else name} for i in range(10)]
    root = replica({"m.jsonl": lines(*rows)})
    corpus = load_corpus("m.jsonl", root, splits=["train", "valid"], validation=ValidationConfig(0.5))
    assert sum(clip["split"] == "train" for clip in corpus) == 8
    said = corpus.said_of_splits()
    assert said == [] if name == "valid" else "dev 2 clips; a validation split is called 'valid' here" in said[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "b", "audio": "b.w', "not JSON .*is the line cut"),
        (b'{"id": "\xff"}', "not UTF-8"),
        (b"[1]", "expected one JSON object per line, found a list"),
        ({**ROW, "id": "a"}, "id 'a' was seen before"),
        ({"id": "b", "audio": "b.wav"}, "domain missing"),
        ({**ROW, "id": 7.5}, "id must be text, found float 7.5"),
        ({**ROW, "id": "b", "domain": "speach"}, "domain 'speach' is not known. Did you mean 'speech'"),
        ({**ROW, "id": "b", "duration": "2"}, "duration must be seconds above 0, found '2'"),
        ({**ROW, "id": "b", "attributes": ["x"]}, "attributes must be an object"),
        ({**ROW, "id": "b", "audio": "../../etc/passwd"}, "is not a file below the data root"),
        ({**ROW, "id": "b", "audio": "/etc/passwd"}, "is not a file below the data root"),
        ({**ROW, "id": "b", "group": "g", "split": "test"}, "group 'g' is in split 'test' here and in 'train' before"),
    ],
)
def test_a_bad_row_of_a_manifest_is_named_by_file_and_line(replica: Replica, line: Any, message: str) -> None:
    first = lines({**ROW, "group": "g", "split": "train"}).encode()
    root = replica({"m.jsonl": first + (line if isinstance(line, bytes) else lines(line).encode())})
    with pytest.raises(CorpusError, match=rf"m\.jsonl:2: .*{message}"):
        list(load_corpus("m.jsonl", root))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2,b.wav,s1", r"meta\.csv:3: 3 columns, expected 4 \(id, wav, speaker, sex\); is the line cut"),
        ("2,b.wav,s1,m,x", r"meta\.csv:3: 5 columns, expected 4"),
        ('2,b.wav,s1,"m', r"meta\.csv:3: not ','-separated text .*is it cut"),
        ("2,,s1,m", r"meta\.csv:3: audio missing"),
        ("1,b.wav,s1,m", r"meta\.csv:3: id '1' was seen before"),
        ("2,../b.wav,s1,m", r"meta\.csv:3: audio '\.\./b\.wav' is not a file below the data root"),
    ],
)
def test_a_bad_row_of_a_table_is_named_by_file_and_line(replica: Replica, row: str, message: str) -> None:
    root = replica({"meta.csv": f"id,wav,speaker,sex\n1,a.wav,s1,m\n{row}\n"})
    with pytest.raises(CorpusError, match=message):
        list(load_corpus(card(root), root))


def test_lines_are_counted_right_behind_a_field_of_several_lines(replica: Replica) -> None:
    root = replica({"meta.csv": 'id,wav,speaker,sex\n1,a.wav,s1,"m\n\nm"\n2,b.wav\n'})
    with pytest.raises(CorpusError, match=r"meta\.csv:5: 2 columns"):
        list(load_corpus(card(root), root))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attributes": {"gender": "{sexx}"}},
            r"meta\.csv:2: attributes\.gender: no field 'sexx'\. Did you mean 'sex'",
        ),
        ({"clip": {"id": "{i}", "audio": "{wav}"}}, r"meta\.csv:2: clip\.id: no field 'i'"),
        (
            {"split": {"by": "{speaker}", "values": {"s2": "train"}}},
            r"meta\.csv:2: split\.values has no 's1'\. Known: s2",
        ),
        ({"reader": {**CARD["reader"], "where": {"keep": "1"}}}, r"meta\.csv:2: no field 'keep', which reader\.where"),
        ({"reader": {**CARD["reader"], "parts": {"wav": r"(\d+)\.wav"}}}, r"meta\.csv:2: wav 'a\.wav' does not match"),
        ({"reader": {**CARD["reader"], "pattern": r"(?P<x>y)\.csv"}}, r"meta\.csv does not match the card's pattern"),
        (
            {"reader": {**CARD["reader"], "texts": {"t": {"path": "../{id}"}}}},
            r"meta\.csv:2: text '\.\./1' is not a file",
        ),
        ({"reader": {**CARD["reader"], "texts": {"t": {"path": "{id}.txt"}}}}, r"meta\.csv:2: no text file 1\.txt"),
        ({"reader": {"type": "csv", "files": "../meta.csv"}}, r"'\.\./meta\.csv' leaves the data root"),
        ({"reader": {"type": "csv", "files": ["meta.csv", "b*.csv"]}}, r"no file matches 'b\*\.csv'"),
        (
            {"reader": {"type": "json", "files": "meta.csv"}},
            r"meta\.csv: expected a JSON list or an object of objects",
        ),
    ],
)
def test_what_a_card_asks_for_and_the_files_lack_is_named(
    replica: Replica, changes: dict[str, Any], message: str
) -> None:
    root = replica({"meta.csv": "id,wav,speaker,sex\n1,a.wav,s1,m\n"})
    with pytest.raises(CorpusError, match=message):
        list(load_corpus(card(root, **changes), root))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": {"wav": "1.wav"}, "b": {"wa', "entry 2: not JSON .*is the file cut"),
        (b'{"a": {"wav": "1.wav"}', "entry 2: expected ',' or '}' after entry 1; is the file cut"),
        (b'{"a": 7}', "entry 1: expected an object, found a int"),
        (b'{"a": {"wav": "\xff"}}', "not UTF-8"),
    ],
)
def test_a_damaged_json_document_is_named(replica: Replica, content: bytes, message: str) -> None:
    root = replica({"meta.json": content})
    clip = {"id": "{key}", "audio": "{wav}"}
    path = card(root, reader={"type": "json", "files": "meta.json"}, clip=clip, attributes={}, values={})
    with pytest.raises(CorpusError, match=rf"meta\.json:? ?{message}"):
        list(load_corpus(path, root))


def test_a_damaged_gz_is_named(replica: Replica) -> None:
    import gzip

    packed = gzip.compress(lines(ROW).encode())
    root = replica({"m.jsonl.gz": packed, "cut.jsonl.gz": packed[:-12]})
    assert [clip["id"] for clip in load_corpus("m.jsonl.gz", root)] == ["a"]
    with pytest.raises(CorpusError, match=r"cut\.jsonl\.gz:\d: cannot be read"):
        list(load_corpus("cut.jsonl.gz", root))


def test_memory_holds_no_more_than_short_hashes_of_ids(replica: Replica) -> None:
    import tracemalloc

    rows = "".join(json.dumps({**ROW, "id": f"clip-{i:06d}", "transcript": "word " * 40}) + "\n" for i in range(4_000))
    corpus = load_corpus("m.jsonl", replica({"m.jsonl": rows}))
    tracemalloc.start()
    count = sum(1 for _ in corpus)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4_000
    assert peak < 4_000 * 250, f"{peak / 4_000:.0f} bytes per clip"
