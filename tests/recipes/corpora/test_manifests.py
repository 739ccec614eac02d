"""Manifests as people hand them in: poison rows, misspelt keys, pandas' columns, semicolons, NeMo's names, packed."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.recipes.corpora import CorpusError, load_corpus
from nemo_desta.recipes.describe import describe

Replica = Callable[[Mapping[str, Any]], Path]
ROW = {"id": "a", "audio": "a.wav", "domain": "speech", "duration": 2.0}
SEGMENT = {"start": 0, "end": 1, "speaker": "A", "transcript": "hi"}
DEEP = "[" * 100_000 + "]" * 100_000


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segments": "abc"}, "segments must be a list of objects, found str"),
        ({"segments": 5}, "segments must be a list of objects, found int"),
        ({"segments": [5]}, r"segments\[0\] must be an object, found int 5"),
        ({"segments": [SEGMENT, {**SEGMENT, "start": "0"}]}, r"segments\[1\]: segment start is '0'"),
        ({"segments": [{**SEGMENT, "end": 1e24}]}, "segment end is 1e"),
        ({"segments": [{**SEGMENT, "attributes": "x"}]}, r"segments\[0\]\.attributes must be an object"),
        ({"segments": [{**SEGMENT, "speaker": ["A"]}]}, r"segments\[0\]\.speaker must be text"),
        ({"segments": [{**SEGMENT, "transcript": {"en": "hi"}}]}, r"segments\[0\]\.transcript must be text"),
        ({"segments": [SEGMENT], "speakers": {"A": "male"}}, r"speakers\.A must be an object"),
        ({"speakers": ["A"]}, "speakers must be an object"),
        ({"attributes": {"gender": {"is": "male"}}}, r"attributes\.gender must be text, a number"),
        ({"attributes": {"snr": float("nan")}}, r"attributes\.snr must be text, a number"),
        ({"caption": {"en": "rain"}}, "caption must be text"),
        ({"transcript": 7}, "transcript must be text, found int 7"),
        ({"duration": 1e24}, "duration is 1e"),
        ({"duration": True}, "duration must be seconds above 0, found True"),
        ({"duration": float("nan")}, "duration must be seconds above 0, found nan"),
        ({"duration": -1}, "duration must be seconds above 0, found -1"),
        ({"transcript": "half \ud83d"}, "cannot be written as JSON"),
        ({"id": "\ud83d"}, "cannot be written as JSON"),
        ({"attributes": {"n": 10**30}}, "cannot be written as JSON"),
        ({"id": True}, "id must be text, found bool True"),
        ({"id": {}}, "id must be text"),
    ],
)
def test_a_row_of_wrong_types_is_named_by_file_line_and_id(
    replica: Replica, changes: dict[str, Any], message: str
) -> None:
    root = replica({"m.jsonl": lines({**ROW, "id": "first"}, {**ROW, **changes})})
    with pytest.raises(CorpusError, match=rf"m\.jsonl:2: .*{message}"):
        list(load_corpus("m.jsonl", root))


@pytest.mark.parametrize("poison", [DEEP, "1" * 5000, '{"a": ' * 100_000], ids=["deep list", "digits", "deep object"])
def test_json_that_python_cannot_read_is_named_by_file_and_line(replica: Replica, poison: str) -> None:
    root = replica({"m.jsonl": lines(ROW) + f'{{"id": "b", "note": {poison}}}\n', "m.json": f'[{{"id": {poison}}}]'})
    with pytest.raises(CorpusError, match=r"m\.jsonl:2: not JSON"):
        list(load_corpus("m.jsonl", root))
    with pytest.raises(CorpusError, match=r"m\.json:entry 1: not JSON"):
        list(load_corpus("m.json", root))


def test_a_gz_that_is_damaged_in_its_middle_is_named(replica: Replica) -> None:
    import gzip

    packed = bytearray(gzip.compress(lines(ROW).encode()))
    packed[10] = 0x07  # a kind of block that there is not: zlib's own error
    with pytest.raises(CorpusError, match=r"m\.jsonl\.gz:1: cannot be read"):
        list(load_corpus("m.jsonl.gz", replica({"m.jsonl.gz": bytes(packed)})))


def test_a_numbered_speaker_is_found_among_the_speakers(replica: Replica) -> None:
    row = {**ROW, "segments": [{**SEGMENT, "speaker": 1}], "speakers": {"1": {"gender": "female"}}}
    (clip,) = load_corpus("m.jsonl", replica({"m.jsonl": lines(row)}))
    assert "(Speaker: first, Gender: female, Duration: 1s)" in describe(clip)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("transcipt", "hello", "'transcipt', and no 'transcript'"),
        ("attribute", {"gender": "male"}, "'attribute', and no 'attributes'"),
        ("Attributes", {"gender": "male"}, "'Attributes', and no 'attributes'"),
        ("captions", ["rain"], "'captions', and no 'caption'"),
        ("text", "hello", "'text', and no 'transcript'"),
        ("speaker", "Ann", "'speaker', and no 'speaker"),
        ("segments", [{"start": 0, "end": 1, "text": "hi"}], r"'segments\.text', and no 'segments\.transcript'"),
        ("segments", [{**SEGMENT, "attribute": {"mood": "sad"}}], r"'segments\.attribute', and no"),
    ],
)
def test_a_misspelt_key_is_no_half_description(replica: Replica, key: str, value: Any, message: str) -> None:
    rows = [{**ROW, "id": "first"}, {**ROW, key: value}]
    root = replica({"m.jsonl": lines(*rows), "m.json": json.dumps(rows)})
    for name, where in (("m.jsonl", "2"), ("m.json", "entry 2")):
        with pytest.raises(CorpusError, match=rf"{name}:{where}: unknown key {message}.*strict_keys: false"):
            list(load_corpus(name, root))
        assert len(list(load_corpus(name, root, overrides={"reader": {"strict_keys": False}}))) == 2


def test_a_key_beside_a_null_of_the_like_name_is_a_note(replica: Replica, caplog: pytest.LogCaptureFixture) -> None:
    """The author knows the field and says that it is unknown."""
    root = replica({"m.jsonl": lines({**ROW, "transcript": None, "transcript_note": "not available"})})
    (clip,) = load_corpus("m.jsonl", root)
    assert "not available" not in describe(clip)
    assert "key 'transcript_note' is not read" in caplog.text


def test_a_key_that_nothing_reads_is_named_once_per_file_and_counted(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**ROW, "id": f"{i}", "gender": "male", **({"note": 1} if i == 3 else {})} for i in range(5)]
    root = replica({"m.jsonl": lines(*rows)})
    corpus = load_corpus("m.jsonl", root)
    assert [clip["id"] for clip in corpus] == [clip["id"] for clip in corpus] == list("01234")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4 and "m.jsonl:1: key 'gender' is not read" in said[0] and "into 'attributes'" in said[0]
    assert "m.jsonl:4: keys 'gender', 'note' are not read" in said[1]
    assert said[2].endswith("4 rows") and said[3].endswith("1 rows")
    assert sorted(corpus.notices.values()) == [1, 4]


def test_a_key_that_the_card_reads_or_that_stands_beside_its_like_is_no_mistake(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    row = {**ROW, "sex": "m", "part": "dev", "transcript": "hi"}
    root = replica({"m.jsonl": lines(row)})
    overrides = {"attributes": {"gender": "{sex}"}, "split": {"by": "{part}"}}
    (clip,) = load_corpus("m.jsonl", root, overrides=overrides)
    assert clip["attributes"] == {"gender": "m"} and clip["split"] == "dev" and not caplog.records
    assert list(load_corpus("m.jsonl", replica({"m.jsonl": lines({**row, "text": "hi", "sex": 1, "idx": 5})})))


PANDAS = ",id,audio,domain,transcript,emotion\n0,a,a.wav,speech,Hi,happy\n5,b,b.wav,speech,Ho,sad\n"


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_pandas_index_column_is_no_fact_about_the_sound(
    replica: Replica, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    root = replica({"m.csv": name + PANDAS})
    assert [clip["attributes"] for clip in load_corpus("m.csv", root)] == [{"emotion": "happy"}, {"emotion": "sad"}]
    assert "is left out" in caplog.records[0].getMessage() and len(caplog.records) == 2
    replica({"m.csv": name + PANDAS.replace("5,b", "loud,b")})
    with pytest.raises(CorpusError, match=rf"m\.csv:3: column '{name}' has no name of its own and holds 'loud'"):
        list(load_corpus("m.csv", root))


@pytest.mark.parametrize("mark", ["nan", "NaN", "None", "N/A", "null", "<NA>"])
def test_a_spelt_out_missing_value_is_missing_in_a_table_and_a_word_in_json(
    replica: Replica, mark: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = f"id,audio,domain,transcript,emotion\na,a.wav,speech,{mark},{mark}\nb,b.wav,speech,{mark} yes,sad\n"
    root = replica({"m.csv": table, "m.tsv": table.replace(",", "\t"), "m.jsonl": lines({**ROW, "transcript": mark})})
    for name in ("m.csv", "m.tsv"):
        first, second = load_corpus(name, root)
        assert first["transcript"] is None and first["attributes"] == {}
        assert second["transcript"] == f"{mark} yes" and second["attributes"] == {"emotion": "sad"}
    assert f"'{mark}' counts as missing in column 'transcript' (reader.missing)" in caplog.text
    (clip,) = load_corpus("m.jsonl", root)
    assert clip["transcript"] == mark


def test_a_card_says_what_is_missing(replica: Replica) -> None:
    root = replica({"m.csv": "id,audio,domain,transcript,emotion\na,a.wav,speech,None,unknown\n"})
    (clip,) = load_corpus("m.csv", root, overrides={"reader": {"missing": ["unknown"]}})
    assert clip["transcript"] == "None" and clip["attributes"] == {}
    (clip,) = load_corpus("m.csv", root, overrides={"reader": {"missing": []}})
    assert clip["attributes"] == {"emotion": "unknown"}
    mapped = {"clip": {"id": "{id}", "audio": "{audio}", "transcript": "{transcript}"}, "domain": "speech"}
    (clip,) = load_corpus("m.csv", root, overrides=mapped)
    assert clip["transcript"] == "None"
    (clip,) = load_corpus("m.csv", root, overrides={**mapped, "reader": {"missing": ["None"]}})
    assert clip["transcript"] is None


def test_holes_in_a_parquet_table_are_missing(replica: Replica) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    root = replica({})
    columns = {"id": ["a"], "audio": ["a.wav"], "domain": ["sound"], "snr": [float("nan")], "mood": ["None"]}
    parquet.write_table(pa.table({**columns, "__index_level_0__": [17]}), root / "t.parquet")
    (root / "card.yaml").write_text(
        "{name: t, version: '1', title: t, licence: x, home: x, reader: {type: huggingface, files: t.parquet}}"
    )
    (clip,) = load_corpus(root / "card.yaml", root)
    assert clip["attributes"] == {}


@pytest.mark.parametrize("sign", [";", "\t"])
def test_the_header_of_a_csv_says_what_separates_its_columns(replica: Replica, sign: str) -> None:
    table = "id,audio,domain,transcript\na,a.wav,speech,x\n".replace(",", sign).replace("x\n", '"Yes, sir"\n')
    (clip,) = load_corpus("m.csv", replica({"m.csv": table}))
    assert clip["transcript"] == "Yes, sir" and clip["attributes"] == {}
    root = replica({"m.csv": table})
    with pytest.raises(
        CorpusError,
        match=r"m\.csv:2: id, audio, domain missing; a clip needs id, audio, domain, has: .*`desta card .*m\.csv`",
    ):
        list(load_corpus("m.csv", root, overrides={"reader": {"delimiter": "|"}}))


def test_a_header_that_is_no_csv_is_named(replica: Replica) -> None:
    with pytest.raises(CorpusError, match=r"m\.csv:1: not ','-separated text"):
        list(load_corpus("m.csv", replica({"m.csv": b"id,audio\rdomain\n"})))


NEMO = {"audio_filepath": "wav/a.wav", "duration": 2.5, "text": "hello", "lang": "en", "pnc": "no", "speaker": "s1"}


def test_a_nemo_manifest_is_read_as_it_is(replica: Replica) -> None:
    other = {**NEMO, "audio_filepath": "/abs", "offset": 0, "id": 7}
    root = replica({"asr/train.json": lines(NEMO), "plain.jsonl": lines(NEMO)})
    replica({"asr/abs.json": lines({**other, "audio_filepath": str(root / "asr/wav/a.wav")})})
    (clip,) = load_corpus("asr/train.json", root)
    assert {key: clip[key] for key in clip if key in ("id", "audio", "transcript", "language", "duration")} == {
        **{"id": "wav/a.wav", "audio": "asr/wav/a.wav", "transcript": "hello", "language": "en", "duration": 2.5}
    }
    assert (clip["domain"], clip["speaker_id"]) == ("speech", "s1")
    assert describe(clip) == "[00:00-00:03] hello (Duration: 3s)"
    (clip,) = load_corpus(root / "asr/abs.json", root)
    assert (clip["id"], clip["audio"]) == ("7", "asr/wav/a.wav")
    (clip,) = load_corpus("plain.jsonl", root)
    assert clip["audio"] == "wav/a.wav"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1.5}, "offset 1.5: a clip must be a whole file"),
        ({"audio_filepath": 5}, "audio_filepath must be text"),
        ({"audio_filepath": "../../x.wav"}, "is not a file below the data root"),
        ({"text": None, "txt": 1, "domain": 5}, "domain must be text"),
    ],
)
def test_a_nemo_row_that_is_no_clip_is_named(replica: Replica, changes: dict[str, Any], message: str) -> None:
    root = replica({"train.json": lines({**NEMO, **changes})})
    with pytest.raises(CorpusError, match=rf"train\.json:1: .*{message}"):
        list(load_corpus("train.json", root))


def test_ids_may_be_whole_numbers(replica: Replica) -> None:
    root = replica({"m.jsonl": lines({**ROW, "id": 7, "speaker_id": 3, "group": 3})})
    (clip,) = load_corpus("m.jsonl", root)
    assert (clip["id"], clip["speaker_id"], clip["group"]) == ("7", "3", "3")


def test_a_zst_manifest_is_read_and_a_cut_one_is_named(replica: Replica) -> None:
    zstandard = pytest.importorskip("zstandard")
    rows = [{**ROW, "id": f"{i}", "transcript": f"{i * i} words"} for i in range(3000)]
    packed = zstandard.compress(lines(*rows[:1000]).encode()) + zstandard.compress(lines(*rows[1000:]).encode())
    files = {"m.jsonl.zst": packed, "cut.jsonl.zst": packed[:-40], "bad.jsonl.zst": packed[:99] + b"\0" * 99}
    root = replica(files)
    assert [clip["id"] for clip in load_corpus("m.jsonl.zst", root)] == [row["id"] for row in rows]
    for name in ("cut.jsonl.zst", "bad.jsonl.zst"):
        with pytest.raises(CorpusError, match=rf"{name}:\d+: cannot be read"):
            list(load_corpus(name, root))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("name: " + "[" * 5000, "not YAML in UTF-8: RecursionError"),
        ("name: 2020-13-45", "not YAML in UTF-8: ValueError"),
        ("{? [a] : b}", "not YAML|card"),
        ("values: {gender: [m, f]}", "must be a mapping"),
        ("split: {by: '{a}', values: {a: 5}}", "a split's name must be text, found 5"),
        ("split: {shares: {train: a}}", "'card.split.shares.train' must be a number"),
        ("reader: {type: csv, files: m.csv, pattern: 'a{99999999999999}'}", "not a regular expression"),
        (f"reader: {{type: csv, files: {'x' * 300}.csv}}", "OSError"),
    ],
    ids=range(8),
)
def test_a_card_that_cannot_be_right_is_named(replica: Replica, card: str, message: str) -> None:
    base = "version: '1'\ntitle: t\nlicence: x\nhome: x\ndomain: speech\nattributes: {gender: '{sex}'}\n"
    base += "" if card.startswith(("{", "name")) else "name: t\n"
    base += "" if "reader" in card else "reader: {type: csv, files: m.csv}\n"
    root = replica({"card.yaml": card if card.startswith("{") else base + card + "\n", "m.csv": "id,audio\n"})
    with pytest.raises(CorpusError, match=message):
        list(load_corpus(root / "card.yaml", root))


def test_a_folder_that_is_a_link_out_of_the_root_is_named_once_and_counted(
    replica: Replica, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    inside = {**ROW, "id": "inside", "audio": "kept/a.wav"}
    far = [{**ROW, "id": f"far-{k}", "audio": f"linked/{k}/a.wav"} for k in range(3)]
    root = replica({"m.jsonl": lines(inside, *far), "real/a.wav": b""})
    outside = tmp_path_factory.mktemp("elsewhere")
    for k in range(3):
        (outside / str(k)).mkdir(parents=True)
    (root / "linked").symlink_to(outside)
    (root / "kept").symlink_to(root / "real")  # a link that stays inside
    with caplog.at_level(logging.WARNING):
        assert len(list(load_corpus("m.jsonl", root))) == 4
    said = [record.message for record in caplog.records if "outside the data root" in record.message]
    assert len(said) == 2 and f"folder 'linked' is a link to {outside}" in said[0]
    assert said[1].endswith(": 3 rows")
