"""The script that measures mix_pool: honest on a CPU, same answers from all variants, bytes counted right."""

import csv
import dataclasses
import json

import pytest
import torch

from benchmarks import mix_pool
from benchmarks import mix_pool_variants as variants
from benchmarks.mix_pool_cases import (
    Case,
    all_cases,
    clip_frames,
    default_cases,
    input_sets,
    make_inputs,
    minimal_bytes,
    states_bytes,
)

CPU = torch.device("cpu")
SMALL = Case(B=3, T=130, N=3, M=2, C=32, dtype="fp32", ragged=True)


def test_on_a_cpu_it_prints_the_bytes_of_ours_and_says_what_needs_a_gpu(tmp_path, capsys):
    pytest.importorskip("triton")
    report = mix_pool.main(["--device", "cpu", "--quick", "--variants", "eager-list", "ours", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    kept = {row["variant"]: row["saved_of_states"] for row in report["rows"] if "saved_of_states" in row}
    assert kept["ours"] <= 0.13 < 2 < kept["eager-list"]
    assert "needs a GPU" in printed and "copy rate" not in printed.lower()
    assert not any("ms" in key for row in report["rows"] for key in row)
    timed = [row["variant"] for row in report["rows"] if "both_secs" in row]
    assert timed == ["eager-list"]  # never the interpreter's time
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == report["rows"]
    with (tmp_path / "mix_pool.csv").open() as file:
        assert [row["variant"] for row in csv.DictReader(file)] == [row["variant"] for row in report["rows"]]
    assert printed.strip().endswith((tmp_path / "table.md").read_text().split("\n\n", 1)[1].strip())


@pytest.mark.parametrize("mode", ["attention", "stack"])
@pytest.mark.parametrize("name", ["eager-stacked", "eager-list"])
def test_variants_compute_the_same(name, mode):
    case = dataclasses.replace(SMALL, mode=mode)
    assert 0 < variants.check(variants.variant(name), make_inputs(case, CPU), case) < 1


def test_a_variant_that_computes_something_else_is_refused():
    def wrong(layers, layer_weights, *rest, mode):
        return variants.eager_stacked(layers, layer_weights.flip(0), *rest, mode=mode)

    with pytest.raises(AssertionError, match="output is off"):
        variants.check(wrong, make_inputs(SMALL, CPU), SMALL)


def test_kept_bytes_count_each_memory_once_and_no_inputs():
    case = Case(B=2, T=8, N=1, C=16, dtype="fp32")
    inputs = make_inputs(case, CPU)

    def keeps_one_new_tensor(layers, layer_weights, *rest, mode):
        squared = layers[0] * layer_weights  # keeps the layer, which is an input
        return (squared[0] * squared[1] * layer_weights).exp()  # two views and a product kept; exp keeps its output

    size = 8 * 16 * 4
    assert variants.saved_bytes(keeps_one_new_tensor, inputs, case) == 2 * size + size + size


def test_least_bytes_of_the_default_case():
    states, windows = 16 * 1500 * 4 * 1280 * 2, 16 * 375
    assert states_bytes(Case()) == states
    assert minimal_bytes(Case()) == states + windows * 1280 * (2 + 4)
    assert minimal_bytes(Case(mode="stack")) == states + windows * 4 * 1280 * 2
    ragged = Case(ragged=True)
    assert minimal_bytes(ragged) / minimal_bytes(Case()) == pytest.approx(sum(clip_frames(ragged)) / 24000, rel=1e-3)


def test_windows_cover_each_valid_frame_once():
    windows = make_inputs(SMALL, CPU).windows
    read = [f for s, c in zip(windows.starts.tolist(), windows.counts.tolist(), strict=True) for f in range(s, s + c)]
    frames = clip_frames(SMALL)
    assert len(set(frames)) > 1
    assert read == [clip * SMALL.T + f for clip, count in enumerate(frames) for f in range(count)]


def test_input_sets_exceed_three_times_the_cache_and_differ():
    sets = list(input_sets(SMALL, CPU, cache_bytes=states_bytes(SMALL)))
    assert len(sets) == 3
    assert not torch.equal(sets[0].layers[0], sets[1].layers[0])
    assert torch.equal(sets[0].windows.starts, sets[2].windows.starts)
    assert len(list(input_sets(SMALL, CPU, cache_bytes=1))) == 1


def test_default_cases_turn_every_knob_of_the_whole_product():
    for field in ("mode", "B", "N", "K", "M", "C", "ragged"):
        assert {getattr(c, field) for c in default_cases()} == {getattr(c, field) for c in all_cases()}
