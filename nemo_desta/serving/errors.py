"""Errors in the format of OpenAI's API: a status, and a body ``{"error": {...}}`` that names the part at fault."""

import logging
import traceback
from typing import Any


class ApiError(Exception):
    """An error response.

    ``param``: the part of the request at fault, such as ``messages[0].content[1].input_audio.data``. ``code``: a label
    for programs. ``retry_after``: seconds after which the client should retry.
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
        self.message = message.encode("utf-8", "replace").decode()  # a lone surrogate cannot be encoded
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


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", retry_after=5)


def queue_full(what: str) -> ApiError:
    return ApiError(429, f"{what}; retry in a moment", code="queue_full", retry_after=1)


def forget(error: BaseException | None) -> None:
    """Drops the frames and causes of a handled exception, because they hold the request. `asyncio.wait_for` creates a
    reference cycle of exception, frame and future, which only a full garbage collection would free."""
    while error is not None:
        error.__traceback__ = None
        cause, error.__cause__ = error.__cause__ or error.__context__, None
        error.__context__ = None
        error = cause


def log_failure(logger: logging.Logger, words: str, error: BaseException) -> None:
    """Logs a failure with its stack. An exception's message may quote the request, so only its type is logged."""
    stack = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s: %s\n%s", words, type(error).__name__, stack.rstrip())
