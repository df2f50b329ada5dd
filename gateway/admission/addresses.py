"""Which names of this service a client may call it by, and who counts as local."""

import ipaddress
import re
from collections.abc import Sequence

from gateway.errors import HostNotAllowed
from gateway.wire import MAX_ECHO

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Return whether an address, or the name ``localhost``, stays on this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # A socket for both families shows its IPv4 clients in this form.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def is_local_name(host: str) -> bool:
    """Return whether a header ``host`` is a name of this machine for itself."""
    found = _HOST.fullmatch(host.lower())
    return found is not None and found[1].removesuffix(".") in _LOCAL_NAMES


class HostList:
    """The values of the header ``host`` that are served.

    A web page elsewhere can point its own name at 127.0.0.1 and read replies as its own; the name
    in ``host`` is all that tells it from a local client.
    """

    def __init__(self, bound_to: str, allowed: Sequence[str]) -> None:
        names = {name.lower() for name in allowed}
        if is_loopback(bound_to):
            names |= _LOCAL_NAMES | {bound_to}
        self._names = names

    def check(self, host: str) -> None:
        """Let a request pass, or not.

        Raises:
            HostNotAllowed: names the host and the setting.
        """
        if not self._names:
            return
        found = _HOST.fullmatch(host.lower())
        if found is None or found[1].removesuffix(".") not in self._names:
            raise HostNotAllowed(
                f"the header 'host' is {host[:MAX_ECHO]!r}, which is not served here: call the "
                "service by its address, or list the name in the setting 'allowed_hosts'"
            )
