"""A killed run is resumed with another number of real processes: every row of an epoch is trained on once."""

import json
import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from tests.training.processes import fit_once, forkserver


class RowLog(Callback):
    """Logs the rows of every step of this process; kills the process before the first step after ``last``."""

    def __init__(self, file: Path, last: int | None) -> None:
        self.file, self.last = file, last

    def on_train_batch_start(self, trainer, *_: object) -> None:
        if trainer.global_step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer, pl_module, *_: object) -> None:
        with self.file.open("a") as file:
            for rows, _ in pl_module.step_losses:
                file.write(json.dumps({"step": trainer.global_step, "rows": list(rows)}) + "\n")


def life(config: dict, file: Path, last: int | None, environment: dict[str, str]) -> None:
    """One process of a run."""
    os.environ.update(environment)
    fit_once(config, RowLog(file, last))


def run(config: DictConfig, folder: Path, part: int, num_ranks: int, last: int | None) -> list[dict]:
    """All processes of a run until they are killed after ``last`` steps or end; the rows of every step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = forkserver(__name__)
    files, processes = [folder / f"{part}-{rank}.jsonl" for rank in range(num_ranks)], []
    plain = OmegaConf.to_container(config, resolve=True)
    for rank, file in enumerate(files):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
        process = context.Process(target=life, args=(plain, file, last, environment if num_ranks > 1 else {}))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0 if last is None else -signal.SIGKILL] * num_ranks
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "last"), [(2, 1, 1), (1, 2, 2)])
def test_another_number_of_processes_trains_on_every_row_of_the_epoch_once(workplace, tmp_path, before, after, last):
    """Two epochs of 16 rows, 4 in a batch."""
    rows = workplace.few_rows()
    rest = (4 - last * before) // after
    more = {
        "data.train_ds.input_cfg.0.rows": rows,
        "exp_manager.checkpoint_callback_params.every_n_train_steps": 1,
        "exp_manager.create_tensorboard_logger": "false",
        "callbacks.sample_rows": 0,
        "trainer.max_steps": last + rest + 4 // after,
    }

    def config(num_ranks: int) -> DictConfig:
        strategy = "ddp" if num_ranks > 1 else "auto"
        return workplace.config(
            f"ranks-{before}-{after}", **{**more, "strategy": strategy, "trainer.devices": num_ranks}
        )

    first = run(config(before), tmp_path, 0, before, last)
    second = run(config(after), tmp_path, 1, after, None)
    epoch = Counter(row for step in first for row in step["rows"])
    epoch += Counter(row for step in second if step["step"] <= last + rest for row in step["rows"])
    following = Counter(row for step in second if step["step"] > last + rest for row in step["rows"])
    once = Counter(json.loads(line)["id"] for line in rows.read_text().splitlines())
    assert epoch == once
    assert following == once
