"""The files of the page, read once from the package, with the headers they are served with."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

INDEX = "index.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "html": "text/html; charset=utf-8",
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
    }
)
_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        # The etag is asked about each time: after an upgrade nobody runs half of the old page.
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }
)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file and its headers."""

    content: bytes
    etag: str
    headers: Mapping[str, str]


def load_assets() -> Mapping[str, Asset]:
    """Return all files of the page by their names."""
    found = {}
    for file in files(__package__).iterdir():
        content_type = _TYPES.get(file.name.rpartition(".")[2])
        if content_type is not None:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            headers = {"content-type": content_type, "etag": etag, **_HEADERS}
            found[file.name] = Asset(content, etag, MappingProxyType(headers))
    return MappingProxyType(found)
