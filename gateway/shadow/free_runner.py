"""Lets the reference answer a request itself, while requests leave room for it."""

import asyncio
import time
from collections.abc import Callable

import orjson

from gateway.errors import EngineFault, EngineRefused, InvalidRequest, NarrowgateError
from gateway.registry import Metrics
from gateway.shadow.answer import Answer, answer_of
from gateway.shadow.free_run import FreeRun, Result, judge
from gateway.shadow.free_runs import FreeRuns
from gateway.shadow.reference import Reference
from gateway.shadow.yielding import Yielded, Yielding
from gateway.shadow_settings import ShadowSettings
from gateway.upstream import EngineClient

_MAX_ATTEMPTS = 3
"""An answer that was broken off is begun anew; on a busy machine it would never end."""
_NO_SUCH_PATH = frozenset({404, 405, 501})
_REQUEST_ID = "shadow-free-run"


class FreeRunner:
    """Asks, one free run after another; ``meanwhile`` is called while it waits for room."""

    def __init__(
        self,
        free_runs: FreeRuns,
        yielding: Yielding,
        settings: ShadowSettings,
        *,
        metrics: Metrics,
        meanwhile: Callable[[], None],
    ) -> None:
        self._free_runs = free_runs
        self._yielding = yielding
        self._settings = settings
        self._metrics = metrics
        self._meanwhile = meanwhile

    async def run(self, run: FreeRun, reference: Reference) -> None:
        """Let the reference answer and hold both answers side by side; the run ends here."""
        if run.is_over:
            return
        try:
            run.end(await self._attempts(run, reference))
        except asyncio.CancelledError:
            run.end("stopped")
            raise
        finally:
            run.end("error")

    async def _attempts(self, run: FreeRun, reference: Reference) -> Result:
        until = time.monotonic() + self._settings.queue_s
        for _ in range(_MAX_ATTEMPTS):
            if not await self._yielding.wait_idle(run.model, until, self._meanwhile):
                break
            try:
                return await self._attempt(run, reference)
            except Yielded:
                self._metrics.counters["shadow_yields_total"].labels(run.model).inc()
        return "busy"

    async def _attempt(self, run: FreeRun, reference: Reference) -> Result:
        """Ask once.

        A failure is not held against the reference: its scores may be sound all the same.
        """
        timeout_s = self._settings.free_run_timeout_s
        try:
            await reference.scorer()  # starts it if it was ended meanwhile
            with reference.using() as client:
                run.was_asked = True
                asking = _ask(client, run)
                answer, num_prompt, num_tokens = await self._yielding.unless_busy(
                    run.model, asking, timeout_s=timeout_s
                )
        except TimeoutError:
            return "timeout"
        except (EngineRefused, InvalidRequest):
            return "unsupported"
        except EngineFault as error:
            return "unsupported" if error.engine_status in _NO_SUCH_PATH else "error"
        except NarrowgateError:
            return "error"
        tokens = self._metrics.counters["shadow_reference_tokens_total"]
        tokens.labels(run.model).inc(num_prompt + num_tokens)
        full = judge(answer, run.fields, num_tokens=num_tokens, limit=run.limit)
        self._free_runs.take(run, full, reference.identity)
        return "compared"


async def _ask(client: EngineClient, run: FreeRun) -> tuple[Answer, int, int]:
    """Return the answer, and the tokens of the prompt and of the answer.

    Raises:
        ApiError: the reference refused, failed, is gone, or told something else.
    """
    async with client.generate(run.path, run.fields, _REQUEST_ID) as reply:
        raw = await reply.body()
    try:
        told = orjson.loads(raw)
        usage = told["usage"]
        return answer_of([told]), int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise EngineFault("the reference's answer has a wrong form") from None
