"""The manifest is the truth about every path of metrics; engines speak through the gateway."""

import asyncio
import shutil
import subprocess
from typing import Any, get_args

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from gateway.api.exposition import _read
from gateway.metric_views import EngineSeries, otel_view, own_view, vllm_view
from gateway.metrics.engine import ENGINE_FAMILIES
from gateway.metrics.family import OTHER, Label
from gateway.metrics.manifest import PATHS, Row, manifest
from gateway.pool.lease import ReadyEngine
from gateway.pool.state import State
from gateway.registry import Metrics
from gateway.shadow import output_checks
from gateway.shadow.answer import Answer
from gateway.shadow.drift_gauges import record_verdicts
from gateway.shadow.free_run import Result as FreeRunResult
from gateway.shadow.free_run import judge
from gateway.shadow.ladder_order import Ending
from gateway.shadow.ladder_report import REASONS
from gateway.shadow.ladder_rules import Cause
from gateway.shadow.slices import MAX_OWN, MAX_OWN_VALUES, all_slices
from gateway.shadow.tally import DropReason
from gateway.shadow.verdict import State as VerdictState
from gateway.shadow.verdict import Verdict
from gateway.shadow_settings import Estimator
from gateway.trace import FINISH_REASONS, Operation, Outcome
from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny@int4"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny@int4"} 2.0
# HELP vllm:iteration_tokens_total Histogram of number of tokens per engine_step.
# TYPE vllm:iteration_tokens_total histogram
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="tiny@int4"} 4.0
vllm:iteration_tokens_total_bucket{engine="0",le="+Inf",model_name="tiny@int4"} 5.0
vllm:iteration_tokens_total_count{engine="0",model_name="tiny@int4"} 5.0
vllm:iteration_tokens_total_sum{engine="0",model_name="tiny@int4"} 21.0
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny@int4"} 7.0
vllm:request_success_total{engine="0",finished_reason="repetition",model_name="tiny@int4"} 1.0
# HELP vllm:lora_requests_info Running stats on lora requests.
# TYPE vllm:lora_requests_info gauge
vllm:lora_requests_info{max_lora="0"} 1.7e9
"""


def of_vllm() -> EngineSeries:
    """Return what replica 2 said, a vLLM of two cores."""
    return EngineSeries("tiny", "int4", "tiny@int4", 2, parsed(VLLM))


def parsed(text: str) -> tuple[Metric, ...]:
    """Return the families of an exposition."""
    return tuple(text_string_to_metric_families(text))


def samples(families: list[Metric]) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return values by name and labels."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def rows() -> dict[str, Row]:
    """Return the manifest by the names that the client library gives families."""
    return {row.name.removesuffix("_total"): row for row in manifest()}


def test_a_vllm_speaks_in_the_manifests_words() -> None:
    """Names, labels and kinds are ours; each of its cores is a replica; the rest is left out."""
    found = samples(own_view([of_vllm()]))
    who = (("model", "tiny"), ("replica", "2"), ("variant", "int4"))
    other = (("model", "tiny"), ("replica", "2.1"), ("variant", "int4"))
    assert found["narrowgate_engine_sequences_running"] == {who: 3, other: 2}
    assert found["narrowgate_engine_step_tokens_sum"] == {who: 21}
    assert found["narrowgate_engine_sequences_total"] == {
        (("finished_reason", "stop"), *who): 7,
        (("finished_reason", OTHER), *who): 1,
    }
    assert not any("lora" in name for name in found)


def test_engines_of_both_kinds_in_vllms_words() -> None:
    """A vLLM's own families all stay; those of an embedded engine get their names."""
    text = "# TYPE narrowgate_engine_step_tokens histogram\n" + "".join(
        f"narrowgate_engine_step_tokens{line}\n"
        for line in ('_bucket{le="+Inf",model="m"} 5', '_sum{model="m"} 9', '_count{model="m"} 5')
    )
    text += "# TYPE narrowgate_engine_kv_cache_pages gauge\n"
    text += 'narrowgate_engine_kv_cache_pages{model="m"} 5\n'
    embedded = EngineSeries("m", "int8", "m@int8", 0, parsed(text))
    found = samples(vllm_view([of_vllm(), embedded]))
    assert found["vllm:iteration_tokens_total_sum"] == {
        (("engine", "2"), ("model_name", "tiny@int4")): 21,
        (("engine", "0"), ("model_name", "m@int8")): 9,
    }
    assert "vllm:lora_requests_info" in found
    assert not any("pages" in name for name in found)


def test_a_family_has_one_type() -> None:
    """Where two engines disagree on what a family is, the first one stays right."""
    text = "# TYPE vllm:num_requests_running counter\nvllm:num_requests_running_total{} 9\n"
    odd = EngineSeries("tiny", "int8", "tiny@int8", 0, parsed(text))
    (family,) = [
        each for each in own_view([of_vllm(), odd]) if each.name.endswith("sequences_running")
    ]
    assert (family.type, [sample.value for sample in family.samples]) == ("gauge", [3, 2])


def test_an_engine_that_talks_nonsense_is_left_out() -> None:
    """One that cannot be read costs its own series, never the scrape."""

    class Client:
        async def read_metrics(self, timeout_s: float) -> bytes:
            return b"} what { is this"

    from tests.gateway.shadow.test_probe import SPEC

    client: Any = Client()
    assert asyncio.run(_read(ReadyEngine(SPEC, "tiny@int4", client))) is None


def test_engines_speak_on_the_gateways_page(gateway: Gateway) -> None:
    """What the engine counts is there under its model, variant and replica."""
    names = {"model": "tiny", "variant": "int4", "replica": "0"}
    before = gateway.metric("engine_generated_tokens_total", **names)
    gateway.http.post(CHAT, json=body(stream=True, fake={"tokens": 9}))
    eventually(lambda: gateway.metric("engine_generated_tokens_total", **names) == before + 9)
    eventually(lambda: gateway.metric("engine_sequences_running", **names) == 0)
    page = gateway.http.get("/metrics/vllm").text
    assert 'vllm:generation_tokens_total{engine="0",model_name="tiny@int4"}' in page
    assert "narrowgate_" not in page


def test_the_view_of_opentelemetry(gateway: Gateway) -> None:
    """Durations and tokens under the names of gen_ai, with the error's type."""
    gateway.http.post(CHAT, json=body(fake={"tokens": 5}))
    gateway.http.post(CHAT, json=body(fake={"status": 500}))
    own = {each.name: each for each in parsed(gateway.http.get("/metrics").text)}
    view = {each.name: each for each in parsed(gateway.http.get("/metrics/otel").text)}
    name = "gen_ai_server_request_duration_seconds"
    for suffix in ("_count", "_sum"):
        expected = sum(
            sample.value
            for sample in own["narrowgate_request_duration_seconds"].samples
            if sample.name.endswith(suffix)
        )
        there = [sample for sample in view[name].samples if sample.name == name + suffix]
        assert sum(sample.value for sample in there) == pytest.approx(expected)
    labels = [sample.labels for sample in view[name].samples if sample.name == f"{name}_count"]
    assert {each.get("error_type") for each in labels} >= {None, "error"}
    assert {each["gen_ai_response_model"] for each in labels} >= {"tiny@int4"}
    kinds = {
        sample.labels["gen_ai_token_type"] for sample in view["gen_ai_client_token_usage"].samples
    }
    assert kinds == {"input", "output"}
    assert not any(each.startswith("narrowgate_") for each in view)


def test_operations_have_their_names() -> None:
    """Text completions and embeddings are called otherwise there."""
    metrics = Metrics()
    duration = metrics.histograms["request_duration_seconds"]
    for operation in get_args(Operation):
        duration.labels("m", "v", operation, "ok").observe(1)
    found = otel_view(metrics.registry.collect())
    names = {
        sample.labels["gen_ai_operation_name"] for family in found for sample in family.samples
    }
    assert names == {"chat", "text_completion", "embeddings", "response", "tokenize"}


def test_a_page_holds_what_the_manifest_says(gateway: Gateway) -> None:
    """Every family of ours is in the manifest, with its labels and none but the listed values."""
    for request in (body(), body(stream=True), body(fake={"status": 500}), {"model": "nope"}):
        gateway.http.post(CHAT, json=request)
    known = rows()
    seen = set()
    for family in parsed(gateway.http.get("/metrics").text):
        if family.name.startswith("process_"):
            continue
        row = known[family.name]
        assert (family.type, family.documentation) == (row.type, row.help)
        seen.add(family.name)
        for sample in family.samples:
            values = {name: value for name, value in sample.labels.items() if name != "le"}
            assert set(values) == {label.name for label in row.labels}
            for label in row.labels:
                assert not label.values or values[label.name] in label.values
    assert {name for name in known if name not in seen} == set()


def label(family: str, name: str) -> Label:
    """Return a label of a family."""
    (row,) = [row for row in manifest() if row.name == f"narrowgate_{family}"]
    (found,) = [label for label in row.labels if label.name == name]
    return found


def test_values_are_those_of_their_owners() -> None:
    """The manifest lists what the code can write, no less and no more."""
    answer = Answer(text="{}", calls=(), finish_reason="stop")
    as_json = {"response_format": {"type": "json_object"}}
    checks = output_checks.check(answer, as_json)
    twice = judge(answer, as_json, num_tokens=1, limit=1)
    expected = [
        ("shadow_dropped_total", "reason", get_args(DropReason)),
        ("requests_total", "operation", get_args(Operation)),
        ("requests_total", "outcome", get_args(Outcome)),
        ("requests_total", "finish_reason", (*FINISH_REASONS, OTHER)),
        ("model_state", "state", tuple(State)),
        ("verdict_changes_total", "state", tuple(VerdictState)),
        ("ladder_steps_total", "reason", (*REASONS.values(), *Cause)),
        ("canaries_ended_total", "result", tuple(Ending)),
        ("fidelity_kl_nats_total", "estimator", get_args(Estimator)),
        ("fidelity_output_checks_total", "check", (*checks, "tool_call")),
        ("fidelity_free_runs_total", "result", get_args(FreeRunResult)),
        ("fidelity_free_run_checks_total", "check", (*twice.checks, "tool_call")),
    ]
    for family, name, values in expected:
        assert set(label(family, name).values) == set(values), (family, name)


def test_a_drift_keeps_the_mean_of_its_alarm() -> None:
    """The bounds begin anew with it; the mean that raised it stands until the drift is over."""
    metrics = Metrics()

    def means(
        state: VerdictState, alarms: dict[str, float], scored: float | None = 1
    ) -> list[float]:
        fields: dict[str, Any] = {"n": 9, "lower": 0.0, "upper": 0.5, "tolerance": 0.02}
        fields |= {"tolerance_source": None, "log10_e": 0.0, "since": None, "last_scored": scored}
        place = "domain:code"
        found = {
            name: Verdict(slice=name, state=VerdictState.OK, mean=mean, **fields)
            for name, mean in alarms.items()
        }
        now = Verdict(slice=place, state=state, mean=0.001, **fields)
        record_verdicts(metrics, "m", "int4", [now], found)
        (family,) = metrics.gauges["drift_alarm_mean_nats"].collect()
        return [sample.value for sample in family.samples]

    assert means(VerdictState.OK, {}) == []
    assert means(VerdictState.DRIFT, {"domain:code": 0.31}) == [0.31]
    assert means(VerdictState.DRIFT, {"all": 0.5}) == []  # its alarm was before this start
    assert means(VerdictState.DRIFT, {"domain:code": 0.31}) == [0.31]
    assert means(VerdictState.OK, {"domain:code": 0.31}) == []
    assert means(VerdictState.DRIFT, {"domain:code": 0.31}) == [0.31]
    assert means(VerdictState.LEARNING, {}, scored=None) == []  # another build of the variant


def test_every_label_is_bounded() -> None:
    """A label has a closed set, or the manifest says what bounds it."""
    for row in manifest():
        for each in row.labels:
            assert bool(each.values) != bool(each.bound), (row.name, each.name)
    num_slices = len(all_slices())
    num_own = MAX_OWN * (MAX_OWN_VALUES + 1)
    bound = label("drift_state", "slice").bound
    assert bound.startswith(
        f"{num_slices} at most, with those of the settings {num_slices + num_own}"
    )


def test_rows_are_sound() -> None:
    """Names are unique; units and endings fit; histograms have rising buckets."""
    names = [row.name for row in manifest()]
    assert len(set(names)) == len(names)
    for row in manifest():
        assert (row.type == "counter") == row.name.endswith("_total")
        assert (row.type == "histogram") == bool(row.buckets)
        assert list(row.buckets) == sorted(set(row.buckets))
        for unit in ("seconds", "bytes", "nats", "tokens", "ratio"):
            if f"_{unit}" in row.name.removesuffix("_total") and "_per_" not in row.name:
                assert row.unit.startswith(unit) or row.unit == "nats squared", row.name
    assert len({family.vllm for family in ENGINE_FAMILIES if family.vllm}) == sum(
        family.vllm is not None for family in ENGINE_FAMILIES
    )


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_first_event_is_a_rise(start_gateway: StartGateway) -> None:
    """Counters of every configured variant stand at 0 before anything happens."""
    ladder = ["int4", "int8"]
    gateway = start_gateway(ready=False, models={"tiny": {"model": "fake", "ladder": ladder}})
    page = gateway.http.get("/metrics").text
    for variant in ladder:
        for line in (
            f'narrowgate_engine_restarts_total{{model="tiny",reason="stall",variant="{variant}"}}',
            f'narrowgate_generated_tokens_total{{model="tiny",variant="{variant}"}}',
            f'narrowgate_model_load_seconds_count{{model="tiny",recipe="{variant}"}}',
        ):
            assert f"\n{line} " in page
    assert '\nnarrowgate_shadow_dropped_total{model="tiny",reason="busy"} 0.0' in page
    for variant, outcome, finish in (
        ("int8", "ok", "stop"),
        ("int8", "client_abort", "abort"),
        ("int4", "error", "error"),
        ("_other", "shed", "error"),
    ):
        ending = f'finish_reason="{finish}",model="tiny",operation="chat",outcome="{outcome}"'
        assert f'requests_total{{{ending},variant="{variant}"}} 0.0' in page
    assert 'rejections_total{model="_other",reason="invalid_key"} 0.0' in page


def test_what_keys_ask_is_a_rise(start_gateway: StartGateway) -> None:
    """Requests and tokens of each key of the settings stand at 0, too."""
    keys = [{"name": "boss", "key": "sk-boss", "admin": True}]
    page = start_gateway(ready=False, api_keys=keys).http.get("/metrics").text
    for name in ("requests", "tokens"):
        assert f'\nnarrowgate_key_{name}_total{{key="boss"}} 0.0' in page


def test_promtool_likes_engines_too(gateway: Gateway) -> None:
    """The page passes Prometheus' linter with the engine's series on it."""
    gateway.http.post(CHAT, json=body(stream=True))
    page = gateway.http.get("/metrics").content
    assert b"narrowgate_engine_step_seconds_bucket" in page
    command = ["promtool", "check", "metrics"]
    check = subprocess.run(command, input=page, capture_output=True)
    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


def test_exemplars_lead_to_traces(gateway: Gateway) -> None:
    """A request in a kept trace leaves its id beside its buckets, in OpenMetrics alone."""
    kept, not_kept = "a" * 32, "b" * 32
    for trace, flag in ((kept, "01"), (not_kept, "00")):
        headers = {"traceparent": f"00-{trace}-{'2' * 16}-{flag}"}
        gateway.http.post(CHAT, json=body(stream=True), headers=headers)
    openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}

    def lines() -> list[str]:
        page = gateway.http.get("/metrics", headers=openmetrics).text
        return [line for line in page.splitlines() if "trace_id" in line]

    for name in ("request_duration_seconds", "time_to_first_token_seconds"):
        eventually(
            lambda name=name: any(  # type: ignore[misc]
                line.startswith(f"narrowgate_{name}_bucket") and kept in line for line in lines()
            )
        )
    assert not any(not_kept in line for line in lines())
    assert "trace_id" not in gateway.http.get("/metrics").text


def test_views_are_protected_like_the_page(start_gateway: StartGateway) -> None:
    """With ``protect_metrics`` no view is open either."""
    gateway = start_gateway(
        ready=False, protect_metrics=True, api_keys=["sk-test-0123456789abcdef"]
    )
    for path in PATHS:
        assert gateway.http.get(path).status_code == 401
