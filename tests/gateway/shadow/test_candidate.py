"""A request beside its way: what is defect in the shadow never reaches the client."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gateway.model_settings import VariantSettings
from gateway.protocol import EngineInfo
from gateway.registry import Metrics
from gateway.shadow.candidate import Candidate
from gateway.shadow.records import Capture, Captured
from gateway.shadow.tally import Tally
from gateway.specs import VariantSpec
from gateway.streaming import EventRelay
from gateway.trace import RequestTrace
from gateway.upstream import EngineClient

SPEC = VariantSpec("tiny", "int4", VariantSettings(model="fake"))
EVENTS = [
    b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]


class Defect:
    """A capture that fails in one of its methods."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.seen: list[bytes] = []
        self.num_forgotten = 0

    def fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Add a field."""
        self._fail("fields")
        return {**fields, "extra": 1}

    def headers(self) -> Mapping[str, str]:
        """Add a header."""
        self._fail("headers")
        return {"x-extra": "1"}

    def pass_on(self, event: bytes) -> bytes:
        """Return the event in capitals."""
        self._fail("pass_on")
        self.seen.append(event)
        return event.replace(b'"a"', b'"A"')

    async def result(self, client: EngineClient) -> Captured | None:
        """Return nothing."""
        return None

    def forget(self, client: EngineClient) -> None:
        """Count."""
        self.num_forgotten += 1
        self._fail("forget")

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise ZeroDivisionError(where)


def start(where: str) -> tuple[Candidate, Defect, Tally, list[Candidate]]:
    """Return a candidate whose capture fails somewhere."""
    tally, capture, handed = Tally(Metrics()), Defect(where), []

    def make_capture(info: EngineInfo | None, spec: VariantSpec) -> Capture | None:
        if where == "make":
            raise ZeroDivisionError
        return capture

    def hand_over(candidate: Candidate) -> None:
        handed.append(candidate)
        if where == "hand over":
            raise ZeroDivisionError

    candidate = Candidate(
        "id",
        "tiny",
        {"a": 1},
        tally=tally,
        make_capture=make_capture,
        on_reply=hand_over,
        on_drop=lambda candidate, reason: None,
    )
    return candidate, capture, tally, handed


def pass_through(candidate: Candidate, chunks: list[bytes]) -> bytes:
    """Return what a client gets of a stream that a candidate watches."""
    trace = RequestTrace(Metrics())
    trace.route("tiny", "int4", True)
    relay = candidate.watch(EventRelay(trace, includes_usage=False))
    shown = [relay.feed(chunk) for chunk in chunks]
    shown.append(relay.finish())
    assert relay.is_complete
    assert trace.is_ok
    return b"".join(shown)


def ask(candidate: Candidate) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Ask an engine that nobody talks to."""
    client = EngineClient("http://127.0.0.1:1", served_name="x", read_timeout_s=1)
    return candidate.ask({"a": 1}, SPEC, client, None)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_capture_may_change_what_passes(size: int) -> None:
    """It sees whole events, however they are cut, and the client sees what it shows."""
    candidate, capture, tally, handed = start("")
    assert ask(candidate) == ({"a": 1, "extra": 1}, {"x-extra": "1"})
    raw = b"".join(EVENTS)
    chunks = [raw[place : place + size] for place in range(0, len(raw), size)]
    assert pass_through(candidate, chunks) == raw.replace(b'"a"', b'"A"')
    assert capture.seen == EVENTS
    candidate.finish(is_complete=True)
    assert handed == [candidate]
    answer = candidate.reply.read()
    assert answer is not None
    assert (answer.text, answer.finish_reason) == ("A", "stop")
    assert tally.of("tiny")["in_flight"] == 1


@pytest.mark.parametrize("where", ["make", "fields", "headers", "pass_on", "hand over"])
def test_a_defect_costs_the_score_alone(where: str) -> None:
    """The request and the reply are as if nobody looked; the candidate is dropped once."""
    candidate, _, tally, _ = start(where)
    asked = ask(candidate)
    if where in {"make", "fields", "headers"}:
        assert asked == ({"a": 1}, {})
    shown = pass_through(candidate, EVENTS)
    if where != "hand over":
        assert shown == b"".join(EVENTS)
    candidate.finish(is_complete=True)
    found = tally.of("tiny")
    assert (found["dropped"], found["in_flight"]) == ({"error": 1}, 0)


def test_a_candidate_ends_once() -> None:
    """Whatever comes later changes no count."""
    candidate, _, tally, _ = start("")
    ask(candidate)
    candidate.finish(is_complete=False)
    candidate.drop("error")
    candidate.score()
    assert tally.of("tiny") == {
        "candidates": 1,
        "scored": 0,
        "dropped": {"unfinished": 1},
        "in_flight": 0,
    }


def test_what_was_asked_for_is_hidden_to_the_end() -> None:
    """A candidate that is over asks no other engine for more, and still hides what it asked for."""
    candidate, _, _, _ = start("")
    ask(candidate)
    candidate.drop("busy")
    assert pass_through(candidate, EVENTS) == b"".join(EVENTS).replace(b'"a"', b'"A"')
    assert candidate.reply.read() is None
    assert ask(candidate) == ({"a": 1}, {})
    assert pass_through(candidate, EVENTS) == b"".join(EVENTS)


def _finish_and_hand_over(candidate: Candidate) -> None:
    candidate.finish(is_complete=True)
    assert not candidate.is_over
    candidate.score()


ENDS: dict[str, Callable[[Candidate], None]] = {
    "scored": _finish_and_hand_over,
    "dropped": lambda candidate: candidate.drop("queue_full"),
    "unfinished": lambda candidate: candidate.finish(is_complete=False),
}


@pytest.mark.parametrize("num_attempts", [1, 2])
@pytest.mark.parametrize("end", ENDS)
def test_an_engine_is_told_once_to_forget(end: str, num_attempts: int) -> None:
    """However a candidate ends, and each engine that was asked: none twice, none too early."""
    captures = [Defect("") for _ in range(num_attempts)]
    to_come = iter(captures)
    candidate = Candidate(
        "id",
        "tiny",
        {},
        tally=Tally(Metrics()),
        make_capture=lambda info, spec: next(to_come),
        on_reply=lambda candidate: None,
        on_drop=lambda candidate, reason: None,
    )
    for number in range(num_attempts):
        ask(candidate)
        told = [each.num_forgotten for each in captures]
        assert told == [1] * number + [0] * (num_attempts - number)
    ENDS[end](candidate)
    assert [each.num_forgotten for each in captures] == [1] * num_attempts
    candidate.drop("error")
    candidate.score()
    candidate.finish(is_complete=False)
    assert ask(candidate) == ({"a": 1}, {})
    assert [each.num_forgotten for each in captures] == [1] * num_attempts


def test_an_engine_that_failed_is_told_to_forget_once() -> None:
    """The attempt behind it may find that nothing can be captured, or that it is over."""
    candidate, capture, _, _ = start("hand over")
    ask(candidate)
    candidate.finish(is_complete=True)
    assert (candidate.is_over, capture.num_forgotten) == (True, 1)
    candidate.drop("stopped")
    ask(candidate)
    assert capture.num_forgotten == 1


def test_an_engine_that_refused_keeps_nothing() -> None:
    """It never began the answer with what was asked for beside it, so there is no word to send."""
    candidate, capture, tally, _ = start("")
    ask(candidate)
    candidate.decline()
    assert tally.of("tiny")["dropped"] == {"no_capture": 1}
    ask(candidate)
    assert capture.num_forgotten == 0
