"""Commands that are done by a child process."""

import argparse
import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from gateway import job
from gateway.cli.exits import EXIT_INTERRUPTED, EXIT_TERMINATED
from gateway.terminal import Terminal

T = TypeVar("T")


def source(options: argparse.Namespace) -> list[str]:
    """Return the words that tell a child which model is meant."""
    words = [f"--model={options.model}"]
    return words if options.revision is None else [*words, f"--revision={options.revision}"]


def run_job(
    words: list[str], terminal: Terminal, *, stall_s: float | None = None
) -> tuple[int, dict[str, Any] | None]:
    """Run a child to its end; a signal ends it in order and quietly.

    Raises:
        LoadRefused: the child refused, or its libraries are not installed.
        ChildFailed: it crashed, or made no progress for ``stall_s`` seconds.
    """
    return run_until_signal(job.run_job(words, terminal.on_progress, stall_s=stall_s))


def run_until_signal(work: Coroutine[Any, Any, T]) -> tuple[int, T | None]:
    """Return 0 and what the work gives, or a signal's exit code and nothing."""
    return uvloop.run(_until_signal(work))


async def _until_signal(job: Coroutine[Any, Any, T]) -> tuple[int, T | None]:
    task = asyncio.create_task(job)
    caught: list[int] = []

    def stop(number: int) -> None:
        caught.append(number)
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            return 0, await task
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    return (EXIT_INTERRUPTED if signal.SIGINT in caught else EXIT_TERMINATED), None
