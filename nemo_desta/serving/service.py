"""One model and everybody who wants answers from it: places, worker threads, the engine, draining. No HTTP in here."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nemo_desta.answering.audio_embeddings import encode_clips
from nemo_desta.answering.clips import Clip
from nemo_desta.answering.engine import ChatEngine, Delta, prepare
from nemo_desta.answering.sampling import Sampling
from nemo_desta.serving.batching import Batcher, Engine, Job
from nemo_desta.serving.http_body import Receiving
from nemo_desta.serving.errors import ApiError, log_failure
from nemo_desta.serving.request_parsing import RequestParser
from nemo_desta.serving.memory import keep_trimmed
from nemo_desta.serving.metrics import Metrics
from nemo_desta.serving.protocol import ChatRequest
from nemo_desta.serving.responses import Usage
from nemo_desta.serving.settings import ServerSettings

if TYPE_CHECKING:
    from nemo_desta.answering.audio_frontend import AudioFrontend
    from nemo_desta.models.desta import DestaModel

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Service:
    """Answers requests to ``model``, called ``name``. ``make_engine``: other engines than `ChatEngine`."""

    def __init__(
        self,
        model: "DestaModel | AudioFrontend",
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
        self.num_cache_hits = 0  # without those of the engine, which finds every clip in the cache
        self.parser = RequestParser(model, name, settings)
        self.workers = ThreadPoolExecutor(settings.num_workers, thread_name_prefix="nemo_desta intake")
        self.batcher = Batcher(
            make_engine or partial(ChatEngine, model, max_batch_size=settings.max_batch_size),
            self._hear,
            max_batch_tokens=settings.max_batch_tokens,
            max_prefill_tokens=settings.max_prefill_tokens,
        )
        cache = model.audio_cache
        self.metrics = Metrics(
            receiving=lambda: self.receiving.num_bodies,
            waiting=lambda: self.num_waiting,
            running=lambda: self.batcher.num_running,
            counters={
                "decode_steps": (
                    "Steps of the batch, one token per conversation each",
                    lambda: self.batcher.num_steps,
                ),
                "engine_failures": ("Engines that had to be replaced", lambda: self.batcher.num_failures),
                "encoded_clips": ("Clips that ran through the encoders", lambda: cache.num_encoded),
                "audio_cache_hits": ("Clips that were heard before", lambda: self.num_cache_hits),
            },
        )

    def _hear(self, clips: Sequence[Clip]) -> None:
        """Encode clips into the model's cache, where the engine finds them."""
        before = self.model.audio_cache.num_hits
        encode_clips(self.model, clips)
        self.num_cache_hits += self.model.audio_cache.num_hits - before

    @property
    def status(self) -> str:
        """ready, draining, or failed: then only a new start helps."""
        return "failed" if self.batcher.dead else "draining" if self.draining else "ready"

    @property
    def num_waiting(self) -> int:
        """Requests that are being prepared, or in line."""
        return max(0, len(self.calls) - self.batcher.num_running)

    async def start(self) -> None:
        """Start the engine and let it answer once: what is broken shows now, and the first client waits no longer
        than the second."""
        self.batcher.start()
        second = np.zeros(self.model.sampling_rate, np.float32)
        messages = [{"role": "user", "content": self.model.audio_locator_tag, "audios": [second]}]
        job = self.batcher.submit(prepare(self.model, messages, Sampling(max_new_tokens=2)))
        while True:
            if isinstance(item := await job.items.get(), ApiError):
                raise RuntimeError("the engine failed to answer a second of silence; see the log above")
            if item.finish is not None:
                break
        self._trimming = asyncio.ensure_future(keep_trimmed())

    async def stop(self) -> None:
        self._trimming.cancel()
        await asyncio.to_thread(self.batcher.stop)
        self.workers.shutdown(wait=False, cancel_futures=True)

    def check_place(self) -> None:
        """Whether one more request would be taken.

        Raises:
            ApiError: 503 going down, 429 no place.
        """
        if self.draining:
            raise ApiError(503, "the server is going down", code="shutting_down", retry_after=5)
        if self.num_waiting >= self.settings.max_queue:
            message = f"{self.num_waiting} requests wait already; try again in a moment"
            raise ApiError(429, message, code="queue_full", retry_after=1)

    async def open(self, body: bytes | bytearray, arrived: float) -> "Call":
        """A place for one request that was read, once it is known to be a good one.

        Raises:
            ApiError: what is wrong with it; 503 going down, 429 no place or no memory.
        """
        request = await self._work(self.parser.parse, body)
        self.check_place()
        call = Call(self, request, arrived)
        call.hold(len(body))
        self.calls.add(call)
        return call

    async def within(self, arrived: float, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, if it comes before the time of a request is over.

        Raises:
            ApiError: 504.
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
        """Take nothing new, and wait for what is here, at most ``drain_secs``; then the rest is failed."""
        self.draining = True
        until = time.monotonic() + self.settings.drain_secs
        logger.info("draining: %d requests are still to be answered", len(self.calls))
        while self.calls and time.monotonic() < until:
            await asyncio.sleep(0.05)
        if self.calls:
            logger.warning("%d requests are cut off after %g s", len(self.calls), self.settings.drain_secs)
            await asyncio.to_thread(self.batcher.stop)


class Call:
    """One request that has a place, to its end; `close` it whatever happens. ``arrived``: when its head came."""

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
        """Say how much memory the request takes by now.

        Raises:
            ApiError: 429, too much for all that wait together.
        """
        self.num_bytes = num_bytes
        limit = self.service.settings.max_waiting_mb
        if sum(call.num_bytes for call in self.service.calls | {self}) > limit * 2**20:
            message = f"the requests that wait fill {limit} MB already; try again in a moment"
            raise ApiError(429, message, code="queue_full", retry_after=1)

    async def within(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, if it comes before the request's time is over.

        Raises:
            ApiError: 504.
        """
        return await self.service.within(self.arrived, work)

    async def begin(self) -> None:
        """Prepare the request, wait for a place in the batch, and for the first piece of the answer.

        Raises:
            ApiError: what is wrong with it, no memory for its clips, or why there is no answer.
        """
        service = self.service
        wanted = await service._work(service.parser.prepare, self.request)
        self.request = self.request.model_copy(update={"messages": []})  # with all the audio in base64
        chat = wanted.chat
        self.hold(sum(clip.audio.nbytes for clip in chat.clips))
        self.usage = Usage(chat.num_prompt_tokens, wanted.num_audio_tokens)
        self._job = service.batcher.submit(chat)  # it has the clips as long as they are needed
        num_prompt_tokens, audio_secs = chat.num_prompt_tokens, wanted.audio_secs
        del chat, wanted  # this frame stays while the request waits
        self._first = await self._next()
        self.num_bytes = 0
        service.metrics.first_token_secs.observe(time.monotonic() - self.arrived)
        service.metrics.prompt_tokens.inc(num_prompt_tokens)
        service.metrics.audio_secs.inc(audio_secs)

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """The pieces of the answer, from the first one on, as many at a time as there are; the last one has
        ``finish``."""
        deltas, self._first = self._first, []
        while deltas:
            yield deltas
            deltas = [] if deltas[-1].finish is not None else await self._next()

    def close(self, status: int) -> None:
        """Free the place; an answer under way is stopped."""
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
    """``function(argument)``; what it did not foresee is our fault, and this request's alone."""
    try:
        return function(argument)
    except ApiError:
        raise
    except Exception as error:
        log_failure(logger, "a request could not be prepared", error)
        raise ApiError(500, f"the request could not be prepared ({type(error).__name__})") from None
