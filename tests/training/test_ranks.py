"""A run that is killed and goes on with another number of processes: every row of an epoch once, by real processes."""

import json
import multiprocessing
import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning import Callback
from omegaconf import DictConfig, OmegaConf

from nemo_desta.training import fit as fitting


class RowLog(Callback):
    """Writes the rows of every step of this process; kills it when the first step after ``last`` is to begin."""

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
    """The life of one process of a run."""
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of its data workers
    torch.set_num_threads(1)
    own = fitting.build_callbacks
    fitting.build_callbacks = lambda settings, seed: [*own(settings, seed), RowLog(file, last)]
    fitting.fit(OmegaConf.create(config))


def run(config: DictConfig, folder: Path, part: int, num_ranks: int, last: int | None) -> list[dict]:
    """All processes of a run until they are killed after ``last`` steps or end; the rows of every step."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "nemo_desta.training.fit", "nemo_desta.models.desta"])
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
    rows = workplace.folder / "rows"
    lines = (rows / "rows.jsonl").read_text().splitlines(keepends=True)[:16]
    (rows / "sixteen.jsonl").write_text("".join(lines))
    rest = (4 - last * before) // after
    more = {
        "data.train_ds.input_cfg.0.rows": rows / "sixteen.jsonl",
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
    once = Counter(json.loads(line)["id"] for line in lines)
    assert epoch == once
    assert following == once
