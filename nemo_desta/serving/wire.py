"""uvicorn's HTTP protocol with limits on the number of connections and on the time that a client may be silent.

uvicorn itself has no time limit for a request's head, keeps a connection that sends one byte now and then, and waits
forever for a client that does not read its answer. Bodies have their own limits (`http_body.Receiving`).
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

#: Open files of the process besides its connections: libraries, the model's files, the event loop's.
OTHER_FILES = 256
#: Time for a closed connection to send its remaining bytes.
CLOSE_SECS = 2.0


class Wire(H11Protocol):
    """One connection. ``heard``: the loop's time of the client's last bytes. ``gone``: it was aborted."""

    def __init__(self, *args: Any, settings: ServerSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.heard = self.loop.time()
        self.gone = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def waits_for_client(self) -> bool:
        """Whether the client must act: send a head, the rest of a body or its next request, or close."""
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
        if self.cycle is None or self.cycle.response_complete:  # the head is still incomplete
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
        """Aborts the connection whose client has been silent longest; rejects this one if no client must act."""
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
        error = ApiError(408, f"no complete request head within {secs:g} s", code="header_timeout")
        begun = (
            self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        )  # without any bytes, close without a response
        self._end(error if begun else None)

    def _expect_reading(self) -> None:
        if self._send_timer is None and not self.gone:
            self._send_timer = self.loop.call_later(self.settings.send_timeout_secs, self._reading_is_late)

    def _reading_is_late(self) -> None:
        self._send_timer = None
        if self.transport.get_write_buffer_size():
            self._cut_off()

    def _end(self, error: ApiError | None) -> None:
        """Closes the connection; sends ``error`` first if there is one."""
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
    """Raises this process's limit of open files as far as its connections need.

    Raises:
        ConfigError: the system does not allow so many.
    """
    needed = num_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"max_connections is {num_connections}; with {OTHER_FILES} other files that exceeds this process's limit "
            f"of {hard} open files. Lower max_connections or max_queue, or raise the limit (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
