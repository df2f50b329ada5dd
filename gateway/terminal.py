"""What people see: progress bars in a terminal, log lines elsewhere, a summary when ready."""

import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from compression.events import Progress
from compression.recipe import FULL
from gateway.logs import ConsoleHandler, log_to
from gateway.pool.state import Snapshot, State
from gateway.settings import LogFormat, LogLevel

logger = logging.getLogger(__name__)

LOG_EVERY_S = 2.0
_QUESTION = "What is the capital of France?"
_TITLES = {
    "fetch": "Fetching",
    "convert": "Converting",
    "hash": "Checking",
    "wait": "Waiting",
    "prune": "Pruning",
    "quantize": "Compressing",
    "measure": "Measuring",
    "search": "Searching",
    "start": "Starting",
    "compare": "Comparing",
}


class Terminal:
    """Shows progress on stderr and results on stdout; use it as a context manager."""

    def __init__(self) -> None:
        self._err = Console(stderr=True, highlight=False)
        self._out = Console(highlight=False, soft_wrap=True)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._logged: dict[str, float] = {}
        self._has_bars = False
        self._handler: logging.Handler | None = None

    def __enter__(self) -> "Terminal":
        self.log_as()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end_bars()
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)

    def log_as(
        self,
        form: LogFormat = "text",
        level: LogLevel | None = None,
        *,
        shows_prompts: bool = False,
    ) -> None:
        """Choose the form of log lines, and from which level on they are written."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
        self._has_bars = self._err.is_terminal and form == "text"
        self._handler = (
            ConsoleHandler(self._err) if self._has_bars else logging.StreamHandler(sys.stderr)
        )
        # In a terminal the bars tell the story; the engine's chatter would push them away.
        usual: LogLevel = "warning" if self._has_bars else "info"
        log_to(self._handler, form=form, level=level or usual, shows_prompts=shows_prompts)

    def on_progress(self, progress: Progress) -> None:
        """Show one event."""
        if self._has_bars:
            self._draw(progress)
        else:
            self._log(progress)

    def announce(self, base_url: str, snapshots: list[Snapshot]) -> None:
        """Say what is served where, with a command to try it."""
        self._end_bars()
        for snapshot in snapshots:
            if snapshot.state is State.READY:
                self._say(_describe(snapshot))
        waiting = [each.spec.served_name for each in snapshots if each.state is State.STOPPED]
        if waiting:
            self._say(f"loaded when asked for: {', '.join(waiting)}")
        body = orjson.dumps(
            {
                "model": snapshots[0].spec.alias,
                "messages": [{"role": "user", "content": _QUESTION}],
                "temperature": 0,
            }
        ).decode()
        header = shlex.quote("content-type: application/json")
        url = f"{base_url}/v1/chat/completions"
        self._say(f"\nTry it:\n  curl {url} -H {header} -d {shlex.quote(body)}\n")
        self._say(f"  Page      {base_url}/dashboard")
        self._say(f"  Chat      narrowgate chat --url {base_url}")
        self._say(f"  API base  {base_url}/v1")
        self._say(f"  Models    {base_url}/v1/models")
        self._say(f"  Metrics   {base_url}/metrics")
        if compressed := [snapshot.spec for snapshot in snapshots if snapshot.spec.variant != FULL]:
            asked = compressed[0].settings
            words = ["narrowgate", "compare", "--model", asked.model, "--recipe", asked.recipe]
            if asked.engine != "embedded":
                words += ["--engine", asked.engine]
            self._say(f"  Fidelity  {shlex.join(words)}")
        self._say("Ctrl-C stops it.")

    def built(self, directory: str, manifest: Mapping[str, Any] | None) -> None:
        """Say what a build has made."""
        self._end_bars()
        self._say(f"built {directory}")
        if manifest is not None:
            self._say(
                f"  weights {_megabytes(manifest['bytes_before'])} -> "
                f"{_megabytes(manifest['bytes_in_memory'])} in memory, "
                f"{manifest['bits_per_weight']:.2f} bits per weight"
            )
            self._say(
                f"  took {manifest['seconds']:.1f} s, peak memory "
                f"{_megabytes(manifest['peak_memory_bytes'])}"
            )
            for refusal in manifest.get("refusals", ()):
                self._say(
                    f"  not done: {refusal['subject']} {refusal['requested']}, {refusal['reason']}"
                )

    def show(self, tables: Sequence[RenderableType]) -> None:
        """Print tables."""
        self._end_bars()
        for table in tables:
            self._out.print(table, soft_wrap=False)

    @property
    def width(self) -> int:
        """Return the columns that tables have."""
        return self._out.width

    def note(self, text: str) -> None:
        """Print text as it is."""
        self._end_bars()
        self._say(text)

    def _say(self, text: str) -> None:
        self._out.print(text, markup=False)
        sys.stdout.flush()

    def _draw(self, progress: Progress) -> None:
        if self._bars is None:
            columns = (
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=30),
                _CountColumn(),
            )
            detail = TextColumn("{task.fields[detail]}", markup=False)
            self._bars = Bars(*columns, TimeElapsedColumn(), detail, console=self._err)
            self._bars.start()
        if progress.stage not in self._tasks:
            title = _TITLES[progress.stage]
            self._tasks[progress.stage] = self._bars.add_task(title, unit="", detail="")
        self._bars.update(
            self._tasks[progress.stage],
            completed=progress.done,
            total=progress.total or None,
            unit=progress.unit,
            detail=progress.detail[:48],
        )

    def _end_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def _log(self, progress: Progress) -> None:
        now = time.monotonic()
        is_last = progress.done == progress.total
        if not is_last and now - self._logged.get(progress.stage, -LOG_EVERY_S) < LOG_EVERY_S:
            return
        self._logged[progress.stage] = now
        where = f"{_count(progress.done, progress.total, progress.unit)} {progress.detail}".strip()
        logger.info("%s: %s", _TITLES[progress.stage].lower(), where)


class _CountColumn(ProgressColumn):
    """How far a stage has come, in its own unit."""

    def render(self, task: Task) -> Text:
        """Return the counts of one bar."""
        return Text(_count(int(task.completed), int(task.total or 0), task.fields["unit"]))


def _count(done: int, total: int, unit: str) -> str:
    """Return ``done/total unit``; megabytes for bytes, nothing for a single step."""
    if unit == "steps":
        return ""
    if unit == "bytes":
        done, total, unit = done // 1_000_000, total // 1_000_000, "MB"
    return f"{done}/{total} {unit}" if total else f"{done} {unit}"


def _describe(snapshot: Snapshot) -> str:
    info = snapshot.info
    line = f"{snapshot.spec.served_name} is ready"
    if snapshot.load_s is not None:
        line += f" after {snapshot.load_s:.1f} s"
    if info is not None and info.weights_bytes and info.weights_bytes_before:
        line += (
            f": weights {_megabytes(info.weights_bytes_before)} -> "
            f"{_megabytes(info.weights_bytes)}, {info.weight_bits or 16:.2f} bits per weight, "
            f"context {info.max_model_len} tokens"
        )
    return line


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
