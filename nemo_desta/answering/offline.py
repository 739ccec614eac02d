"""Answers to a file of rows: threads load clips, like lengths share batches, the batch is kept full, a run can resume.

A row is a training row (``messages``; a ``response`` is not read), or short:
``{"id", "audio": path or paths, "prompt", "text": transcript or transcripts, "system"}``.
A row that fails for any reason is named in the file of rejected rows, and the other rows are answered.
"""

import itertools
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nemo_desta.answering.answer_file import AnswerFile
from nemo_desta.answering.audio_embeddings import ChatModel
from nemo_desta.answering.engine import ChatEngine, ContextExceeded, Delta, PreparedChat, check_transcript, prepare
from nemo_desta.answering.row_requests import RowRequest, RowRequests
from nemo_desta.answering.sampling import resolve_sampling
from nemo_desta.data.audio_io import AudioRoots
from nemo_desta.data.bad_rows import TooManyBadRows
from nemo_desta.data.rows import JsonlIndex
from nemo_desta.errors import RowError, row_guard
from nemo_desta.progress import Progress

#: Name of the setting of answers whose chat template writes the date.
DATE = "template_date"
#: Threads that load clips.
NUM_LOADERS = 4
#: The run stops after so many failing rows without a success between them: then the rows are not the cause.
MAX_FAILURES_IN_A_ROW = 20


@dataclass
class BatchSummary:
    """``answered``: by this run. ``before``: by earlier runs. ``cut``: answers at the limit of tokens. ``rejected``:
    rows by reason. ``unknown_keys``: keys that are not read, with the number of rows that hold them."""

    output: Path
    rejects: Path
    answered: int = 0
    before: int = 0
    cut: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unknown_keys: str = ""
    new_tokens: int = 0
    audio_secs: float = 0.0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.rejected

    def __str__(self) -> str:
        speed = f", {self.new_tokens / self.seconds:.0f} tokens/s" if self.seconds else ""
        lines = [
            f"answers: {self.answered + self.before} in {self.output} ({self.before} of them from earlier runs; "
            f"{self.cut} new ones ended at the limit of tokens)",
            f"this run: {self.seconds:.0f} s, {self.new_tokens} tokens{speed}, {self.audio_secs:.0f} s of audio",
        ]
        if self.rejected:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejected.most_common())
            lines.append(f"rows without an answer: {self.rejected.total()} ({reasons}); {self.rejects} names them")
        if self.unknown_keys:
            lines.append(f"unknown keys, not read: {self.unknown_keys}")
        return "\n".join(lines)


class _Running(NamedTuple):
    request: RowRequest
    loading: "Future[PreparedChat]"
    said: list[Delta]

    @property
    def chat(self) -> PreparedChat:
        return self.loading.result()


_Loaded = tuple[RowRequest, "Future[PreparedChat]"]


def answer_rows(
    model: ChatModel,
    rows: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    name: str,
    system: str | None = None,
    audio_roots: Mapping[str, str] | str | Path,
    transcript: str = "given",
    sampling: Mapping[str, Any] | None = None,
    max_batch_size: int = 32,
    max_batch_tokens: int = 131_072,
    look_ahead: int = 1024,
    strict_keys: bool | None = None,
    engine: ChatEngine | None = None,
    progress: bool = True,
) -> BatchSummary:
    """Answer the rows of JSONL files that have no answer in ``output`` yet.

    A chat template that writes the date writes the date of the first run into ``output``.

    Args:
        name: the model's name in the answers. system: a message for rows without a system message.
        audio_roots: the folder(s) of the rows' audio paths.
        max_batch_size, max_batch_tokens: conversations in a batch; conversations times the longest one's positions.
        look_ahead: rows that are sorted by length together.
        strict_keys: whether unknown keys of a row are errors, see `RowRules`.
        engine: generates the answers; None: a new `ChatEngine` of the model.

    Raises:
        ConfigError: a setting is wrong, or ``output`` holds answers of other settings.
        FileNotFoundError: no such rows. TooManyBadRows: the model fails on row after row.
    """
    check_transcript(model, transcript)
    drawn = resolve_sampling(model.generation_config, **(sampling or {}))
    roots = AudioRoots(audio_roots)
    index = JsonlIndex(rows)
    settings = {"model": name, "system": system, "transcript": transcript, **asdict(drawn)}
    own_date = model.prompts.date
    if model.prompts.reads_clock:
        settings[DATE] = (own_date or datetime.now()).isoformat()
    file = AnswerFile(output, settings, kept=[DATE])
    if DATE in file.settings:
        model.prompts.freeze_date(datetime.fromisoformat(file.settings[DATE]))
    engine = engine or ChatEngine(model, max_batch_size=max_batch_size)
    batch = _Batch(model, index, file, roots, look_ahead, system=system, strict_keys=strict_keys)
    bar = Progress("rows", len(index), tokens=lambda: batch.summary.new_tokens, shown=progress)
    try:
        texts = {"transcript": transcript, "transcriber": model.transcriber if transcript == "whisper" else None}

        def load(request: RowRequest) -> PreparedChat:
            with row_guard():
                try:
                    return prepare(model, request.messages, drawn, context=model.context_length, **texts)
                except ContextExceeded as error:
                    raise RowError("too_long", str(error)) from error

        started, before = time.monotonic(), 0
        for _ in batch.run(load, engine, max_batch_tokens):
            summary = batch.summary
            bar.skip(summary.before - before)
            before, rejected = summary.before, summary.rejected.total()
            bar.note = f"{rejected:,} rejected" if rejected else ""
            bar.update(summary.answered + before + rejected - bar.done)
            summary.seconds = time.monotonic() - started
        return batch.summary
    finally:
        bar.close()
        file.close()
        model.prompts.date = own_date


class _Batch:
    def __init__(
        self, model: ChatModel, index: JsonlIndex, file: AnswerFile, roots: AudioRoots, look_ahead: int, **rules: Any
    ) -> None:
        self.model = model
        self.file = file
        self.look_ahead = max(1, look_ahead)
        self.requests = RowRequests(index, model, roots, done=file.done, reject=self._reject, **rules)
        self._summary = BatchSummary(file.path, file.rejected)
        self._alone = 0  # rows at the head of the queue that failed in a batch, and are retried alone
        self._failures_in_a_row = 0

    @property
    def summary(self) -> BatchSummary:
        self._summary.before, self._summary.unknown_keys = self.requests.num_before, self.requests.unknown_keys
        return self._summary

    def run(self, load: Any, engine: ChatEngine, max_batch_tokens: int) -> Iterator[None]:
        """Answer all rows; yields whenever a row is answered or rejected."""
        places = engine.max_batch_size
        running: dict[int, _Running] = {}
        waiting: deque[_Loaded] = deque()
        requests = self._in_order()
        with ThreadPoolExecutor(NUM_LOADERS, "loader") as loaders:
            try:
                while True:
                    for request in itertools.islice(requests, max(0, 2 * places - len(waiting))):
                        waiting.append((request, loaders.submit(load, request)))
                    if not waiting and not running:
                        break
                    if engine.free_places >= max(1, places // 4) or not running:
                        self._join(engine, waiting, running, max_batch_tokens)
                        yield
                    for delta in self._step(engine, waiting, running) if running else ():
                        running[delta.chat_id].said.append(delta)
                        if delta.finish is not None:
                            self._settle(running.pop(delta.chat_id))
                            yield
            finally:
                loaders.shutdown(wait=True, cancel_futures=True)
        yield

    def _join(
        self, engine: ChatEngine, waiting: deque[_Loaded], running: dict[int, _Running], max_batch_tokens: int
    ) -> None:
        """Add loaded rows to the engine, as many as its limits of rows and positions allow."""
        if self._alone and running:
            return
        group: list[_Loaded] = []
        longest = max((_positions(r.chat) for r in running.values()), default=0)
        while waiting and len(group) < (1 if self._alone else engine.free_places):
            request, future = waiting[0]
            if not future.done() and (running or group):
                break
            try:
                chat = future.result()
            except RowError as error:
                self._reject(request.id, request.where, error)
                waiting.popleft()
                continue
            longest = max(longest, _positions(chat))
            if (running or group) and (len(running) + len(group) + 1) * longest > max_batch_tokens:
                break
            waiting.popleft()
            group.append((request, future))
        if group:
            crowded = self._add(engine, group, running)
            waiting.extendleft(reversed(crowded))
            self._alone = len(crowded) or max(0, self._alone - 1)

    def _add(self, engine: ChatEngine, group: list[_Loaded], running: dict[int, _Running]) -> list[_Loaded]:
        """Add a group to the engine. If that fails, add its rows one by one, and reject the rows that fail alone.

        Returns the rows that ran out of memory while other rows were running.
        """
        try:
            ids = engine.add([future.result() for _, future in group])
        except Exception as error:
            failure = error.with_traceback(None)  # its frames hold the memory of the group
        else:
            running |= {key: _Running(*loaded, []) for key, loaded in zip(ids, group, strict=True)}
            self._failures_in_a_row = 0
            return []
        if len(group) > 1:
            return [loaded for one in group for loaded in self._add(engine, [one], running)]
        if isinstance(failure, torch.OutOfMemoryError) and running:
            return group
        self._fail(group[0][0], failure)
        return []

    def _step(self, engine: ChatEngine, waiting: deque[_Loaded], running: dict[int, _Running]) -> list[Delta]:
        """The engine's next texts. If it fails, each of its rows is retried alone, and rejected if that fails."""
        try:
            return engine.step()
        except Exception as error:
            failure = error.with_traceback(None)
        for chat_id in running:
            engine.cancel(chat_id)
        rows = [running.pop(chat_id) for chat_id in list(running)]
        if len(rows) == 1:
            self._fail(rows[0].request, failure)
        else:
            waiting.extendleft((row.request, row.loading) for row in reversed(rows))
            self._alone += len(rows)
        return []

    def _fail(self, request: RowRequest, error: Exception) -> None:
        """Reject a row on which the model fails; stop the run if it fails on row after row."""
        reason = "out_of_memory" if isinstance(error, torch.OutOfMemoryError) else "unexpected"
        found = RowError(reason, f"the model cannot take it: {type(error).__name__}: {error}"[:500])
        self._reject(request.id, request.where, found)
        self._failures_in_a_row += 1
        if self._failures_in_a_row == MAX_FAILURES_IN_A_ROW:
            raise TooManyBadRows(
                f"the model could not take {MAX_FAILURES_IN_A_ROW} rows, and no other between them; the last one: "
                f"'{request.id}' ({request.where}): {found}"
            ) from error

    def _settle(self, row: _Running) -> None:
        last = row.said[-1]
        thinking = "".join(delta.text for delta in row.said if delta.thinking)
        audio_secs = sum(len(clip.audio) for clip in row.chat.clips) / self.model.sampling_rate
        self.file.answer(
            row.request.id,
            {
                "answer": "".join(delta.text for delta in row.said if not delta.thinking),
                "thinking": thinking or None,
                "finish": last.finish,
                "num_prompt_tokens": row.chat.num_prompt_tokens,
                "num_new_tokens": last.num_new_tokens,
                "audio_secs": round(audio_secs, 3),
            },
        )
        self.summary.answered += 1
        self.summary.cut += last.finish == "length"
        self.summary.new_tokens += last.num_new_tokens
        self.summary.audio_secs += audio_secs

    def _reject(self, name: str | None, where: str, error: RowError) -> None:
        self.file.reject(name, where, error.reason, str(error))
        self.summary.rejected[error.reason] += 1

    def _in_order(self) -> Iterator[RowRequest]:
        """Rows without an answer, sorted within every `look_ahead` rows: the longest first."""
        requests = iter(self.requests)
        while window := list(itertools.islice(requests, self.look_ahead)):
            yield from sorted(window, key=lambda request: -request.cost)


def _positions(chat: PreparedChat) -> int:
    return chat.num_prompt_tokens + chat.sampling.max_new_tokens
