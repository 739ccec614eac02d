"""Refusals and failures as OpenAI's API words them: a status, and a body ``{"error": {...}}`` that names the part."""

import logging
import traceback
from typing import Any


class ApiError(Exception):
    """What a client is told instead of an answer.

    ``param``: the part of the request that is to blame, such as ``messages[0].content[1].input_audio.data``.
    ``code``: a word for programs. ``retry_after``: seconds after which another try makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be sent
        self.param = param and param.encode("utf-8", "replace").decode()
        self.code = code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """OpenAI's ``type``."""
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def forget(error: BaseException | None) -> None:
    """Let go of an exception's frames and causes, which hold the request, once it was dealt with. `asyncio.wait_for`
    ties exception, frame and future into a cycle, which only a full garbage collection would free."""
    while error is not None:
        error.__traceback__ = None
        cause, error.__cause__ = error.__cause__ or error.__context__, None
        error.__context__ = None
        error = cause


def log_failure(logger: logging.Logger, words: str, error: BaseException) -> None:
    """Log what failed and where. An exception's message may quote the request, so only its type is written."""
    stack = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s: %s\n%s", words, type(error).__name__, stack.rstrip())
