"""Rows and shar archives by URL, from a real HTTP server on this machine."""

import functools
import gzip
import importlib.util
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nemo_desta.config import ModelConfig, parse
from nemo_desta.data import remote
from nemo_desta.data.audio_io import load_audio
from nemo_desta.data.remote import check_url, local_copy, shown
from nemo_desta.data.rows import read_rows
from nemo_desta.data.shar import write_shar
from nemo_desta.data.sources import JsonlSource, open_source
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.testing.data import tiny_rows
from nemo_desta.training.preflight import missing_data
from nemo_desta.training.run_settings import describe_run


class Handler(SimpleHTTPRequestHandler):
    """Serves files; a path that begins with /cut promises more bytes than it sends."""

    seen: list[str] = []

    def log_message(self, form: str, *args: object) -> None:
        self.seen.append(form % args)

    def do_GET(self) -> None:
        if self.path.startswith("/cut"):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"id": "a"}\n')
            return
        super().do_GET()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL at which it is served; copies lie in a cache of this test."""
    monkeypatch.setenv("NEMO_DESTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "RETRY_SECS", (0.01,))
    local_copy.cache_clear()
    Handler.seen = []
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
    local_copy.cache_clear()


def test_rows_by_url_are_read_like_files(served: tuple[Path, str]) -> None:
    folder, url = served
    text = tiny_rows(folder, 6).read_bytes().splitlines(keepends=True)
    (folder / "part-00.jsonl").write_bytes(b"".join(text[:2]))
    (folder / "part-01.jsonl").write_bytes(b"".join(text[2:5]))
    (folder / "last.jsonl.gz").write_bytes(gzip.compress(text[5]))
    patterns = [f"{url}/part-{{00..01}}.jsonl", f"{url}/last.jsonl.gz"]
    assert [row["id"] for row in read_rows(patterns)] == [f"row-{i:03d}" for i in range(6)]
    source = open_source({"rows": f"{url}/rows.jsonl"}, {"default": str(folder)})
    assert (source.name, len(source)) == ("rows", 6)
    assert len(load_audio(source.audio_files(0, source.row(0))[0])) > 0


def test_a_copy_is_used_again_until_the_object_changes(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "a.txt").write_text("one")
    first = local_copy(f"{url}/a.txt")
    local_copy.cache_clear()  # as in a new process
    assert local_copy(f"{url}/a.txt") == first and any('"GET /a.txt HTTP/1.1" 304' in line for line in Handler.seen)
    (folder / "a.txt").write_text("three")

    os.utime(folder / "a.txt", (2_000_000_000, 2_000_000_000))
    local_copy.cache_clear()
    assert local_copy(f"{url}/a.txt").read_text() == "three" and first.is_relative_to(tmp_path / "cache/remote")


@pytest.fixture
def shar(served: tuple[Path, str]) -> tuple[Path, dict[str, str]]:
    """A shar of two shards, and its fields as URLs."""
    folder, url = served
    write_shar(JsonlSource(tiny_rows(folder / "rows", 5)), folder / "shar", shard_size=3)
    names = {"cuts": "cuts.{000000..000001}.jsonl.gz", "recording": "recording.{000000..000001}.tar"}
    return folder / "shar", {field: f"{url}/shar/{name}" for field, name in names.items()}


def test_a_shar_by_url_gives_the_audio_of_the_folder(shar: tuple[Path, dict[str, str]]) -> None:
    folder, fields = shar
    there, here = open_source({"rows": fields}), open_source({"rows": str(folder)})
    assert [there.row(i) for i in range(5)] == [here.row(i) for i in range(5)]
    assert not any(".tar" in line for line in Handler.seen), "archives are copied when their clips are read"
    for i in (4, 0):
        (a,), (b,) = (source.audio_files(i, source.row(i)) for source in (there, here))
        assert (load_audio(a) == load_audio(b)).all()
    assert describe_of({"rows": fields}) == describe_of({"shar_path": fields})


def describe_of(entry: dict) -> str:
    settings = {"data": {"train_ds": {"input_cfg": [entry]}}, "trainer": {}}
    return describe_run(parse(ModelConfig, {"llm": {"path": "no/llm"}}), settings)["data.train_ds.input_cfg.0.rows"]


def test_shards_that_do_not_belong_together_are_refused(shar: tuple[Path, dict[str, str]]) -> None:
    folder, fields = shar
    with pytest.raises(ConfigError, match="2 cuts files has 1 of field 'recording'"):
        open_source({"rows": {**fields, "recording": str(folder / "recording.000000.tar")}})
    with pytest.raises(ConfigError, match="needs 'cuts'"):
        open_source({"rows": {"recording": fields["recording"]}})
    shutil.copy(folder / "recording.000001.tar", folder / "recording.000000.tar")
    source = open_source({"rows": fields})
    with pytest.raises(RowError, match="3 cuts but recording.000000.tar 2 recordings"):
        source.audio_files(0, source.row(0))
    with pytest.raises(ConfigError, match="a folder behind a URL cannot be listed.*cuts"):
        open_source({"rows": fields["cuts"].rpartition("/")[0]})


def test_what_cannot_be_read_is_named(served: tuple[Path, str]) -> None:
    _, url = served
    with pytest.raises(FileNotFoundError, match="gone.jsonl: the server answers 404"):
        local_copy(f"{url}/gone.jsonl")
    with pytest.raises(OSError, match="ended after 12 of 1,000 bytes|IncompleteRead"):
        local_copy(f"{url}/cut.jsonl?signature=secret")
    with pytest.raises(OSError, match="127.0.0.1:9"):
        local_copy("http://127.0.0.1:9/x")
    assert shown("https://me:secret@host:1/a/b?signature=secret") == "https://host:1/a/b"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:cat rows.jsonl", "pipe: would run a command"),
        ("ftp://host/x", "scheme 'ftp' is not read; known: http, https, s3"),
        ("https://host/*.jsonl", "give {000..127} instead of"),
        ("s3://bucket/x.jsonl", "needs boto3: pip install lhotse 'smart_open.s3.'"),
        ("ais://bucket/x.jsonl", "needs the environment variable AIS_ENDPOINT"),
    ],
)
def test_a_url_that_cannot_work_is_refused_before_anything_runs(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(remote, "find_spec", lambda name: there("json") if name != "boto3" else None)
    monkeypatch.delenv("AIS_ENDPOINT", raising=False)
    with pytest.raises(ConfigError, match=message):
        list(read_rows(url))
    data = {"train_ds": {"input_cfg": [{"rows": url}]}}
    if url.startswith("pipe:"):
        with pytest.raises(ConfigError, match=message):
            list(missing_data(data))
    else:
        assert any(remote.shown(url) in problem for problem in missing_data(data))


def test_an_object_store_is_read_through_lhotse(
    served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for smart_open's S3 reads from a folder; the copy is kept while the size is the same."""
    folder, _ = served
    tiny_rows(folder, 2)
    opened = []

    def smart_open(url: str, mode: str, **_: object) -> object:
        opened.append(url)
        return (folder / url.rpartition("/")[2]).open(mode)

    from lhotse.serialization import SmartOpenIOBackend
    from lhotse.utils import SmartOpen

    monkeypatch.setattr(SmartOpen, "smart_open", smart_open)
    monkeypatch.setattr(SmartOpen, "transport_params", {})
    monkeypatch.setattr("lhotse.serialization.CURRENT_IO_BACKEND", SmartOpenIOBackend())  # as if it had been installed
    monkeypatch.setattr(remote, "_is_installed", lambda module: True)
    monkeypatch.setitem(sys.modules, "smart_open", importlib.util.module_from_spec(importlib.util.find_spec("json")))
    check_url("s3://bucket/rows.jsonl")
    assert len(list(read_rows("s3://bucket/rows.jsonl"))) == 2 and opened == ["s3://bucket/rows.jsonl"]
    copy = local_copy("s3://bucket/rows.jsonl")
    before = copy.stat().st_mtime_ns
    local_copy.cache_clear()
    assert local_copy("s3://bucket/rows.jsonl") == copy and copy.stat().st_mtime_ns == before
    with pytest.raises(OSError, match="s3://bucket/gone.jsonl cannot be opened: FileNotFoundError"):
        local_copy("s3://bucket/gone.jsonl")
