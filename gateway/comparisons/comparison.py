"""One comparison: what was asked for, how far it is, and how it ended."""

import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from compression.events import Progress
from gateway.comparisons.command import CompareCommand


class State(StrEnum):
    """Where a comparison is; all but the first are ends."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    ENDED = "ended"


@dataclass(slots=True)
class Comparison:
    """A comparison of recipes of one model; times are in seconds since the epoch."""

    id: str
    model: str
    command: CompareCommand
    state: State = State.RUNNING
    created: float = field(default_factory=time.time)
    finished: float | None = None
    memory_bytes: int | None = None
    """What is held of the memory budget; None: there is none, or it is not known yet."""
    progress: Progress | None = None
    report: dict[str, Any] | None = None
    """As ``narrowgate compare --json`` writes it."""
    error: str | None = None

    @property
    def name(self) -> str:
        """Return it as messages name it."""
        return f"the comparison {self.id} of {self.model}"

    def finish(self, state: State) -> None:
        """Take note of its end."""
        self.state, self.finished = state, time.time()

    def as_json(self) -> dict[str, Any]:
        """Return all but the report, as plain data."""
        return {
            "id": self.id,
            "model": self.model,
            "recipes": list(self.command.recipe),
            "max_tokens": self.command.max_tokens,
            "threads": self.command.threads,
            "state": self.state.value,
            "created": self.created,
            "finished": self.finished,
            "memory_bytes": self.memory_bytes,
            "progress": None if self.progress is None else asdict(self.progress),
            "error": self.error,
        }
