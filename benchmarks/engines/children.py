"""Processes under measurement: started with their words in a log, ended with all they started."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

_PATIENCE_S = 15.0
_TAIL_LINES = 40
THREADS = len(os.sched_getaffinity(0))
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": str(THREADS),
}


class EngineFailed(Exception):
    """An engine cannot be installed, cannot start, or broke; says what was seen."""


@contextmanager
def child(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    pipes: bool = False,
) -> Iterator["subprocess.Popen[str]"]:
    """Run a command; its words go to ``log``, with ``pipes`` only those of its errors."""
    ends = subprocess.PIPE if pipes else None
    with log.open("w", encoding="utf-8") as words:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=ends or subprocess.DEVNULL,
            stdout=ends or words,
            stderr=words,
            text=True,
            env={**os.environ, **_ENVIRONMENT, **(environment or {})},
        )
        try:
            yield process
        finally:
            _end(process)


def run(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
    """Run a command to its end.

    Raises:
        EngineFailed: it failed; with the last thing it said.
    """
    with child(command, log, environment=environment) as process:
        if process.wait() != 0:
            raise EngineFailed(last_words(log, process.returncode))


def last_words(log: Path, code: int | None) -> str:
    """Return the line of a log that says best why a process ended."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").split("\n")]
    tail = [line for line in lines if line][-_TAIL_LINES:]
    errors = [line for line in tail if "error" in line.lower() or "exception" in line.lower()]
    said = (errors or tail or ["it said nothing"])[-1]
    return f"exit code {code}: {said[:200]}"


def pss_mb(process: psutil.Process) -> float:
    """Return the memory of a process and its children, shared pages counted by their share."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def _end(process: "subprocess.Popen[str]") -> None:
    try:
        below = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    for pipe in (process.stdin, process.stdout):
        _close(pipe)
    process.terminate()
    try:
        process.wait(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for each in psutil.wait_procs(below, timeout=3)[1]:
        each.kill()


def _close(pipe: IO[str] | None) -> None:
    if pipe is not None:
        try:
            pipe.close()
        except BrokenPipeError:  # it ended before it read all
            return
