"""Two processes: each its own rows, equally many steps, and an exact resume."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nemo_desta.data.dataset import FILLER_ID
from nemo_desta.testing.data import tiny_rows

pytest.importorskip("lightning")
ROOT = Path(__file__).parents[2]


def run(folder: Path, name: str, *resume: str) -> list[dict]:
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", str(ROOT / "tests/data/ddp_run.py")]
    subprocess.run([sys.executable, "-m", *command, str(folder), name, *resume], check=True, cwd=ROOT, timeout=300)
    return [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_two_ranks_share_the_rows_and_resume_exactly(tmp_path: Path) -> None:
    tiny_rows(tmp_path, 19)
    full = run(tmp_path, "full")
    steps = len(full[0]["batches"])
    assert steps == len(full[1]["batches"]) and steps % 2 == 0
    for epoch in (slice(0, steps // 2), slice(steps // 2, steps)):
        rows = Counter(row for rank in full for batch in rank["batches"][epoch] for row in batch)
        rows.pop(FILLER_ID, None)
        assert rows == Counter(f"row-{i:03d}" for i in range(19))
    assert full[0]["weight"] == full[1]["weight"]
    validated = Counter(row for rank in full for row in rank["validated"] if row != FILLER_ID)
    assert validated == Counter({f"row-{i:03d}": 2 for i in range(19)})  # both epochs, no row on both ranks
    step = steps // 2 + 1
    again = run(tmp_path, "again", str(tmp_path / "full" / f"step={step}.ckpt"))
    assert [rank["batches"] for rank in again] == [rank["batches"][step:] for rank in full]
    assert again[0]["weight"] == full[0]["weight"]
