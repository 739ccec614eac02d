from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.data.costs import RowCosts, RowRef
from nemo_desta.data.row_source import WeightedSource
from nemo_desta.data.sampler import BatchPlan, Begun, PlannedBatch, PlanSettings
from nemo_desta.data.sources import JsonlSource
from nemo_desta.errors import RowError
from nemo_desta.testing.data import tiny_row, tiny_rows, tiny_tokenizer, write_jsonl, write_tone


class Numbers:
    """A source that only has a length."""

    def __init__(self, size: int, name: str = "numbers") -> None:
        self.size, self.name = size, name

    def __len__(self) -> int:
        return self.size

    def row(self, i: int) -> dict:
        return tiny_row(f"{self.name}-{i}", None)

    def where(self, i: int) -> str:
        return f"{self.name}:{i + 1}"

    def audio_files(self, i: int, row: dict) -> list:
        return []


def make_plan(sizes: list[int], settings: PlanSettings, shares: list[float] | None = None, **kwargs) -> BatchPlan:
    sources = [
        WeightedSource(Numbers(size, f"s{i}"), None if shares is None else shares[i]) for i, size in enumerate(sizes)
    ]
    return BatchPlan(sources, kwargs.pop("tokens", length_of), settings, **kwargs)


def length_of(ref: RowRef) -> int:
    return 10 + (ref.index * 7919 + ref.source) % 190


def rows_of(batches: list[PlannedBatch]) -> list[RowRef]:
    return [ref for batch in batches for ref in batch.rows]


SETTINGS = PlanSettings(batch_tokens=1000, max_batch_size=16, bucket_buffer_size=100, seed=3)


def test_an_epoch_holds_every_row_once_in_another_order_each_time() -> None:
    plan = make_plan([333, 50], SETTINGS)
    epochs = [list(plan.batches(epoch)) for epoch in range(3)]
    everything = sorted(RowRef(s, i) for s, size in enumerate((333, 50)) for i in range(size))
    assert all(sorted(rows_of(epoch)) == everything for epoch in epochs)
    assert rows_of(epochs[0]) != rows_of(epochs[1]) != rows_of(epochs[2])
    assert epochs[0] == list(plan.batches(0))
    assert rows_of(epochs[0]) != rows_of(
        list(make_plan([333, 50], PlanSettings(**{**vars(SETTINGS), "seed": 4})).batches(0))
    )


def test_batches_respect_the_limits_and_waste_little() -> None:
    batches = list(
        make_plan([2000], PlanSettings(batch_tokens=1000, max_batch_size=16, bucket_buffer_size=500)).batches(0)
    )
    padded = [max(map(length_of, batch.rows)) * len(batch.rows) for batch in batches]
    assert max(padded) <= 1000
    assert max(len(batch.rows) for batch in batches) == 16
    assert sum(map(length_of, rows_of(batches))) / sum(padded) > 0.95
    longest = [max(map(length_of, batch.rows)) for batch in batches]
    assert longest[:50] != sorted(longest[:50])  # the order of batches is shuffled


def test_start_replays_to_any_position() -> None:
    plan = make_plan([333], SETTINGS)
    full = list(plan.batches(1))
    for start in (0, 1, len(full) - 1, len(full)):
        assert list(plan.batches(1, start)) == full[start:]
    assert [batch.index for batch in full] == list(range(len(full)))
    assert [batch.is_last for batch in full] == [False] * (len(full) - 1) + [True]
    assert plan.num_batches(1) == len(full)


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_ranks_share_an_epoch_without_overlap_and_step_equally_often(num_ranks: int) -> None:
    plans = [make_plan([333], SETTINGS, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    per_rank = [list(plan.batches(0)) for plan in plans]
    assert len({len(batches) for batches in per_rank}) == 1
    assert sorted(ref for batches in per_rank for ref in rows_of(batches)) == [RowRef(0, i) for i in range(333)]
    empty = [(rank, b.index) for rank, batches in enumerate(per_rank) for b in batches if not b.rows]
    assert all(index == len(per_rank[0]) - 1 for _, index in empty)  # only in the last step
    steps = [step for step in zip(*per_rank, strict=True) if not step[0].is_last]
    longest = np.array([[max(map(length_of, batch.rows)) for batch in step] for step in steps])
    by_chance = np.random.default_rng(0).permutation(longest.ravel()).reshape(longest.shape)
    spread, chance = (np.ptp(numbers, axis=1).mean() for numbers in (longest, by_chance))
    assert spread < 0.8 * chance  # ranks work on rows of like length in the same step


def test_fewer_rows_than_ranks_give_one_step() -> None:
    per_rank = [list(make_plan([3], PlanSettings(100), rank=rank, num_ranks=8).batches(0)) for rank in range(8)]
    assert {len(batches) for batches in per_rank} == {1}
    assert sum(len(batches[0].rows) for batches in per_rank) == 3


def test_without_shuffle_rows_keep_their_order() -> None:
    plan = make_plan([50], PlanSettings(batch_tokens=1000, max_batch_size=4, shuffle=False, bucket_buffer_size=10))
    assert rows_of(list(plan.batches(0))) == [RowRef(0, i) for i in range(50)]


def test_weights_set_the_mix_and_use_every_row_equally_often_over_epochs() -> None:
    plan = make_plan([100, 10], SETTINGS, shares=[0.25, 0.75])
    counts = Counter(ref.source for ref in rows_of(list(plan.batches(0))))
    assert counts[0] + counts[1] == 110
    assert counts[0] == round(0.25 * 110)
    over = Counter(ref for epoch in range(10) for ref in rows_of(list(plan.batches(epoch))))
    small = [over[RowRef(1, i)] for i in range(10)]
    assert max(small) - min(small) <= 1
    large = [over[RowRef(0, i)] for i in range(100)]
    assert max(large) - min(large) <= 1


def test_rows_per_epoch_sets_the_length_of_a_weighted_epoch() -> None:
    settings = PlanSettings(batch_tokens=1000, rows_per_epoch=64)
    plan = make_plan([100, 10], settings, shares=[0.5, 0.5])
    assert Counter(ref.source for ref in rows_of(list(plan.batches(2)))) == {0: 32, 1: 32}


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_bad_rows_travel_with_the_plan_once_over_all_ranks(num_ranks: int) -> None:
    def tokens(ref: RowRef) -> int:
        if ref.index % 10 == 0:
            raise RowError("corrupt", f"number {ref.index} is broken")
        return length_of(ref)

    plans = [make_plan([95], SETTINGS, tokens=tokens, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
    batches = [batch for plan in plans for batch in plan.batches(0)]
    bad = [row for batch in batches for row in batch.bad_rows]
    assert sorted(row["where"] for row in bad) == sorted(f"s0:{i + 1}" for i in range(0, 95, 10))
    assert bad[0]["reason"] == "corrupt" and bad[0]["id"].startswith("s0-")
    assert len(rows_of(batches)) == 85


def test_no_usable_row_and_no_row_are_errors() -> None:
    def broken(ref: RowRef) -> int:
        raise RowError("corrupt", "all is broken")

    with pytest.raises(ValueError, match="none of 5 rows can be used. The first ones: all is broken"):
        list(make_plan([5], SETTINGS, tokens=broken).batches(0))
    with pytest.raises(ValueError, match="no rows in s1"):
        make_plan([5, 0], SETTINGS)


@pytest.fixture
def costs_of(tmp_path: Path):
    prompts = PromptBuilder(tiny_tokenizer())

    def make(source: JsonlSource, **kwargs) -> RowCosts:
        settings = {"sampling_rate": 16000, "max_row_tokens": 1000, **kwargs}
        return RowCosts([source], prompts, lambda n: -(-n // 1600), **settings)

    return make


def test_cost_is_text_plus_audio_tokens(costs_of, tmp_path: Path) -> None:
    for durations in (True, False):  # from the row, or from the file's header
        source = JsonlSource(tiny_rows(tmp_path / str(durations), 6, durations=durations))
        costs = costs_of(source)
        for i in range(6):
            row = source.row(i)
            seconds = len_of_wav(source, i) / 16000
            example = costs.prompts.example(row)
            assert costs.tokens(RowRef(0, i)) == len(example.ids) - 1 + round(seconds * 10)


def len_of_wav(source: JsonlSource, i: int) -> int:
    from nemo_desta.data.audio_io import load_audio

    return len(load_audio(source.audio_files(i, source.row(i))[0]))


def test_too_long_rows_and_targets_are_bad(costs_of, tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.5)
    rows = [tiny_row("fine", "a.wav"), tiny_row("long", "a.wav", response="word " * 200)]
    source = JsonlSource(write_jsonl(tmp_path / "r.jsonl", rows))
    costs = costs_of(source, max_target_tokens=50)
    assert costs.tokens(RowRef(0, 0)) > 0
    with pytest.raises(RowError, match="the limit is 50") as caught:
        costs.tokens(RowRef(0, 1))
    assert caught.value.reason == "target_too_long"
    with pytest.raises(RowError, match="raise batch_tokens") as caught:
        costs_of(source, max_row_tokens=200).tokens(RowRef(0, 1))
    assert caught.value.reason == "too_long"


def test_estimates_stay_close_and_rarely_below_the_truth(costs_of, tmp_path: Path) -> None:
    source = JsonlSource(tiny_rows(tmp_path, 40))
    exact, estimated = costs_of(source), costs_of(source, text_tokens="estimate")
    ratios = np.array([estimated.tokens(RowRef(0, i)) / exact.tokens(RowRef(0, i)) for i in range(40)])
    assert (ratios >= 0.97).mean() > 0.8
    assert ratios.max() < 1.35


def test_durations_tool_writes_what_the_files_say(tmp_path: Path) -> None:
    from nemo_desta.data.durations import main

    path = tiny_rows(tmp_path, 4, durations=False)
    with open(path, "a") as file:
        file.write("not a row\n")
    main([str(path), str(tmp_path / "out.jsonl"), "--audio-root", f"default={tmp_path}"])
    found = JsonlSource(tmp_path / "out.jsonl")
    for i in range(4):
        row = found.row(i)
        entry = row["messages"][-1]["audios"][0]
        assert entry.pop("duration") == len_of_wav(found, i) / 16000
        assert row == JsonlSource(path).row(i)
    assert found.index.line(4) == b"not a row\n"


@pytest.mark.parametrize("ranks", [(2, 1), (1, 2), (8, 4), (2, 3, 1), (3, 3, 5)])
@pytest.mark.parametrize("shares", [None, [0.7, 0.3]])
def test_an_epoch_resumed_with_another_number_of_ranks_holds_the_rows_of_the_uninterrupted_one(
    ranks: tuple[int, ...], shares: list[float] | None
) -> None:
    def tokens(ref: RowRef) -> int:
        if ref.index % 97 == 5:
            raise RowError("schema", "bad")
        return length_of(ref)

    sizes, epoch = [1300, 200], 1
    whole = list(make_plan(sizes, SETTINGS, shares, tokens=tokens).batches(epoch))
    begun: list[Begun] = []
    given: list[PlannedBatch] = []
    for part, num_ranks in enumerate(ranks):
        is_last = part == len(ranks) - 1
        plans = [
            make_plan(sizes, SETTINGS, shares, tokens=tokens, rank=rank, num_ranks=num_ranks, begun=(epoch, begun))
            for rank in range(num_ranks)
        ]
        steps = None if is_last else 7 + part
        for plan in plans:
            batches = list(plan.batches(epoch))
            assert batches[-1].is_last
            given += batches[:steps]
        begun = [*begun, Begun(SETTINGS, num_ranks, steps or 0)]
    assert Counter(rows_of(given)) == Counter(rows_of(whole))
    named = [Counter(bad["id"] for batch in run for bad in batch.bad_rows) for run in (given, whole)]
    assert named[0] == named[1] and named[0]
