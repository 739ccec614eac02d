"""``callbacks.calibrate_clips``: the input norm of a new run is set from its clips, and nothing else changes it."""

import pytest
import torch
from safetensors.torch import load_file

from nemo_desta.errors import ConfigError
from nemo_desta.training.fit import fit

CLIPS = {"callbacks.calibrate_clips": 6}


def run(workplace, name, **more):
    settings = {"trainer.max_steps": 1, "model.lr_scheduler.warmup_steps": 0, "model.optimizer.lr": 1e-9, **more}
    fit(workplace.config(f"calibration_{name}", **settings))
    (file,) = (workplace.folder / f"calibration_{name}").glob("*/model/projector.safetensors")
    return load_file(file)


def norms(tensors):
    return {name: tensor for name, tensor in tensors.items() if "norm_weight" in name or "norm_bias" in name}


def test_a_new_run_starts_with_the_norm_of_its_clips(workplace):
    plain, calibrated = run(workplace, "plain"), run(workplace, "calibrated", **CLIPS)
    for name, tensor in norms(plain).items():
        start = torch.ones_like(tensor) if "weight" in name else torch.zeros_like(tensor)
        torch.testing.assert_close(tensor, start, atol=1e-6, rtol=0)
        assert (calibrated[name] - start).abs().max() > 0.05
    others = plain.keys() - norms(plain).keys()
    assert all(torch.allclose(plain[name], calibrated[name], atol=1e-6) for name in others)
    again = run(workplace, "again", **CLIPS)
    assert all(torch.equal(again[name], tensor) for name, tensor in norms(calibrated).items())


def test_a_resumed_run_equals_the_uninterrupted_one(workplace):
    steps = {"model.optimizer.lr": 0.01, "model.lr_scheduler.max_steps": 6, "trainer.max_steps": 6}
    whole = run(workplace, "whole", **CLIPS, **steps)
    run(workplace, "parts", **CLIPS, **{**steps, "trainer.max_steps": 3})
    parts = run(workplace, "parts", **CLIPS, **steps)
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"callbacks.calibrate_clips": -1}, "must be 0"),
        ({**CLIPS, "model.perception.projector.name": "qformer"}, "this projector has no calibration"),
        ({**CLIPS, "strategy": "fsdp2"}, "strategy 'fsdp2' has no calibration"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(workplace, settings, message):
    with pytest.raises(ConfigError, match=message):
        fit(workplace.config("refused", **settings))
