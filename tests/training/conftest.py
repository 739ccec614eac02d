import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from nemo_desta.testing.data import tiny_rows
from nemo_desta.testing.models import tiny_config

ROOT = Path(__file__).resolve().parents[2]


class Workplace:
    """Tiny parts and rows on disk, and the training command over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tiny_config(folder / "parts")
        tiny_rows(folder / "rows", 40)
        tiny_rows(folder / "valid", 5, seed=7)

    def overrides(self, run: str, **more: object) -> list[str]:
        parts, rows = self.folder / "parts", self.folder / "rows"
        settings = {
            "strategy": "auto",
            "model.llm.path": parts / "llm",
            "model.perception.encoders.whisper.path": parts / "whisper",
            "model.perception.encoders.whisper.layer_ids": "null",
            "model.perception.encoders.beats.path": parts / "beats.pt",
            "model.perception.encoders.beats.layer_ids": "null",
            "model.optimizer.lr": 0.01,
            "model.lr_scheduler.warmup_steps": 2,
            "data.train_ds.input_cfg.0.rows": rows / "rows.jsonl",
            "data.audio_roots.default": rows,
            "data.train_ds.num_workers": 0,
            "data.train_ds.max_batch_size": 4,
            "trainer.devices": 1,
            "trainer.accelerator": "cpu",
            "trainer.max_steps": 14,
            "trainer.val_check_interval": 100,
            "exp_manager.exp_dir": self.folder / run,
            "exp_manager.checkpoint_callback_params.every_n_train_steps": 3,
            **more,
        }
        return [f"{key}={value}" for key, value in settings.items()]

    def few_rows(self) -> Path:
        """The first 16 rows in a file: 4 steps an epoch."""
        path = self.folder / "rows" / "few.jsonl"
        path.write_text("".join((self.folder / "rows" / "rows.jsonl").read_text().splitlines(keepends=True)[:16]))
        return path

    def command(self, run: str, *flags: str, config: str = "desta25", **more: object) -> list[str]:
        script = str(ROOT / "examples" / "speechlm_desta.py")
        return [sys.executable, script, "--config-name", config, *flags, *self.overrides(run, **more)]

    def config(self, run: str, *flags: str, config: str = "desta25", **more: object) -> DictConfig:
        """What the command's config is, for a run inside a process."""
        with initialize_config_dir(str(ROOT / "conf"), version_base=None):
            overrides = [*flags, *self.overrides(run, **more)]
            return compose(config, [one for one in overrides if config == "desta25" or "layer_ids" not in one])

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}

    def train(self, run: str, *flags: str, config: str = "desta25", env: dict[str, str] | None = None, **more: object):
        return subprocess.run(
            self.command(run, *flags, config=config, **more),
            cwd=self.folder,
            env=self.environment(**(env or {})),
            capture_output=True,
            text=True,
            timeout=900,
        )

    def steps(self, run: str) -> list[dict]:
        path = self.folder / run / "desta25" / "records" / "steps.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("workplace"))
