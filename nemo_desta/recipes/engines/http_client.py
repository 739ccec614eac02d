"""HTTP for the `openai` engine: one session, a bound on the requests in flight, and retries.

Transient errors (a dropped connection, a timeout, 429, 5xx, an answer that is no proper JSON) are retried after a
random wait whose bound doubles ("full jitter"), or after the server's ``Retry-After``. The API key is read from the
environment, is kept in the session's headers only, and is removed from every text that the server sends.
"""

import asyncio
import email.utils
import itertools
import json
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from nemo_desta.config import MISSING
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines.base import EngineError
from nemo_desta.recipes.engines.replies import MalformedAnswer, read_models, read_object

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Parse = Callable[[Mapping[str, Any]], Answer]

#: Longest ``Retry-After`` that is accepted.
_LONGEST_RETRY_AFTER_SECS = 600.0


class RequestFailed(Exception):
    """This one request has no answer; others may have theirs. The text says why."""


class NotServed(EngineError):
    """The server has no such model or address (404), or answers with an unknown status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


class _Transient(Exception):
    """An attempt failed, and the next one may succeed."""

    def __init__(self, cause: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{cause} ({detail})" if detail else cause)
        self.cause = cause
        self.retry_after = retry_after


@dataclass(frozen=True)
class Connection:
    """How to reach a server.

    ``base_url``: where ``/completions`` is, usually ending in ``/v1`` (added to a URL without path). ``concurrency``:
    requests in flight; waits between attempts do not count. ``timeout_secs``: for one attempt. ``max_retries``:
    attempts after the first. ``api_key_env``: the environment variable that holds the key; no key is sent when it is
    unset. ``first_wait_secs``, ``longest_wait_secs``: bounds of the random waits between attempts; they double.
    """

    base_url: str = MISSING
    concurrency: int = 64
    timeout_secs: float = 300.0
    max_retries: int = 8
    api_key_env: str = "OPENAI_API_KEY"
    first_wait_secs: float = 0.25
    longest_wait_secs: float = 60.0


class HttpClient:
    """A client of one server, used from one event loop at a time; `close` it before the loop ends. ``stats`` counts
    ``requests`` (retries included) and ``retries`` by cause. Raises `ConfigError` for a base URL that is no URL or
    carries a password."""

    def __init__(self, connection: Connection) -> None:
        url = urlsplit(connection.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ConfigError(f"base_url must be like http://localhost:8000/v1, found {connection.base_url!r}")
        if url.username or url.password or url.query:
            found = f"base_url for {url.hostname} carries a user, a password or a query"
            raise ConfigError(f"{found}; keys come from the environment only")
        self.base_url = connection.base_url.rstrip("/") + ("" if url.path.strip("/") else "/v1")
        self.connection = connection
        self.stats: dict[str, Any] = {"requests": 0, "retries": Counter()}
        self._jitter = random.Random()  # its own: waits must not change anyone's seeded numbers
        self._num_answered = 0
        self._session: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots: asyncio.Semaphore

    async def post(self, path: str, body: bytes, parse: Parse[Answer]) -> Answer:
        """What ``parse`` makes of the JSON answer. An exception of ``parse`` other than the two below counts as a
        malformed answer. Raises `RequestFailed` if the server refuses this request, or fails at every attempt while
        it answers others; `EngineError` if the server does not answer any more, or refuses the key or the address."""
        before, tries = self._num_answered, self.connection.max_retries + 1
        try:
            return await self._retry("POST", path, body, parse, tries)
        except _Transient as problem:
            what = f"{tries} tries, the last: {problem}"
            # Is it this request, or is the server down? Then every following row would fail too: the run must stop.
            if problem.cause != "status 429" and (self._num_answered > before or await self._alive()):
                raise RequestFailed(what) from None
            raise EngineError(f"{self.base_url} does not answer any more: {what}") from None

    async def models(self) -> list[dict[str, Any]]:
        """The models that the server lists, if it does. Raises `EngineError` if there is no server, or for the key."""
        tries = 6  # some five seconds
        try:
            return await self._retry("GET", "/models", None, read_models, tries)
        except _Transient as problem:
            raise EngineError(
                f"no server answers at {self.base_url} ({tries} tries, the last: {problem}); is it running, "
                "and is the address right?"
            ) from None
        except (RequestFailed, NotServed):  # a server need not list its models
            return []

    async def close(self) -> None:
        """Close all connections. The client can be used again, also from another event loop."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def open(self) -> bool:
        """Open a session for the running event loop, if there is none; returns whether it is a new one."""
        loop = asyncio.get_running_loop()
        if self._session is not None and self._loop is loop:
            return False
        try:
            import aiohttp
        except ImportError as error:
            raise EngineError("the openai engine needs aiohttp: pip install aiohttp") from error
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if key := self._key():
            headers["Authorization"] = f"Bearer {key}"
        timeout = self.connection.timeout_secs
        self._loop = loop
        self._slots = asyncio.Semaphore(self.connection.concurrency)
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=self.connection.concurrency),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=min(10.0, timeout)),
        )
        return True

    async def _retry(self, method: str, path: str, body: bytes | None, parse: Parse[Answer], tries: int) -> Answer:
        for number in itertools.count(1):
            try:
                answer = await self._try(method, path, body, parse)
                self._num_answered += 1
                return answer
            except _Transient as problem:
                if number >= tries:
                    raise
                self.stats["retries"][problem.cause] += 1
                logger.debug("try %d of %d failed: %s", number, tries, problem)
                bound = min(self.connection.longest_wait_secs, self.connection.first_wait_secs * 2 ** (number - 1))
                wait = max(self._jitter.uniform(0, bound), problem.retry_after)
            await asyncio.sleep(wait)

    async def _try(self, method: str, path: str, body: bytes | None, parse: Parse[Answer]) -> Answer:
        import aiohttp

        async with self._slots:
            if self._session is None:
                raise EngineError("the engine was closed while requests were in flight")
            self.stats["requests"] += 1
            try:
                # A redirect would take the key elsewhere and turn POST into GET.
                url = self.base_url + path
                async with self._session.request(method, url, data=body, allow_redirects=False) as response:
                    content = await response.read()
            except asyncio.TimeoutError:
                raise _Transient("timeout", f"{self.connection.timeout_secs:g} s") from None
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
        if status >= 500 or status in (408, 425, 429):
            retry_after = _retry_after_secs(headers.get("Retry-After"))
            if retry_after > _LONGEST_RETRY_AFTER_SECS:
                raise EngineError(f"{self.base_url} asks to come back in {retry_after:.0f} s ({status}: {said})")
            raise _Transient(f"status {status}", said, retry_after)
        if status in (401, 403):
            found = f"environment variable {self.connection.api_key_env} is {'refused' if self._key() else 'not set'}"
            raise EngineError(f"{self.base_url} wants another key ({status}: {said}): the {found}")
        if status in (400, 413, 422):  # other requests may be right
            raise RequestFailed(f"the server refuses this request ({status}): {said}")
        raise NotServed(f"{self.base_url} answered {status}: {said}", status)

    async def _alive(self) -> bool:
        try:
            with suppress(RequestFailed, NotServed):
                await self._try("GET", "/models", None, dict)
            return True
        except (_Transient, EngineError):
            return False

    def _key(self) -> str | None:
        return os.environ.get(self.connection.api_key_env) or None

    def _clean(self, text: str) -> str:
        key = self._key()
        return " ".join((text.replace(key, "<key>") if key else text).split())[:300]


def _message(content: bytes) -> str:
    """The text of an error's body: in OpenAI's form, in FastAPI's, or as it is."""
    with suppress(ValueError, AttributeError, RecursionError):
        data = json.loads(content)
        error = data.get("error", data)
        return str(error.get("message") or error.get("detail") or data) if isinstance(error, dict) else str(error)
    return content.decode(errors="replace")


def _retry_after_secs(value: str | None) -> float:
    """Seconds from a ``Retry-After`` header: a number or a date; 0 if there is none or it cannot be read."""
    with suppress(TypeError, ValueError):
        return max(0.0, float(value))
    with suppress(TypeError, ValueError, OverflowError, OSError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
