"""Engines without a server: a script in their own environment that answers over its pipes.

A request is a JSON line ``{"prompts": [[ids]], "tokens": n}``, the answer one of the seconds to the
first and the last token; the first line of all has the versions.
"""

import json
import select
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.engines.children import EngineFailed, child, last_words, pss_mb
from benchmarks.engines.replies import Replies

LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class Script:
    """A running script."""

    process: "subprocess.Popen[str]"
    log: Path
    where = "in process"

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> Replies:
        """Ask for all prompts at once.

        Raises:
            EngineFailed: it ended, or was silent for too long.
        """
        stdin = self.process.stdin
        if stdin is None:
            raise EngineFailed("it has no pipe")
        try:
            stdin.write(json.dumps({"prompts": list(prompts), "tokens": tokens}) + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise EngineFailed(last_words(self.log, self.process.poll())) from error
        answer = self.read()
        if answer["tokens"] != tokens:
            raise EngineFailed(f"{answer['tokens']} tokens where {tokens} were asked for")
        return Replies(answer["first_s"], answer["last_s"], tokens, len(prompts))

    def read(self) -> Mapping[str, Any]:
        """Return its next line.

        Raises:
            EngineFailed: it ended, or was silent for too long.
        """
        stdout = self.process.stdout
        if stdout is None or not select.select([stdout], [], [], LIMIT_S)[0]:
            raise EngineFailed(f"silent for {LIMIT_S:.0f} s")
        line = stdout.readline()
        if not line:
            self.process.wait()
            raise EngineFailed(last_words(self.log, self.process.returncode))
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    def memory_mb(self) -> float:
        """Return what it holds."""
        return pss_mb(psutil.Process(self.process.pid))


@contextmanager
def script(python: Path, name: str, *words: str, log: Path) -> Iterator[Script]:
    """Run ``benchmarks.engines.script_<name>`` by an interpreter.

    Raises:
        EngineFailed: it ended before it was ready.
    """
    command = [str(python), "-m", f"benchmarks.engines.script_{name}", *words]
    variables = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with child(command, log, environment=variables, pipes=True) as process:
        running = Script(process, log)
        running.read()
        yield running
