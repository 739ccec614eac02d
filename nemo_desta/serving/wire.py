"""uvicorn's HTTP protocol with bounds: on the number of connections, and on how long one may leave the server waiting.

uvicorn itself has no limit for a request's head, keeps a connection that sends a byte now and then for ever, and waits
without end for a client that does not read its answer. Bodies have their own limits (`connection.Receiving`).
"""

import asyncio
import json
import resource
from typing import Any

try:
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise ImportError("the server needs uvicorn: pip install 'nemo_desta[serve]'") from error

from nemo_desta.errors import ConfigError
from nemo_desta.serving.errors import ApiError
from nemo_desta.serving.settings import ServerSettings

#: Files that a process needs beside its connections: libraries, the model's files, the loop's own.
OTHER_FILES = 256
#: How long a connection that the server has closed may take for what is still to be sent.
CLOSE_SECS = 2.0


class Wire(H11Protocol):
    """One connection. ``heard``: the loop's time when the client last sent something. ``gone``: it was cut off."""

    def __init__(self, *args: Any, settings: ServerSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.heard = self.loop.time()
        self.gone = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def waits_for_client(self) -> bool:
        """Whether it is the client's turn: to send a head, the rest of a body, its next request, or to let go."""
        between = self.cycle is None or self.cycle.response_complete
        return between or self.cycle.more_body or self.transport.is_closing()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.settings.num_connections:
            self._make_room()
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:  # bytes, but no whole head among them
            self._expect_head()
        else:
            self._head_timer = _cancelled(self._head_timer)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._send_timer = _cancelled(self._send_timer)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._expect_reading()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(CLOSE_SECS, self._cut_off)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._head_timer, self._send_timer = _cancelled(self._head_timer), _cancelled(self._send_timer)
        super().connection_lost(exc)

    def _make_room(self) -> None:
        """Cut off the connection whose client has been silent longest; refuse this one if none is the client's."""
        others = [c for c in self.connections if c is not self and not c.gone]
        if len(others) < self.settings.num_connections:
            return
        silent = [c for c in others if c.waits_for_client]
        if silent:
            min(silent, key=lambda connection: connection.heard)._cut_off()
        else:
            error = ApiError(503, "all connections are in use", code="too_many_connections", retry_after=1)
            self._end(error)

    def _expect_head(self) -> None:
        if self._head_timer is None and not self.gone:
            self._head_timer = self.loop.call_later(self.settings.header_timeout_secs, self._head_is_late)

    def _head_is_late(self) -> None:
        secs = self.settings.header_timeout_secs
        error = ApiError(408, f"no whole request head came within {secs:g} s", code="header_timeout")
        begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]  # silence is closed in silence
        self._end(error if begun else None)

    def _expect_reading(self) -> None:
        if self._send_timer is None and not self.gone:
            self._send_timer = self.loop.call_later(self.settings.send_timeout_secs, self._reading_is_late)

    def _reading_is_late(self) -> None:
        self._send_timer = None
        if self.transport.get_write_buffer_size():
            self._cut_off()

    def _end(self, error: ApiError | None) -> None:
        """Close the connection, with a refusal as last words where the client may expect some."""
        if error is not None and not self.transport.is_closing():
            body = json.dumps(error.body).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            lines = [f"{name}: {value}" for name, value in (headers | error.headers).items()]
            reason = {408: "Request Timeout", 503: "Service Unavailable"}[error.status]
            head = "\r\n".join([f"HTTP/1.1 {error.status} {reason}", *lines, "", ""])
            self.transport.write(head.encode() + body)
        self.transport.close()
        self.loop.call_later(CLOSE_SECS, self._cut_off)

    def _cut_off(self) -> None:
        self.gone = True
        self.transport.abort()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def allow_files(num_connections: int) -> None:
    """Let this process open enough files for its connections.

    Raises:
        ConfigError: the system does not allow so many.
    """
    needed = num_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"max_connections is {num_connections}, and with {OTHER_FILES} other files that is more than the {hard} "
            "that this process may open; lower max_connections or max_queue, or raise the limit (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
