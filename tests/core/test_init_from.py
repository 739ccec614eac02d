"""Stage-wise training: a projector begins with the parts of earlier ones, named by encoder."""

import pytest
import torch
from safetensors.torch import save_file

from nemo_desta.core.folder import PROJECTOR_PREFIX, load_projector
from nemo_desta.perception.encoders import EncoderShape
from nemo_desta.perception.projector import ConvProjector
from nemo_desta.types import FrameGrid

GRID = FrameGrid(16_000, 320)
SHAPES = {"whisper": EncoderShape(6, (1, 2), 2, GRID), "beats": EncoderShape(4, (2,), 2, GRID)}
FUSION = {"name": "cross_attention", "hidden_size": 8, "num_heads": 2, "feed_forward_size": 8}


def stage(*encoders, value=0.0, **knobs):
    """A projector over some encoders, all of whose tensors hold one value."""
    shapes = {name: SHAPES[name] for name in encoders}
    projector = ConvProjector(shapes, 10, adapter={"hidden_size": 6, "norm": "batch"}, fusion=FUSION, **knobs)
    projector.load_state_dict({n: torch.full_like(t, value) for n, t in projector.state_dict().items()})
    return projector


@pytest.fixture
def saved(tmp_path):
    for number, (name, projector) in enumerate({"whisper": stage("whisper"), "beats": stage("beats")}.items(), 1):
        tensors = {PROJECTOR_PREFIX + key: torch.full_like(t, number) for key, t in projector.state_dict().items()}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_each_encoders_adapter_comes_from_its_own_stage_and_nothing_else_changes(saved):
    projector = stage("whisper", "beats", markers=True)
    count = load_projector({name: saved / f"{name}.safetensors" for name in SHAPES}, projector)
    values = {name: t.unique().tolist() for name, t in projector.state_dict().items()}
    by_part = {"adapters.whisper.": [1.0], "adapters.beats.": [2.0], "fusion.": [0.0], "markers.": [0.0]}
    assert values == {name: next(v for part, v in by_part.items() if name.startswith(part)) for name in values}
    assert count == sum(name.startswith("adapters.") for name in values)
    assert any("running_mean" in name for name in values)


def test_other_parts_of_a_source_are_not_taken(saved):
    load_projector({"whisper": saved / "whisper.safetensors"}, stage("whisper"))
    whole = stage("whisper", "beats", value=7.0)
    save_file(whole.state_dict(), saved / "whole.safetensors")
    projector = stage("whisper", "beats")
    load_projector({"beats": saved / "whole.safetensors"}, projector)
    sevens = {name for name, tensor in projector.state_dict().items() if (tensor == 7).all()}
    assert sevens == {name for name in projector.state_dict() if name.startswith("adapters.beats.")}


@pytest.mark.parametrize(
    ("encoder", "source", "message"),
    [("beats", "whisper", "encoder 'beats'.*lacks 'adapters.beats"), ("muq", "whisper", "encoder 'muq'.*lacks")],
)
def test_a_stage_without_that_encoder_is_refused(saved, encoder, source, message):
    with pytest.raises(ValueError, match=message):
        load_projector({encoder: saved / f"{source}.safetensors"}, stage("whisper", "beats"))
