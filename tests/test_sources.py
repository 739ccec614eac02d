"""Where weights come from: what is said of a folder that is not there and of a model that the hub does not give."""

import pytest

from nemo_desta.core.folder import open_model
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
