"""The socket that the gateway listens on, and who can reach it."""

import errno
import logging
import socket

from gateway.admission.addresses import is_loopback
from gateway.errors import PortInUse, SettingsError

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_SEND_BUFFER_BYTES = 256 * 1024
"""Left to itself the kernel takes megabytes of a stream for a client that does not read."""


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        PortInUse: something else listens there.
        SettingsError: the address cannot be used.
    """
    listener = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind(address)
        # Only a listening socket keeps others off the port.
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(host, port) from None
        reason = error.strerror or str(error)
        raise SettingsError(f"cannot listen on {host} port {port}: {reason}") from None
    return listener


def warn_if_open(address: str, *, has_keys: bool, remedy: str = "set 'api_keys_file'") -> None:
    """Say so where everybody on the network may ask."""
    if not has_keys and not is_loopback(address):
        logger.warning(
            "%s can be reached from other machines and nobody needs a key: %s", address, remedy
        )
