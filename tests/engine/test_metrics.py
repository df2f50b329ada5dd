"""Tests of the engine's own metrics and of their view under vLLM's names."""

import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.engine.metrics import EngineMetrics, View
from gateway.engine.pages import PAGE_TOKENS, PageSizes
from gateway.engine.scheduler import Scheduler
from gateway.engine.sequence import SamplingParams, Sequence
from gateway.metrics.engine import ENGINE_FAMILIES


def samples(metrics: EngineMetrics, view: View) -> dict[str, float]:
    """Return every sample by name and labels, without the constant ones."""
    text = metrics.render("", view)[0].decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {
                key: value
                for key, value in sample.labels.items()
                if key not in {"model", "model_name", "engine"}
            }
            found[sample.name + "".join(f"{{{k}={v}}}" for k, v in labels.items())] = sample.value
    return found


def run_some() -> EngineMetrics:
    """Let one sequence answer, one leave on the way, one wait and one run."""
    scheduler = Scheduler(max_num_sequences=2, sizes=PageSizes(total=20))
    metrics = EngineMetrics(scheduler, model="toy@int4")
    sequences = [Sequence(list(range(40)), SamplingParams(max_tokens=3)) for _ in range(4)]
    for sequence in sequences:
        scheduler.add(sequence)
        metrics.arrived(sequence)
    for step in range(4):
        work = scheduler.schedule()
        metrics.scheduled(work)
        for item in work:
            item.sequence.cache = object()
            if item.samples:
                item.sequence.output_ids.append(1)
        metrics.stepped(work, 0.01)
        if step == 1:
            scheduler.remove(sequences[1])
            metrics.ended(sequences[1], "abort")
        if step == 2:
            scheduler.remove(sequences[0])
            metrics.ended(sequences[0], "stop")
    return metrics


def test_what_happened_is_counted() -> None:
    """Counts, gauges and histograms tell the story of the steps."""
    found = samples(run_some(), "own")
    prefix = "narrowgate_engine_"
    assert found[f"{prefix}sequences_total{{finished_reason=abort}}"] == 1
    assert found[f"{prefix}sequences_total{{finished_reason=stop}}"] == 1
    assert found[f"{prefix}prompt_tokens_total"] == 80
    assert found[f"{prefix}generated_tokens_total"] == 3 + 2 + 2 + 1
    assert found[f"{prefix}sequences_running"] == 2
    assert found[f"{prefix}sequences_waiting"] == 0
    assert found[f"{prefix}time_to_first_token_seconds_count"] == 4
    assert found[f"{prefix}inter_token_latency_seconds_count"] == 4
    assert found[f"{prefix}step_seconds_sum"] == 0.04
    assert found[f"{prefix}prefix_cache_queries_total"] == 160
    assert found[f"{prefix}prefix_cache_hits_total"] == 78
    pages = found[f"{prefix}kv_cache_usage_ratio"] * found[f"{prefix}kv_cache_pages"]
    assert round(pages) == 2 * -(-42 // PAGE_TOKENS)


def test_the_view_of_vllm_has_its_names_and_the_same_numbers() -> None:
    """Families that vLLM lacks are left out; labels are vLLM's."""
    metrics = run_some()
    own, view = samples(metrics, "own"), samples(metrics, "vllm")
    for series in ENGINE_FAMILIES:
        for suffix in ("", "_sum", "_count"):
            name = f"narrowgate_engine_{series.name}{suffix}"
            if name in own and series.vllm is not None:
                assert view[f"vllm:{series.vllm}{suffix}"] == own[name]
    assert "vllm:request_success_total{finished_reason=abort}" in view
    assert not any("step_seconds" in name or "kv_cache_pages" in name for name in view)
    text = metrics.render("", "vllm")[0].decode()
    assert 'vllm:num_requests_running{engine="0",model_name="toy@int4"} 2.0' in text
    assert "# TYPE vllm:iteration_tokens_total histogram" in text
    assert "_created" not in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_own_view() -> None:
    """Names and help are as Prometheus wants them."""
    page = run_some().render("", "own")[0]
    checked = subprocess.run(
        ["promtool", "check", "metrics"],  # noqa: S607
        input=page,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout
