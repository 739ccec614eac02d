import hashlib
import http.server
import random
import threading
from types import SimpleNamespace

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.perception import download

CONTENT = random.Random(0).randbytes(3_000_000)
SUM = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; /whole ignores ranges, /short breaks off after 1 MB of what it announced, /gone is not there."""

    def do_GET(self):
        self.server.ranges.append(self.headers.get("Range"))
        if self.path.startswith("/gone"):
            return self.send_error(404)
        start = 0
        if self.headers.get("Range") and not self.path.startswith("/whole"):
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(CONTENT):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = 1_000_000 if self.path.startswith("/short") else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.ranges, served.url = [], f"http://127.0.0.1:{served.server_port}"
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield served
        served.shutdown()


def test_file_is_fetched_once(server, tmp_path):
    target = download.fetch(f"{server.url}/a%20b.pt?sig=1", tmp_path / "new", SUM.upper())
    assert target == tmp_path / "new" / "a b.pt" and target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["a b.pt"]
    download.fetch(f"{server.url}/a%20b.pt", tmp_path / "new", SUM)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("path", ["x.pt", "whole.pt"])
def test_broken_download_goes_on(server, tmp_path, path):
    (tmp_path / (path + ".part")).write_bytes(CONTENT[:1_234_567] if path == "x.pt" else b"rubbish")
    assert download.fetch(f"{server.url}/{path}", tmp_path, SUM).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1234567-" if path == "x.pt" else "bytes=7-"]


def test_complete_part_is_taken_as_it_is(server, tmp_path):
    (tmp_path / "x.pt.part").write_bytes(CONTENT)
    assert download.fetch(f"{server.url}/x.pt", tmp_path, SUM).read_bytes() == CONTENT


def test_connection_that_breaks_keeps_what_arrived(server, tmp_path):
    with pytest.raises(ConnectionError, match="1000000 of 3000000 bytes arrived; run it again"):
        download.fetch(f"{server.url}/short.pt", tmp_path, SUM)
    assert (tmp_path / "short.pt.part").stat().st_size == 1_000_000
    assert not (tmp_path / "short.pt").exists()


def test_other_sum_is_refused_and_removed(server, tmp_path):
    with pytest.raises(ValueError, match=f"expected sha256 {'0' * 64}, found {SUM}; file removed"):
        download.fetch(f"{server.url}/x.pt", tmp_path, "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_other_content_in_place_is_replaced(server, tmp_path, caplog):
    (tmp_path / "x.pt").write_bytes(b"old")
    download.fetch(f"{server.url}/x.pt", tmp_path, SUM)
    assert (tmp_path / "x.pt").read_bytes() == CONTENT
    assert "other content" in caplog.text


def test_server_that_refuses(server, tmp_path):
    with pytest.raises(ConnectionError, match="the server answers 404"):
        download.fetch(f"{server.url}/gone.pt", tmp_path, SUM)


def test_url_without_sum(tmp_path):
    with pytest.raises(ConfigError, match="give the sha256 that the file must have"):
        download.fetch("https://nowhere.invalid/x.pt", tmp_path)


def test_unknown_name(tmp_path):
    with pytest.raises(ConfigError, match="unknown asset 'whisper-smal'. Did you mean 'whisper-small'"):
        download.fetch("whisper-smal", tmp_path)


@pytest.mark.parametrize("places", [("x", "gone"), ("gone", "x"), ("short", "x")])
def test_beats_comes_from_the_first_copy_that_answers_with_the_right_bytes(server, tmp_path, monkeypatch, places):
    asset = download.ASSETS["beats"]
    paths = dict(zip((repo for repo, _ in asset.copies), places, strict=True))
    monkeypatch.setitem(download.ASSETS, "beats", download.Copied(asset.file, SUM, asset.copies))
    monkeypatch.setattr(download, "hf_hub_url", lambda repo, file, repo_type: f"{server.url}/{paths[repo]}/{file}")
    target = download.fetch("beats", tmp_path)
    assert target == tmp_path / "BEATs_iter3_plus_AS2M.pt" and target.read_bytes() == CONTENT


def test_beats_of_other_bytes_is_refused_and_the_sum_named(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "hf_hub_url", lambda repo, file, repo_type: f"{server.url}/x/{file}")
    with pytest.raises(ConnectionError, match="no copy of BEATs_iter3_plus_AS2M.pt .*--sha256 d43cbfad"):
        download.fetch("beats", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("right", [True, False])
def test_hub_files_are_checked_against_the_hubs_sums(server, tmp_path, monkeypatch, right):
    blob = hashlib.sha1(b"blob 3000000\0" + CONTENT).hexdigest()
    weights = SimpleNamespace(sha256=SUM if right else "0" * 64)
    siblings = [
        SimpleNamespace(rfilename="config.json", lfs=None, blob_id=blob),
        SimpleNamespace(rfilename="preprocessor_config.json", lfs=None, blob_id=blob),
        SimpleNamespace(rfilename="model.safetensors", lfs=weights, blob_id="pointer"),
        SimpleNamespace(rfilename="flax_model.msgpack", lfs=weights, blob_id="pointer"),
    ]
    info = SimpleNamespace(sha="c0ffee", siblings=siblings)
    monkeypatch.setattr(download, "HfApi", lambda: SimpleNamespace(model_info=lambda repo, files_metadata: info))
    monkeypatch.setattr(download, "hf_hub_url", lambda repo, name, revision: f"{server.url}/{revision}/{name}")
    if right:
        assert download.fetch("whisper-tiny", tmp_path) == tmp_path
        assert sorted(file.name for file in tmp_path.iterdir()) == sorted(download.WHISPER_FILES)
    else:
        with pytest.raises(ValueError, match="expected sha256 0000"):
            download.fetch("whisper-tiny", tmp_path)
        assert not (tmp_path / "model.safetensors").exists()
