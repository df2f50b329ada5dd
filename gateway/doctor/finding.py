"""What a check has found."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]
GB = 1e9


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result: ``warn`` is slow or odd, ``fail`` will not work; then with a remedy."""

    check: str
    level: Level
    message: str
    remedy: str | None = None

    def fields(self) -> dict[str, Any]:
        """Return the keys of the JSON report."""
        return asdict(self)
