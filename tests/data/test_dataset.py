import json
from pathlib import Path

import pytest
import soundfile
import torch

from nemo_desta.config import TranscriptConfig
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.data.costs import RowRef
from nemo_desta.data.dataset import FILLER_ID, RowDataset, collate
from nemo_desta.data.sampler import PlannedBatch
from nemo_desta.data.sources import JsonlSource
from nemo_desta.testing.data import tiny_row, tiny_rows, tiny_tokenizer, with_flac_length, write_jsonl, write_tone
from nemo_desta.types import AUDIO_SLOT


def planned(*indices: int, epoch: int = 0) -> PlannedBatch:
    return PlannedBatch(epoch, 7, True, [RowRef(0, i) for i in indices], [])


def dataset_of(path: Path, pad: str = "none", **kwargs) -> RowDataset:
    return RowDataset([JsonlSource(path)], PromptBuilder(tiny_tokenizer("llama3", pad)), sampling_rate=16000, **kwargs)


@pytest.mark.parametrize("pad", ["own", "eos", "none"])
def test_batch_says_by_lengths_alone_what_is_real_and_what_is_target(tmp_path: Path, pad: str) -> None:
    dataset = dataset_of(tiny_rows(tmp_path, 3), pad)
    batch = dataset[planned(2, 0, 1)]
    assert batch["row_ids"] == ["row-002", "row-000", "row-001"]
    assert batch["datasets"] == ["tones"] * 3
    assert batch["bad_rows"] == [] and batch["num_rows"] == 3 and batch["position"] == (0, 7, True)
    assert batch["audio"].dtype == torch.float32 and batch["input_ids"].dtype == torch.int64
    for i, index in enumerate((2, 0, 1)):
        row = dataset.sources[0].row(index)
        end, start = int(batch["input_lens"][i]), int(batch["prompt_lens"][i])
        ids = batch["input_ids"][i]
        target = ids[start:end].tolist()
        assert dataset.prompts.tokenizer.decode(target[:-1]) == row["response"]
        assert target[-1] == dataset.prompts.end_of_turn_id
        assert (ids == AUDIO_SLOT).sum() == 1
        assert (ids[end:] == 0).all()
        samples = int(batch["audio_lens"][i])
        assert samples == round(row["messages"][-1]["audios"][0]["duration"] * 16000)
        assert batch["audio"][i, :samples].abs().max() > 0.05
        assert (batch["audio"][i, samples:] == 0).all()
    assert batch["audio"].shape[1] == batch["audio_lens"].max()
    assert batch["input_ids"].shape[1] == batch["input_lens"].max()


def test_clips_of_several_rows_are_in_reading_order(tmp_path: Path) -> None:
    for number in range(3):
        write_tone(tmp_path / f"{number}.wav", 0.1 * (number + 1))
    both = tiny_row("both", "2.wav")
    both["messages"][-1]["content"] = "<|AUDIO|> <|AUDIO|>"
    both["messages"][-1]["audios"].append({"audio": "0.wav", "text": None})
    rows = [both, tiny_row("none", None), tiny_row("one", "1.wav")]
    batch = dataset_of(write_jsonl(tmp_path / "r.jsonl", rows))[planned(0, 1, 2)]
    assert batch["audio_lens"].tolist() == [4800, 1600, 3200]
    assert (batch["input_ids"] == AUDIO_SLOT).sum(1).tolist() == [2, 0, 1]
    texts = dataset_of(tmp_path / "r.jsonl")[planned(1)]
    assert texts["audio"].shape == (0, 0) and texts["audio_lens"].shape == (0,)


def test_bad_rows_are_left_out_and_said(tmp_path: Path) -> None:
    path = tiny_rows(tmp_path, 5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    (tmp_path / rows[0]["messages"][-1]["audios"][0]["audio"]).write_bytes(b"nonsense")
    rows[1]["messages"][-1]["audios"][0]["audio"] = "gone.wav"
    rows[2]["messages"][-1]["content"] = "<|AUDIO|><|AUDIO|>"
    rows[3]["response"] = "many words " * 50
    write_jsonl(path, rows)
    batch = dataset_of(path, max_target_tokens=60)[planned(0, 1, 2, 3, 4)]
    assert batch["row_ids"] == ["row-004"]
    assert [(row["id"], row["reason"]) for row in batch["bad_rows"]] == [
        ("row-000", "corrupt"),
        ("row-001", "not_found"),
        ("row-002", "tags"),
        ("row-003", "target_too_long"),
    ]
    assert all(row["where"] == f"{path}:{i + 1}" for i, row in enumerate(batch["bad_rows"]))
    assert batch["num_rows"] == 1


def test_a_row_whose_audio_is_not_what_row_or_header_say_is_a_bad_row(tmp_path: Path) -> None:
    path = tiny_rows(tmp_path, 6)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    entries = [row["messages"][-1]["audios"][0] for row in rows]
    files = [tmp_path / entry["audio"] for entry in entries]
    entries[0]["duration"] = 30.0
    files[1].write_bytes(files[1].read_bytes()[: files[1].stat().st_size // 2])
    write_tone(files[2], 60.0)
    soundfile.write(tmp_path / "x.flac", soundfile.read(files[3])[0], 16000)
    entries[3]["audio"] = "x.flac"
    (tmp_path / "x.flac").write_bytes(with_flac_length((tmp_path / "x.flac").read_bytes(), 2**36 - 1))
    entries[4]["audio"] = "/"
    write_jsonl(path, rows)
    batch = dataset_of(path)[planned(*range(6))]
    assert batch["row_ids"] == ["row-005"]
    assert [(row["id"], row["reason"]) for row in batch["bad_rows"]] == [
        ("row-000", "wrong_duration"),
        ("row-001", "cut"),
        ("row-002", "wrong_duration"),
        ("row-003", "cut"),
        ("row-004", "outside_root"),
    ]


class Hostile(JsonlSource):
    def audio_files(self, i: int, row: dict) -> list:
        raise (MemoryError, RecursionError, TypeError)[i]("of no use")


def test_no_exception_of_a_row_ends_the_run(tmp_path: Path) -> None:
    path = tiny_rows(tmp_path, 3)
    dataset = RowDataset([Hostile(path)], PromptBuilder(tiny_tokenizer()), sampling_rate=16000)
    batch = dataset[planned(0, 1, 2)]
    assert batch["num_rows"] == 0 and [row["reason"] for row in batch["bad_rows"]] == ["unexpected"] * 3
    for bad, kind in zip(batch["bad_rows"], ("MemoryError", "RecursionError", "TypeError"), strict=True):
        assert bad["where"].startswith(f"{path}:") and f"{kind}: of no use" in bad["detail"]


@pytest.mark.parametrize("rows", [(0,), ()])
def test_a_batch_without_usable_rows_is_a_silent_filler_without_target(tmp_path: Path, rows: tuple[int, ...]) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [tiny_row("lost", "gone.wav")])
    batch = dataset_of(path)[planned(*rows)]
    assert batch["row_ids"] == [FILLER_ID] and batch["num_rows"] == 0
    assert [row["id"] for row in batch["bad_rows"]] == ["lost"] * len(rows)
    assert batch["prompt_lens"].tolist() == batch["input_lens"].tolist()
    assert batch["audio_lens"].tolist() == [8000] and (batch["audio"] == 0).all()
    assert (batch["input_ids"] == AUDIO_SLOT).sum() == 1


def test_transcripts_are_disturbed_in_training_only_and_by_epoch(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 0.1)
    rows = [tiny_row(f"r{i}", "a.wav", text="one two three four") for i in range(30)]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    prompts = PromptBuilder(tiny_tokenizer(), transcript=TranscriptConfig(enabled=True, dropout=0.5))
    train = RowDataset([JsonlSource(path)], prompts, sampling_rate=16000, seed=1)
    validation = RowDataset([JsonlSource(path)], prompts, sampling_rate=16000)
    everything = tuple(range(30))
    lens = [train[planned(*everything, epoch=epoch)]["prompt_lens"] for epoch in (0, 0, 1)]
    assert torch.equal(lens[0], lens[1]) and not torch.equal(lens[0], lens[2])
    assert len(set(lens[0].tolist())) == 2
    assert torch.equal(train[planned(5, 6)]["prompt_lens"], lens[0][5:7])  # whoever else is in the batch
    assert len(set(validation[planned(*everything)]["prompt_lens"].tolist())) == 1


def test_collate_of_text_rows_has_no_clips() -> None:
    from nemo_desta.data.dataset import LoadedRow

    batch = collate([LoadedRow("a", "d", [1, 2, 3], 2, []), LoadedRow("b", "d", [4], 1, [])])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["audio"].shape == (0, 0)
