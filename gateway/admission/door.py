"""Who comes in at all: hosts, keys, administrators, and how many requests at once."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NoReturn
from urllib.parse import urlsplit

from gateway.admission.addresses import HostList, is_local_name, is_loopback
from gateway.admission.keys import KeyRing
from gateway.api_key import ApiKey
from gateway.errors import (
    AdminOnly,
    ApiError,
    HostNotAllowed,
    InvalidApiKey,
    ModelNotFound,
    Overloaded,
)
from gateway.metrics.family import OTHER
from gateway.metrics.manifest import PATHS
from gateway.metrics.own import RejectionReason
from gateway.registry import Metrics
from gateway.settings import Settings
from gateway.trace import OPERATIONS, traced
from gateway.wire import MAX_ECHO

ADMIN_PREFIX = "/admin/"
_OPEN = frozenset({"/health", "/ready", "/version"})
_PAGE = "/dashboard"
"""Anybody may have the page; what it shows it asks for with a key."""
_REASONS: Mapping[type[ApiError], RejectionReason] = MappingProxyType(
    {
        HostNotAllowed: "host",
        InvalidApiKey: "invalid_key",
        AdminOnly: "admin_only",
        Overloaded: "process_full",
    }
)


class Door:
    """Decides from the head of a request alone, before its body is read."""

    def __init__(self, settings: Settings, ring: KeyRing, metrics: Metrics) -> None:
        self._ring = ring
        self._hosts = HostList(settings.host, settings.allowed_hosts)
        self._is_local = is_loopback(settings.host)
        self._open = _OPEN if settings.protect_metrics else _OPEN.union(PATHS)
        self._max_requests = settings.max_concurrent_requests
        self._num_requests = 0
        self._metrics = metrics
        self._rejections = metrics.counters["admission_rejections_total"]

    @property
    def has_keys(self) -> bool:
        """Return whether requests need a key."""
        return bool(self._ring.current())

    def check(self, path: str, headers: Mapping[str, str], client: str | None) -> ApiKey | None:
        """Return the key that a request came with; None where none is needed.

        Raises:
            ApiError: the request must not come in, or too many are inside.
        """
        try:
            return self._check(path, headers, client)
        except ApiError as error:
            self._rejections.labels(OTHER, _REASONS[type(error)]).inc()
            raise

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count a request while the block is open."""
        self._num_requests += 1
        try:
            yield
        finally:
            self._num_requests -= 1

    def _check(self, path: str, headers: Mapping[str, str], client: str | None) -> ApiKey | None:
        is_open = path in self._open or path == _PAGE or path.startswith(f"{_PAGE}/")
        if is_open and not self._is_local:
            return None  # probes and scrapers call by address
        self._hosts.check(headers.get("host", ""))
        if is_open:
            return None
        key = self._identify(headers)
        if path.startswith(ADMIN_PREFIX):
            self._require_admin(key, headers, client)
        if self._num_requests >= self._max_requests:
            self._shed(path)
        return key

    def _shed(self, path: str) -> NoReturn:
        error = Overloaded(f"{self._max_requests} requests are being answered here: try again")
        operation = OPERATIONS.get(path)
        if operation is None:
            raise error
        with traced(self._metrics, operation):  # a client that is turned away sees a failure
            raise error

    def _identify(self, headers: Mapping[str, str]) -> ApiKey | None:
        if not self.has_keys:
            return None
        secret = _secret(headers)
        if not secret:
            raise InvalidApiKey("this service needs an API key: send 'authorization: Bearer KEY'")
        key = self._ring.find(secret.encode("latin-1"))
        if key is None:
            raise InvalidApiKey("the API key is not known here: send one that is valid")
        return key

    def _require_admin(
        self, key: ApiKey | None, headers: Mapping[str, str], client: str | None
    ) -> None:
        if any(known.admin for known in self._ring.current()):
            if key is None or not key.admin:
                raise AdminOnly("this path needs an API key with 'admin: true'")
            return
        if client is None or not is_loopback(client):
            raise AdminOnly(
                "without a key with 'admin: true' this path is for clients on this machine only"
            )
        # A page in a browser on this machine is a client on it too, by whatever name it calls.
        host = headers.get("host", "")
        if not is_local_name(host):
            raise AdminOnly("without a key with 'admin: true' call this path as 127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise AdminOnly(f"this path is not for pages of {origin[:MAX_ECHO]!r}")


def check_model(key: ApiKey | None, name: str) -> None:
    """Refuse a model that the key does not open, in the words for one that does not exist.

    Raises:
        ModelNotFound: lists only what the key opens.
    """
    if key is None or key.models is None or key.may_use(name.partition("@")[0]):
        return
    known = ", ".join(key.models)
    raise ModelNotFound(f"no model {name[:MAX_ECHO]!r} is served here: use one of {known}")


def _secret(headers: Mapping[str, str]) -> str:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return headers.get("x-api-key", "").strip()
