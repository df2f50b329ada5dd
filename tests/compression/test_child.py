"""The frame of a child process: signals, refusals, exit codes."""

import os
import signal
import time
from typing import Any

import pytest

from compression.child import EXIT_REFUSED, run_child
from compression.errors import BuildError


def test_signal_that_a_library_swallows_still_ends_it() -> None:
    """A library that turns the exit into an error of its own does not hide the signal."""

    def work() -> tuple[str, dict[str, Any]]:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except SystemExit as error:
            raise ValueError("could not read") from error
        return "ready", {}

    assert run_child(work) == 128 + signal.SIGTERM


def test_refusals_and_defects_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal is an event and exit code 2; a defect is a traceback."""

    def refuse() -> tuple[str, dict[str, Any]]:
        raise BuildError("no room")

    def fail() -> tuple[str, dict[str, Any]]:
        raise ValueError("a defect")

    assert run_child(refuse) == EXIT_REFUSED
    assert '"kind":"BuildError","message":"no room"' in capsys.readouterr().out
    with pytest.raises(ValueError, match="a defect"):
        run_child(fail)
