"""Exact scores over a real gateway process: what is asked, what is told, what is forgotten."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.backends.process import EngineProcess
from gateway.launch import Launcher
from gateway.model_settings import ModelSettings, VariantSettings
from gateway.prepared import Prepared
from gateway.protocol import EngineInfo
from gateway.settings import load_settings
from gateway.shadow.capturing import Capturing
from gateway.shadow.exact import reading
from gateway.shadow.records import Captured, ScoredPosition
from gateway.shadow.reference_spec import reference_spec
from gateway.shadow_settings import Estimator, ShadowSettings
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient
from tests.gateway.conftest import StartGateway
from tests.gateway.fake_engine import KL
from tests.gateway.harness import CHAT, Gateway, body, eventually
from tests.gateway.shadow.counts import settled
from tests.gateway.shadow.test_judge import SUBJECT, Bench, rules

SHADOW: dict[str, Any] = {
    "rate": 1,
    "floor_every": 2,
    "max_tokens": 9,
    "estimator": "exact",
    "exact_tokens": 5,
}
NAMES = {"model": "tiny", "variant": "int4"}


def kept(gateway: Gateway) -> tuple[int, int]:
    """Return of how many answers the engine was to keep rows, and of how many it still does."""
    state = gateway.engine_state()
    return state["rows_asked"], state["rows_kept"]


def test_exact_scores_are_marked_and_known_beside_top_k(start_gateway: StartGateway) -> None:
    """In metrics, verdicts and ledger; the noise floor stays as it was; nothing stays behind."""
    gateway = start_gateway(shadow=SHADOW, launch={"nll": {"reference": 0.75}})
    for _ in range(4):
        gateway.http.post(CHAT, json=body(fake={"tokens": 4}))
    found = eventually(settled(gateway, 4))
    assert (found["scored"], found["dropped"]) == (4, {})
    sums = NAMES | {"slice": "all"}
    assert gateway.metric("fidelity_kl_nats_total", **sums, estimator="exact") == 4 * KL
    assert gateway.metric("fidelity_kl_nats_total", **sums, estimator="topk") == 0
    assert gateway.metric("fidelity_requests_total", **sums) == 4
    bound = gateway.metric("fidelity_kl_bound_nats_total", **sums)
    assert 0 < bound < 4 * KL
    floor = {"model": "tiny", "variant": "full", "slice": "all"}
    assert gateway.metric("fidelity_requests_total", **floor) == 2
    assert gateway.metric("fidelity_kl_nats_total", **floor, estimator="exact") == 0

    told = eventually(lambda: _variant(gateway, scored=4))
    assert told["estimator"] == "exact"
    assert told["topk_gap"] == {"num_requests": 4, "exact": KL, "topk": pytest.approx(bound / 4)}
    eventually(lambda: _mean(gateway) > 0)
    eventually(lambda: kept(gateway) == (4, 0))
    eventually(lambda: ("int4", "exact", 4) in _sources(gateway))
    assert ("full", "topk", 2) in _sources(gateway)


def _variant(gateway: Gateway, *, scored: int) -> dict[str, Any]:
    (found,) = gateway.http.get("/admin/fidelity").json()["data"]
    return found if found["scored"] == scored else {}


def _mean(gateway: Gateway) -> float:
    """Return the mean of all positions at the last look, which comes after the score."""
    (found,) = gateway.http.get("/admin/fidelity").json()["data"]
    (whole,) = [each for each in found["slices"] if each["slice"] == "all"]
    return float(whole["mean"])


def _sources(gateway: Gateway) -> list[tuple[str, str, int]]:
    slices = gateway.http.get("/admin/fidelity").json()["ledger"]["slices"]
    return [
        (each["variant"], each["estimator"], each["num_requests"])
        for each in slices
        if each["slice"] == "all"
    ]


def test_what_cannot_be_exact_is_dropped(start_gateway: StartGateway) -> None:
    """Each for its reason, none as top-k; the engine is told to forget each, however it ended."""
    gateway = start_gateway(shadow=SHADOW)
    post = gateway.http.post
    post(CHAT, json=body(fake={"tokens": 4, "keeps_rows": False}))
    post(CHAT, json=body(fake={"tokens": 6}))
    post(CHAT, json=body(fake={"tokens": 9}))
    post(CHAT, json=body(fake={"tokens": 0}))
    post(CHAT, json=body(stream=True, fake={"fault": "truncate", "after": 1}))
    with gateway.stream({"tokens": 200, "pace_s": 0.02}) as stream:
        next(stream.iter_raw())
    post(CHAT, json=body(), headers={"x-narrowgate-shadow": "off"})
    post(CHAT, json=body(fake={"tokens": 4}))
    found = eventually(settled(gateway, 8))
    assert found["scored"] == 1
    assert found["dropped"] == {
        "rows": 1,
        "too_long": 2,
        "empty": 1,
        "unfinished": 2,
        "private": 1,
    }
    assert gateway.metric("shadow_dropped_total", model="tiny", reason="rows") == 1
    eventually(lambda: kept(gateway) == (7, 0))


def test_rows_that_are_gone_cost_that_score_alone(start_gateway: StartGateway) -> None:
    """It is dropped as such, the reference is not to blame, and stays."""
    gateway = start_gateway(shadow=SHADOW, launch={"score_faults": {"tiny": "no_rows"}})
    for _ in range(4):
        gateway.http.post(CHAT, json=body(fake={"tokens": 4}))
    found = eventually(settled(gateway, 4))
    assert found["dropped"] == {"rows": 4}
    assert found["reference"]["state"] == "ready"
    assert gateway.metric("shadow_reference_failures_total", model="tiny") == 0
    eventually(lambda: kept(gateway) == (4, 0))


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_a_lost_reference_leaves_nothing_behind(start_gateway: StartGateway, fault: str) -> None:
    """Killed or silent in the middle of a score: the engine that served forgets."""
    shadow = SHADOW | {"score_timeout_s": 0.3}
    gateway = start_gateway(shadow=shadow, launch={"score_faults": {"tiny": fault}})
    gateway.http.post(CHAT, json=body(fake={"tokens": 4}))
    found = eventually(settled(gateway, 1))
    assert found["scored"] == 0
    eventually(lambda: kept(gateway) == (1, 0))


@pytest.mark.parametrize(
    ("shadow", "variant", "estimator"),
    [
        ({}, {}, "topk"),
        ({"estimator": "exact"}, {}, "exact"),
        ({"estimator": "exact"}, {"recipe": "full"}, "topk"),
        ({"estimator": "exact"}, {"engine": "vllm"}, "topk"),
        ({"estimator": "exact"}, {"urls": ["http://10.0.0.5:8000"]}, "topk"),
        ({"estimator": "exact", "reference": {"engine": "vllm"}}, {}, "topk"),
        ({"estimator": "exact", "reference": {"urls": {"tiny": "http://a:1"}}}, {}, "topk"),
        ({"estimator": "exact", "reference": {"urls": {"other": "http://a:1"}}}, {}, "exact"),
    ],
)
def test_the_estimator_follows_from_the_settings(
    shadow: dict[str, Any], variant: dict[str, Any], estimator: Estimator
) -> None:
    """Exact where both engines are embedded and here, and for no full model."""
    settings = ShadowSettings.model_validate(shadow)
    found = VariantSettings.model_validate({"model": "m", "recipe": "int4"} | variant)
    assert settings.estimator_of("tiny", found) == estimator


def test_a_reply_without_rows_is_read_as_ever() -> None:
    """The reference is asked for candidates alone."""

    class Scorer:
        async def score(self, token_ids: Any, start: int, candidates: Any) -> list[ScoredPosition]:
            return [ScoredPosition({}, start)]

    found = asyncio.run(_await(reading(Scorer(), Captured((1, 2), ()))))
    assert found == [ScoredPosition({}, 2)]


async def _await(work: Any) -> Any:
    return await work


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (399, "it is never scored"),
        (0, "it is never scored"),
        (400, "answers of more than 1 tokens are never scored"),
        (3199, "answers of more than 7 tokens are never scored"),
        (3200, None),
    ],
)
def test_too_little_room_is_told_once(
    caplog: pytest.LogCaptureFixture, room: int, words: str | None
) -> None:
    """Settings that leave answers without a score are named in one line, with the bytes."""
    settings = ShadowSettings(estimator="exact", exact_tokens=8)
    info = EngineInfo(served_model_name="x", max_capture=8, vocab_size=100, row_memory_bytes=room)
    spec = VariantSpec("m", "int4", VariantSettings(model="x", recipe="int4"))
    capturing = Capturing(settings)
    for _ in range(3):
        assert capturing.for_score(info, spec) is not None
    if words is None:
        assert not caplog.messages
    else:
        (line,) = caplog.messages
        assert line == (
            f"m@int4: {words}: its engine has 'shadow.exact_memory' of {room} bytes, and an answer "
            "of 'shadow.exact_tokens' 8 takes 3200, 400 a token: raise the one"
            + (" or lower the other" if room >= 400 else "")
        )


def test_room_is_no_matter_of_other_scores(caplog: pytest.LogCaptureFixture) -> None:
    """Top-k scores keep no rows, and an engine that does not tell its width is not guessed at."""
    spec = VariantSpec("m", "int4", VariantSettings(model="x", recipe="int4"))
    info = EngineInfo(served_model_name="x", max_capture=8, vocab_size=100)
    Capturing(ShadowSettings()).for_score(info, spec)
    untold = info.model_copy(update={"vocab_size": None})
    Capturing(ShadowSettings(estimator="exact")).for_score(untold, spec)
    assert not caplog.messages


def test_the_queue_is_not_longer_than_rows_are_kept() -> None:
    """A request that would wait beyond them could only be dropped; top-k needs none."""
    with pytest.raises(ValidationError, match=r"'queue_s' is 601, .* for 600 s: use at most that"):
        ShadowSettings(estimator="exact", queue_s=601)
    assert ShadowSettings(estimator="exact", queue_s=600).queue_s == 600
    assert ShadowSettings(queue_s=3600).queue_s == 3600


def test_engines_are_started_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is scored exactly gets memory for rows, which is counted; the reference reads in f32."""
    commands: list[list[str]] = []

    async def start(command: list[str], client: EngineClient, **options: Any) -> None:
        commands.append(command)
        await client.aclose()

    monkeypatch.setattr(EngineProcess, "start", start)
    prepared = Prepared(Path("/nowhere"), None)
    variant = VariantSpec("m", "int4", VariantSettings(model="x", recipe="int4"))
    model = ModelSettings(model="x", recipe="int4")
    reference = reference_spec("m", model, ShadowSettings().reference)
    sizes = {}
    for estimator in ("topk", "exact"):
        said = {"models": {"m": {"model": "x"}}, "shadow": {"estimator": estimator}}
        launch = Launcher(load_settings(None, said, {}))
        for spec in (variant, reference):
            asyncio.run(launch.start(spec, prepared, 0))
            sizes[estimator, spec.variant] = launch.memory_bytes(spec, _sized(prepared))
    flags = [
        {
            word.partition("=")[0]
            for word in command
            if word.startswith(("--row", "--read", "--fetch"))
        }
        for command in commands
    ]
    assert flags == [set(), set(), {"--row-memory-bytes"}, {"--read-in-float32", "--fetch-rows"}]
    assert sizes["exact", "int4"] - sizes["topk", "int4"] == ShadowSettings().exact_memory
    assert sizes["exact", "reference"] == sizes["topk", "reference"]


def _sized(prepared: Prepared) -> Prepared:
    return replace(prepared, manifest={"bytes_in_memory": 100})


def test_evidence_of_one_kind_is_none_for_the_other() -> None:
    """Another estimator begins anew, and a stray score of the other kind does not count."""
    exact = replace(SUBJECT, estimator="exact")
    assert exact.digest("full") != SUBJECT.digest("full")
    bench = Bench(rules(), subject=exact)
    bench.score(0.5, 1)
    assert bench.judge.num_scored("tiny", "int4") == 0
    assert bench.judge.estimator("tiny", "int4") == "exact"
    assert bench.judge.gap("tiny", "int4") is None
