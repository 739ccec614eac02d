"""The service of one model: queue limits, worker threads, the engine, draining. It knows no HTTP."""

import asyncio
import ctypes
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from nemo_desta.answering.audio_embeddings import LocalChatModel, encode_clips
from nemo_desta.answering.clips import Clip
from nemo_desta.answering.engine import ChatEngine, Delta, prepare
from nemo_desta.answering.sampling import Sampling
from nemo_desta.serving.batching import Batcher, Engine, Job
from nemo_desta.serving.errors import ApiError, log_failure, queue_full, shutting_down
from nemo_desta.serving.http_body import Receiving
from nemo_desta.serving.metrics import Metrics
from nemo_desta.serving.protocol import ChatRequest
from nemo_desta.serving.request_parsing import RequestParser
from nemo_desta.serving.responses import Usage
from nemo_desta.serving.settings import ServerSettings

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Interval at which freed memory is returned to the system.
TRIM_SECS = 5.0


class Service:
    """Answers requests to ``model``, which clients call ``name``. ``make_engine``: default `ChatEngine`."""

    def __init__(
        self,
        model: LocalChatModel,
        name: str,
        settings: ServerSettings,
        *,
        make_engine: Callable[[], Engine] | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self.settings = settings
        self.draining = False
        self.calls: set[Call] = set()
        self.receiving = Receiving(settings)
        self.num_cache_hits = 0  # without the engine's own lookups, which always hit
        self.parser = RequestParser(model, name, settings)
        self.workers = ThreadPoolExecutor(settings.num_workers, thread_name_prefix="nemo_desta worker")
        self.batcher = Batcher(
            make_engine or partial(ChatEngine, model, max_batch_size=settings.max_batch_size),
            self._encode,
            max_batch_tokens=settings.max_batch_tokens,
            max_prefill_tokens=settings.max_prefill_tokens,
        )
        cache = model.audio_cache
        self.metrics = Metrics(
            receiving=lambda: self.receiving.num_bodies,
            waiting=lambda: self.num_waiting,
            running=lambda: self.batcher.num_running,
            counters={
                "decode_steps": ("Decode steps, one token per conversation", lambda: self.batcher.num_steps),
                "engine_failures": ("Engines that were replaced after a failure", lambda: self.batcher.num_failures),
                "encoded_clips": ("Clips that the encoders processed", lambda: cache.num_encoded),
                "audio_cache_hits": ("Clips found in the audio cache", lambda: self.num_cache_hits),
            },
        )

    def _encode(self, clips: Sequence[Clip]) -> None:
        """Encodes clips into the model's cache, where the engine finds them."""
        before = self.model.audio_cache.num_hits
        encode_clips(self.model, clips)
        self.num_cache_hits += self.model.audio_cache.num_hits - before

    @property
    def status(self) -> str:
        """ready, draining, or failed; a failed server must be restarted."""
        return "failed" if self.batcher.dead else "draining" if self.draining else "ready"

    @property
    def num_waiting(self) -> int:
        """Requests that are being prepared or queued."""
        return max(0, len(self.calls) - self.batcher.num_running)

    async def start(self) -> None:
        """Starts the engine and runs one request: a broken engine fails now, and the first client does not pay for the
        warm-up."""
        self.batcher.start()
        second = np.zeros(self.model.sampling_rate, np.float32)
        messages = [{"role": "user", "content": self.model.audio_locator_tag, "audios": [second]}]
        job = self.batcher.submit(prepare(self.model, messages, Sampling(max_new_tokens=2)))
        while True:
            if isinstance(item := await job.items.get(), ApiError):
                raise RuntimeError("the engine failed to answer a second of silence; see the log above")
            if item.finish is not None:
                break
        self._trimming = asyncio.ensure_future(_keep_trimmed())

    async def stop(self) -> None:
        self._trimming.cancel()
        await asyncio.to_thread(self.batcher.stop)
        self.workers.shutdown(wait=False, cancel_futures=True)

    def check_place(self) -> None:
        """Checks that one more request can be queued.

        Raises:
            ApiError: 503 while draining, 429 when the queue is full.
        """
        if self.draining:
            raise shutting_down()
        if self.num_waiting >= self.settings.max_queue:
            raise queue_full(f"{self.num_waiting} requests are waiting")

    async def open(self, body: bytes | bytearray, arrived: float) -> "Call":
        """Parses a request and, if it is valid, adds it to the queue.

        Raises:
            ApiError: the request is invalid; 503 while draining, 429 when the queue or its memory is full.
        """
        request = await self._work(self.parser.parse, body)
        self.check_place()
        call = Call(self, request, arrived)
        call.hold(len(body))
        self.calls.add(call)
        return call

    async def within(self, arrived: float, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, within the time limit of a request that arrived at ``arrived``.

        Raises:
            ApiError: 504 after the limit.
        """
        limit = self.settings.request_timeout_secs
        try:
            return await asyncio.wait_for(work, arrived + limit - time.monotonic())
        except asyncio.TimeoutError as error:
            raise ApiError(504, f"no answer within {limit:g} s", code="timeout") from error

    async def _work(self, function: Callable[[Any], T], argument: Any) -> T:
        """``function(argument)`` in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(self.workers, _guarded, function, argument)

    async def drain(self) -> None:
        """Accepts no new requests and waits at most ``drain_secs`` for the others; the rest then fails."""
        self.draining = True
        until = time.monotonic() + self.settings.drain_secs
        logger.info("draining: %d requests are still unanswered", len(self.calls))
        while self.calls and time.monotonic() < until:
            await asyncio.sleep(0.05)
        if self.calls:
            logger.warning("%d requests are stopped after %g s", len(self.calls), self.settings.drain_secs)
            await asyncio.to_thread(self.batcher.stop)


class Call:
    """One accepted request. It must be closed in every case. ``arrived``: arrival time of its head."""

    def __init__(self, service: Service, request: ChatRequest, arrived: float) -> None:
        self.service = service
        self.request = request
        self.arrived = arrived
        self.num_bytes = 0
        self.usage: Usage
        self._job: Job | None = None
        self._first: list[Delta] = []
        self._closed = False

    def hold(self, num_bytes: int) -> None:
        """Sets the memory that the request uses now.

        Raises:
            ApiError: 429 when all waiting requests together use too much.
        """
        self.num_bytes = num_bytes
        limit = self.service.settings.max_waiting_mb
        if sum(call.num_bytes for call in self.service.calls | {self}) > limit * 2**20:
            raise queue_full(f"the waiting requests use all {limit} MB")

    async def begin(self) -> None:
        """Prepares the request, then waits until it joins the batch and the answer begins.

        Raises:
            ApiError: the request is invalid, there is no memory for its clips, or the engine failed.
        """
        service = self.service
        prepared = await service._work(service.parser.prepare, self.request)
        self.request = self.request.model_copy(update={"messages": []})  # frees the audio in base64
        chat = prepared.chat
        self.hold(sum(clip.audio.nbytes for clip in chat.clips))
        self.usage = Usage(chat.num_prompt_tokens, prepared.num_audio_tokens)
        self._job = service.batcher.submit(chat)  # the job now owns the clips
        num_prompt_tokens, audio_secs = chat.num_prompt_tokens, prepared.audio_secs
        del chat, prepared  # this frame stays alive while the request waits
        self._first = await self._next()
        self.num_bytes = 0
        service.metrics.first_token_secs.observe(time.monotonic() - self.arrived)
        service.metrics.prompt_tokens.inc(num_prompt_tokens)
        service.metrics.audio_secs.inc(audio_secs)

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """All pieces of the answer, in groups of those that are ready; the last piece has ``finish`` set."""
        deltas, self._first = self._first, []
        while deltas:
            yield deltas
            deltas = [] if deltas[-1].finish is not None else await self._next()

    def close(self, status: int) -> None:
        """Removes the request; a running answer is stopped."""
        if self._closed:
            return
        self._closed = True
        self.service.calls.discard(self)
        if self._job is not None:
            self.service.batcher.cancel(self._job)
            self.service.metrics.new_tokens.inc(self.usage.num_new_tokens)
        self.service.metrics.requests.labels(str(status)).inc()
        self.service.metrics.request_secs.observe(time.monotonic() - self.arrived)

    async def _next(self) -> list[Delta]:
        assert self._job is not None
        queue = self._job.items
        items = [await queue.get()]
        while not queue.empty():
            items.append(queue.get_nowait())
        deltas = []
        for item in items:
            if isinstance(item, ApiError):
                raise item
            deltas.append(item)
        self.usage.num_new_tokens = deltas[-1].num_new_tokens
        return deltas


def _guarded(function: Callable[[Any], T], argument: Any) -> T:
    """``function(argument)``; an unexpected exception fails only this request, with status 500."""
    try:
        return function(argument)
    except ApiError:
        raise
    except Exception as error:
        log_failure(logger, "a request could not be prepared", error)
        raise ApiError(500, f"the request could not be prepared ({type(error).__name__})") from None


async def _keep_trimmed() -> None:
    """Returns freed memory to the system every `TRIM_SECS` until cancelled; does nothing without glibc.

    glibc keeps it: each freed buffer of up to 32 MB raises the size above which it returns memory at once, and gaps
    between live blocks are never returned by itself.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(TRIM_SECS)
        await asyncio.to_thread(trim, 0)
