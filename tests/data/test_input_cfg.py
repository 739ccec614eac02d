"""`type: desta` inside NeMo's own parsing, next to nothing else of ours."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from nemo_desta.testing.data import tiny_row, tiny_rows, write_jsonl

cutset = pytest.importorskip("nemo.collections.common.data.lhotse.cutset")
import nemo_desta.data.input_cfg  # noqa: E402  registers the type


def test_nemo_reads_rows_as_conversations(tmp_path: Path) -> None:
    path = tiny_rows(tmp_path, 3)
    cuts, is_tarred = cutset.read_cutset_from_config(
        {"input_cfg": [{"type": "desta", "rows": str(path)}], "force_finite": True, "audio_locator_tag": "<|audio|>"}
    )
    found = list(cuts)
    assert is_tarred
    assert [conversation.id for conversation in found] == ["row-000", "row-001", "row-002"]
    system, audio, question, answer = found[0].turns
    assert (system.role, question.role, answer.role) == ("system", "user", "assistant")
    assert question.value == "What can be heard?"
    assert answer.value == found[0].custom["row"]["response"]
    assert audio.audio_locator_tag == "<|audio|>"
    assert audio.cut.load_audio().shape == (1, audio.cut.num_samples)


def test_nemo_mixes_groups_by_weight_and_names_bad_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in "ab":
        rows = [tiny_row(f"{name}{i}", None) for i in range(4)]
        write_jsonl(tmp_path / f"{name}.jsonl", [*rows, {"id": "broken"}])
    group = [
        {"type": "desta", "rows": str(tmp_path / f"{name}.jsonl"), "weight": w} for name, w in (("a", 3), ("b", 1))
    ]
    cfg = OmegaConf.create(
        {"input_cfg": [{"type": "group", "weight": 1, "input_cfg": group}], "shuffle": True, "shard_seed": 5}
    )
    cuts, _ = cutset.read_cutset_from_config(cfg)
    drawn = [conversation.id for conversation in islice(iter(cuts), 400)]
    assert 0.65 < sum(i.startswith("a") for i in drawn) / 400 < 0.85
    assert set(Counter(drawn)) == {f"{name}{i}" for name in "ab" for i in range(4)}
    assert "'messages' must be a non-empty list" in caplog.text or "'response' must be" in caplog.text
    again = [c.id for c in islice(iter(cutset.read_cutset_from_config(cfg)[0]), 400)]
    assert again == drawn


class Poison:
    """A source whose second row raises what no one expects."""

    def __len__(self) -> int:
        return 3

    def row(self, i: int) -> dict:
        return tiny_row(f"row-{i}", None)

    def where(self, i: int) -> str:
        return f"poison:{i + 1}"

    def audio_files(self, i: int, row: dict) -> list:
        if i == 1:
            raise OverflowError("odd")
        return []


def test_whatever_goes_wrong_with_a_row_nemo_gets_the_others(caplog: pytest.LogCaptureFixture) -> None:
    found = nemo_desta.data.input_cfg.DestaConversations(
        Poison(), audio_locator_tag="<|audio|>", token_equivalent_duration=None, shuffle=False, seed=0
    )
    assert [conversation.id for conversation in found] == ["row-0", "row-2"]
    assert "bad row (poison:2), unexpected: OverflowError: odd" in caplog.text
