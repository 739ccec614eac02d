"""``desta new mine --llm ... --corpus ...``: a folder with the configs and the card for one's own data.

``mine/card.yaml`` describes the labels (proposed from a table), ``mine/recipe.yaml`` makes the rows, and
``mine/mine.yaml`` trains on them. All three are short and commented, and run as they are.
"""

import argparse
import json
import math
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.corpora.card import parse_card, read_card, shipped_cards
from nemo_desta.recipes.corpora.corpus import Corpus, manifest_type
from nemo_desta.recipes.corpora.errors import CorpusError
from nemo_desta.recipes.corpora.files import json_lines
from nemo_desta.recipes.corpora.propose import propose_card
from nemo_desta.recipes.corpora.splits import TRAIN, VALID, ValidationConfig
from nemo_desta.sources import conf_folder, is_local, local_folder

WHISPER = "openai/whisper-small"
#: Encoder blocks of the public Whisper models, by the word in their names.
_BLOCKS = {"tiny": 4, "base": 6, "small": 12, "medium": 24, "large": 32}
#: Rows per step, and how often each row is seen.
_BATCH, _EPOCHS = 8, 10


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status. Errors are one line on stderr, and nothing is written then."""
    parser = argparse.ArgumentParser(
        prog="desta new",
        description="Write a folder with a training config, a recipe and a card for your own data.",
        epilog="Example: desta new mine --llm Qwen/Qwen3-4B-Instruct-2507 --corpus labels.csv",
    )
    parser.add_argument("name", help="the new folder; its last part is also the name of the training config")
    parser.add_argument("--llm", required=True, help="the LLM: a folder or a hub id")
    parser.add_argument(
        "--corpus",
        required=True,
        help="a table of labels (.csv, .tsv, .jsonl, .json), a card (a .yaml file, or the name of a shipped one), or "
        "finished training rows (.jsonl)",
    )
    parser.add_argument("--data-root", help="the folder that audio paths start from; default: the folder of --corpus")
    parser.add_argument("--whisper", default=WHISPER, help=f"the audio encoder: a folder or a hub id ({WHISPER})")
    args = parser.parse_args(argv)
    try:
        project = plan_project(args.name, args.llm, args.corpus, whisper=args.whisper, data_root=args.data_root)
        project.write()
    except (ConfigError, CorpusError, OSError) as error:
        print(f"desta new: {error}", file=sys.stderr)
        return 1
    print(project.next_steps())
    return 0


@dataclass
class Project:
    """``files``: name -> text. ``splits``: clips or rows by split, as far as they are known."""

    folder: Path
    name: str
    files: dict[str, str]
    splits: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Write all files. Raises ``FileExistsError`` where the folder holds something."""
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise FileExistsError(f"{self.folder} is not empty: give a new name")
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.files.items():
            (self.folder / name).write_text(text, encoding="utf-8")

    def next_steps(self) -> str:
        """What was written, and the commands that follow."""
        about = {
            "card.yaml": "what the labels mean: read it through",
            "recipe.yaml": "how rows are made",
            f"{self.name}.yaml": "how they are trained on",
        }
        lines = [f"{self.folder / name}: {about[name]}" for name in self.files]
        lines += self.said
        config, recipe = f"--config-dir {self.folder}", "recipe.yaml" in self.files
        commands = [f"desta generate {config} --config-name recipe check=true"] if recipe else []
        commands += [f"desta generate {config} --config-name recipe"] if recipe else []
        commands += [f"desta train {config} --config-name {self.name} check=true"]
        commands += [f"desta train {config} --config-name {self.name}"]
        commands += [f"desta chat model={self.folder}/training/model"]
        return "\n".join([*lines, "next:", *(f"  {command}" for command in commands)])


def plan_project(
    folder: str | os.PathLike[str],
    llm: str,
    corpus: str,
    *,
    whisper: str = WHISPER,
    data_root: str | None = None,
) -> Project:
    """The files of a new project; nothing is written.

    A card or a table is read once, row by row, so that wrong rows are named before anything runs.

    Raises:
        ConfigError: a name that cannot be a config's, or an LLM or encoder folder that does not exist. CorpusError: a
        card, table or row that cannot be used. FileNotFoundError: no such corpus or data root.
    """
    folder = Path(folder)
    taken = ["recipe", "card", *sorted(path.stem for path in conf_folder().glob("*.yaml"))]  # found by --config-name
    if not re.fullmatch(r"[A-Za-z0-9_-]+", folder.name) or folder.name in taken:
        raise ConfigError(
            f"'{folder.name}' cannot be a config's name: letters, digits, _ and -, and none of {', '.join(taken)}"
        )
    project = Project(folder, folder.name, {})
    source = Path(corpus)
    if corpus in shipped_cards() and not source.exists():
        if data_root is None:
            raise ConfigError(f"--corpus {corpus} is a shipped card: give --data-root, the folder of your copy")
    elif not source.is_file():
        raise FileNotFoundError(f"--corpus: no file '{corpus}'{nearest(corpus, shipped_cards())}")
    root = Path(data_root) if data_root is not None else source.parent
    if not root.is_dir():
        raise FileNotFoundError(f"--data-root: no folder '{root}'")
    parts = {"llm": _source(llm, "--llm"), "whisper": _source(whisper, "--whisper"), "root": str(root.absolute())}
    if _holds_rows(source):
        project.splits[TRAIN] = sum(1 for _ in json_lines(source))
        rows = {TRAIN: str(source.absolute())}
    else:
        card = _add_card(project, source, root)
        project.files["recipe.yaml"] = _recipe(project, parts, card)
        rows = {split: f"${{work_dir}}/rows/rows/{split}-*.jsonl" for split in (TRAIN, VALID)}
        if not project.splits[VALID]:
            del rows[VALID]
    project.files[f"{project.name}.yaml"] = _training(project, parts, rows)
    return project


def _add_card(project: Project, source: Path, root: Path) -> str:
    """The path of the card, which is added to the project where a table was given; counts the clips by split."""
    if str(source) in shipped_cards():
        card, path = read_card(str(source)), None
    elif source.suffix in (".yaml", ".yml"):
        card, path = read_card(source), source
    else:
        if manifest_type(source) is None:
            raise ConfigError(f"--corpus: {source} is neither a table (.csv, .tsv, .jsonl, .json) nor a card (.yaml)")
        text = propose_card(source)
        values = yaml.safe_load(text)
        if source.parent.absolute() != root.absolute():
            if not source.absolute().is_relative_to(root.absolute()):
                raise ConfigError(f"--corpus: {source} must lie below --data-root {root}, as the audio does")
            here, there = values["reader"]["files"], source.absolute().parent.relative_to(root.absolute()).as_posix()
            text = text.replace(f"files: {json.dumps(here)}", f"files: {json.dumps(f'{there}/{here}')}", 1)
            values = yaml.safe_load(text)
        card, path = parse_card(values, where=f"proposed for {source}"), project.folder / "card.yaml"
        project.files["card.yaml"] = text
    clips = Corpus(card, root, splits=(TRAIN, VALID), validation=ValidationConfig())
    for clip in clips:
        project.splits[clip["split"]] += 1
    counts = ", ".join(f"{split} {n:,}" for split, n in sorted(project.splits.items()))
    project.said = [f"clips: {counts}", *clips.said_of_splits()]
    return str(source) if path is None else str(path.absolute())


def _recipe(project: Project, parts: dict[str, str], card: str) -> str:
    return f"""\
# Makes training rows from your labels: the LLM answers prompts about descriptions of the clips.
#   desta generate --config-dir {project.folder} --config-name recipe check=true    counts rows, writes nothing
#   desta generate --config-dir {project.folder} --config-name recipe               resumes after a kill
defaults:
  - self_generate
  - _self_

corpus: {json.dumps(card)}
data_root: {json.dumps(parts["root"])}
output: {json.dumps(str((project.folder / "rows").absolute()))}
llm: {json.dumps(parts["llm"])}
chat_template_kwargs: null    # {{enable_thinking: false}} for LLMs that think, also in {project.name}.yaml

prompts_per_clip: 1           # more questions about each clip: more rows
validation: {{share: 0.05, seed: 0}} # where the labels have no valid split: this share of the clips, by whole groups
request:
  sampling: {{max_new_tokens: 256, temperature: 0.05}}
shard_size: 50                # clips between two savings
"""


def _training(project: Project, parts: dict[str, str], rows: dict[str, str]) -> str:
    steps = min(5000, max(200, math.ceil(project.splits[TRAIN] * _EPOCHS / _BATCH)))
    every = max(20, steps // 10)
    validation = """\
  validation_ds: null         # no rows for validation: checkpoints are kept by age
"""
    if VALID in rows:
        validation = f"""\
  validation_ds:
    datasets:
      {VALID}:
        input_cfg: [{{type: desta, rows: {json.dumps(rows[VALID])}}}]
    batch_tokens: 4096
    num_workers: 0
"""
    monitor, mode = ("val_loss", "min") if VALID in rows else ("step", "max")
    kept = "the best by validation" if VALID in rows else "the newest"
    return f"""\
# Trains a projector for your LLM on your rows; LLM and Whisper stay frozen.
#   desta train --config-dir {project.folder} --config-name {project.name} check=true    checks, prints sizes, stops
#   desta train --config-dir {project.folder} --config-name {project.name}               resumes after a kill
# Everything else is as in the shipped config desta25; any of its settings can be given here.
defaults:
  - desta25
  - override encoders: whisper_small
  - override strategy: auto   # one GPU, or the CPU; ddp: several GPUs
  - _self_

name: {project.name}
work_dir: {json.dumps(str(project.folder.absolute()))}

model:
  llm:
    path: {json.dumps(parts["llm"])}
  perception:
    encoders:
      whisper:
        path: {json.dumps(parts["whisper"])}
        layer_ids: {_layer_ids(parts["whisper"])}
    projector:
      hidden_size: 768        # smaller: less memory, fewer trained parameters
  prompt:
    chat_template_kwargs: null
  optimizer:
    lr: 5.0e-4
  lr_scheduler:
    warmup_steps: {max(10, steps // 20)}

trainer:
  devices: 1
  max_steps: {steps}              # each clip about {steps * _BATCH / max(1, project.splits[TRAIN]):.0f} times
  val_check_interval: {every}
  log_every_n_steps: 5

data:
  audio_roots:
    default: {json.dumps(parts["root"])}
  train_ds:
    input_cfg:
      - type: desta
        rows: {json.dumps(rows[TRAIN])}
    batch_tokens: 4096        # less: less memory
    max_batch_size: {_BATCH}
    max_target_tokens: 512
    num_workers: 1
{validation}
callbacks:
  sample_rows: 1              # answers to this many rows are logged at each validation

exp_manager:
  exp_dir: ${{work_dir}}
  name: training              # the model: training/model
  checkpoint_callback_params:
    monitor: {monitor}
    mode: {mode}
    save_top_k: 2             # {kept}
    every_n_train_steps: {every}
"""


def _source(path: str, option: str) -> str:
    """A hub id or ``package:`` path as it is, a folder as an absolute path."""
    try:
        if not is_local(path):
            return path
        found = local_folder(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{option}: {error}") from None
    if found is None:
        raise ConfigError(f"{option}: nothing at '{path}'; give a folder or a hub id such as {WHISPER}")
    return path if path.startswith("package:") else str(found.absolute())


def _layer_ids(whisper: str) -> Any:
    """Four blocks, evenly spaced, of a Whisper whose depth is known; null (all blocks) for others."""
    folder = local_folder(whisper)
    config = folder / "config.json" if folder is not None else None
    blocks = None
    if config is not None and config.is_file():
        blocks = json.loads(config.read_text(encoding="utf-8")).get("encoder_layers")
    blocks = blocks or next((n for word, n in _BLOCKS.items() if word in whisper.rpartition("/")[2]), None)
    if not isinstance(blocks, int) or blocks < 4:
        return "null             # all blocks"
    return f"{[blocks * k // 4 for k in (1, 2, 3, 4)]}  # blocks that are mixed"


def _holds_rows(path: Path) -> bool:
    """Whether a JSONL file holds training rows rather than labels."""
    if manifest_type(path) != "jsonl":
        return False
    _, first = next(json_lines(path), ("", {}))
    return {"messages", "response"} <= first.keys()
