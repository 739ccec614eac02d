"""The feature cache gives exactly what the encoders give, whatever the disk, other processes and kills do."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from nemo_desta.config import FeatureCacheConfig
from nemo_desta.errors import ConfigError
from nemo_desta.perception import feature_store
from nemo_desta.perception.encoders import BeatsEncoder
from nemo_desta.perception.feature_cache import FeatureCache, clip_keys, feature_bytes
from nemo_desta.perception.feature_store import FeatureStore, shards
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import build_projector
from nemo_desta.testing.perception import tiny_encoders

IDENTITIES = {name: {"encoder": {"name": name}, "hashes": ["1"]} for name in ("whisper", "beats")}


def perception(projector: str = "window", encoders=None, **knobs) -> FusedPerception:
    encoders = encoders or tiny_encoders()
    torch.manual_seed(0)
    return FusedPerception(encoders, build_projector(projector, encoders, 64, **knobs), normalize_dbfs=-25)


def cache(folder, identities=IDENTITIES, **settings) -> FeatureCache:
    return FeatureCache(FeatureCacheConfig(folder=str(folder), **settings), identities, {"normalize_dbfs": -25})


def clips(*secs: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of these lengths in one batch, the first one silent; NaN in the padding."""
    lens = torch.tensor([round(s * 16_000) for s in secs])
    audio = torch.full((len(secs), int(lens.max())), float("nan"))
    for i, length in enumerate(lens.tolist()):
        audio[i, :length] = (i > 0) * 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(seed + i))
    return audio, lens


def loss_and_gradients(model: FusedPerception, audio, lens):
    vectors, lens = model(audio, lens)
    valid = torch.arange(vectors.shape[1]) < lens[:, None]
    loss = vectors[valid].square().sum()
    model.zero_grad()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.projector.parameters()]


@pytest.mark.parametrize(
    ("projector", "knobs"),
    [
        ("window", {}),
        ("qformer", {"num_layers": 1, "num_queries": 4, "num_heads": 2, "dropout": 0.0}),
        ("conv", {"fusion": "cross_attention", "adapter": {"hidden_size": 16}}),
        ("window_qformer", {"num_heads": 2, "hidden_size": 32, "dropout": 0.0}),
    ],
)
def test_losses_and_gradients_are_bit_equal_when_some_none_or_all_clips_are_cached(tmp_path, projector, knobs):
    """Silence, a clip of several Whisper windows, a repeated clip; two encoders."""
    if projector == "conv":
        knobs["fusion"] = {"name": "cross_attention", "hidden_size": 16, "num_heads": 2, "dropout": 0.0}
    model = perception(projector, **knobs)
    batch = clips(0.5, 5.3, 0.05, 1.234)
    batch = (torch.cat([batch[0], batch[0][1:2]]), torch.cat([batch[1], batch[1][1:2]]))
    loss, gradients = loss_and_gradients(model, *batch)
    model.feature_cache = cache(tmp_path)
    loss_and_gradients(model, batch[0][:2], batch[1][:2])
    assert (model.feature_cache.num_hits, model.feature_cache.num_encoded) == (0, 4)
    for expected in [(4, 8), (12, 8)]:  # partly cached; then all
        cached_loss, cached = loss_and_gradients(model, *batch)
        assert (model.feature_cache.num_hits, model.feature_cache.num_encoded) == expected
        assert torch.equal(cached_loss, loss)
        assert all(torch.equal(one, other) for one, other in zip(cached, gradients, strict=True))
    model.feature_cache = cache(tmp_path)  # as another process reads it
    assert torch.equal(loss_and_gradients(model, *batch)[0], loss)
    assert (model.feature_cache.num_hits, model.feature_cache.num_encoded) == (8, 0)


def test_encoders_do_not_run_when_all_clips_are_cached(tmp_path):
    model = perception()
    model.feature_cache = cache(tmp_path)
    batch = clips(0.5, 1.0)
    with torch.no_grad():
        expected, _ = model(*batch)
        for encoder in model.encoders.values():
            encoder.encode = None
        assert torch.equal(model(*batch)[0], expected)
        keys = clip_keys(*batch)
        assert torch.equal(model(*batch, audio_keys=keys)[0], expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_features_do_not_depend_on_what_the_cache_holds(tmp_path, dtype):
    model = perception()
    batch = clips(0.5, 5.3, 1.0)
    exact = model(*batch)[0]
    model.feature_cache = cache(tmp_path, dtype=dtype)
    first, again = model(*batch)[0], model(*batch)[0]
    assert torch.equal(first, again)
    error = (first - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < {"bfloat16": 2**-8, "float16": 2**-11}[dtype]  # the relative rounding of one value


def test_features_of_another_encoder_layer_level_or_dtype_are_never_read(tmp_path):
    encoders = tiny_encoders()
    batch = clips(0.5, 1.0)
    model = perception(encoders=encoders)
    model.feature_cache = cache(tmp_path)
    model(*batch)
    fewer = BeatsEncoder(encoders["beats"].model, layer_ids=(2,))
    others = {
        "weights": (cache(tmp_path, {name: {"hashes": ["2"]} for name in IDENTITIES}), model),
        "level": (FeatureCache(model.feature_cache.settings, IDENTITIES, {"normalize_dbfs": None}), model),
        "stored dtype": (cache(tmp_path, dtype="bfloat16"), model),
        "layers": (cache(tmp_path), perception(encoders={"beats": fewer})),
        "dtype": (cache(tmp_path), perception(encoders={"beats": tiny_encoders()["beats"].to(torch.bfloat16)})),
    }
    for what, (other, reader) in others.items():
        reader.feature_cache = other
        reader(*batch)
        assert other.num_hits == 0, what


def test_bytes_are_those_of_valid_frames(tmp_path):
    model = perception()
    model.feature_cache = cache(tmp_path)
    audio, lens = clips(0.5)
    model(audio, lens)
    expected = sum(feature_bytes(encoder, 8_000, "auto") for encoder in model.encoders.values())
    assert expected == 4 * (25 * 3 * 32 + 32 * 2 * 48)
    size = sum(size for _, size, _ in shards(tmp_path))
    assert expected < size < expected + 1_000


def test_parts_that_cannot_be_cached_are_refused_by_name(tmp_path):
    trained = perception()
    next(trained.encoders["whisper"].parameters()).requires_grad_(True)
    own = perception(encoders=tiny_encoders())
    own.encoders["whisper"].__class__ = torch.nn.Module
    encoders = {"beats": BeatsEncoder(tiny_encoders()["beats"].model, original_masks=True)}
    refused = {
        "'whisper' is trained": trained,
        "'whisper' is no FrozenEncoder": own,
        "'beats' has original_masks": perception(encoders=encoders),
        "the projector has original_masks": perception(
            "conv", original_masks=True, encoders={"beats": tiny_encoders()["beats"]}
        ),
    }
    for message, model in refused.items():
        with pytest.raises(ConfigError, match=message):
            model.feature_cache = cache(tmp_path)
    later = perception()
    later.feature_cache = cache(tmp_path)
    later.encoders["beats"].model.train()
    with pytest.raises(ConfigError, match="'beats' is in train mode"):
        later(*clips(0.5))


def test_float16_overflow_is_refused(tmp_path):
    model = perception()
    encoder = model.encoders["whisper"]
    encode = encoder.encode
    encoder.encode = lambda *args: (out := encode(*args))._replace(layers=tuple(1e6 * layer for layer in out.layers))
    model.feature_cache = cache(tmp_path, dtype="float16")
    with pytest.raises(ConfigError, match="use bfloat16"):
        model(*clips(0.5, 0.5))


# ---- the store


def store(folder, **limits) -> FeatureStore:
    return FeatureStore(Path(folder), {"name": "test"}, **limits)


def entry(number: int, size: int = 1_000) -> torch.Tensor:
    return torch.full((1, 1, size), float(number))


def test_least_recently_used_shards_leave_and_the_bound_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "TOUCH_SECS", 0)
    one = store(tmp_path, max_bytes=13_000)  # three shards of 4,000 bytes and headers
    for number in range(3):
        one.put({f"{number}": entry(number)})
        time.sleep(0.02)
    assert torch.equal(one.get("0"), entry(0))  # used now
    one.put({"3": entry(3)})
    left = store(tmp_path)
    assert [left.get(str(number)) is not None for number in range(4)] == [True, False, True, True]
    assert sum(size for _, size, _ in shards(tmp_path)) <= 13_000
    other = FeatureStore(tmp_path, {"name": "another group"}, max_bytes=13_000)
    other.put({"9": entry(9)})
    assert sum(size for _, size, _ in shards(tmp_path)) <= 13_000  # of all groups together
    assert len(store(tmp_path)) == 2


def test_a_batch_above_the_limit_is_not_stored(tmp_path, caplog):
    one = store(tmp_path, max_bytes=1_000)
    one.put({"0": entry(0)})
    assert one.get("0") is None and not shards(tmp_path)
    assert "more than max_gb" in caplog.text


@pytest.mark.parametrize("place", [10, -10])
def test_a_damaged_shard_is_found_removed_and_encoded_again(tmp_path, caplog, place):
    model = perception()
    batch = clips(0.5, 1.0)
    model.feature_cache = cache(tmp_path)
    expected = model(*batch)[0]
    for _, _, path in shards(tmp_path):
        content = bytearray(path.read_bytes())
        content[place] ^= 0x40
        path.write_bytes(content)
    model.feature_cache = cache(tmp_path)
    assert torch.equal(model(*batch)[0], expected)
    assert "damaged and removed" in caplog.text
    assert model.feature_cache.num_hits < 4
    caplog.clear()
    model.feature_cache = cache(tmp_path)
    assert torch.equal(model(*batch)[0], expected)
    assert model.feature_cache.num_hits == 4 and not caplog.text


def test_a_full_disk_stops_writing_and_not_the_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(feature_store, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("no space left")))
    model = perception()
    batch = clips(0.5, 1.0)
    expected = model(*batch)[0]
    model.feature_cache = cache(tmp_path)
    assert torch.equal(model(*batch)[0], expected)
    assert caplog.text.count("no space left") == 2  # once for each encoder


def write_many(folder: str, first: int, count: int) -> None:
    one = store(folder)
    for number in range(first, first + count):
        one.put({f"{number}": entry(number, 50_000)})


def test_two_processes_write_at_once_and_each_key_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=write_many, args=(str(tmp_path), first, 20)) for first in (0, 10)]
    for worker in workers:
        worker.start()
    reader = store(tmp_path)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    for number in range(30):  # by a reader that was open before they were written
        assert torch.equal(reader.get(str(number)), entry(number, 50_000))
    assert len(shards(tmp_path)) == 30


def test_a_kill_at_any_moment_leaves_only_whole_shards(tmp_path, caplog):
    """Real SIGKILLs at different moments of writing."""
    context = multiprocessing.get_context("fork")
    for attempt in range(12):
        before = len(shards(tmp_path))
        worker = context.Process(target=write_many, args=(str(tmp_path), 1000 * attempt, 1000))
        worker.start()
        while len(shards(tmp_path)) == before and worker.is_alive():
            time.sleep(0.001)
        time.sleep(0.0007 * attempt)
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
    one = store(tmp_path)
    assert len(one) > 0
    for _, _, path in shards(tmp_path):
        with safe_open(path, "pt") as shard:
            for key in shard.keys():
                assert torch.equal(one.get(key), entry(int(key), 50_000))
    assert not caplog.records
    one.put({"last": entry(0)})
    assert not list(tmp_path.glob(f"*/*{feature_store.PART}"))  # what the killed ones left is removed
