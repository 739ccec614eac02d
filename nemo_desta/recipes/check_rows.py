"""Checks rows before training: a recipe's folder, JSONL files, or the public DeSTA-AQA5M.

Every problem is counted by reason, with its first examples as ``file:line``; the check does not stop at an error.
Memory grows by about 60 bytes per row, to find duplicates and clips that are in two splits.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemo_desta.config import MISSING, parse
from nemo_desta.core.prompting import PromptBuilder, place_audios
from nemo_desta.core.thinking import ThoughtCheck
from nemo_desta.data.audio_decoding import duration_fault
from nemo_desta.data.audio_io import AudioRoots
from nemo_desta.data.row_schema import unknown_keys
from nemo_desta.data.rows import Row, audio_entries, parse_row
from nemo_desta.errors import ConfigError, RowError, row_guard
from nemo_desta.progress import Progress
from nemo_desta.recipes.corpora.audio import check_audio
from nemo_desta.recipes.report.overlap import Overlap
from nemo_desta.recipes.report.sources import Line, Paths, RowsSource, find_rows, lines, split_of
from nemo_desta.sources import resolve_source

#: Problems that are reported but do not make rows unusable.
HARMLESS = frozenset({"no line end", "no seed_description", "unknown key", "control tokens"})


@dataclass
class CheckReport:
    """``problems``: reason -> count; ``examples``: reason -> first problems, as ``file:line: text``.

    ``not_checked``: checks that were skipped because a setting is missing.
    """

    rows: int = 0
    bad_lines: int = 0
    audios: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    splits: Counter[str] = field(default_factory=Counter)
    not_checked: list[str] = field(default_factory=list)
    max_examples: int = 5

    @property
    def ok(self) -> bool:
        """There are rows, and all of them are usable."""
        return self.rows > 0 and not set(self.problems) - HARMLESS

    @property
    def exit_status(self) -> int:
        return 0 if self.ok else 1

    def found(self, reason: str, what: str) -> None:
        """Count one problem."""
        self.problems[reason] += 1
        if len(kept := self.examples.setdefault(reason, [])) < self.max_examples:
            kept.append(what)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data."""
        names = ("rows", "bad_lines", "audios", "splits", "problems", "examples", "not_checked")
        return {"ok": self.ok, **{name: getattr(self, name) for name in names}}

    def __str__(self) -> str:
        by_split = ", ".join(f"{split} {count:,}" for split, count in self.splits.items())
        lines = self.rows + self.bad_lines
        out = [f"rows: {self.rows:,} ({by_split or 'none'}), of {lines:,} lines; {self.audios:,} audios"]
        for reason, count in self.problems.most_common():
            out += [f"  {reason}: {count:,}", *(f"    {example}" for example in self.examples[reason])]
            if count > len(self.examples[reason]):
                out.append(f"    ... and {count - len(self.examples[reason]):,} more")
        out += [f"not checked: {what}" for what in self.not_checked]
        return "\n".join([*out, "all good" if self.ok else "these rows need mending" if self.rows else "no rows"])


def check_rows(
    rows: Paths,
    *,
    audio_roots: str | Path | Mapping[str, str | Path] | None = None,
    tokenizer: str | Any | None = None,
    max_target_tokens: int | None = None,
    decode: bool = False,
    audio_locator_tag: str = "<|AUDIO|>",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    system_role: str = "auto",
    max_examples: int = 5,
    progress: bool = True,
) -> CheckReport:
    """Check every row of ``rows`` (`find_rows`).

    Args:
        audio_roots: the folder that audio paths start from, or one per dataset (`AudioRoots`). None: audio is not
            checked.
        tokenizer: tokenizer of the LLM to train (hub id, folder, ``package:<path>``, or loaded). Its chat template
            renders every row, and targets are compared with its think block. With ``max_target_tokens``, longer
            targets are reported.
        chat_template_kwargs, system_role: as in the training's ``model.prompt``.
        decode: decode whole audio files; otherwise only the header and the last sample are read.
        max_examples: number of examples per reason.

    Raises:
        FileNotFoundError: there are no rows. ValueError: ``max_target_tokens`` without a tokenizer.
    """
    if max_target_tokens is not None and tokenizer is None:
        raise ValueError("max_target_tokens counts tokens: give the LLM's tokenizer, too")
    source = find_rows(rows)
    report = CheckReport(max_examples=max_examples)
    clip_problem = builder = thoughts = None
    if audio_roots is not None:
        clip_problem = _clip_check(AudioRoots(audio_roots), decode)
    else:
        report.not_checked.append("audio files (give audio_roots)")
    if isinstance(tokenizer, str):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(resolve_source(tokenizer), trust_remote_code=False)
    if tokenizer is not None:
        builder = PromptBuilder(tokenizer, audio_locator_tag, chat_template_kwargs, system_role=system_role)
        thoughts = ThoughtCheck(builder)
    else:
        report.not_checked.append("chat template and length of targets (give the LLM or its tokenizer)")
    seen = Overlap()
    for row, line in _rows(source, report, progress):
        seen.add(row, line)
        for error in _problems(row, audio_locator_tag, builder, thoughts, max_target_tokens):
            report.found(error.reason, f"{line.where}: {error}")
        for entry in audio_entries(row):
            report.audios += 1
            if clip_problem is not None and (problem := clip_problem(entry, row.get("dataset"))):
                report.found(problem.reason, f"{line.where}: row '{row['id']}': {problem}")
    seen.finish(report.found)
    if seen.groups_unknown:
        report.not_checked.append("speakers and recordings in two splits (the rows carry no group)")
    return report


@dataclass(frozen=True)
class CheckConfig:
    """The settings of conf/recipes/check.yaml, which documents them."""

    rows: str | list[str] = MISSING  # path, pattern, or a list of them
    audio_roots: str | dict[str, str] | None = None  # a folder, or one per dataset
    llm: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    system_role: str = "auto"
    audio_locator_tag: str = "<|AUDIO|>"
    max_target_tokens: int | None = None
    decode: bool = False
    max_examples: int = 5
    output: str | None = None
    progress: bool = True


def run_check(plain: Mapping[str, Any]) -> CheckReport:
    """Run `check_rows` with a config; ``output`` names a JSON file for the report. Raises ``ConfigError`` for unknown
    or missing settings, ``FileNotFoundError`` without rows."""
    settings = dict(vars(parse(CheckConfig, plain, where="check")))
    rows, llm, output = (settings.pop(name) for name in ("rows", "llm", "output"))
    if settings["max_target_tokens"] is not None and llm is None:
        raise ConfigError("'check.max_target_tokens' counts tokens: give the LLM, too (check.llm)")
    report = check_rows(rows, tokenizer=llm, **settings)
    if output is not None:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(report.to_json(), ensure_ascii=False, indent=1) + "\n")
    return report


def _rows(source: RowsSource, report: CheckReport, progress: bool) -> Iterator[tuple[Row, Line]]:
    total = sum(path.stat().st_size for path in source.rows) / 1e6
    with Progress("checking rows", total, unit="MB", shown=progress, leave=False) as bar:
        for line in lines(source.rows, bar):
            try:
                line.raw.decode("utf-8-sig")
                row = parse_row(line.raw, line.where)
            except UnicodeDecodeError as error:
                report.bad_lines += 1
                found = error.object[error.start]
                report.found("not UTF-8", f"{line.where}: byte {found:#04x} at {error.start} is not UTF-8")
            except RowError as error:
                report.bad_lines += 1
                torn = error.reason == "not_json" and not line.whole
                what = f"{line.where}: the last line is half-written ({len(line.raw):,} bytes, no line end)"
                report.found("half-written line" if torn else error.reason, what if torn else str(error))
            else:
                if not line.whole:
                    report.found("no line end", f"{line.where}: the last line has no line end")
                report.rows += 1
                report.splits[split_of(row, line.path)] += 1
                yield row, line


def _problems(
    row: Row, tag: str, builder: PromptBuilder | None, thoughts: ThoughtCheck | None, max_target_tokens: int | None
) -> Iterator[RowError]:
    name = f"row '{row['id']}'"
    try:
        with row_guard():
            place_audios(row["messages"], tag)
            example = builder.example(row) if builder is not None and audio_entries(row) else None
        if not audio_entries(row):
            yield RowError("no audio", f"{name}: no message has audios")
        elif example is not None:
            length = len(example.ids) - example.prompt_len
            if max_target_tokens is not None and length > max_target_tokens:
                limit = f"the limit is {max_target_tokens:,}"
                yield RowError("long target", f"{name}: a target of {length:,} tokens, {limit}")
            if spelt := builder.control_token(row):
                yield RowError("control tokens", f"{name}: {spelt} in its text is read as text, not as that token")
    except RowError as error:
        yield RowError(error.reason, f"{name}: {error}")
    if thoughts is not None and (problem := thoughts.problem(row)):
        yield RowError(problem.reason, f"{name}: {problem}")
    if not row["response"].strip():
        yield RowError("blank response", f"{name}: the response is white space")
    if not isinstance(row.get("seed_description"), str):
        yield RowError("no seed_description", f"{name}: perplexity and fact checks will skip it")
    if unknown := unknown_keys(row):
        yield RowError("unknown key", f"{name}: nothing reads {', '.join(map(repr, unknown))}")


def _clip_check(roots: AudioRoots, decode: bool) -> Callable[[Mapping[str, Any], str | None], RowError | None]:
    """(audio entry, dataset) -> its problem. A file is read once while its rows are near each other."""

    @lru_cache(maxsize=16_384)
    def seconds(audio: str, dataset: str | None) -> float | RowError:
        try:
            with row_guard():
                path = roots.resolve(audio, dataset=dataset)
                rejection, found = check_audio({"audio": str(path)}, "", decode=decode)
        except RowError as error:
            return error
        return RowError(rejection.reason, rejection.detail) if rejection else found

    def problem(entry: Mapping[str, Any], dataset: str | None) -> RowError | None:
        found = seconds(entry["audio"], dataset if dataset in roots.roots else None)
        if isinstance(found, RowError):
            return found
        fault = duration_fault(found, entry.get("duration"))
        return RowError("wrong duration", f"'{entry['audio']}' is {fault}") if fault else None

    return problem
