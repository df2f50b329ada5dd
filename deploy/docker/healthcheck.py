"""Asks the server of this container whether it answers: code 0 if so, else 1 and the reason."""

import http.client
import os
import sys

TIMEOUT_S = 4.0
# 421 is the answer to a name that `allowed_hosts` lacks: whoever refuses so is alive.
_ALIVE = {200, 421}


def reason_to_worry(port: int) -> str | None:
    """Return what is wrong with the server on that port, None where nothing is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"no answer on port {port}: {error}"
    finally:
        connection.close()
    return None if status in _ALIVE else f"/health on port {port} has status {status}"


if __name__ == "__main__":
    sys.exit(reason_to_worry(int(os.environ.get("NARROWGATE_PORT", "8000"))))
