"""One client's connection: what is slow to ask or slow to read is closed."""

import asyncio
import fcntl
import socket
import struct
import termios
from types import MappingProxyType

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.envelope import render
from gateway.errors import ApiError, BodyTimeout, HeadTooLarge, InvalidRequest

MAX_HEAD_BYTES = 64 * 1024
"""Of request line and headers; the parser itself knows no limit."""

_DISCARD = struct.pack("ii", 1, 0)
_REASONS = MappingProxyType(
    {
        400: b"Bad Request",
        408: b"Request Timeout",
        431: b"Request Header Fields Too Large",
    }
)


class PatientProtocol(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it, with an end to patience; times are in seconds.

    uvicorn itself waits for ever for the head of a request, and for a client that does not read.
    """

    head_timeout_s: float = 30.0
    write_timeout_s: float = 60.0

    _is_in_body = False
    _num_head_bytes = 0
    _read_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget all timers."""
        self._end_read()
        self._end_write()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a piece of a request."""
        # The body of a request that is answered already is waited for no longer than a head.
        if self._read_timer is None and self._is_unoccupied:
            self._await_head()
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._is_in_body or not self._is_unoccupied:
            self._num_head_bytes = 0
        elif self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(HeadTooLarge(f"the headers are longer than {MAX_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        """Stop to wait for the head."""
        self._end_read()
        self._is_in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Begin to wait for the next head, if this request has been answered."""
        self._is_in_body = False
        super().on_message_complete()
        if self._is_unoccupied:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no request; an answer that has begun is cut, not written into.

        ``cycle`` is the newest request; while one waits in ``pipeline``, another one is answered.
        """
        if not self.pipeline and (self._is_unoccupied or not self.cycle.response_started):
            self._refuse(InvalidRequest("the bytes are no HTTP/1.1 request: check its framing"))
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._await_reading(self._num_unread_bytes())

    def resume_writing(self) -> None:
        """Stop to wait for the client to read."""
        self._end_write()
        super().resume_writing()

    @property
    def _is_unoccupied(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._end_read()
        self._read_timer = self.loop.call_later(self.head_timeout_s, self._on_read_timeout)

    def _end_read(self) -> None:
        self._num_head_bytes = 0
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _on_read_timeout(self) -> None:
        if self.transport.is_closing():
            return
        if not self._num_head_bytes:
            self.transport.close()
            return
        self._refuse(
            BodyTimeout(
                f"the headers were not complete after {self.head_timeout_s:g} s: send them faster"
            )
        )

    def _await_reading(self, num_waiting_bytes: int) -> None:
        self._end_write()
        self._write_timer = self.loop.call_later(
            self.write_timeout_s, self._on_write_timeout, num_waiting_bytes
        )

    def _end_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _on_write_timeout(self, num_waiting_bytes: int) -> None:
        left = self._num_unread_bytes()
        if left < num_waiting_bytes:
            self._await_reading(left)  # slow, but it reads
            return
        # Closing would wait for the same client, and the kernel would keep its bytes.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DISCARD)
        self.transport.abort()

    @property
    def _socket(self) -> socket.socket:
        found: socket.socket = self.transport.get_extra_info("socket")
        return found

    def _num_unread_bytes(self) -> int:
        # The kernel takes more only when a third of its buffer is free, so look into that too.
        queued = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))[0]
        return self.transport.get_write_buffer_size() + int(queued)

    def _refuse(self, error: ApiError) -> None:
        status, headers, body = render(error)
        every = {**headers, "content-length": str(len(body)), "connection": "close"}
        lines = [b"HTTP/1.1 %d %s" % (status, _REASONS[status])]
        lines += [f"{name}: {value}".encode() for name, value in every.items()]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()


def patient_protocol(head_timeout_s: float, write_timeout_s: float) -> type[PatientProtocol]:
    """Return a protocol with these bounds; the server makes one for every connection."""
    bounds = {"head_timeout_s": head_timeout_s, "write_timeout_s": write_timeout_s}
    return type("BoundedProtocol", (PatientProtocol,), bounds)
