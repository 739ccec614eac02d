"""What holds for every registered projector: a new one is tested by being registered.

`VARIANTS` and `LEARNING` give settings by name; a projector that is not in them is tested with its defaults.
"""

import importlib.metadata

import pytest
import torch

from nemo_desta.config import PerceptionConfig
from nemo_desta.core.trust import Grant, UntrustedConfig, check_model
from nemo_desta.errors import ConfigError
from nemo_desta.perception.build import build_encoders, build_projector_for, encoder_shapes, token_counter
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import PROJECTORS, Projector, build_projector, register_projector
from nemo_desta.testing.perception import tiny_beats, tiny_whisper
from tests.perception.projector.toys import (
    CROSS,
    RATE,
    SAMPLES,
    SMALL_QFORMER,
    SMALL_WINDOW_QFORMER,
    assert_batch_equals_alone,
    assert_every_gradient_is_finite,
    randomise,
    toy_encoders,
)

#: Two members of different kinds, and text before, between and after them.
ENSEMBLE = {
    "members": {
        "one": {"name": "conv", "adapter": {"hidden_size": 6}, "markers": True},
        "two": {"name": "qformer", **SMALL_QFORMER},
    },
    "texts": [{"num_tokens": 3}, {"text": "again", "num_tokens": 2}, {"num_tokens": 0}],
}
ADAPTERS = [{"norm": "batch"}, {"depth": 2, "mix": "after"}, {"body": "mlp"}, {"body": "identity"}]
VARIANTS = {
    "window": [
        {"num_queries": 2, "mode": mode, "markers": m} for mode in ("attention", "stack") for m in (False, True)
    ],
    "qformer": [{**SMALL_QFORMER, "markers": markers} for markers in (False, True)],
    "conv": [
        {"adapter": {"hidden_size": 6, **adapter}, "fusion": fusion, "markers": True}
        for adapter in ADAPTERS
        for fusion in ("sum", CROSS)
    ],
    "window_qformer": [
        {**SMALL_WINDOW_QFORMER, **knobs}
        for knobs in ({}, {"num_queries": 2, "stride_secs": 0.2, "markers": True}, {"window_secs": None})
    ],
    "ensemble": [ENSEMBLE],
}
LEARNING = {
    "window": [{"tokens_per_second": r, "num_queries": 3, "markers": True} for r in (6.25, 5, "25/3", 1.7)],
    "qformer": [{"markers": True, **SMALL_QFORMER}],
    "conv": [
        {"adapter": {"hidden_size": 6}, "adapters": {"whisper": {"norm": "batch"}}, "fusion": fusion}
        for fusion in ("sum", CROSS)
    ],
    "window_qformer": [{"num_queries": 2, "markers": True, **SMALL_WINDOW_QFORMER}],
    "ensemble": [ENSEMBLE],
}
#: Encoders by name, in the order that the projector gets them.
ORDERS = [("whisper",), ("beats",), ("whisper", "beats"), ("beats", "whisper")]


def every(settings):
    return [
        pytest.param(name, knobs, id=f"{name}-{i}")
        for name in sorted(PROJECTORS)
        for i, knobs in enumerate(settings.get(name, [{}]))
    ]


@pytest.mark.parametrize("names", ORDERS, ids="+".join)
@pytest.mark.parametrize(("projector", "knobs"), every(VARIANTS))
def test_a_clip_in_a_batch_equals_the_clip_alone(projector, knobs, names):
    encoders = {name: toy_encoders()[name] for name in names}
    built = randomise(build_projector(projector, encoders, 10, **knobs)).eval()
    assert_batch_equals_alone(built, encoders, SAMPLES)


@pytest.mark.parametrize(("projector", "knobs"), every(LEARNING))
def test_every_parameter_learns(projector, knobs):
    encoders = toy_encoders()
    built = randomise(build_projector(projector, encoders, 10, **knobs))
    assert_every_gradient_is_finite(built, encoders, SAMPLES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    whisper = tiny_whisper(folder / "whisper", window_secs=2.0)
    return {"whisper": whisper, "beats": tiny_beats(folder / "beats.pt", hidden_size=32)}


@pytest.mark.parametrize("options", [{}, {"whisper": {"whole_windows": True, "layer_ids": [3, 1]}}], ids=["", "whole"])
@pytest.mark.parametrize("original_masks", [False, True])
@pytest.mark.parametrize(("projector", "knobs"), every(VARIANTS))
def test_tokens_are_counted_without_weights(folders, projector, knobs, original_masks, options, monkeypatch):
    encoders = {name: {"path": path, **options.get(name, {})} for name, path in folders.items()}
    encoders["beats"]["original_masks"] = original_masks
    config = PerceptionConfig(encoders=encoders, projector={"name": projector, **knobs})
    loaded = build_encoders(config)
    perception = FusedPerception(loaded, build_projector_for(config, loaded, 10))
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: pytest.fail("weights are loaded"))
    count = token_counter(config, 10)
    for samples in (0, 1, 319, 320, 399, 400, 2_560, 2_800, 16_000, 20_321, 32_000, 32_001, 95 * 16_000):
        assert count(samples) == perception.num_tokens(samples), samples
    for name, shape in encoder_shapes(config).items():
        encoder = loaded[name]
        for attribute in ("hidden_size", "layer_ids", "num_layers", "frame_grid", "sampling_rate", "frame_rate"):
            assert getattr(shape, attribute) == getattr(encoder, attribute), attribute


class Means(Projector):
    """A projector of another package: one vector per clip."""

    def __init__(self, encoders, output_size, *, scale: float = 1.0, output_rms: float | None = None):
        super().__init__(encoders, output_size, output_rms=output_rms)
        self.scale = scale

    def num_vectors(self, num_samples, sampling_rate):
        return 1


@pytest.fixture(autouse=True)
def names_come_and_go(monkeypatch):
    monkeypatch.setattr(PROJECTORS, "factories", dict(PROJECTORS.factories))


def of_config(**projector):
    config = PerceptionConfig(projector=projector)
    return build_projector_for(config, toy_encoders(), 10, output_rms=0.1)


def test_a_registered_projector_is_built_by_its_name():
    register_projector("means")(Means)
    built = of_config(name="means", scale=2.0)
    assert isinstance(built, Means) and built.scale == 2.0 and built.num_tokens(9, RATE) == 1
    with pytest.raises(ConfigError, match="projector 'means' has no argument 'scal'. Did you mean 'scale'"):
        of_config(name="means", scal=2.0)


class Last(Projector):
    """A projector without any documented argument but the two that all have."""

    def __init__(self, encoders, output_size):
        super().__init__(encoders, output_size)


def test_a_projector_needs_no_argument_of_ours():
    assert isinstance(of_config(_target_=f"{__name__}.Last"), Last)


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="projector 'window' is registered already, by .*WindowProjector"):
        register_projector("window")(Means)


def test_target_overrides_name():
    assert isinstance(of_config(name="window", _target_=f"{__name__}.Means"), Means)


def test_entry_point(monkeypatch):
    point = importlib.metadata.EntryPoint("far_means", f"{__name__}:Means", "nemo_desta.projectors")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == point.group else [])
    assert isinstance(of_config(name="far_means"), Means)
    with pytest.raises(
        ConfigError, match="unknown projector 'far_mean'. Did you mean 'far_means'.*conv, ensemble, far_means"
    ):
        of_config(name="far_mean")
    check_model({"perception": {"projector": {"name": "far_means"}}}, "folder", Grant())


@pytest.mark.parametrize("key", ["_target_", "name"])
def test_a_projector_of_a_model_folder_needs_a_grant(key):
    target = f"{__name__}.Means"
    model = {"perception": {"projector": {key: target, "scale": 2.0}}}
    with pytest.raises(UntrustedConfig) as caught:
        check_model(model, "folder", Grant())
    assert f"model.perception.projector.{key}={target!r}" in str(caught.value)
    assert f"allow_targets=[{target!r}]" in str(caught.value)
    check_model(model, "folder", Grant(allow_targets=[target]))
    register_projector(target)(Means)
    check_model(model, "folder", Grant())
