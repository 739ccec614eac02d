"""The engine's thread: conversations wait in line, join the running batch at any step, and their pieces flow back.

Continuous batching: between two tokens of the batch, whoever waits joins if places and the cache's tokens allow, and
whoever was cancelled leaves. A clip that cannot be heard fails its own request. An error in the decode loop fails
what is running, since nobody knows what state it left; a new engine goes on with who waits.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nemo_desta.answering.clips import Clip
from nemo_desta.answering.engine import Delta, PreparedChat
from nemo_desta.serving.errors import ApiError

logger = logging.getLogger(__name__)

#: Reading newcomers' clips and prompts stops everybody else, and costs less per head for several at once: while many
#: run, newcomers wait until there is one for so many of them,
RUNNING_PER_NEWCOMER = 16
#: but for so many tokens at most.
PATIENCE = 4
#: How long the engine may go on with what it does when it is stopped.
STOP_SECS = 5.0
#: Engines that may fail one after the other, without a token in between.
MAX_FAILURES = 3

#: What a waiting client gets from the queue: pieces, or why there will be none.
Item = Delta | ApiError


class Engine(Protocol):
    """A `nemo_desta.answering.engine.ChatEngine`, or what does the same."""

    @property
    def free_places(self) -> int: ...

    def add(self, chats: Sequence[PreparedChat]) -> list[int]: ...

    def step(self) -> list[Delta]: ...

    def cancel(self, chat_id: int) -> None: ...


class Job:
    """One conversation on its way. ``items``: filled in the event loop; the last one has ``finish`` or is an error.
    ``positions``: what it may come to in the LLM's cache."""

    def __init__(self, chat: PreparedChat) -> None:
        self.chat = chat
        self.positions = chat.num_prompt_tokens + chat.sampling.max_new_tokens
        self.items: asyncio.Queue[Item] = asyncio.Queue()
        self.cancelled = False


class Batcher:
    """Owns an engine and the one thread that touches it. `start` and `submit` belong to the event loop.

    Args:
        make_engine: a fresh engine, now and after a failure.
        hear: encodes clips ahead, so that a bad one is found alone.
        max_batch_tokens: conversations side by side times the longest one's positions. max_prefill_tokens: the same
            for the prompts that join together. A conversation that exceeds a limit all alone is taken alone.
    """

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        hear: Callable[[Sequence[Clip]], Any],
        *,
        max_batch_tokens: int,
        max_prefill_tokens: int,
    ) -> None:
        self.make_engine = make_engine
        self.hear = hear
        self.max_batch_tokens = max_batch_tokens
        self.max_prefill_tokens = max_prefill_tokens
        self.num_steps = 0
        self.num_failures = 0  # engines that had to be replaced
        self.dead = False  # no engine works any more
        self._failures_in_a_row = 0
        self._engine = make_engine()
        self._running: dict[int, Job] = {}  # by chat id
        self._joining: list[Job] = []
        self._waiting: deque[Job] = deque()
        self._put_off = 0  # tokens that were written since somebody began to wait
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
        """Let a conversation wait for its place."""
        job = Job(chat)
        with self._changed:
            if self._stopping:
                job.items.put_nowait(_going_down())
                return job
            self._waiting.append(job)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Nobody wants its answer any more."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def stop(self) -> None:
        """Fail what is left and end the thread. What it is busy with is waited for, but not for ever: an hour of
        audio takes the encoders their time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(STOP_SECS)
        if self._thread.is_alive():
            logger.warning("the engine is still busy after %g s and is left behind", STOP_SECS)
            left = [*self._running.values(), *self._joining, *self._waiting]
            self._deliver([(job, _going_down()) for job in left])

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
        self._deliver([(job, _going_down()) for job in left])

    def _drop_cancelled(self) -> None:
        for chat_id in [chat_id for chat_id, job in self._running.items() if job.cancelled]:
            self._engine.cancel(chat_id)
            del self._running[chat_id]

    def _admit(self) -> None:
        """Let in who fits, if it is time."""
        if self._put_off < PATIENCE and len(self._waiting) < len(self._running) // RUNNING_PER_NEWCOMER:
            self._put_off += bool(self._waiting)
            return
        self._put_off = 0
        if not (group := self._next_group()):
            return
        self._joining = group
        self._joining = group = self._heard(group)
        ids = self._engine.add([job.chat for job in group])
        self._joining = []
        self._running.update(zip(ids, group, strict=True))
        for job in group:
            job.chat = job.chat._replace(clips=[])  # their memory is not needed any more

    def _next_group(self) -> list[Job]:
        """The first of the line, as many as there is room for; nobody overtakes."""
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

    def _heard(self, group: list[Job]) -> list[Job]:
        """Who is left after all clips were encoded: in one batch, or one by one if that fails."""
        try:
            self.hear([clip for job in group for clip in job.chat.clips])
            return group
        except Exception as error:
            if len(group) == 1:
                logger.exception("the audio of a request cannot be encoded")
                self._deliver([(group[0], ApiError(500, f"the audio cannot be encoded ({type(error).__name__})"))])
                return []
        return [job for one in group for job in self._heard([one])]

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
        self._deliver(items)  # last: whoever reads an answer finds its place free

    def _replace_engine(self) -> None:
        self.num_failures += 1
        failed = [*self._running.values(), *self._joining]
        self._running.clear()
        self._joining = []
        self._deliver([(job, ApiError(500, "the engine failed while it wrote this answer")) for job in failed])
        self._failures_in_a_row += 1
        try:
            self._engine = self.make_engine()
        except Exception:
            logger.exception("no new engine can be made")
            self._failures_in_a_row = MAX_FAILURES
        if self._failures_in_a_row >= MAX_FAILURES:
            logger.critical("the engine fails again and again; nothing is answered until the server is started anew")
            self.dead = True
            with self._changed:
                self._stopping = True

    def _deliver(self, items: Sequence[tuple[Job, Item]]) -> None:
        """Hand items over to the event loop, all in one go."""
        if not items:
            return
        try:
            self._loop.call_soon_threadsafe(_put, items)
        except RuntimeError:  # the loop is closed: nobody listens any more
            logger.debug("%d pieces came after the end", len(items))


def _put(items: Sequence[tuple[Job, Item]]) -> None:
    for job, item in items:
        job.items.put_nowait(item)


def _going_down() -> ApiError:
    return ApiError(503, "the server is going down", code="shutting_down", retry_after=5)
