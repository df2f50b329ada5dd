"""The command line of the process that compares: of `narrowgate compare` and of the service."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

_MODULE = "gateway.engine.compare"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareCommand:
    """One comparison; what is None is as the process finds right. Names are those of its flags."""

    model: str
    recipe: Sequence[str]
    revision: str | None = None
    text: Path | None = None
    json: Path | None = None
    html: Path | None = None
    png: Path | None = None
    max_tokens: int | None = None
    threads: int | None = None
    memory: int | None = None
    """Bytes that the recipes' weights may take together; if it is not enough they take turns."""
    engine: str | None = None
    vllm_python: Path | None = None

    def words(self) -> list[str]:
        """Return what follows the interpreter."""
        words = ["-m", _MODULE]
        for field in fields(self):
            value = getattr(self, field.name)
            values = value if field.name == "recipe" else () if value is None else (value,)
            words += [f"--{field.name.replace('_', '-')}={each}" for each in values]
        return words
