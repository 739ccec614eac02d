"""HTTP for the `openai` engine: one session, a bound on the requests in flight, and retries.

Transient errors (a dropped connection, a timeout, 429, 5xx, an answer that is no proper JSON) are retried after a
random wait whose bound doubles ("full jitter"), or after the server's ``Retry-After``. The API key is read from the
environment, is kept in the session's headers only, and is removed from every text that the server sends.
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

#: Statuses of a wrong request; other requests may be right.
_WRONG_REQUEST = (400, 413, 422)
#: Transient statuses below 500.
_BUSY = (408, 425, 429)
#: Attempts to reach the server before the first request: some five seconds.
_FIRST_CONTACT_ATTEMPTS = 6
#: Longest ``Retry-After`` that is accepted.
_LONGEST_RETRY_AFTER_SECS = 600.0


class RequestFailed(Exception):
    """This one request has no answer; others may have theirs. The text says why."""


class _Transient(Exception):
    """An attempt failed, and the next one may succeed."""

    def __init__(self, cause: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{cause} ({detail})" if detail else cause)
        self.cause = cause
        self.retry_after = retry_after


class HttpClient:
    """A client of one server, used from one event loop at a time; `close` it before the loop ends.

    Args:
        base_url: where ``/completions`` is, usually ending in ``/v1`` (added to a URL without path).
        concurrency: requests in flight; waits between attempts do not count.
        timeout_secs: for one attempt.
        max_retries: attempts after the first.
        api_key_env: the environment variable that holds the key; no key is sent when it is unset.
        first_wait_secs, longest_wait_secs: bounds of the random waits between attempts; they double from the first.

    ``stats`` counts ``requests`` (retries included) and ``retries`` by cause.

    Raises:
        ConfigError: ``base_url`` is no URL or carries a password.
    """

    def __init__(
        self,
        base_url: str,
        *,
        concurrency: int = 64,
        timeout_secs: float = 300.0,
        max_retries: int = 8,
        api_key_env: str = "OPENAI_API_KEY",
        first_wait_secs: float = 0.25,
        longest_wait_secs: float = 60.0,
    ) -> None:
        self.base_url = _checked(base_url)
        self.concurrency = concurrency
        self.timeout_secs = timeout_secs
        self.max_retries = max_retries
        self.api_key_env = api_key_env
        self.first_wait_secs = first_wait_secs
        self.longest_wait_secs = longest_wait_secs
        self.stats: dict[str, Any] = {"requests": 0, "retries": {}}
        self._jitter = random.Random()  # its own: waits must not change anyone's seeded numbers
        self._num_answered = 0
        self._session: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots: asyncio.Semaphore

    async def post(self, path: str, body: bytes, parse: Parse[Answer]) -> Answer:
        """What ``parse`` makes of the JSON answer.

        Any exception of ``parse`` except `RequestFailed` and `EngineError` counts as a malformed answer.

        Raises:
            RequestFailed: the server refuses this request, or fails at every attempt while it answers others.
            EngineError: the server does not answer any more, or refuses the key or the address.
        """
        before = self._num_answered
        try:
            return await self._retry(lambda: self._try("POST", path, body, parse), self.max_retries)
        except _Transient as problem:
            what = f"{self.max_retries + 1} tries, the last: {problem}"
            # Is it this request, or is the server down? Then every following row would fail too: the run must stop.
            if problem.cause != "status 429" and (self._num_answered > before or await self._alive()):
                raise RequestFailed(what) from None
            raise EngineError(f"{self.base_url} does not answer any more: {what}") from None

    async def models(self) -> list[dict[str, Any]]:
        """The models that the server lists; empty if it does not list them.

        Raises:
            EngineError: no server, or it refuses the key.
        """
        attempts = _FIRST_CONTACT_ATTEMPTS
        try:
            return await self._retry(lambda: self._try("GET", "/models", None, read_models), attempts - 1)
        except _Transient as problem:
            raise EngineError(
                f"no server answers at {self.base_url} ({attempts} tries, the last: {problem}); is it running, "
                "and is the address right?"
            ) from None
        except RequestFailed:
            return []

    async def close(self) -> None:
        """Close all connections. The client can be used again, also from another event loop."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def open(self) -> None:
        """Open a session for the running event loop, if there is none."""
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
        self._slots = asyncio.Semaphore(self.concurrency)
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self.concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self.timeout_secs, sock_connect=min(10.0, self.timeout_secs)),
        )

    async def _retry(self, attempt: Callable[[], Awaitable[Answer]], max_retries: int) -> Answer:
        for number in range(max_retries + 1):
            try:
                answer = await attempt()
                self._num_answered += 1
                return answer
            except _Transient as problem:
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
                raise EngineError("the engine was closed while requests were in flight")
            self.stats["requests"] += 1
            try:
                # A redirect would take the key elsewhere and turn POST into GET.
                async with self._session.request(
                    method, self.base_url + path, data=body, allow_redirects=False
                ) as response:
                    content = await response.read()
            except asyncio.TimeoutError:
                raise _Transient("timeout", f"{self.timeout_secs:g} s") from None
            except aiohttp.ClientError as error:
                raise _Transient("connection", self._clean(f"{type(error).__name__}: {error}")) from None
        if response.status != 200:
            self._refuse(response.status, response.headers, content)
        try:
            return parse(read_object(content))
        except (RequestFailed, EngineError):
            raise
        except Exception as error:  # a bad answer of any kind must not end a run
            what = str(error) if isinstance(error, MalformedAnswer) else f"{type(error).__name__}: {error}"
            raise _Transient("malformed answer", self._clean(what)) from None

    def _refuse(self, status: int, headers: Mapping[str, str], content: bytes) -> NoReturn:
        said = self._clean(_message(content))
        if status >= 500 or status in _BUSY:
            retry_after = _retry_after_secs(headers.get("Retry-After"))
            if retry_after > _LONGEST_RETRY_AFTER_SECS:
                raise EngineError(f"{self.base_url} asks to come back in {retry_after:.0f} s ({status}: {said})")
            raise _Transient(f"status {status}", said, retry_after)
        if status in (401, 403):
            found = "is refused" if self._key() else "is not set"
            raise EngineError(
                f"{self.base_url} wants another key ({status}: {said}): the environment variable "
                f"{self.api_key_env} {found}"
            )
        if status in _WRONG_REQUEST:
            raise RequestFailed(f"the server refuses this request ({status}): {said}")
        raise NotServed(f"{self.base_url} answered {status}: {said}", status)

    async def _alive(self) -> bool:
        try:
            await self._try("GET", "/models", None, lambda data: data)
        except (RequestFailed, NotServed):
            return True
        except (_Transient, EngineError):
            return False
        return True

    def _key(self) -> str | None:
        return os.environ.get(self.api_key_env) or None

    def _clean(self, text: str) -> str:
        key = self._key()
        return " ".join((text.replace(key, "<key>") if key else text).split())[:300]


class NotServed(EngineError):
    """The server has no such model or address (404), or answers with an unknown status."""

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
    """The text of an error's body: in OpenAI's form, in FastAPI's, or as it is."""
    try:
        data = json.loads(content)
        error = data.get("error", data)
        return str(error.get("message") or error.get("detail") or data) if isinstance(error, dict) else str(error)
    except (ValueError, AttributeError, RecursionError):
        return content.decode(errors="replace")


def _retry_after_secs(value: str | None) -> float:
    """Seconds from a ``Retry-After`` header: a number or a date; 0 if there is none or it cannot be read."""
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
