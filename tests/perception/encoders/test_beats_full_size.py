"""The base configuration: names, shapes and count; with weights made by the fixture's recipe, its numbers."""

import json
import math
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from nemo_desta.perception.encoders import Beats, BeatsEncoder, beats_checkpoint

FIXTURE = Path(__file__).parents[2] / "fixtures" / "beats"


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((FIXTURE / "full_size.json").read_text())


def test_parameter_count_and_public_names(facts):
    with torch.device("meta"):
        model = Beats(facts["cfg"])
    assert sum(p.numel() for p in model.parameters()) == facts["unique_parameters"] == 90_311_792
    public = beats_checkpoint.to_official(model.state_dict(), num_layers=12)
    assert {name: list(tensor.shape) for name, tensor in public.items()} == {
        name: shape for name, shape, _ in facts["state_dict"]
    }


def recipe(name: str, shape: list[int], seed: int) -> torch.Tensor:
    generator = np.random.RandomState((crc32(name.encode()) + seed * 7919) % 2**31)
    z = torch.from_numpy(generator.standard_normal(shape))
    if name.endswith("weight_g"):
        return (1 + 0.3 * z).abs()
    if name.endswith("grep_a"):
        return 1 + 0.5 * z
    for ending, scale in {"weight_v": 0.15, "relative_attention_bias.weight": 1.5, "grep_linear.weight": 0.6}.items():
        if name.endswith(ending):
            return scale * z
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return 1.6 * z / math.sqrt(shape[1])
    if len(shape) >= 2:
        return z / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.2 * z if name.endswith("weight") else 0.1 * z


@pytest.mark.slow
def test_numbers_of_the_base_model(facts, tmp_path, read_wav, read_arrays):
    shapes = {name: shape for name, shape, _ in facts["state_dict"]}
    state = {name: recipe(name, shapes[name], facts["seed"]).float() for name in facts["parameter_names_for_recipe"]}
    expected = read_arrays("beats/full_size_expected.npz")
    check = torch.stack([state["encoder.layers.0.fc1.weight"][0, :8], state["post_extract_proj.bias"][:8]]).double()
    torch.testing.assert_close(check, expected["param_check"], atol=1e-6, rtol=0)
    torch.save({"cfg": facts["cfg"], "model": state}, tmp_path / "base.pt")
    encoder = BeatsEncoder.from_checkpoint(tmp_path / "base.pt", original_masks=True)

    clip = read_wav("beats/full_size_2s.wav")
    layers, lens = encoder(clip[None], torch.tensor([len(clip)]))
    assert lens.tolist() == [96] and len(layers) == 12
    torch.testing.assert_close(layers[-1][:, ::12], expected["every_12th_final"], atol=1e-3, rtol=0)
    torch.testing.assert_close(layers[5][:, :8], expected["layer5_out_first8"], atol=1e-3, rtol=0)
    for number, layer in enumerate(layers):
        stats = torch.stack([layer.mean(), layer.std(), layer.abs().max()])
        torch.testing.assert_close(stats, expected[f"layer{number}_out_stats"], atol=1e-3, rtol=0)
