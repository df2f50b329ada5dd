"""Ports for the servers of tests: no two tests get the same one, in whatever process they run."""

import fcntl
import os
import socket
from itertools import chain
from pathlib import Path
from tempfile import gettempdir

# Below those that a kernel gives to whoever asks for any: there, others would take some of them
# between the choice and the start of the server.
FIRST, LAST = 20_000, 29_999


def free_port() -> int:
    """Return a loopback port that is free now and that no other test is given soon."""
    path = Path(gettempdir()) / f"narrowgate-tests-{os.getuid()}.port"
    with path.open("a+") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        counter.seek(0)
        text = counter.read()
        last = int(text) if text.isdigit() and FIRST <= int(text) <= LAST else LAST
        port = next(filter(_is_free, chain(range(last + 1, LAST + 1), range(FIRST, last + 1))))
        counter.truncate(0)
        counter.write(str(port))
        return port


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
