"""The HTTP side of the `openai` engine: one session, a bound on what is in flight, and second tries.

What may pass (a dropped connection, a timeout, 429, 5xx, an answer that is no proper JSON) is tried again after a
random wait whose bound doubles ("full jitter"), or after the server's ``Retry-After``. The API key is read from the
environment, lives in the session's headers only, and is cut out of whatever the server says.
"""

import asyncio
import email.utils
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines.base import EngineError
from nemo_desta.recipes.engines.replies import MalformedAnswer, read_models, read_object

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Parse = Callable[[Mapping[str, Any]], Answer]

#: Statuses that say that this one request is wrong.
_WRONG_REQUEST = (400, 413, 422)
#: Statuses below 500 that may pass.
_BUSY = (408, 425, 429)
#: Tries to reach the server before the first request: some five seconds.
_FIRST_CONTACT_TRIES = 6
#: A server that asks for a longer wait is not waited for.
_LONGEST_RETRY_AFTER_SECS = 600.0


class Unanswered(Exception):
    """There is no answer to this one request; others may have theirs. The text says why."""


class _Passing(Exception):
    """A try that failed for a reason that may pass."""

    def __init__(self, cause: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{cause} ({detail})" if detail else cause)
        self.cause = cause
        self.retry_after = retry_after


class Client:
    """One server, asked from one event loop at a time; `close` before the loop ends.

    ``in_flight``: requests on the wire at most; waits between tries do not count. ``stats``: ``requests`` (tries
    included) and ``retries`` by cause. The other arguments are those of `OpenAIEngine`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        in_flight: int,
        timeout_secs: float,
        max_retries: int,
        api_key_env: str,
        first_wait_secs: float,
        longest_wait_secs: float,
    ) -> None:
        self.base_url = _checked(base_url)
        self.in_flight = in_flight
        self.timeout_secs = timeout_secs
        self.max_retries = max_retries
        self.api_key_env = api_key_env
        self.first_wait_secs = first_wait_secs
        self.longest_wait_secs = longest_wait_secs
        self.stats: dict[str, Any] = {"requests": 0, "retries": {}}
        self._jitter = random.Random()  # its own: waits must not shift anybody's seeded numbers
        self._num_answered = 0
        self._session: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots: asyncio.Semaphore

    async def post(self, path: str, body: bytes, parse: Parse[Answer]) -> Answer:
        """What ``parse`` makes of the JSON answer; whatever else than `Unanswered` and `EngineError` it raises is
        the fault of this answer, as broken JSON is.

        Raises:
            Unanswered: the server refuses this request, or failed at every try while it answered others.
            EngineError: nothing answers any more, or the key or the address is refused.
        """
        before = self._num_answered
        try:
            return await self._retry(lambda: self._try("POST", path, body, parse), self.max_retries)
        except _Passing as problem:
            what = f"{self.max_retries + 1} tries, the last: {problem}"
            # Is it this request, or is the server gone? Then every row that follows would be lost in the same way.
            if problem.cause != "status 429" and (self._num_answered > before or await self._alive()):
                raise Unanswered(what) from None
            raise EngineError(f"{self.base_url} does not answer any more: {what}") from None

    async def models(self) -> list[dict[str, Any]]:
        """What the server says that it serves; empty for one that does not say.

        Raises:
            EngineError: no server, or it refuses the key.
        """
        tries = _FIRST_CONTACT_TRIES
        try:
            return await self._retry(lambda: self._try("GET", "/models", None, read_models), tries - 1)
        except _Passing as problem:
            raise EngineError(
                f"no server answers at {self.base_url} ({tries} tries, the last: {problem}); is it running, "
                "and is the address right?"
            ) from None
        except Unanswered:
            return []

    async def close(self) -> None:
        """Close all connections. The client may be used again, also from another event loop."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def open(self) -> None:
        """Open the session of the running event loop, if that has not been done."""
        loop = asyncio.get_running_loop()
        if self._session is not None and self._loop is loop:
            return
        try:
            import aiohttp
        except ImportError as error:
            raise EngineError("the openai engine needs aiohttp: pip install aiohttp") from error
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        self._loop = loop
        self._slots = asyncio.Semaphore(self.in_flight)
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self.in_flight),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self.timeout_secs, sock_connect=min(10.0, self.timeout_secs)),
        )

    async def _retry(self, attempt: Callable[[], Awaitable[Answer]], max_retries: int) -> Answer:
        for number in range(max_retries + 1):
            try:
                answer = await attempt()
                self._num_answered += 1
                return answer
            except _Passing as problem:
                if number == max_retries:
                    raise
                retries = self.stats["retries"]
                retries[problem.cause] = retries.get(problem.cause, 0) + 1
                logger.debug("try %d of %d failed: %s", number + 1, max_retries + 1, problem)
                bound = min(self.longest_wait_secs, self.first_wait_secs * 2**number)
                wait = max(self._jitter.uniform(0, bound), problem.retry_after)
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _try(self, method: str, path: str, body: bytes | None, parse: Parse[Answer]) -> Answer:
        import aiohttp

        async with self._slots:
            if self._session is None:
                raise EngineError("the engine was closed while requests were under way")
            self.stats["requests"] += 1
            try:
                # A redirect would take the key elsewhere and turn POST into GET.
                async with self._session.request(
                    method, self.base_url + path, data=body, allow_redirects=False
                ) as response:
                    content = await response.read()
            except asyncio.TimeoutError:
                raise _Passing("timeout", f"{self.timeout_secs:g} s") from None
            except aiohttp.ClientError as error:
                raise _Passing("connection", self._clean(f"{type(error).__name__}: {error}")) from None
        if response.status != 200:
            self._refuse(response.status, response.headers, content)
        try:
            return parse(read_object(content))
        except (Unanswered, EngineError):
            raise
        except Exception as error:  # no answer, of whatever kind, may end a run
            what = str(error) if isinstance(error, MalformedAnswer) else f"{type(error).__name__}: {error}"
            raise _Passing("malformed answer", self._clean(what)) from None

    def _refuse(self, status: int, headers: Mapping[str, str], content: bytes) -> NoReturn:
        said = self._clean(_message(content))
        if status >= 500 or status in _BUSY:
            retry_after = _retry_after_secs(headers.get("Retry-After"))
            if retry_after > _LONGEST_RETRY_AFTER_SECS:
                raise EngineError(f"{self.base_url} asks to come back in {retry_after:.0f} s ({status}: {said})")
            raise _Passing(f"status {status}", said, retry_after)
        if status in (401, 403):
            found = "is refused" if self._key() else "is not set"
            raise EngineError(
                f"{self.base_url} wants another key ({status}: {said}): the environment variable "
                f"{self.api_key_env} {found}"
            )
        if status in _WRONG_REQUEST:
            raise Unanswered(f"the server refuses this request ({status}): {said}")
        raise NotServed(f"{self.base_url} answered {status}: {said}", status)

    async def _alive(self) -> bool:
        try:
            await self._try("GET", "/models", None, lambda data: data)
        except (Unanswered, NotServed):
            return True
        except (_Passing, EngineError):
            return False
        return True

    def _key(self) -> str | None:
        return os.environ.get(self.api_key_env) or None

    def _clean(self, text: str) -> str:
        key = self._key()
        return " ".join((text.replace(key, "<key>") if key else text).split())[:300]


class NotServed(EngineError):
    """The server has no such model or address (404), or answers with a status that is neither good nor known."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"base_url must be like http://localhost:8000/v1, found {url!r}")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            f"base_url for {parts.hostname} carries a user, a password or a query; keys come from the environment only"
        )
    return url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")


def _message(content: bytes) -> str:
    """What an error's body says: in OpenAI's form, in FastAPI's, or as it is."""
    try:
        data = json.loads(content)
        error = data.get("error", data)
        return str(error.get("message") or error.get("detail") or data) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError, RecursionError):
        return content.decode(errors="replace")


def _retry_after_secs(value: str | None) -> float:
    """Seconds from a ``Retry-After`` header: a number or a date; 0 when there is none that can be read."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError, OSError):
        return 0.0
