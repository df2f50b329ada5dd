"""Runbooks as data: their parts, queries and commands."""

import re
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).parents[2] / "grafana" / "runbooks"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Runbook:
    """One runbook."""

    name: str
    text: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Return its headings."""
        return tuple(re.findall(r"^## (.*)$", self.text, re.MULTILINE))

    @property
    def queries(self) -> tuple[str, ...]:
        """Return its queries."""
        return self._blocks("promql")

    @property
    def commands(self) -> tuple[str, ...]:
        """Return what it tells to run."""
        return self._blocks("bash")

    @property
    def num_checks(self) -> int:
        """Return how many things it says to check."""
        return len(re.findall(r"^- ", self.text, re.MULTILINE))

    def _blocks(self, language: str) -> tuple[str, ...]:
        return tuple(body.strip() for name, body in _FENCE.findall(self.text) if name == language)


def runbooks() -> tuple[Runbook, ...]:
    """Return every runbook."""
    paths = sorted(DIRECTORY.iterdir())
    return tuple(Runbook(path.stem, path.read_text(encoding="utf-8")) for path in paths)
