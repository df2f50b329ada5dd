"""Free runs beside traffic: what both sides are counted for, every end, and no text afterwards."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.registry import Metrics
from gateway.shadow.answer import Answer
from gateway.shadow.free_run import FreeRun, Side
from gateway.shadow.free_runner import FreeRunner
from gateway.shadow.free_runs import MAX_WAITING, FreeRuns
from gateway.shadow.references import References
from gateway.shadow.shadow import Shadow
from gateway.shadow.worker import Waiting
from gateway.shadow.yielding import Yielding
from gateway.shadow_settings import ReferenceSettings, ShadowSettings
from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually
from tests.gateway.shadow.counts import counts
from tests.gateway.shadow.test_references import MODEL, Launch
from tests.gateway.shadow.test_service import answer, columns, make_shadow

FAKE: dict[str, Any] = {"model": "fake"}
SHADOW: dict[str, Any] = {"rate": 1, "free_run": 1, "floor_every": 0, "probe_every_s": 0}
REFUSAL = "I'm sorry, but I can't help with that."
NAMES = {"model": "tiny", "variant": "int4"}


def found(gateway: Gateway, model: str = "tiny") -> dict[str, Any]:
    """Return what is told of a model's free runs; empty: nothing."""
    variants = gateway.http.get("/admin/fidelity").json()["data"]
    (told,) = [each["free_runs"] for each in variants if each["model"] == model]
    return told or {}


def ask(gateway: Gateway, model: str = "tiny", *, fake: dict[str, Any], **fields: Any) -> None:
    """Send a request whose reference does otherwise, as ``fake['reference']`` says."""
    reply = gateway.http.post(CHAT, json=body(fake=fake) | {"model": model, **fields})
    assert reply.status_code == 200


def checked(gateway: Gateway, side: str, check: str, result: str) -> float:
    """Return how often."""
    return gateway.metric(
        "fidelity_free_run_checks_total", **NAMES, side=side, check=check, result=result
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway whose requests are all scored and answered twice."""
    shadow = SHADOW | {"free_run_timeout_s": 2, "reference": {"mode": "resident"}}
    settings = {"models": {"tiny": FAKE, "ends": FAKE}, "shadow": shadow}
    gateway = Gateway(tmp_path_factory.mktemp("free"), settings, {})
    gateway.wait_ready()
    yield gateway
    gateway.close()


def test_both_sides_of_the_same_requests(compared: Gateway) -> None:
    """Refusals, JSON, ends and lengths are counted for both sides, and compared in pairs."""
    gateway = compared
    as_json: dict[str, Any] = {"response_format": {"type": "json_object"}}
    ask(gateway, fake={"text": REFUSAL, "reference": {"text": "Take the first road left."}})
    ask(gateway, fake={"text": "{} {", "reference": {"text": '{ "a": 1 }'}}, **as_json)
    ask(gateway, fake={"text": "one two", "reference": {"text": "one two three four five"}})
    ask(gateway, fake={"text": "one two"}, stream=True)
    told = eventually(lambda: (found(gateway).get("pairs") == 4 and found(gateway)) or {})
    assert told["results"] == {"compared": 4}
    assert counts(gateway)["scored"] == 4

    refusal = told["checks"]["refusal"]
    assert (refusal["pairs"], refusal["only_variant_failed"], refusal["full_rate"]) == (4, 1, 0)
    assert refusal["difference_low"] < 0.25 < refusal["difference_high"]
    json = told["checks"]["json"]
    assert (json["pairs"], json["variant_rate"], json["full_rate"]) == (1, 1, 0)
    # The full model would have gone on: it may take twice the served tokens.
    finish = told["checks"]["finish"]
    assert (finish["pairs"], finish["only_full_failed"]) == (4, 1)
    assert told["length"]["variant_tokens"] == 8 + 2 + 2 + 2
    assert told["length"]["full_tokens"] == 5 + 4 + 4 + 2

    for side, failed in (("variant", 1), ("full", 0)):
        assert checked(gateway, side, "refusal", "failed") == failed
        assert checked(gateway, side, "refusal", "ok") == 4 - failed
        tokens = gateway.metric("fidelity_free_run_tokens_total", **NAMES, side=side)
        assert tokens == told["length"][f"{side}_tokens"]
    assert checked(gateway, "full", "finish", "failed") == 1
    assert gateway.metric("fidelity_free_runs_total", **NAMES, result="compared") == 4
    # Each text is read once for its score; then the prompts again, and the answers are written.
    read = 4 * 3 + told["length"]["variant_tokens"]
    wrote = 4 * 3 + told["length"]["full_tokens"]
    assert gateway.metric("shadow_reference_tokens_total", model="tiny") == read + wrote
    # What one's own detectors say of served answers alone is counted as ever.
    assert gateway.metric("fidelity_output_checks_total", **NAMES, check="json") == 1


def test_every_end_has_its_name(compared: Gateway) -> None:
    """A reference that cannot, fails or is slow costs the free run alone; the opt-outs hold."""
    gateway, model = compared, "ends"
    pictures = [{"type": "image_url", "image_url": {"url": "http://x"}}]
    ends: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("unsupported", {"status": 404, "body": "{}"}, {}),
        ("unsupported", {"status": 400, "body": "{}"}, {}),
        ("unsupported", {}, {"messages": [{"role": "user", "content": pictures}]}),
        ("error", {"status": 500, "body": "{}"}, {}),
        ("error", {"status": 200, "body": "{}"}, {}),
        ("timeout", {"first_s": 30}, {}),
        ("compared", {}, {}),
        ("error", {"fault": "crash"}, {}),
    ]
    ask(gateway, model, fake={}, store=False)
    expected: Counter[str] = Counter()
    for result, reference, fields in ends:
        ask(gateway, model, fake={"reference": reference}, **fields)
        expected[result] += 1
        eventually(lambda: found(gateway, model).get("results") == expected)
    ended = counts(gateway, model)
    assert (ended["scored"], ended["dropped"]) == (len(ends), {"private": 1})
    for result, count in expected.items():
        labels = {"model": model, "result": result}
        assert gateway.metric("fidelity_free_runs_total", **labels) == count
    assert "Traceback" not in gateway.log


def test_free_runs_yield(start_gateway: StartGateway) -> None:
    """A request breaks one off; it begins anew, unless there is no room for too long."""
    gateway = start_gateway(
        shadow=SHADOW | {"queue_s": 0.5, "reference": {"idle_s": 0.1, "mode": "on-demand"}}
    )
    slow = {"tokens": 20, "reference": {"pace_s": 0.06}}
    ask(gateway, fake=slow)
    eventually(lambda: counts(gateway)["scored"] == 1)
    ask(gateway, fake={"tokens": 5, "pace_s": 0.04}, store=False)
    eventually(lambda: found(gateway).get("results") == {"compared": 1})
    assert gateway.metric("shadow_yields_total", model="tiny") >= 1

    ask(gateway, fake=slow)
    eventually(lambda: counts(gateway)["scored"] == 2)
    with gateway.stream({"tokens": 1000, "pace_s": 0.02}, store=False) as stream:
        events = stream.iter_raw()  # kept: without it the stream is closed
        next(events)
        eventually(lambda: sum(found(gateway)["results"].values()) == 2)
        assert found(gateway)["results"] == {"compared": 1, "busy": 1}


def test_a_reference_elsewhere_answers_too(start_gateway: StartGateway) -> None:
    """One at a URL is asked under the name that it serves; it says the same, so no pair differs."""
    url = start_gateway(models={"tiny": {"model": "fake", "recipe": "full"}}).engine_url
    gateway = start_gateway(shadow=SHADOW | {"reference": {"urls": {"tiny": url}}})
    ask(gateway, fake={"tokens": 6})
    told = eventually(lambda: found(gateway) if "pairs" in found(gateway) else {})
    assert told["length"]["ratio"] == 1
    assert not any(each["difference"] for each in told["checks"].values())


def drawn(shadow: Shadow) -> dict[str, Any]:
    """Return the results of the model's free runs."""
    told = shadow.free_runs.status("tiny", "int4")
    return {} if told is None else dict(told["results"])


def test_few_texts_are_kept() -> None:
    """More free runs than there is room for are not begun; the end of the shadow ends all."""

    async def use() -> None:
        shadow = make_shadow(free_run=1, tokens_per_second=1000)
        for _ in range(MAX_WAITING + 1):
            await answer(shadow, columns())
        assert drawn(shadow) == {"too_many": 1}
        waiting = [item.candidate.free_run for _, item in shadow._scoring._queues.of("tiny")._items]
        runs = [run for run in waiting if run is not None]
        assert len(runs) == MAX_WAITING
        assert all("messages" in run.fields and "secret" not in str(run.served) for run in runs)
        await shadow.close()
        assert drawn(shadow) == {"too_many": 1, "unscored": MAX_WAITING}
        assert not any(run.fields for run in runs)
        assert not shadow.free_runs._num_waiting

    asyncio.run(use())


def test_free_runs_are_within_the_budget() -> None:
    """Prompt and limit are spent of the same tokens; what is not there gives up the run alone."""

    async def use() -> None:
        # 9 tokens at once: 4 for the score, 2 + 4 for the free run are too many.
        shadow = make_shadow(free_run=1, tokens_per_second=0.15, max_tokens=9)
        await answer(shadow, columns())
        assert drawn(shadow) == {"budget": 1}
        assert shadow.status()["queue_length"] == 1
        await shadow.close()

    asyncio.run(use())


def test_what_nobody_reads_is_given_back() -> None:
    """A reply that waits for too long leaves its tokens, and its free run's, to the next one."""

    async def use() -> None:
        # 4 for the score and 2 + 4 for the free run are all that there is at once.
        shadow = make_shadow(free_run=1, tokens_per_second=0.1667, max_tokens=9, queue_s=0.05)
        for num_given_up in range(3):
            await answer(shadow, columns())
            assert drawn(shadow) == ({"unscored": num_given_up} if num_given_up else {})
            assert shadow.status()["queue_length"] == 1
            await asyncio.sleep(0.06)
        await shadow.close()

    asyncio.run(use())


def test_what_another_queue_pushes_out_is_given_back() -> None:
    """The newest of the longest queue, with its free run."""

    async def use() -> None:
        shadow = make_shadow(free_run=1, tokens_per_second=0.334, max_tokens=9)
        await answer(shadow, columns())
        scoring = shadow._scoring
        assert scoring._budget.spend((), 11, time.monotonic()) is None
        scoring._on_full(scoring._queues.of("tiny").give_up_newest())
        assert drawn(shadow) == {"unscored": 1}
        assert scoring._budget.spend((), 20, time.monotonic()) is not None
        await shadow.close()

    asyncio.run(use())


@pytest.mark.parametrize("is_broken", [True, False])
def test_a_free_run_that_was_never_asked_is_given_back(is_broken: bool) -> None:
    """One whose reference cannot be started spends nothing, one that was answered its tokens."""

    async def use() -> None:
        launch = Launch()
        launch.is_broken = is_broken
        references = References(
            {"tiny": MODEL},
            ReferenceSettings(),
            launch,
            metrics=Metrics(),
            is_wanted=lambda alias: True,
        )
        shadow = make_shadow(free_run=1)
        candidate = shadow.draw("id", "tiny", {"messages": []}, {})
        assert candidate is not None
        run = shadow.free_runs.draw(candidate, "int4", Answer("a", (), "stop"), 1)
        assert run is not None
        given_back: list[FreeRun] = []
        run.on_unread = lambda: given_back.append(run)
        yielding = Yielding(references, lambda: 0, max_running=None)
        settings = ShadowSettings()
        runner = FreeRunner(
            shadow.free_runs, yielding, settings, metrics=Metrics(), meanwhile=lambda: None
        )
        await runner.run(run, references.of("tiny"))
        assert drawn(shadow) == {"error": 1}  # nobody listens at its address
        assert given_back == ([run] if is_broken else [])
        await references.stop()
        await shadow.close()

    asyncio.run(use())


@pytest.mark.parametrize(("share", "low", "high"), [(0, 0, 0), (0.25, 0.15, 0.35), (1, 1, 1)])
def test_the_share(share: float, low: float, high: float) -> None:
    """It is a share of the scored requests, and none where it is 0."""

    async def use() -> None:
        shadow = make_shadow(free_run=share)
        num_drawn = 0
        for number in range(200):
            candidate = shadow.draw(f"id-{number}", "tiny", {"messages": []}, {})
            assert candidate is not None
            run = shadow.free_runs.draw(candidate, "int4", Answer("a", (), "stop"), 1)
            num_drawn += run is not None
            if run is not None:
                run.end("stopped")
        assert low <= num_drawn / 200 <= high

    asyncio.run(use())


@pytest.mark.parametrize("result", ["error", "stopped"])
def test_what_goes_wrong_between_score_and_free_run(
    monkeypatch: pytest.MonkeyPatch, result: str
) -> None:
    """A defect or the end of the service there ends the free run, too; its text is let go."""

    async def use() -> None:
        shadow = make_shadow(free_run=1)
        begun = asyncio.Event()

        async def score(since: float, item: Waiting) -> None:
            item.candidate.score()
            begun.set()
            if result == "error":
                raise ZeroDivisionError
            await asyncio.Event().wait()

        (worker,) = shadow._scoring._workers
        monkeypatch.setattr(worker, "_score", score)
        await answer(shadow, columns())
        work = asyncio.create_task(worker.run())
        await begun.wait()
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert drawn(shadow) == {result: 1}
        assert not shadow.free_runs._num_waiting

    asyncio.run(use())


def test_another_recipe_begins_anew() -> None:
    """What was seen of one artifact or reference says nothing of the next; ends come once."""

    async def use() -> None:
        shadow = make_shadow(free_run=1)
        book: FreeRuns = shadow.free_runs

        def run(digest: str) -> FreeRun:
            candidate = shadow.draw("id", "tiny", {"messages": []}, {})
            assert candidate is not None
            candidate.recipe_digest = digest
            found = book.draw(candidate, "int4", Answer("a", (), "stop"), 1)
            assert found is not None
            return found

        full = Side(3, {"empty": True, "json": True})
        for digest, reference, pairs in (
            ("a", "r", 1),
            ("a", "r", 2),
            ("b", "r", 1),
            ("b", "s", 1),
        ):
            one = run(digest)
            book.take(one, full, reference)
            one.end("compared")
            one.end("error")
            told = book.status("tiny", "int4")
            assert told is not None
            assert told["pairs"] == pairs
            assert told["checks"].keys() == {"empty"}  # what applies to one side is no pair
        assert drawn(shadow) == {"compared": 4}

    asyncio.run(use())
