"""The engine's thread: conversations are queued, join the running batch at any step, and their pieces are returned.

Continuous batching: between two decode steps, queued conversations join as far as the batch size and the cache's
tokens allow, and cancelled ones leave. A clip that cannot be encoded fails only its own request. An error in the
decode loop fails all running requests, because the engine's state is then unknown; a new engine continues with the
queue.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nemo_desta.answering.clips import Clip
from nemo_desta.answering.engine import Delta, PreparedChat
from nemo_desta.serving.errors import ApiError, shutting_down

logger = logging.getLogger(__name__)

#: Encoding and prefill of new conversations pause the running ones, and cost less per conversation for several at
#: once. New conversations therefore wait until there is one per so many running ones,
RUNNING_PER_NEWCOMER = 16
#: but for at most so many decode steps.
PATIENCE = 4
#: When it is stopped, the engine gets so long to finish its current work.
STOP_SECS = 5.0
#: After so many failures in a row, without a token in between, the server gives up.
MAX_FAILURES = 3

#: An entry in a client's queue: a piece of the answer, or the error that ends it.
Item = Delta | ApiError


class Engine(Protocol):
    """The interface of `nemo_desta.answering.engine.ChatEngine`."""

    @property
    def free_places(self) -> int: ...

    def add(self, chats: Sequence[PreparedChat]) -> list[int]: ...

    def step(self) -> list[Delta]: ...

    def cancel(self, chat_id: int) -> None: ...


class Job:
    """One conversation. ``items``: filled in the event loop; the last one has ``finish`` set or is an error.
    ``positions``: the most positions that it can use in the LLM's cache."""

    def __init__(self, chat: PreparedChat) -> None:
        self.chat = chat
        self.positions = chat.num_prompt_tokens + chat.sampling.max_new_tokens
        self.items: asyncio.Queue[Item] = asyncio.Queue()
        self.cancelled = False


class Batcher:
    """Owns an engine and the only thread that uses it. Call `start` and `submit` in the event loop.

    Args:
        make_engine: makes a new engine, at the start and after a failure.
        encode: encodes clips before they join, so that a bad clip fails alone.
        max_batch_tokens: limit of running conversations times the positions of the longest one. max_prefill_tokens:
            the same for the prompts that join together. A conversation that exceeds a limit by itself runs alone.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        encode: Callable[[Sequence[Clip]], Any],
        *,
        max_batch_tokens: int,
        max_prefill_tokens: int,
    ) -> None:
        self.make_engine = make_engine
        self.encode = encode
        self.max_batch_tokens = max_batch_tokens
        self.max_prefill_tokens = max_prefill_tokens
        self.num_steps = 0
        self.num_failures = 0  # engines that were replaced
        self.dead = False  # no engine works
        self._failures_in_a_row = 0
        self._engine = make_engine()
        self._running: dict[int, Job] = {}  # by chat id
        self._joining: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._put_off = 0  # decode steps since the first queued conversation was put off
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="nemo_desta engine", daemon=True)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, chat: PreparedChat) -> Job:
        """Queues a conversation."""
        job = Job(chat)
        with self._changed:
            if self._stopping:
                job.items.put_nowait(shutting_down())
                return job
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Stops a conversation whose client has disconnected."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def stop(self) -> None:
        """Fails the remaining conversations and ends the thread. It waits at most `STOP_SECS` for the current work:
        encoding an hour of audio can take longer."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECS)
        if self._thread.is_alive():
            logger.warning("the engine is still busy after %g s and is abandoned", STOP_SECS)
            left = [*self._running.values(), *self._joining, *self._waiting]
            self._deliver([(job, shutting_down()) for job in left])

    # ---- in the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._stopping or self._waiting or self._running):
                    self._changed.wait()
                if self._stopping:
                    left = [*self._running.values(), *self._joining, *self._waiting]
                    self._running.clear()
                    self._waiting.clear()
                    break
            try:
                self._drop_cancelled()
                self._admit()
                self._step()
            except Exception:
                logger.exception("the decode loop failed; running requests end with an error")
                self._replace_engine()
        self._deliver([(job, shutting_down()) for job in left])

    def _drop_cancelled(self) -> None:
        for chat_id in [chat_id for chat_id, job in self._running.items() if job.cancelled]:
            self._engine.cancel(chat_id)
            del self._running[chat_id]

    def _admit(self) -> None:
        """Adds queued conversations that fit, unless it is better to wait for more."""
        if self._put_off < PATIENCE and len(self._waiting) < len(self._running) // RUNNING_PER_NEWCOMER:
            self._put_off += bool(self._waiting)
            return
        self._put_off = 0
        if not (group := self._next_group()):
            return
        self._joining = group
        self._joining = group = self._encoded(group)
        ids = self._engine.add([job.chat for job in group])
        self._joining = []
        self._running.update(zip(ids, group, strict=True))
        for job in group:
            job.chat = job.chat._replace(clips=[])  # frees their memory

    def _next_group(self) -> list[Job]:
        """The first conversations of the queue that fit, strictly in order."""
        group: list[Job] = []
        longest = max((job.positions for job in self._running.values()), default=0)
        prompt = 0
        places = self._engine.free_places
        with self._changed:
            while self._waiting and len(group) < places:
                job = self._waiting[0]
                if not job.cancelled:
                    longest, prompt = max(longest, job.positions), max(prompt, job.chat.num_prompt_tokens)
                    num_rows = len(self._running) + len(group) + 1
                    if num_rows > 1 and num_rows * longest > self.max_batch_tokens:
                        break
                    if group and (len(group) + 1) * prompt > self.max_prefill_tokens:
                        break
                    group.append(job)
                self._waiting.popleft()
        return group

    def _encoded(self, group: list[Job]) -> list[Job]:
        """The jobs whose clips could be encoded: in one batch, or one by one if that fails."""
        try:
            self.encode([clip for job in group for clip in job.chat.clips])
            return group
        except Exception as error:
            if len(group) == 1:
                logger.exception("the audio of a request cannot be encoded")
                self._deliver([(group[0], ApiError(500, f"the audio cannot be encoded ({type(error).__name__})"))])
                return []
        return [job for one in group for job in self._encoded([one])]

    def _step(self) -> None:
        if not self._running:
            return
        deltas = self._engine.step()
        self.num_steps += 1
        self._failures_in_a_row = 0
        items = [(self._running[delta.chat_id], delta) for delta in deltas]
        for delta in deltas:
            if delta.finish is not None:
                del self._running[delta.chat_id]
        self._deliver(items)  # last: when a client has its answer, its place is free

    def _replace_engine(self) -> None:
        self.num_failures += 1
        failed = [*self._running.values(), *self._joining]
        self._running.clear()
        self._joining = []
        self._deliver([(job, ApiError(500, "the engine failed while it generated this answer")) for job in failed])
        self._failures_in_a_row += 1
        try:
            self._engine = self.make_engine()
        except Exception:
            logger.exception("no new engine can be made")
            self._failures_in_a_row = MAX_FAILURES
        if self._failures_in_a_row >= MAX_FAILURES:
            logger.critical("the engine failed %d times in a row; restart the server", self._failures_in_a_row)
            self.dead = True
            with self._changed:
                self._stopping = True

    def _deliver(self, items: Sequence[tuple[Job, Item]]) -> None:
        """Passes items to the event loop in one call."""
        if not items:
            return
        try:
            self._loop.call_soon_threadsafe(_put, items)
        except RuntimeError:  # the loop is closed
            logger.debug("%d pieces came after the server had stopped", len(items))


def _put(items: Sequence[tuple[Job, Item]]) -> None:
    for job, item in items:
        job.items.put_nowait(item)
