"""The shadow: draws requests, captures their replies, and has them scored beside the traffic.

A request's own way meets it in three places, none of which can fail or wait: the draw, the
candidate beside the request, and the hand-over after the reply.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.errors import ApiError
from gateway.record import RECORD
from gateway.registry import Metrics
from gateway.shadow import output_checks
from gateway.shadow.aside import Aside
from gateway.shadow.candidate import Candidate, MakeCapture
from gateway.shadow.capturing import Capturing
from gateway.shadow.collecting import Collecting
from gateway.shadow.fidelity_metrics import FidelityMetrics
from gateway.shadow.fixed_texts import FixedTextsCheck
from gateway.shadow.free_runs import FreeRuns
from gateway.shadow.leisure import leisure
from gateway.shadow.probe import Probe
from gateway.shadow.records import Captured, TooLong
from gateway.shadow.reference import Reference
from gateway.shadow.references import References
from gateway.shadow.sampling import is_drawn, is_private, is_scorable
from gateway.shadow.scored import NoteSlices, Sink
from gateway.shadow.scoring_pipeline import ScoringPipeline
from gateway.shadow.slices import OwnSlices, places_of, slices_of
from gateway.shadow.tally import DropReason, Tally
from gateway.shadow.upkeep import again_and_again
from gateway.shadow.worker import Waiting
from gateway.shadow_settings import ShadowSettings

logger = logging.getLogger(__name__)

_COLLECT_S = 5.0
_MEET_EVERY_S = 1.0


class Shadow:
    """Everything between a live request and its numbers."""

    def __init__(
        self,
        settings: ShadowSettings,
        rates: dict[str, float],
        *,
        metrics: Metrics,
        references: References,
        probe: Probe,
        fixed_texts: FixedTextsCheck,
        num_busy: Callable[[], int],
        sinks: Sequence[Sink] = (),
        note_slices: NoteSlices = lambda model, variant, slices: None,
        own_slices: Sequence[OwnSlices] = (),
        make_capture: MakeCapture | None = None,
    ) -> None:
        self._settings = settings
        self._rates = rates
        self._metrics = metrics
        self._references = references
        self._probe = probe
        self.fixed_texts = fixed_texts
        self._own_slices = own_slices
        self._note_slices = note_slices
        self._aside = Aside()
        self.capturing = Capturing(settings)
        self._make_capture = make_capture or self.capturing.for_score
        self._secret = secrets.token_bytes(16)
        self._tally = Tally(metrics)
        self._fidelity = FidelityMetrics(metrics)
        self.free_runs = FreeRuns(settings.free_run, metrics)
        self._scoring = ScoringPipeline(
            rates,
            settings,
            metrics=metrics,
            references=references,
            num_busy=num_busy,
            free_runs=self.free_runs,
            sinks=(self._fidelity, *sinks),
        )
        self._collecting = Collecting(self._collect)
        self._is_closed = False
        for model, rate in rates.items():
            self.set_rate(model, rate)
        metrics.gauges["shadow_budget_tokens_per_second"].set(settings.tokens_per_second)

    # -- beside a request -------------------------------------------------------------------

    def draw(
        self, request_id: str, model: str, fields: Mapping[str, Any], headers: Mapping[str, str]
    ) -> Candidate | None:
        """Return what takes note of a request; None if it was not drawn or is not to be seen."""
        rate = self._rates.get(model, 0.0)
        if not rate or self._is_closed or not is_drawn(request_id, rate, self._secret):
            return None
        record = RECORD.get()
        # What may fail comes before what is counted.
        is_kept_out, is_fit = is_private(fields, headers), is_scorable(fields)
        candidate = Candidate(
            request_id,
            model,
            fields,
            tally=self._tally,
            make_capture=self._make_capture,
            on_reply=self._on_reply,
            on_drop=self._on_drop,
            trace_id=record.trace_id if record is not None else None,
        )
        if is_kept_out:
            candidate.drop("private")
        elif not is_fit:
            candidate.drop("unsupported")
        return None if candidate.is_over else candidate

    # -- what operators do ------------------------------------------------------------------

    def set_rate(self, model: str, rate: float) -> None:
        """Draw so many of a model's requests from now on."""
        self._rates[model] = rate
        self._metrics.gauges["shadow_sample_ratio"].labels(model).set(rate)

    def rate(self, model: str) -> float:
        """Return the share of a model's requests that is drawn."""
        return self._rates.get(model, 0.0)

    def reference(self, model: str) -> Reference:
        """Return the full model of a model, which runs only while it is needed."""
        return self._references.of(model)

    def status(self) -> dict[str, Any]:
        """Return counts, queue and references as plain data."""
        return {
            "queue_length": self._scoring.num_waiting,
            "tokens_per_second": self._settings.tokens_per_second,
            "models": {
                model: {
                    "rate": rate,
                    **self._tally.of(model),
                    "reference": self._references.status(model),
                }
                for model, rate in self._rates.items()
            },
        }

    # -- the whole life ---------------------------------------------------------------------

    async def run(self) -> None:
        """Score, tend references, and probe engines and have them read, for ever."""
        await asyncio.gather(
            self._scoring.run(),
            again_and_again(self._references.tend),
            again_and_again(self._probe_now_and_then),
            again_and_again(self.fixed_texts.run),
        )

    async def settle(self) -> None:
        """Wait until the replies that have ended are queued or dropped."""
        await self._collecting.settle()

    async def close(self) -> None:
        """Give up what is under way and end the references; safe to repeat."""
        self._is_closed = True
        await self._collecting.close()
        self._scoring.close()
        await self.capturing.releases.close()
        await self._references.stop()

    # -- inside -----------------------------------------------------------------------------

    def _on_reply(self, candidate: Candidate) -> None:
        if self._is_closed:
            candidate.drop("stopped")
        else:
            self._collecting.begin(candidate)

    async def _collect(self, candidate: Candidate) -> None:
        """Fetch what the engine noted, and queue it."""
        try:
            async with asyncio.timeout(_COLLECT_S):
                await leisure()
                captured = await self._captured(candidate)
            await leisure()
            self._take(candidate, captured)
        except TimeoutError:
            candidate.drop("timeout")
        except TooLong as error:
            candidate.num_prompt_tokens = error.num_prompt_tokens
            candidate.drop("too_long")
        except ApiError as error:
            logger.info("request %s: no capture: %s", candidate.request_id, error)
            candidate.drop("error")
        except Exception:
            # The border of this task: a defect costs the score alone.
            logger.exception("the capture of request %s failed", candidate.request_id)
            candidate.drop("error")

    @staticmethod
    async def _captured(candidate: Candidate) -> Captured | None:
        client = candidate.client
        return None if client is None else await candidate.capture_of().result(client)

    def _take(self, candidate: Candidate, captured: Captured | None) -> None:
        spec = candidate.spec
        if captured is None or spec is None:
            candidate.drop("no_capture")
            return
        if spec.alias != candidate.model:  # a fallback answered, which has another reference
            candidate.drop("unsupported")
            return
        answer = candidate.reply.read()
        if answer is not None:
            checks = output_checks.check(answer, candidate.fields)
            self._fidelity.count_checks(spec.alias, spec.variant, checks)
        num_prompt, num_answer = len(captured.prompt_token_ids), len(captured.positions)
        names = slices_of(
            candidate.fields,
            num_prompt_tokens=num_prompt,
            answer="" if answer is None else answer.text,
            own=self._own_slices,
        )
        slices = places_of(names, num_answer)
        candidate.has_told_slices = True
        self._note_slices(spec.alias, spec.variant, slices)
        reason = self._unfit(captured, is_exact=self.capturing.is_exact(spec))
        if reason is not None:
            candidate.drop(reason)
            return
        candidate.free_run = self.free_runs.draw(candidate, spec.variant, answer, num_answer)
        candidate.forget_text()
        self._scoring.take(Waiting(candidate, captured, spec.variant, slices))

    def _unfit(self, captured: Captured, *, is_exact: bool) -> DropReason | None:
        """Return why a captured reply cannot be scored; None if it can."""
        num_prompt, num_answer = len(captured.prompt_token_ids), len(captured.positions)
        if not num_prompt or not num_answer:
            return "empty"
        if num_prompt + num_answer > self._settings.max_tokens:
            return "too_long"
        if is_exact and num_answer > self._settings.exact_tokens:
            return "too_long"
        return "rows" if is_exact and captured.rows is None else None

    def _on_drop(self, candidate: Candidate, reason: DropReason) -> None:
        """Tell the slices of one that never came to a capture, as far as its request shows them."""
        spec = candidate.spec
        if spec is None or candidate.has_told_slices or reason == "private":
            return
        candidate.has_told_slices = True

        def tell() -> None:
            count = candidate.num_prompt_tokens
            names = slices_of(candidate.fields, num_prompt_tokens=count or 0, own=self._own_slices)
            known = [name for name in names if count or not name.startswith("length:")]
            self._note_slices(spec.alias, spec.variant, known)

        self._aside.within("the slices of a dropped request", tell, None)

    async def _probe_now_and_then(self) -> None:
        every_s = self._settings.probe_every_s
        asked_at = time.monotonic()
        while every_s:
            await asyncio.sleep(min(every_s, _MEET_EVERY_S))
            if not any(self._rates.values()):
                continue
            if time.monotonic() - asked_at >= every_s:
                await self._probe.run()
                asked_at = time.monotonic()
            else:
                await self._probe.meet()
