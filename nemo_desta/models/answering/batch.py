"""Answers to a file of rows: clips loaded by threads, like lengths together, the decode loop always full, resumable.

A row is one of the training rows (``messages``; a ``response`` is not read), or short:
``{"id", "audio": path or paths, "prompt", "text": transcript or transcripts, "system"}``.
"""

import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from nemo_desta.data.audio_io import AudioRoots, count_samples
from nemo_desta.data.rows import JsonlIndex, RowError, check_row
from nemo_desta.models.answering.answer_file import AnswerFile
from nemo_desta.models.answering.engine import (
    ChatEngine,
    ContextExceeded,
    Delta,
    PreparedChat,
    check_transcript,
    prepare,
)
from nemo_desta.models.answering.sampling import resolve_sampling

if TYPE_CHECKING:
    from nemo_desta.models.answering.ears import Ears
    from nemo_desta.models.desta import DestaModel

#: Threads that load clips.
NUM_LOADERS = 4
CHARACTERS_PER_TOKEN = 4


@dataclass
class BatchSummary:
    """``answered``: by this run; ``before``: by earlier ones. ``rejected``: rows by reason."""

    output: Path
    rejects: Path
    answered: int = 0
    before: int = 0
    cut: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    new_tokens: int = 0
    audio_secs: float = 0.0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.rejected

    def __str__(self) -> str:
        speed = f", {self.new_tokens / self.seconds:.0f} tokens/s" if self.seconds else ""
        lines = [
            f"answers: {self.answered + self.before} in {self.output} ({self.before} of them from before; {self.cut} "
            f"new ones ended at the limit of tokens)",
            f"this run: {self.seconds:.0f} s, {self.new_tokens} tokens{speed}, {self.audio_secs:.0f} s of audio",
        ]
        if self.rejected:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.rejected.most_common())
            lines.append(f"rows without an answer: {self.rejected.total()} ({reasons}); {self.rejects} names them")
        return "\n".join(lines)


class Ask(NamedTuple):
    """A row to be answered. ``cost``: about how many positions its prompt takes."""

    id: str
    where: str
    messages: list[dict[str, Any]]
    cost: int


class _Running(NamedTuple):
    ask: Ask
    chat: PreparedChat
    said: list[Delta]


def answer_rows(
    model: "DestaModel | Ears",
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
    engine: ChatEngine | None = None,
    progress: bool = True,
) -> BatchSummary:
    """Answer the rows of JSONL files that ``output`` has no answer to yet.

    Args:
        name: how the answers call the model. system: a message for rows that have none.
        audio_roots: the folder(s) that the rows' audio paths lie in.
        max_batch_size, max_batch_tokens: conversations side by side; these times the longest one's positions.
        look_ahead: rows whose lengths are compared, to answer like lengths together.
        engine: what writes, if it is not to be a `ChatEngine` of the model's own.

    Raises:
        ConfigError: a setting is wrong, or ``output`` holds answers of other settings.
        FileNotFoundError: no such rows.
    """
    check_transcript(model, transcript)
    drawn = resolve_sampling(model.generation_config, **(sampling or {}))
    roots = AudioRoots(audio_roots if isinstance(audio_roots, Mapping) else {"default": audio_roots})
    index = JsonlIndex(rows)
    file = AnswerFile(output, {"model": name, "system": system, "transcript": transcript, **asdict(drawn)})
    engine = engine or ChatEngine(model, max_batch_size=max_batch_size)
    batch = _Batch(model, index, file, roots, look_ahead, system)
    bar = tqdm(total=len(index), desc="rows", unit="row", disable=not progress, smoothing=0.05)
    try:
        transcriber = model.transcriber if transcript == "whisper" else None

        def load(ask: Ask) -> PreparedChat:
            return prepare(
                model,
                ask.messages,
                drawn,
                transcript=transcript,
                transcriber=transcriber,
                context=model.context_length,
            )

        started = time.monotonic()
        for _ in batch.run(load, engine, max_batch_tokens):
            summary = batch.summary
            done = summary.answered + summary.before + summary.rejected.total()
            bar.set_postfix(tokens=summary.new_tokens, rejected=summary.rejected.total(), refresh=False)
            bar.update(done - bar.n)
            summary.seconds = time.monotonic() - started
        return batch.summary
    finally:
        bar.close()
        file.close()


class _Batch:
    def __init__(
        self,
        model: "DestaModel",
        index: JsonlIndex,
        file: AnswerFile,
        roots: AudioRoots,
        look_ahead: int,
        system: str | None,
    ) -> None:
        self.model = model
        self.index = index
        self.file = file
        self.roots = roots
        self.look_ahead = max(1, look_ahead)
        self.system = system
        self.summary = BatchSummary(file.path, file.rejected)
        self._seen: set[str] = set()

    def run(self, load: Any, engine: ChatEngine, max_batch_tokens: int) -> Iterator[None]:
        """Answer everything; yields whenever a row is settled."""
        places = engine.max_batch_size
        running: dict[int, _Running] = {}
        waiting: deque[tuple[Ask, Future]] = deque()
        asks = self._in_order()
        with ThreadPoolExecutor(NUM_LOADERS, "loader") as loaders:
            try:
                while True:
                    for ask in itertools.islice(asks, 2 * places - len(waiting)):
                        waiting.append((ask, loaders.submit(load, ask)))
                    if not waiting and not running:
                        break
                    if engine.free_places >= max(1, places // 4) or not running:
                        self._join(engine, waiting, running, max_batch_tokens)
                        yield
                    for delta in engine.step() if running else ():
                        running[delta.chat_id].said.append(delta)
                        if delta.finish is not None:
                            self._settle(running.pop(delta.chat_id))
                            yield
            finally:
                loaders.shutdown(wait=True, cancel_futures=True)
        yield

    def _join(
        self,
        engine: ChatEngine,
        waiting: "deque[tuple[Ask, Future]]",
        running: dict[int, _Running],
        max_batch_tokens: int,
    ) -> None:
        """Give the engine what is loaded, as many as there are places and positions for."""
        group: list[tuple[Ask, PreparedChat]] = []
        longest = max((_positions(r.chat) for r in running.values()), default=0)
        while waiting and len(group) < engine.free_places:
            ask, future = waiting[0]
            if not future.done() and (running or group):
                break
            try:
                chat = future.result()
            except (RowError, ContextExceeded) as error:
                self._reject(ask.id, ask.where, error)
                waiting.popleft()
                continue
            longest = max(longest, _positions(chat))
            if (running or group) and (len(running) + len(group) + 1) * longest > max_batch_tokens:
                break
            waiting.popleft()
            group.append((ask, chat))
        for chat_id, (ask, chat) in zip(engine.add([chat for _, chat in group]), group, strict=True):
            running[chat_id] = _Running(ask, chat, [])

    def _settle(self, row: _Running) -> None:
        last = row.said[-1]
        thinking = "".join(delta.text for delta in row.said if delta.thinking)
        audio_secs = sum(len(clip.audio) for clip in row.chat.clips) / self.model.sampling_rate
        self.file.answer(
            row.ask.id,
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

    def _reject(self, row_id: str | None, where: str, error: Exception) -> None:
        reason = error.reason if isinstance(error, RowError) else "too_long"
        self.file.reject(row_id, where, reason, str(error))
        self.summary.rejected[reason] += 1

    def _in_order(self) -> Iterator[Ask]:
        """Rows without an answer; the longest first of every `look_ahead` rows."""
        asks = self._asks()
        while window := list(itertools.islice(asks, self.look_ahead)):
            yield from sorted(window, key=lambda ask: -ask.cost)

    def _asks(self) -> Iterator[Ask]:
        for i in range(len(self.index)):
            where = self.index.where(i)
            row_id = None
            try:
                row = _parse(self.index.line(i))
                row_id = self._name(row)
                if row_id in self.file.done:
                    self.summary.before += 1
                    continue
                messages = _messages(row, self.model.audio_locator_tag, self.system)
                yield Ask(row_id, where, *self._resolve(messages, row))
            except RowError as error:
                self._reject(row_id, where, error)

    def _name(self, row: Mapping[str, Any]) -> str:
        """The row's id; a repeated one (several questions about one clip) gets a number: ``x``, ``x#2``, ..."""
        row_id = row.get("id")
        if not isinstance(row_id, str) or not row_id:
            raise RowError("schema", "a row needs an 'id', a non-empty string: the answers are kept by it")
        names = itertools.chain([row_id], (f"{row_id}#{n}" for n in itertools.count(2)))
        name = next(name for name in names if name not in self._seen)
        self._seen.add(name)
        return name

    def _resolve(self, messages: Iterable[Mapping[str, Any]], row: Mapping[str, Any]) -> tuple[list[dict], int]:
        """The messages with real files as audios, and about how many positions they take."""
        found, cost = [], 0
        for message in messages:
            audios = []
            for audio in message.get("audios") or ():
                path = self.roots.resolve(audio["audio"], dataset=row.get("dataset"))
                audios.append({"audio": path, "text": audio.get("text")})
                cost += self.model.num_audio_tokens(count_samples(path, self.model.sampling_rate))
            found.append({"role": message["role"], "content": message["content"], "audios": audios})
            cost += len(message["content"]) // CHARACTERS_PER_TOKEN
        return found, cost


def _positions(chat: PreparedChat) -> int:
    return chat.num_prompt_tokens + chat.sampling.max_new_tokens


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError("not_json", f"not a JSON object ({error})") from error
    if not isinstance(row, dict):
        raise RowError("schema", f"a row is a JSON object, found {type(row).__name__}")
    return row


def _messages(row: Mapping[str, Any], tag: str, system: str | None) -> list[dict[str, Any]]:
    """The row's messages, or those that its short form means; ``system`` before them if they have none."""
    if "messages" not in row:
        audios, texts = _as_list(row.get("audio")), _as_list(row.get("text"))
        if not isinstance(row.get("prompt"), str):
            raise RowError("schema", f"row '{row['id']}': 'messages', or 'prompt' and 'audio', must be there")
        if texts and len(texts) != len(audios):
            raise RowError("schema", f"row '{row['id']}': {len(texts)} texts for {len(audios)} audios")
        entries = [{"audio": a, "text": t} for a, t in itertools.zip_longest(audios, texts)]
        content = row["prompt"] if tag in row["prompt"] else f"{tag}\n" * len(entries) + row["prompt"]
        row = {**row, "messages": [{"role": "user", "content": content, "audios": entries}]}
    check_row({**row, "response": row.get("response") or "not read"})
    messages = row["messages"]
    if (row.get("system") or system) and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": row.get("system") or system}, *messages]
    return messages


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
