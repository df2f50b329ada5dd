"""The books of free runs: which requests are drawn, what became of them, what both sides showed."""

import secrets
from collections import Counter
from typing import Any

from gateway.registry import Metrics
from gateway.shadow.answer import Answer
from gateway.shadow.candidate import Candidate
from gateway.shadow.free_run import FreeRun, Result, Side, ask_again, judge
from gateway.shadow.pairs import PairedCheck, Pairs
from gateway.shadow.sampling import is_drawn

MAX_WAITING = 16
"""Requests whose text is kept for a free run at once."""


class FreeRuns:
    """Draws free runs and counts them; ``share`` is of the requests that are to be scored."""

    def __init__(self, share: float, metrics: Metrics) -> None:
        self._share = share
        self._metrics = metrics
        self._secret = secrets.token_bytes(16)
        self._num_waiting = 0
        self._results: dict[tuple[str, str], Counter[Result]] = {}
        self._pairs: dict[tuple[str, str], Pairs] = {}

    def draw(
        self, candidate: Candidate, variant: str, answer: Answer | None, num_tokens: int
    ) -> FreeRun | None:
        """Return a free run of a served request whose answer has so many tokens, if it is drawn."""
        if answer is None or not is_drawn(candidate.request_id, self._share, self._secret):
            return None
        names = (candidate.model, variant)
        again = ask_again(candidate.fields, num_tokens)
        if again is None or self._num_waiting >= MAX_WAITING:
            self._count(names, "unsupported" if again is None else "too_many")
            return None
        self._num_waiting += 1
        return FreeRun(
            *names,
            again,
            judge(answer, candidate.fields, num_tokens=num_tokens, limit=again.limit),
            recipe_digest=candidate.recipe_digest,
            on_end=self._on_end,
        )

    def take(self, run: FreeRun, full: Side, reference: str) -> None:
        """Hold the full model's answer, by that reference, against the served one."""
        names = (run.model, run.variant)
        digest = f"{run.recipe_digest} {reference}"
        pairs = self._pairs.get(names)
        if pairs is None or pairs.digest != digest:  # another recipe: nothing is known of it
            pairs = self._pairs[names] = Pairs(digest)
        sides = {"variant": run.served, "full": full}
        tokens = self._metrics.counters["fidelity_free_run_tokens_total"]
        checks = self._metrics.counters["fidelity_free_run_checks_total"]
        pairs.lengths.add(run.served.num_tokens, full.num_tokens)
        for side, seen in sides.items():
            tokens.labels(*names, side).inc(seen.num_tokens)
        for name in run.served.checks.keys() & full.checks.keys():
            for side, seen in sides.items():
                checks.labels(*names, side, name, "ok" if seen.checks[name] else "failed").inc()
            check = pairs.checks.setdefault(name, PairedCheck())
            check.add(variant=run.served.checks[name], full=full.checks[name])

    def status(self, model: str, variant: str) -> dict[str, Any] | None:
        """Return counts and comparisons of a variant as plain data; None: none was drawn."""
        results = self._results.get((model, variant))
        pairs = self._pairs.get((model, variant))
        if not results:
            return None
        return {"results": dict(results), **({} if pairs is None else pairs.as_json())}

    def _on_end(self, run: FreeRun, result: Result) -> None:
        self._num_waiting -= 1
        self._count((run.model, run.variant), result)

    def _count(self, names: tuple[str, str], result: Result) -> None:
        self._results.setdefault(names, Counter())[result] += 1
        self._metrics.counters["fidelity_free_runs_total"].labels(*names, result).inc()
