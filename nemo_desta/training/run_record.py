"""Writes training.json for the model's card: steps, rows, batches and validation of the run."""

import json
from collections import Counter
from pathlib import Path

from lightning import Trainer

from nemo_desta.data.datamodule import DestaDataModule
from nemo_desta.data.row_source import RowSource
from nemo_desta.errors import RowError, row_guard
from nemo_desta.sharing.trained import RECORD_FILE

#: Rows of a source that are read to count its datasets; of a larger source every n-th row.
MAX_ROWS_READ = 100_000


def write_record(folder: Path, trainer: Trainer, data: DestaDataModule, *, seed: int) -> None:
    """Write `training.json` into a model folder. It contains no path of this machine."""
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
    record = {
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "seed": seed,
        "accumulate_grad_batches": data.accumulate_grad_batches or trainer.accumulate_grad_batches,
        **data.state_dict(),
        "datasets": {source.name: count_datasets(source) for source in data.train_sources},
        "validation": metrics,
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")


def count_datasets(source: RowSource) -> dict[str, int]:
    """Rows per dataset; for a large source estimated from evenly spaced rows."""
    stride = -(-len(source) // MAX_ROWS_READ)
    counts: Counter[str] = Counter()
    for i in range(0, len(source), stride or 1):
        try:
            with row_guard():
                counts[source.row(i).get("dataset") or source.name] += 1
        except RowError:  # the data module counts bad rows
            continue
    return {name: count * stride for name, count in counts.most_common()}
