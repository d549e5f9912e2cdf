"""A connection that nobody can hold for nothing: bounds that uvicorn's own does not have.

- The head of a request (request line and headers) has `head_timeout_s`, from the beginning of the connection or, on
  one that stayed open, from the first byte. What follows an answer that did not wait for the whole body has as long.
- A client that reads nothing of its answer for `stall_timeout_s`, 48 KiB of it at least, is cut off.
- There are `most` connections at once. A new one takes the place of the one that has been idle longest; where none is
  idle it hears 503.
- What is no HTTP is answered in JSON that clients of every dialect read.

How long a body may take is `body.BODY_TIMEOUT_S`. h11 refuses a head that is longer than MAX_HEAD_BYTES and has no
end; one that came whole is refused by the app.
"""

from __future__ import annotations

import asyncio
import json
import resource
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

from baltoro.chat.messages import Json

MAX_HEAD_BYTES = 64 * 2**10  # clients send 2 KiB
KEEP_ALIVE_S = 75  # longer than clients and proxies keep one to use again, so that it never closes under a request
MOST_CONNECTIONS = 8192  # some 20 KB each
OTHER_FILES = 256  # for the model, the database, the journal


def allowed_connections() -> int:
    """What the limit of open files leaves; the soft limit is raised as far as the hard one lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + OTHER_FILES if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS has a further limit, and says an endless one
            pass
    return min(MOST_CONNECTIONS, max(OTHER_FILES, soft) - OTHER_FILES // 2)


class Connection(H11Protocol):
    most = MOST_CONNECTIONS
    head_timeout_s = 30.0
    stall_timeout_s = 300.0

    _idle_since = 0.0  # by the loop's clock
    _head_late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """No request is being read or answered."""
        cycle = cast(object | None, self.cycle)  # None before the first request, whatever uvicorn's types say
        return cycle is None or self.cycle.response_complete

    # ------------------------------------------------------------------------------------------- asyncio tells us

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        if len(self.connections) > self.most and not self._take_a_place():
            self._refuse(503, "this server has as many connections as it takes; ask again later")
        else:
            self._head_late = self.loop.call_later(self.head_timeout_s, transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.idle:
            self._head_late = _cancelled(self._head_late)
        elif self._head_late is None:
            self._head_late = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = _cancelled(self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._head_late, self._stalled = _cancelled(self._head_late), _cancelled(self._stalled)

    # ------------------------------------------------------------------------------------------- uvicorn tells us

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if self.transport.is_closing():
            if self._stalled is None:  # it closes as soon as the client has read the rest
                self._stalled = self.loop.call_later(self.stall_timeout_s, self.transport.abort)
        elif self.idle and self.conn.trailing_data[0]:  # half a head came along with the request before it
            self._head_late = self.loop.call_later(self.head_timeout_s, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        if self.idle or not self.cycle.response_started:
            self._refuse(400, msg)
        else:
            self.transport.abort()  # in the middle of an answer nothing else can be said

    # ------------------------------------------------------------------------------------------------------- ours

    def _take_a_place(self) -> bool:
        """Whether an idle connection was closed for this one."""
        others = [each for each in cast("set[Connection]", self.connections) if each is not self and each.idle]
        if others:
            longest = min(others, key=lambda each: each._idle_since)
            self.connections.discard(longest)
            longest.transport.abort()
        return bool(others)

    def _refuse(self, status: int, message: str) -> None:
        """Without a path there is no dialect; both vendors' clients find what they read."""
        busy = status == 503
        kind = "overloaded_error" if busy else "invalid_request_error"
        error: dict[str, Json] = {"message": message, "type": kind, "param": None, "code": None}
        body = json.dumps({"type": "error", "error": error})
        lines = [
            f"HTTP/1.1 {status} {'Service Unavailable' if busy else 'Bad Request'}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(["retry-after: 1"] if busy else []),
        ]
        self.transport.write("\r\n".join([*lines, "", body]).encode())
        self.transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
