"""Checkpoints are data: a pickle that would run code is refused, a half-written file never takes the name."""

import enum
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_desta.training.checkpoint_io import SafeCheckpointIO, plain


class Colour(str, enum.Enum):
    RED = "red"


class Attack:
    def __reduce__(self):
        return os.system, ("echo this must not run",)


def test_a_malicious_pickle_is_refused(tmp_path, capfd):
    torch.save({"state_dict": {}, "x": Attack()}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="is refused: it holds more than tensors and plain types"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt")
    assert "must not run" not in capfd.readouterr().out


def test_what_is_saved_reads_back(tmp_path):
    saved = {"a": torch.arange(3), "b": [1, 2.5, None, True], "c": {"d": ("x", Colour.RED), 4: np.float64(0.5)}}
    SafeCheckpointIO().save_checkpoint({**saved, "path": tmp_path}, tmp_path / "sub" / "x.ckpt")
    found = SafeCheckpointIO().load_checkpoint(tmp_path / "sub" / "x.ckpt")
    assert torch.equal(found["a"], saved["a"])
    assert found["b"] == saved["b"]
    assert found["c"] == {"d": ("x", "red"), 4: 0.5}
    assert found["path"] == str(tmp_path)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["x.ckpt"]


def test_an_object_in_the_state_is_named_by_its_place():
    with pytest.raises(TypeError, match=r"checkpoint\['callbacks'\]\[1\] is a Attack"):
        plain({"callbacks": [1, Attack()]})


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        SafeCheckpointIO().load_checkpoint(Path(tmp_path) / "none.ckpt")
