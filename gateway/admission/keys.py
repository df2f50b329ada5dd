"""The keys that are valid now; their file is read again when it has changed."""

import hmac
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from compression.strict_yaml import load_yaml
from gateway.api_key import ApiKey, KeyList, check_distinct, check_models, digest_of
from gateway.errors import SettingsError
from gateway.validation import first_problem

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0

_Stamp = tuple[int, int, int] | None


class KeyRing:
    """All valid keys: those of the settings and those of the file."""

    def __init__(
        self,
        fixed: Sequence[ApiKey],
        file: Path | None,
        *,
        aliases: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file.

        Raises:
            SettingsError: the file cannot be used.
        """
        self._fixed = tuple(fixed)
        self._file = file
        self._aliases = tuple(aliases)
        self._clock = clock
        self._next_check = clock() + CHECK_EVERY_S
        self._stamp = self._look()
        self._keys = self._read()

    def current(self) -> tuple[ApiKey, ...]:
        """Return the valid keys, at most a second behind their file."""
        if self._file is not None and self._clock() >= self._next_check:
            self._next_check = self._clock() + CHECK_EVERY_S
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self.reload()
        return self._keys

    def find(self, secret: bytes) -> ApiKey | None:
        """Return the key with this secret; the time it takes tells nothing of the others."""
        digest = digest_of(secret)
        found = None
        for key in self.current():
            if hmac.compare_digest(key.key, digest):
                found = key
        return found

    def reload(self) -> None:
        """Read the file now; one that is broken changes nothing but the log."""
        try:
            self._keys = self._read()
        except SettingsError as error:
            logger.error("%s; the keys stay as they were", error)
            return
        logger.info("%d API keys are valid now", len(self._keys))

    def _look(self) -> _Stamp:
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> tuple[ApiKey, ...]:
        if self._file is None:
            return self._fixed
        keys = (*self._fixed, *_read_file(self._file))
        try:
            check_distinct(keys)
            check_models(keys, self._aliases)
        except ValueError as error:
            raise SettingsError(f"the key file {self._file}: {error}") from None
        return keys


def _read_file(file: Path) -> tuple[ApiKey, ...]:
    try:
        found = load_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the key file {file}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        # The parser would quote the line, and a line here may be a secret.
        raise SettingsError(f"the key file {file} is not YAML") from None
    if not isinstance(found, dict) or not found.get("keys"):
        # An empty file must never open the door.
        raise SettingsError(f"the key file {file} must be a mapping with a list 'keys' in it")
    try:
        return KeyList.model_validate(found).keys
    except ValidationError as error:
        where, reason = first_problem(error)
        raise SettingsError(f"the key file {file}: {where or 'keys'!r}: {reason}") from None
