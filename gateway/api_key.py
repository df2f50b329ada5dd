"""An API key as an operator writes it down: a name, a digest, and what it may do."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SECRET = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def digest_of(secret: bytes) -> str:
    """Return the form in which a key is kept."""
    return f"sha256:{hashlib.sha256(secret).hexdigest()}"


class ApiKey(BaseModel):
    """One key; ``key`` is a digest from the moment it was read, never the secret itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    key: str = Field(repr=False)
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    admin: bool = False

    @field_validator("name")
    @classmethod
    def _is_a_label(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} must be 1 to 64 letters, digits, '.', '_' or '-'")
        return name

    @field_validator("key", mode="before")
    @classmethod
    def _hashed(cls, key: Any) -> str:
        # The messages leave the value out: it may be a secret.
        if not isinstance(key, str) or not _SECRET.fullmatch(key):
            raise ValueError("the key must be text of visible ASCII characters: quote it")
        if not key.startswith("sha256:"):
            return digest_of(key.encode())
        if not _DIGEST.fullmatch(key):
            raise ValueError("after 'sha256:' 64 digits 0-9a-f must follow, as sha256sum prints")
        return key

    def may_use(self, alias: str) -> bool:
        """Return whether the key opens a model."""
        return self.models is None or alias in self.models


class KeyList(BaseModel):
    """All keys of one source, no two of one name or with one secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[ApiKey, ...]

    @model_validator(mode="after")
    def _are_distinct(self) -> Self:
        check_distinct(self.keys)
        return self


def check_distinct(keys: Sequence[ApiKey]) -> None:
    """Refuse two keys of one name or with one secret.

    Raises:
        ValueError: names the key.
    """
    names: set[str] = set()
    digests: dict[str, str] = {}
    for key in keys:
        if key.name in names:
            raise ValueError(f"two keys have the name {key.name!r}: rename one")
        if key.key in digests:
            raise ValueError(
                f"the keys {digests[key.key]!r} and {key.name!r} are one secret: remove one"
            )
        names.add(key.name)
        digests[key.key] = key.name


def check_models(keys: Sequence[ApiKey], aliases: Sequence[str]) -> None:
    """Refuse a key for models that are not served.

    Raises:
        ValueError: names the key and the model.
    """
    for key in keys:
        for model in key.models or ():
            if model not in aliases:
                known = ", ".join(aliases)
                raise ValueError(
                    f"the key {key.name!r} is for the model {model!r}, which is not served: "
                    f"use one of {known}"
                )


def named(entries: Any) -> Any:
    """Return a list of keys as mappings; a bare secret is named by its place in the list."""
    if isinstance(entries, str):
        entries = [entries]
    if not isinstance(entries, (list, tuple)):
        raise ValueError("must be a list of keys, each a text or a mapping with 'name' and 'key'")
    return [
        {"name": f"key-{place}", "key": entry} if isinstance(entry, str) else entry
        for place, entry in enumerate(entries, 1)
    ]
