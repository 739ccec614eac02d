"""What a run writes down about itself, and that the card of its model says it."""

import json

import pytest

from nemo_desta.data.sources import JsonlSource
from nemo_desta.sharing.export import export_model
from nemo_desta.training import run_record


def test_rows_are_counted_by_the_dataset_that_they_name(tmp_path, monkeypatch):
    rows = [("birds", i) for i in range(60)] + [(None, i) for i in range(40)]
    message = {"role": "user", "content": "What?"}
    lines = [
        {"id": str(i), "messages": [message], "response": "x", **({"dataset": name} if name else {})}
        for name, i in rows
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    source = JsonlSource(tmp_path / "all.jsonl")
    assert run_record.count_datasets(source) == {"birds": 60, "all": 40}
    monkeypatch.setattr(run_record, "MAX_ROWS_READ", 21)  # every fifth of 101
    assert run_record.count_datasets(source) == {"birds": 60, "all": 40}


@pytest.mark.slow
def test_the_card_of_a_run_says_what_the_run_did(workplace, tmp_path):
    valid = f"[{{type: desta, rows: {workplace.folder}/valid/rows.jsonl, audio_root: valid}}]"
    more = {
        "trainer.max_steps": 4,
        "trainer.val_check_interval": 2,
        "+data.audio_roots.valid": workplace.folder / "valid",
        "+data.validation_ds.datasets.held_out.input_cfg": valid,
    }
    done = workplace.train("recorded", **more)
    assert done.returncode == 0, done.stderr[-3000:]
    run = workplace.folder / "recorded" / "desta25"
    written = json.loads((run / "model" / "training.json").read_text())
    assert str(workplace.folder) not in json.dumps(written)
    assert written["steps"] == 4 and written["validation"].keys() >= {"val_loss", "val_loss_held_out"}
    for source in (run, next((run / "checkpoints").glob("*last.ckpt"))):
        card = (export_model(source, tmp_path / source.name) / "README.md").read_text()
        for fact in ("| optimiser steps | 4 |", "| rows | 40 |", "`val_loss`", "at most 4 rows or 8,192 positions"):
            assert fact in card, (source.name, fact)
    assert "tones (40)" in (tmp_path / run.name / "README.md").read_text()
