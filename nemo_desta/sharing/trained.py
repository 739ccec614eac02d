"""Finds the model to export (a model folder or a run's newest checkpoint) and loads either into `Trained`."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_desta.config import ModelConfig, parse
from nemo_desta.core.folder import CONFIG_FILE, WEIGHTS_FILE, load_folder
from nemo_desta.core.trust import NOTHING, Grant, check_model
from nemo_desta.errors import ConfigError
from nemo_desta.perception.tensor_files import load_tensors

logger = logging.getLogger(__name__)

#: Beside config.json of a trained model: the record of its run.
RECORD_FILE = "training.json"


@dataclass(frozen=True)
class Trained:
    """A trained model on disk. ``tokenizer``: its source. ``record``: of the run, as far as it is known."""

    path: Path
    config: ModelConfig
    tensors: dict[str, Tensor]
    frozen: dict[str, dict[str, str]]
    tokenizer: str
    record: Mapping[str, Any]


def read_trained(source: str | Path, grant: Grant = NOTHING) -> Trained:
    """Read a model folder, a checkpoint file, or the newest of both in a run's folder.

    Raises:
        FileNotFoundError: no trained model there; the message says what was expected.
        ConfigError: a checkpoint of something else, or one that holds more than tensors and plain types.
        UntrustedConfig: its config needs a permission that ``grant`` does not give.
    """
    path = find_trained(Path(source).expanduser())
    if path.is_file():
        return _read_checkpoint(path, grant)
    config, tensors, frozen = load_folder(path, grant)
    record = json.loads(file.read_text()) if (file := path / RECORD_FILE).is_file() else {}
    return Trained(path, config, tensors, frozen, str(path), record)


def find_trained(source: Path) -> Path:
    """The model folder or checkpoint that ``source`` is or holds."""
    if source.is_file() or _is_model(source):
        return source
    if not source.is_dir():
        raise FileNotFoundError(f"no model, run or checkpoint at '{source}'")
    runs = [source] if _candidates(source) else [run for run in sorted(source.iterdir()) if _candidates(run)]
    if len(runs) > 1:
        raise FileNotFoundError(f"'{source}' holds several runs: {', '.join(run.name for run in runs)}; give one")
    if not runs:
        raise FileNotFoundError(
            f"nothing trained in '{source}': neither a model folder (with {CONFIG_FILE} and {WEIGHTS_FILE}; here or "
            "in model/) nor a checkpoint (checkpoints/*.ckpt)"
        )
    newest = max(_candidates(runs[0]), key=_time)
    if newest != source:
        logger.info("exporting %s, the newest in '%s'", newest.relative_to(source), source)
    return newest


def _is_model(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def _candidates(run: Path) -> list[Path]:
    models = [run / "model"] if _is_model(run / "model") else []
    return [*models, *(run / "checkpoints").glob("*.ckpt")]


def _time(path: Path) -> tuple[int, bool]:
    """Sort key: time of writing; of files with equal times, Lightning's "last" is the newest."""
    file = path if path.is_file() else path / CONFIG_FILE
    return file.stat().st_mtime_ns, "last" in path.name


def _read_checkpoint(file: Path, grant: Grant) -> Trained:
    saved = load_tensors(file)
    if not isinstance(saved, dict) or not {"nemo_desta", "state_dict"} <= saved.keys():
        raise ConfigError(f"'{file}' is no checkpoint of a nemo_desta training run")
    ours = saved["nemo_desta"]
    config = parse(ModelConfig, check_model(ours["model"], file, grant))
    scores = {  # of the metrics that checkpoint callbacks monitor
        state["monitor"]: float(state["current_score"])
        for state in saved.get("callbacks", {}).values()
        if isinstance(state, Mapping) and state.get("monitor") and state.get("current_score") is not None
    }
    record = {"steps": saved.get("global_step"), **saved.get("DestaDataModule", {}), "validation": scores}
    return Trained(file, config, saved["state_dict"], ours["frozen"], config.llm.tokenizer or config.llm.path, record)
