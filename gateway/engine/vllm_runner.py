"""vLLM as a reader of texts: started on one directory, asked for log-probabilities, ended."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ByteSize

from compression.errors import ReaderError
from compression.events import ignore
from compression.fidelity_support import Told
from compression.manifest import read_manifest
from gateway.backends.embedded import HOST, free_port
from gateway.backends.process import EngineProcess
from gateway.backends.vllm_facts import find_python, probe
from gateway.errors import ApiError, LoadRefused, StartupError
from gateway.model_settings import VariantSettings
from gateway.protocol import EngineInfo
from gateway.shadow.vllm_scorer import STEP_TOKENS, read_prompt
from gateway.upstream import EngineClient
from gateway.vllm_launch import check_vllm, require_servable, start_vllm

START_TIMEOUT_S = 600.0
READ_TIMEOUT_S = 300.0
KV_BYTES = ByteSize(1024**3)
_STOP_GRACE_S = 5.0
_LAST_WORDS_S = 0.5
_NAME = "reader"


class VllmReader:
    """A running vLLM that reads one text at a time."""

    def __init__(
        self, runner: asyncio.Runner, engine: EngineProcess, info: EngineInfo, *, top: int
    ) -> None:
        self._runner = runner
        self._engine = engine
        self._info = info
        self.top = top

    @property
    def base_url(self) -> str:
        """Return where it listens."""
        return self._engine.client.base_url

    @property
    def version(self) -> str:
        """Return vLLM's version."""
        return self._info.version or ""

    @property
    def kernels(self) -> dict[str, str]:
        """Return the kernels of its live layers, by scheme."""
        return dict(self._info.kernels or {})

    @property
    def numerics(self) -> dict[str, str]:
        """Return the bits that its live layers multiply, by scheme."""
        return dict(self._info.numerics or {})

    def read(self, token_ids: Sequence[int]) -> Told:
        """Return what the model says of each token but the first.

        Raises:
            ReaderError: vLLM refused, failed or is gone.
        """
        try:
            told = self._runner.run(read_prompt(self._engine.client, token_ids, top=self.top))
        except ApiError as error:
            # Its log comes by another way than its reply.
            self._runner.run(asyncio.sleep(_LAST_WORDS_S))
            raise ReaderError(f"vLLM: {error}: {self._engine.last_words}") from None
        return Told([each.logprobs for each in told], [each.top_token_id for each in told])


def require_vllm(named: Path | None) -> Path:
    """Return the interpreter that has vLLM, once it has said what it can do.

    Raises:
        ReaderError: there is none.
    """
    try:
        python = find_python(named)
        asyncio.run(probe(python))
    except LoadRefused as error:
        raise ReaderError(str(error)) from None
    return python


@contextmanager
def serve_reader(
    directory: Path, max_tokens: int, *, python: Path, top: int, threads: int | None
) -> Iterator[VllmReader]:
    """Start vLLM for texts of ``max_tokens`` on a checkpoint or an artifact; end it with all of it.

    Raises:
        ReaderError: it cannot serve this, ended, or was not ready in time.
    """
    settings = VariantSettings(
        model=str(directory),
        engine="vllm",
        vllm_python=python,
        vllm_options={"enforce-eager": True},
        threads=threads,
        max_num_seqs=1,
        max_num_batched_tokens=STEP_TOKENS,
        # One more, because vLLM scores nothing without writing a token.
        max_model_len=max_tokens + 1,
        kv_cache_memory_bytes=KV_BYTES,
    )
    with asyncio.Runner() as runner:
        try:
            engine, info = runner.run(_start(directory, settings))
        except (StartupError, ApiError) as error:
            raise ReaderError(str(error)) from None
        try:
            yield VllmReader(runner, engine, info, top=top)
        finally:
            runner.run(engine.stop(_STOP_GRACE_S))


async def _start(directory: Path, settings: VariantSettings) -> tuple[EngineProcess, EngineInfo]:
    manifest = read_manifest(directory)
    start = await check_vllm(settings, None if manifest is None else manifest.recipe)
    require_servable(start, directory, settings.model)
    port = free_port()
    client = EngineClient(f"http://{HOST}:{port}", served_name=_NAME, read_timeout_s=READ_TIMEOUT_S)
    engine = await start_vllm(
        start,
        directory,
        client,
        settings=settings,
        port=port,
        timeout_s=START_TIMEOUT_S,
        on_progress=ignore,
    )
    try:
        return engine, await client.info()
    except BaseException:
        await engine.stop(0)
        raise
