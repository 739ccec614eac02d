"""Manifests and cards with random faults: each is read and described, or refused with the file's name; never else.

``FUZZ_CASES`` (per kind of file) makes it longer: ``FUZZ_CASES=1000 pytest -m slow tests/fuzz -s``.
"""

import csv
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_desta.recipes.corpora import CorpusError, load_corpus
from nemo_desta.recipes.self_generate import ClipRows
from tests.fuzz.mutants import REPRODUCIBLE, paths_of

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("FUZZ_CASES", 150))
QUIET = settings(max_examples=CASES, **REPRODUCIBLE)
KEYS = ("id", "audio", "domain", "duration", "transcript", "caption", "language", "speaker_id", "group", "split")
SEGMENT = {"start": 0.0, "end": 1.0, "transcript": "hi", "speaker": "A", "attributes": {"emotion": "sad"}}
ROW = {
    **{"id": "b", "audio": "b.wav", "domain": "speech", "duration": 2.0, "transcript": "Yes, sir", "split": "train"},
    **{"attributes": {"gender": "male", "sounds": ["rain", "wind"]}, "caption": ["a voice"], "speaker_id": "s1"},
    **{"segments": [SEGMENT], "speakers": {"A": {"gender": "male"}}, "language": "en", "group": "s1"},
}
CARD: dict[str, Any] = {
    **{"name": "mine", "version": "1", "title": "t", "licence": "x", "home": "x", "domain": "speech"},
    "reader": {"type": "csv", "files": "meta.csv", "parts": {"wav": r"(?P<n>\d+)\.wav"}, "where": {"keep": "1"}},
    "clip": {"id": "{id}", "audio": "{wav}", "transcript": "{text|sentence}", "group": "{who}"},
    "attributes": {"gender": "{sex}", "mood": ["{mood?}", "calm"]},
    "values": {"gender": {"m": "male", "?": None}},
    "split": {"by": "{set}", "values": {"train": "train", "*": None}, "shares": {"train": 0.5, "valid": 0.5}},
}
TABLE = "id,wav,text,who,sex,mood,set,keep\n1,1.wav,HI,s1,m,,train,1\n2,2.wav,HO,s2,?,sad,dev,1\n"
COLUMNS = ["id", "audio", "domain", "duration", "transcript", "split", "emotion"]

odd_texts = st.sampled_from(
    [
        "",
        " ",
        "/",
        "..",
        "../x",
        "\0",
        "a\nb",
        "\ud83d",
        "\u2028",
        "nan",
        "NaN",
        "None",
        "1e999",
        "-1",
        "x" * 5000,
        "{id}",
    ]
) | st.text(max_size=8)
odd_numbers = (
    st.sampled_from([0, -1, 1e24, 1e308, float("nan"), float("inf"), 10**30, 10**400, 0.5, True, False, 2**63])
    | st.floats()
)
leaves = st.none() | odd_texts | odd_numbers
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts | st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
#: Bytes put into the middle of a file.
noise = st.sampled_from(
    [
        *(b"\xff", b"\x00", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b",", b";", b"{", b"}", b"[", b"]", b"\\ud83d"),
        *(b"[" * 100_000, b"9" * 5000, b'{"a":' * 50_000, b"NaN", b"-", b"1e400", b"\xed\xa0\xbd"),
    ]
) | st.binary(max_size=6)
outcomes: Counter[str] = Counter()


@st.composite
def mutants(draw: st.DrawFn, whole: Any) -> Any:
    """``whole`` with up to three places given another value, removed, or renamed by a letter."""
    result = json.loads(json.dumps(whole))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 3]))):
        places = paths_of(result)
        if not places:
            break
        *parents, key = draw(st.sampled_from(places))
        holder = result
        for step in parents:
            holder = holder[step]
        change = draw(st.sampled_from(["value", "value", "value", "remove", "rename"]))
        if change == "value":
            holder[key] = draw(values)
        elif change == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            at = draw(st.integers(0, max(0, len(str(key)) - 1)))
            new = str(key)[:at] + draw(st.sampled_from(["", "s", "X", "_"])) + str(key)[at + 1 :]
            holder[new] = holder.pop(key)
    return result


@st.composite
def spoilt(draw: st.DrawFn, content: st.SearchStrategy[bytes]) -> bytes:
    """A file's bytes, most of them as they are; some cut, some with noise in them."""
    data = draw(content)
    fault = draw(st.sampled_from(["none", "none", "none", "cut", "noise"]))
    at = draw(st.integers(0, len(data)))
    if fault == "cut":
        return data[:at]
    return data[:at] + draw(noise) + data[at:] if fault == "noise" else data


def json_line(row: Any) -> str:
    return json.dumps(row) + "\n"


def read(files: Mapping[str, bytes], corpus: str) -> None:
    """Read, plan and describe all of a corpus, and count what became of it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        rows = ClipRows(draw=lambda clip, count: [], check_audio=lambda clip: (None, 1.0))
        try:
            for clip in load_corpus(Path(folder) / corpus, folder):
                assert all(w.verdict.reason == "no fitting prompt" for w in rows(clip)), rows(clip)
        except CorpusError as error:
            assert any(name in str(error) for name in (*files, "mine")), error
            outcomes["named"] += 1
        else:
            outcomes["used"] += 1


@QUIET
@given(st.data())
def test_json_lines(data: st.DataObject) -> None:
    rows = st.tuples(mutants(ROW), mutants({**ROW, "id": "c"}))
    content = rows.map(lambda both: "".join(map(json_line, [*both, {**ROW, "id": "z"}])).encode())
    read({"m.jsonl": data.draw(spoilt(content))}, "m.jsonl")


@QUIET
@given(st.data())
def test_json_documents(data: st.DataObject) -> None:
    row = mutants(ROW)
    listed = row.map(lambda one: json.dumps([{**ROW, "id": "a"}, one]).encode())
    named = row.map(lambda one: json.dumps({"first": {**ROW, "id": "a"}, "second": one}).encode())
    read({"m.json": data.draw(spoilt(listed | named))}, "m.json")


@QUIET
@given(st.data())
def test_nemo_manifests(data: st.DataObject) -> None:
    nemo = {"audio_filepath": "a/b.wav", "duration": 1.5, "text": "hi", "lang": "en", "offset": 0, "speaker": "s"}
    content = mutants(nemo).map(lambda row: (json_line({**nemo, "audio_filepath": "z.wav"}) + json_line(row)).encode())
    read({"m.json": data.draw(spoilt(content))}, "m.json")


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_tables(kind: str) -> None:
    cells = st.lists(odd_texts | st.sampled_from(["1", "a.wav", "speech", "1,5", "17"]), min_size=5, max_size=8)
    names = st.lists(st.sampled_from([*COLUMNS, "", "Unnamed: 0", "transcipt"]) | odd_texts, min_size=5, max_size=8)

    @QUIET
    @given(st.data())
    def table(data: st.DataObject) -> None:
        def written(header: list[str], rows: list[list[str]]) -> bytes:
            text = io.StringIO()
            sign = "\t" if kind == "tsv" else data.draw(st.sampled_from([",", ",", ";", "\t"]))
            good = [["a", "a.wav", "speech", "1.5", "Yes, sir", "train", "sad"]]
            csv.writer(text, delimiter=sign).writerows([header, *good, *rows])
            return text.getvalue().encode("utf-8", "surrogatepass")

        header = data.draw(st.just(COLUMNS) | st.just(["", *COLUMNS[1:]]) | names)
        content = st.lists(cells, max_size=2).map(lambda rows: written(header, rows))
        read({f"m.{kind}": data.draw(spoilt(content))}, f"m.{kind}")

    table()


@QUIET
@given(st.data())
def test_cards(data: st.DataObject) -> None:
    content = mutants(CARD).map(lambda card: yaml.safe_dump(card).encode("utf-8", "surrogatepass"))
    table = data.draw(st.just(TABLE.encode()) | spoilt(st.just(TABLE.encode())))
    read({"card.yaml": data.draw(spoilt(content)), "meta.csv": table}, "card.yaml")


def test_every_kind_was_used_and_refused() -> None:
    print(f"\nmanifests: {sum(outcomes.values())} tried, {dict(outcomes)}, crashed 0")
    assert min(outcomes["used"], outcomes["named"]) > 0.05 * sum(outcomes.values())
