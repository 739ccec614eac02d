"""Checks before anything is loaded: one message lists all missing files of a run and how to get them."""

import glob
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from nemo_desta.config import ModelConfig
from nemo_desta.core import build
from nemo_desta.core.frozen import frozen_sources
from nemo_desta.core.thinking import ThoughtCheck
from nemo_desta.data.remote import check_url, is_url
from nemo_desta.data.rows import Row, expand_paths, parse_row
from nemo_desta.data.sources import read_input_cfg
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.sources import is_local, local_folder, why_missing

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.pt")
#: Training rows whose targets are checked: per file, and in total.
SAMPLED_ROWS, SAMPLED_IN_ALL = 32, 512

logger = logging.getLogger(__name__)


class MissingParts(FileNotFoundError):
    """Data or weights that a run needs and that are not on this machine; ``problems`` lists them."""

    def __init__(self, problems: Sequence[str]) -> None:
        plural = "s are" if len(problems) > 1 else " is"
        listed = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(problems, 1))
        super().__init__(f"{len(problems)} thing{plural} missing before this can run:\n{listed}")
        self.problems = list(problems)


def preflight(model: ModelConfig, data: Mapping[str, Any]) -> None:
    """Raise `MissingParts` with everything that is missing; silent when the run can start.

    Targets of sampled rows that do not fit the think block of the chat template are counted in the log.
    """
    problems = [*missing_weights(model), *missing_data(data)]
    if problems:
        raise MissingParts(problems)
    for warning in unfit_targets(model, data):
        logger.warning(warning)


def unfit_targets(model: ModelConfig, data: Mapping[str, Any]) -> Iterator[str]:
    """Warnings: how many targets of sampled rows do not fit the template's think block, and a remedy."""
    thoughts = ThoughtCheck(build.build_prompts(build.build_tokenizer(model.llm), model.prompt))
    if not thoughts.opened and not thoughts.closed:
        return
    count, found, words = 0, Counter(), {}
    for row in _sampled_rows(data.get("train_ds") or {}):
        count += 1
        if problem := thoughts.problem(row):
            found[problem.reason] += 1
            words[problem.reason] = str(problem)
    for reason, unfit in found.items():
        yield f"{reason} in {unfit} of {count} sampled training rows: {words[reason]}"


def missing_weights(config: ModelConfig) -> Iterator[str]:
    """Frozen parts that are neither on this machine nor on the hub."""
    for part, source in frozen_sources(config).items():
        where = "model.llm.path" if part == "llm" else f"model.perception.{part}.path"
        if "???" in source:
            yield f"{where} is not given. {_how(part)}"
            continue
        try:
            local = is_local(source)
        except FileNotFoundError as error:
            yield f"{where}: {error}"
            continue
        folder = local_folder(source)
        if local and folder is None:
            yield f"{where}: nothing at '{source}'. {_how(part)}"
        elif reason := why_missing(source):
            yield f"{where}: {reason}"
        elif folder is not None and folder.is_dir():
            yield from _incomplete(folder, where, needs_tokenizer=part == "llm" and config.llm.tokenizer is None)
    if config.llm.tokenizer and is_local(config.llm.tokenizer) and local_folder(config.llm.tokenizer) is None:
        yield f"model.llm.tokenizer: nothing at '{config.llm.tokenizer}'"
    given = config.perception.init_from or {}
    for part, source in (
        {"": given} if isinstance(given, str) else {f".{n}": one for n, one in given.items()}
    ).items():
        if not Path(source).exists():
            yield f"model.perception.init_from{part}: nothing at '{source}'"


def missing_data(data: Mapping[str, Any]) -> Iterator[str]:
    """Row files and audio roots that do not exist."""
    sections = {"data.train_ds": data.get("train_ds") or {}}
    validation = (data.get("validation_ds") or {}).get("datasets") or {}
    sections.update({f"data.validation_ds.datasets.{name}": section or {} for name, section in validation.items()})
    for where, section in sections.items():
        if not section.get("input_cfg"):
            yield f"{where}.input_cfg is empty: give a list of {{type: desta, rows: <JSONL, pattern or shar folder>}}"
        for item in _sources(section.get("input_cfg")):
            rows = item.get("rows") or item.get("manifest_filepath")
            if rows is None:
                continue
            for pattern in _patterns(rows):
                if is_url(pattern):  # a missing package or a pattern is named now, a missing object when it is read
                    try:
                        check_url(pattern)
                    except ConfigError as error:
                        yield f"{where}: {error}"
                elif "???" in pattern:
                    yield f"{where}: the row file is not given. Recipes write them: desta generate"
                elif "{" not in pattern and not Path(pattern).exists() and not glob.glob(pattern):
                    yield f"{where}: no row file '{pattern}'. Recipes write them: desta generate"
            for root in (item.get("audio_roots") or {}).values():
                if not Path(root).is_dir():
                    yield f"{where}: no folder '{root}' (audio_roots of the rows {rows})"
    for name, root in (data.get("audio_roots") or {}).items():
        if root is None or "???" in root:
            yield f"data.audio_roots.{name} is not given: the folder that the rows' audio paths start from"
        elif not Path(root).is_dir():
            yield f"data.audio_roots.{name}: no folder '{root}'"


def _patterns(rows: Any) -> list[str]:
    """Paths, patterns and URLs of an entry's ``rows``, which may be a shar's field -> shards."""
    given = list(rows.values()) if isinstance(rows, Mapping) else [rows] if isinstance(rows, str) else list(rows)
    return [pattern for one in given for pattern in ([one] if isinstance(one, str) else one)]


def _sources(input_cfg: list[Mapping[str, Any]] | Mapping[str, Any] | str | None) -> Iterator[Mapping[str, Any]]:
    for item in read_input_cfg(input_cfg):
        if item.get("type") == "group":
            yield from _sources(item.get("input_cfg"))
        else:
            yield item


def _sampled_rows(section: Mapping[str, Any]) -> Iterator[Row]:
    """The first rows of every JSONL file of a data section; broken rows are skipped, the data module names them."""
    left = SAMPLED_IN_ALL
    for item in _sources(section.get("input_cfg")):
        rows = item.get("rows") or item.get("manifest_filepath") or []
        for path in [] if isinstance(rows, Mapping) else expand_paths(rows):
            if left <= 0 or not path.is_file():
                continue
            with path.open("rb") as file:
                for line in islice(file, min(SAMPLED_ROWS, left)):
                    left -= 1
                    with suppress(RowError):
                        yield parse_row(line, "sample")


def _incomplete(folder: Path, where: str, *, needs_tokenizer: bool) -> Iterator[str]:
    if not (folder / "config.json").is_file():
        yield f"{where}: '{folder}' has no config.json"
    if not any(any(folder.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        yield f"{where}: '{folder}' has no weights (*.safetensors)"
    if needs_tokenizer and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        yield (
            f"{where}: '{folder}' has no tokenizer (tokenizer.json). Copy it there, or set model.llm.tokenizer to the "
            "folder or hub id that has it"
        )


def _how(part: str) -> str:
    if part == "llm":
        return "Give a hub id or a folder with config.json, *.safetensors and the tokenizer."
    if part == "encoders.beats":
        return (
            "Get BEATs_iter3_plus_AS2M.pt with `desta fetch beats <folder>` (345 MiB, checked by its SHA-256), then "
            "set the path; or leave BEATs out with model.perception.use=[whisper]."
        )
    return "Give a hub id or a folder."
