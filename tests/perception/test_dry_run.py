"""A dry run counts what a real run of the same parts on a CPU counts and keeps."""

import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nemo_desta.perception.dry_run import dry_run
from nemo_desta.perception.encoders import build_encoder
from nemo_desta.perception.projector import WindowProjector, build_projector, projector_names
from nemo_desta.testing.perception import tiny_beats, tiny_whisper
from tests.megatron.memory import Kept
from tests.perception.projector.test_any_projector import VARIANTS

RATE, SECS = 16_000, 13.0  # two chunks of BEATs, one window of Whisper


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    whisper = {"name": "whisper", "path": tiny_whisper(folder / "whisper"), "layer_ids": [1, 2]}
    beats = {"name": "beats", "path": tiny_beats(folder / "beats.pt"), "layer_ids": [1]}
    return {"whisper": build_encoder(whisper), "beats": build_encoder(beats)}


def clip():
    return torch.randn(1, round(SECS * RATE)), torch.tensor([round(SECS * RATE)])


def counted(run):
    """FLOPs of plain matrix products: no fused attention, which torch's counter does not know on a CPU."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def projector_of(name, encoders):
    knobs = {**VARIANTS.get(name, [{}])[0]}
    return build_projector(name, encoders, 24, **knobs)


@pytest.mark.parametrize("name", projector_names())
def test_flops_are_those_that_torch_counts(encoders, name):
    projector = projector_of(name, encoders).eval()
    found = dry_run(encoders, projector, SECS, RATE)
    features = {}

    def encode():
        features.update({name: encoder(*clip()) for name, encoder in encoders.items()})

    assert found.encoder_flops == counted(encode)
    lens = clip()[1]
    # fused attention's backward computes the scores once more: one product in seven
    expected = counted(lambda: projector(features, audio_lens=lens, sampling_rate=RATE)[0].sum().backward())
    attends = any(hasattr(module, "attend") for module in projector.modules())
    assert found.projector_flops == pytest.approx(expected, rel=0.02 if attends else 0)
    assert found.vectors == projector.num_tokens(int(lens), RATE)


@pytest.mark.parametrize("name", projector_names())
def test_bytes_that_backward_keeps_are_those_of_a_real_run(encoders, name):
    projector = projector_of(name, encoders).eval()
    before = copy.deepcopy(projector.state_dict())
    found = dry_run(encoders, projector, SECS, RATE)
    assert all(torch.equal(before[key], value) for key, value in projector.state_dict().items())
    assert all(parameter.grad is None for parameter in projector.parameters())
    features = {name: encoder(*clip()) for name, encoder in encoders.items()}
    kept = Kept(projector.parameters())
    with kept.watching():
        projector(features, audio_lens=clip()[1], sampling_rate=RATE)[0].sum()
    if isinstance(projector, WindowProjector):  # as its GPU kernel: far less than plain PyTorch
        layers = sum(layer.untyped_storage().nbytes() for one in features.values() for layer in one.layers)
        assert layers < found.kept < kept.peak
    else:
        assert found.kept == pytest.approx(kept.peak, rel=0.01)
