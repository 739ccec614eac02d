"""ALARM's adapters and fusion against their own numbers, and what our masks change."""

import json

import pytest
import torch

from nemo_desta.errors import ConfigError
from nemo_desta.perception.projector import ConvProjector
from nemo_desta.perception.projector.adapters import Adapter
from nemo_desta.perception.projector.fusion import CrossAttentionFusion, SumFusion
from nemo_desta.perception.projector.perceiver import PerceiverFusion
from nemo_desta.perception.projector.released import from_alarm_adapter, from_alarm_fusion, from_alarm_perceiver
from nemo_desta.types import FrameGrid
from tests.perception.projector.recipe import FIXTURES, load_arrays, load_weights
from tests.perception.projector.toys import (
    CROSS,
    RATE,
    SAMPLES,
    assert_batch_equals_alone,
    assert_every_gradient_is_finite,
    randomise,
    run,
    toy_encoder,
    toy_encoders,
)

CASES = json.loads((FIXTURES / "alarm" / "cases.json").read_text())
BODIES = {"downsampler_conformer": "downsampler", "mlp": "mlp", "identity": "identity"}


def original_adapter(case: str) -> Adapter:
    """An adapter built from ALARM's config of a case, with its weights, masks as released."""
    config = CASES[case]
    adapter = Adapter(
        len(config["audio_encoder_layers"]),
        config["encoder_embedding_dim"],
        config["llm_embedding_dim"],
        body=BODIES[config["adapter_name"]],
        hidden_size=config["adapter_embedding_dim"],
        depth=config.get("downsampler_depth", 1),
        norm=config.get("norm_type", "layer"),
        mix="before" if config["pre_average"] else "after",
        project=config.get("use_llm_proj", True),
        original_masks=True,
    )
    adapter.load_state_dict(from_alarm_adapter(load_weights("alarm", case)))
    return adapter.eval()


@pytest.mark.parametrize(
    "case",
    sorted(path.stem for path in (FIXTURES / "alarm").glob("adapter_*_*.npz") if not path.stem.endswith("trainmode")),
)
def test_adapter_equals_alarm(case):
    expected, adapter = load_arrays("alarm", case), original_adapter(case.rsplit("_", 1)[0])
    out, lens = adapter(list(expected["taps"]), expected["lengths"])
    assert lens.tolist() == expected["out_lengths"].tolist()
    torch.testing.assert_close(out, expected["output"], atol=1e-5, rtol=0)


def test_batchnorm_adapter_in_train_mode_equals_alarm():
    expected = load_arrays("alarm", "adapter_whisper_batchnorm_trainmode")
    adapter = original_adapter("adapter_whisper_batchnorm").train()
    out, _ = adapter(list(expected["taps"]), expected["lengths"])
    torch.testing.assert_close(out, expected["output"], atol=1e-5, rtol=0)
    buffers = {name[7:]: array for name, array in expected.items() if name.startswith("after__")}
    assert len(buffers) == 6
    for name, value in from_alarm_adapter(buffers).items():
        torch.testing.assert_close(adapter.get_buffer(name), value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["fusion_crossattention", "fusion_crossattention_skip", "fusion_sum"])
def test_fusion_equals_alarm(case):
    config, expected = CASES[case], load_arrays("alarm", case)
    widths = {"whisper": 48, "muq": 48, "sslam": 48}
    if case == "fusion_sum":
        fusion = SumFusion(widths, 48, original_masks=True)
    else:
        fusion = CrossAttentionFusion(
            widths,
            48,
            hidden_size=config["hidden_dim"],
            num_heads=config["num_attention_heads"],
            feed_forward_size=config["ffn_dims"],
            num_layers=dict(zip(config["conditional_encoders"], config["num_hidden_layers"], strict=True)),
            skip=config["use_skip_connection"],
            original_masks=True,
        ).eval()
        weights = load_weights("alarm", "fusion_crossattention")
        weights = {name.removeprefix("fusion_model."): tensor for name, tensor in weights.items()}
        fusion.load_state_dict(from_alarm_fusion(weights))
    out, lens = fusion({name: (expected[f"in__{name}"], expected[f"len__{name}"]) for name in widths})
    assert lens.tolist() == expected["out_lengths"].tolist()
    torch.testing.assert_close(out, expected["output"], atol=7e-5, rtol=0)


@pytest.mark.parametrize("case", ["fusion_multiperceiver", "fusion_multiperceiver_2cross_unshared"])
def test_perceiver_fusion_equals_alarm(case):
    config, expected = CASES[case], load_arrays("alarm", case)
    others = config["conditional_encoders"]
    theirs = {
        "num_latents": "num_latents",
        "latent_size": "num_latent_channels",
        "num_heads": "num_cross_attention_heads",
        "num_blocks": "num_self_attention_blocks",
        "layers_per_block": "num_self_attention_layers_per_block",
        "num_reads": "num_cross_attention_layers",
        "share_reads": "first_cross_attention_layer_shared",
        "share_blocks": "first_self_attention_block_shared",
        "read_widening": "cross_attention_widening_factor",
        "think_widening": "self_attention_widening_factor",
    }
    fusion = PerceiverFusion(
        {"whisper": 48, **dict(zip(others, config["conditional_embedding_dim"], strict=True))},
        48,
        perceivers={
            name: {ours: config[key][i] for ours, key in theirs.items() if key in config}
            for i, name in enumerate(others)
        },
    )
    weights = {name.removeprefix("fusion_model."): tensor for name, tensor in load_weights("alarm", case).items()}
    fusion.load_state_dict(from_alarm_perceiver(weights))
    out, lens = fusion({name: (expected[f"in__{name}"], expected[f"len__{name}"]) for name in ("whisper", *others)})
    assert lens.tolist() == expected["out_lengths"].tolist()
    # The original pads the main stream by 14 frames, up to the longest side stream.
    torch.testing.assert_close(out, expected["output"][:, : out.shape[1]], atol=9e-5, rtol=0)


def test_parameter_counts_are_alarms():
    whisper_grid, full = FrameGrid(RATE, 320), 2560
    encoders = {
        "whisper": toy_encoder(1280, (8, 16, 24, 32), whisper_grid),
        "w2vbert": toy_encoder(1024, (6, 10, 15, 20, 24), whisper_grid),
        "muq": toy_encoder(1024, (4, 8, 12), FrameGrid(24_000, 960)),
        "sslam": toy_encoder(768, (4, 8, 12), whisper_grid),
    }
    with torch.device("meta"):
        projector = ConvProjector(
            encoders, full, adapters={"whisper": {"norm": "batch"}, "muq": {"body": "mlp"}}, fusion="cross_attention"
        )
    counts = {name: sum(p.numel() for p in adapter.parameters()) for name, adapter in projector.adapters.items()}
    assert counts == {"whisper": 18_625_028, "w2vbert": 17_313_285, "sslam": 18_100_739, "muq": 4_723_203}
    assert sum(p.numel() for p in projector.fusion.parameters()) == 63_503_872

    side = dict.fromkeys(("w2vbert", "muq", "sslam"), {"body": "identity", "project": False})
    with torch.device("meta"):
        projector = ConvProjector(encoders, full, adapters={"whisper": {"norm": "batch"}, **side}, fusion="perceiver")
    counts = {name: sum(p.numel() for p in adapter.parameters()) for name, adapter in projector.adapters.items()}
    assert counts == {"whisper": 18_625_028, "w2vbert": 5, "sslam": 3, "muq": 3}
    assert sum(p.numel() for p in projector.fusion.parameters()) == 81_228_288


def test_perceiver_projector_puts_latents_before_the_main_stream_of_each_clip():
    encoders = toy_encoders()
    perceiver = {"num_latents": 3, "latent_size": 8, "num_heads": 2, "layers_per_block": 1}
    projector = ConvProjector(
        encoders,
        10,
        adapter={"hidden_size": 6},
        adapters={"beats": {"body": "identity", "project": False}},
        fusion={"name": "perceiver", "perceiver": perceiver},
    )
    assert_every_gradient_is_finite(randomise(projector), encoders, SAMPLES)
    assert projector.num_tokens(16_000, RATE) == 1 + 3 + 1 + 25
    assert_batch_equals_alone(projector.eval(), encoders, SAMPLES)


def test_nothing_is_cut():
    encoders = toy_encoders()
    alone = ConvProjector({"whisper": encoders["whisper"]}, 10)
    assert [alone.num_tokens(n, RATE) for n in (0, 320, 640, 641, 16_000)] == [1, 1, 1, 2, 25]


def test_released_rounding_cuts_an_odd_last_frame():
    encoders = {"whisper": toy_encoders()["whisper"]}
    projector = ConvProjector(encoders, 10, adapter={"hidden_size": 6}, original_masks=True)
    assert [projector.num_tokens(n, RATE) for n in (320, 640, 960, 16_000)] == [1, 1, 1, 25]


def test_batchnorm_learns_its_statistics_from_real_frames_only():
    """The mean over a batch of 50 and 10 frames is that of the clips alone, weighted 50 to 10: no padding in it."""
    encoders = {"whisper": toy_encoders()["whisper"]}
    start = randomise(ConvProjector(encoders, 10, adapter={"hidden_size": 6, "norm": "batch"})).state_dict()

    def learned_mean(samples: list[int], first_clip: int) -> torch.Tensor:
        projector = ConvProjector(encoders, 10, adapter={"hidden_size": 6, "norm": "batch"})
        projector.load_state_dict(start)
        run(projector.double(), encoders, samples, first_clip=first_clip, dtype=torch.float64)
        return projector.adapters["whisper"].bodies[0].stages[0].norm.running_mean

    expected = (50 * learned_mean([16_000], 0) + 10 * learned_mean([3_200], 1)) / 60
    torch.testing.assert_close(learned_mean([16_000, 3_200], 0), expected, atol=1e-12, rtol=0)


def test_a_frozen_adapter_stays_in_eval_mode():
    encoders = toy_encoders()
    projector = ConvProjector(encoders, 10, adapter={"hidden_size": 6, "norm": "batch"}, fusion=CROSS)
    projector.adapters["whisper"].requires_grad_(False)
    projector.train()
    assert not projector.adapters["whisper"].bodies[0].stages[0].norm.training
    assert projector.adapters["beats"].bodies[0].stages[0].norm.training
    before = projector.adapters["whisper"].bodies[0].stages[0].norm.running_mean.clone()
    run(projector, encoders, SAMPLES)
    assert torch.equal(projector.adapters["whisper"].bodies[0].stages[0].norm.running_mean, before)


def test_streams_keep_their_own_lengths_in_the_fusion():
    """A main stream of 4 frames must not see frames of the other stream that lie behind its end, and only those."""
    fusion = randomise(
        CrossAttentionFusion({"a": 10, "b": 10}, 10, hidden_size=8, num_heads=2, feed_forward_size=16)
    ).eval()
    a, b = torch.randn(1, 4, 10), torch.randn(1, 9, 10)
    lens = {"a": torch.tensor([4]), "b": torch.tensor([6])}
    before, out_lens = fusion({"a": (a, lens["a"]), "b": (b, lens["b"])})
    assert out_lens.tolist() == [4]
    behind, inside = b.clone(), b.clone()
    behind[:, 6:] += 1
    inside[:, 5] += 1
    assert torch.equal(fusion({"a": (a, lens["a"]), "b": (behind, lens["b"])})[0], before)
    assert not torch.allclose(fusion({"a": (a, lens["a"]), "b": (inside, lens["b"])})[0], before)


def test_wrong_knobs_are_named():
    encoders = toy_encoders()
    with pytest.raises(ConfigError, match="adapters.whisper.hiden_size.*Did you mean 'hidden_size'"):
        ConvProjector(encoders, 10, adapters={"whisper": {"hiden_size": 6}})
    with pytest.raises(ValueError, match="'wisper' is not an encoder.*Did you mean 'whisper'"):
        ConvProjector(encoders, 10, adapters={"wisper": {}})
    with pytest.raises(ConfigError, match="unknown fusion 'cross'.*Known: cross_attention, "):
        ConvProjector(encoders, 10, fusion="cross")
    with pytest.raises(ValueError, match="different frame rates"):
        ConvProjector(encoders, 10, adapters={"beats": {"body": "mlp"}})
    with pytest.raises(ConfigError, match="perceivers.beats.num_latent'.*Did you mean 'num_latents'"):
        ConvProjector(encoders, 10, fusion={"name": "perceiver", "perceiver": {"num_latent": 3}})
    with pytest.raises(ValueError, match="adapter norm is 'group'"):
        ConvProjector(encoders, 10, adapter={"norm": "group"})
