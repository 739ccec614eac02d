"""Where weights come from: what is said of a folder that is not there and of a model that the hub does not give."""

import pytest

from nemo_desta.core.folder import CONFIG_FILE, find_model, open_model
from nemo_desta.core.frozen import setting_of
from nemo_desta.sources import fetch_folder


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/model", "no folder '/no/such/model'$"),
        ("./runs/model", "no folder './runs/model'$"),
        ("runs/training/modl", r"no folder 'runs/training/modl' \(and no hub id, which is owner/name\)$"),
        ("package:no/such", "nemo_desta ships no such file"),
    ],
)
@pytest.mark.parametrize("opened", [open_model, lambda source: fetch_folder(source, ["*.json"])])
def test_a_wrong_path_is_no_hub_id(tmp_path, monkeypatch, opened, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        opened(source)


def test_a_model_that_the_hub_does_not_give_is_named_with_the_reason(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("name or service not known\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'some/one'.*\(ConnectionError: name or service not known\)$"):
        open_model("some/one")


def test_a_path_that_looks_like_a_hub_id_is_a_path_where_its_parent_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"^no folder 'runs/mien'\. Did you mean 'runs/mine'\?$"):
        open_model("runs/mien")
    with pytest.raises(FileNotFoundError, match="^no folder 'runs/other'$"):
        open_model("runs/other")


def test_a_run_opens_its_model(tmp_path):
    for name in ("a/model", "b/training/model", "c/one/model", "c/two/model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / CONFIG_FILE).write_text("{}")
    (tmp_path / "d").mkdir()
    for given, found in (("a", "a/model"), ("a/model", "a/model"), ("b", "b/training/model")):
        assert find_model(tmp_path / given) == tmp_path / found
    with pytest.raises(FileNotFoundError, match="holds several models: one/model, two/model; give the path of one"):
        find_model(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="config.json is missing, here and in model/"):
        open_model(str(tmp_path / "d"))


def test_advice_is_a_setting_of_the_commands():
    assert (
        setting_of("llm", "encoders.whisper", "encoders.beats")
        == "llm=<path> encoders={whisper: <path>, beats: <path>}"
    )
    assert setting_of("encoders.beats") == "encoders={beats: <path>}"
