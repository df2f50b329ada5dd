"""The arithmetic of the peer table and its page."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engines import goals, page
from benchmarks.engines.bandwidth import floor_ms
from benchmarks.engines.checkpoints import LLAMA_1B, SMOLLM2
from benchmarks.engines.contestants import ALL, Contestant
from benchmarks.engines.measures import FIRST, LONG, MANY, ONE
from benchmarks.engines.replies import Replies
from benchmarks.engines.rounds import Entry, pick, rotated
from benchmarks.engines.stored import merged

OURS, PEER, SLOW = "narrowgate-int4", "openvino-int4", "vllm-bf16"
CODED = "narrowgate-w4-kv8"
SOURCE = {
    "command": "python -m benchmarks.engines",
    "day": "2026-01-02",
    "minutes": 12.0,
    "load_before": 0.1,
}


class Scripted:
    """An engine whose answers take what they are told to."""

    where = "HTTP"

    def __init__(self, first_s: float, last_s: float) -> None:
        self._times = first_s, last_s

    def generate(self, prompts: object, tokens: int, /) -> Replies:
        """Answer at once."""
        return Replies(*self._times, tokens, 1)

    def memory_mb(self) -> float:
        """Hold a little."""
        return 7.0


def engine(family: str, **figures: list[float | None]) -> dict[str, Any]:
    return {
        "title": family,
        "precision": "int4",
        "family": family,
        "where": "HTTP",
        "memory_mb": 200.0,
        "figures": figures,
    }


def run_results() -> dict[str, Any]:
    """Return a run of three rounds in which the second met a busy machine."""
    ours = engine(
        "narrowgate",
        one=[10.0, 40.0, 10.0],
        first=[500.0, 900.0, 500.0],
        many=[300.0, 100.0, 300.0],
        long=[13.0, None, 13.0],
    )
    peer = engine(
        "openvino",
        one=[15.0, 60.0, 15.0],
        first=[400.0, 800.0, 400.0],
        many=[200.0, 80.0, 200.0],
        long=[20.0, None, None],
    )
    coded = engine("narrowgate", one=[10.0, 10.0, 10.0], long=[14.0, 14.0, 14.0])
    slow = engine("vllm", one=[50.0, 90.0, 50.0], many=[220.0, 60.0, 220.0])
    smollm2 = {
        "bandwidth_gb_per_s": [20.0, 10.0, 20.0],
        "weights_bytes": 100_000_000,
        "rounds": 3,
        "source": SOURCE,
        "engines": {OURS: ours, CODED: coded, PEER: peer, SLOW: slow},
        "left_out": {"ctranslate2-int8": "exit code 1: no such thing"},
    }
    memory = {
        "recipe": "w4-kv8",
        "streams": 8,
        "context": 1024,
        "weights_mb": 95.0,
        "pages_mb": 60.0,
        "idle_mb": 400.0,
        "loading_peak_mb": 600.0,
        "peak_mb": 700.0,
        "source": SOURCE,
    }
    machine = {"processor": "P", "cores": 2, "memory_gb": 25.0, "versions": {"torch": "2"}}
    return {
        "machine": machine,
        "versions": {"openvino-genai": "1"},
        "models": {SMOLLM2: smollm2},
        "memory": {SMOLLM2: memory},
    }


def test_decoding_counts_from_the_first_token_and_rates_from_the_request() -> None:
    """A slow prompt does not make tokens slow, but a rate includes it."""
    replies = Replies(first_s=2.0, last_s=3.0, tokens=11, prompts=4)
    assert replies.ms_per_token == pytest.approx(100.0)
    assert replies.tokens_per_s == pytest.approx(44 / 3.0)


def test_a_floor_is_bytes_by_bandwidth() -> None:
    """95 MB at 19 GB/s take five milliseconds."""
    assert floor_ms(95_000_000, 19.0) == pytest.approx(5.0)


def test_a_ratio_is_one_of_rounds_and_not_of_bad_luck() -> None:
    """The busy round slows both, so the ratio stays; a lower time counts as better."""
    model = run_results()["models"][SMOLLM2]
    assert goals.paired(model, ONE, OURS, PEER) == pytest.approx(1.5)
    assert goals.paired(model, FIRST, OURS, PEER) == pytest.approx(0.8)
    assert goals.paired(model, LONG, OURS, PEER) == pytest.approx(20 / 13)


def test_the_fastest_peer_of_a_rate_is_the_highest_and_never_ours() -> None:
    """vLLM leads at 16 streams though it is slow alone."""
    model = run_results()["models"][SMOLLM2]
    assert goals.best(model, MANY, ours=False) == (SLOW, 220.0)
    assert goals.best(model, ONE, ours=False) == (PEER, 15.0)
    assert goals.best(model, ONE, ours=True) == (OURS, 10.0)


def test_goals_say_met_and_not_met() -> None:
    """Each verdict follows from its figure; what is missing is said to be missing."""
    found = {each.what: each for each in goals.outcomes(run_results())}
    verdicts = [each.verdict for each in found.values()]
    # Fastest peer 1.5, floor 2.0, 16 streams 1.36, first token 0.8, context 1.3, in int8 1.4,
    # memory 545 MB.
    assert verdicts == ["MET", "MET", "MET", "NOT MET", "MET", "NOT MET", "NOT MET"]
    results = run_results()
    del results["models"][SMOLLM2]["engines"][OURS], results["models"][SMOLLM2]["engines"][CODED]
    missing = goals.outcomes(results)
    assert [each.verdict for each in missing][:6] == ["not measured"] * 6


def test_the_page_has_goals_engines_floor_and_reasons() -> None:
    """Whoever reads it sees the command, each median, and why an engine is missing."""
    text = page.render(run_results())
    assert (
        "| at least 1.40 x | 1.50 x | narrowgate-int4 10.0, openvino-int4 15.0 ms/token | MET |"
        in text
    )
    assert "| **narrowgate int4** | HTTP | 10.0 (1.50) |" in text
    assert "20.0 GB/s" in text
    assert "5.0 ms a token" in text
    assert "- ctranslate2-int8: exit code 1: no such thing" in text
    assert "`python -m benchmarks.engines`, 2026-01-02, 3 rounds, 12 minutes" in text
    assert "| smollm2 | w4-kv8 | 95 | 60 | 400 | 600 | 700 |" in text


def test_a_run_leaves_other_models_figures_as_they_were(tmp_path: Path) -> None:
    """What it measured is new; figures of another machine never stand beside its own."""
    file = tmp_path / "engines.json"
    assert merged(file, run_results()) == run_results()
    file.write_text(json.dumps(run_results()), encoding="utf-8")
    fresh = run_results()
    fresh["models"] = {LLAMA_1B: {"rounds": 1}}
    fresh["memory"] = {SMOLLM2: {"peak_mb": 1.0}}
    together = merged(file, fresh)
    assert together["models"] == run_results()["models"] | {LLAMA_1B: {"rounds": 1}}
    assert together["memory"] == {SMOLLM2: {"peak_mb": 1.0}}
    fresh["machine"] = fresh["machine"] | {"processor": "Q"}
    assert merged(file, fresh) == fresh


def test_rounds_begin_with_another_engine() -> None:
    """Over three rounds of three engines each is once the first."""
    entries = [Entry(each, Scripted(1, 2)) for each in ALL[:3]]
    firsts = [rotated(entries, turn, 3)[0].contestant.name for turn in range(3)]
    assert sorted(firsts) == sorted(each.name for each in ALL[:3])


def test_engines_are_named_by_family_or_in_full() -> None:
    """A family takes all its precisions; a name that is nobody's is refused with the choice."""
    assert {each.precision for each in pick(["openvino"], ALL)} == {"int4", "int8", "fp16"}
    assert [each.name for each in pick(["llamacpp-q4_0"], ALL)] == ["llamacpp-q4_0"]
    with pytest.raises(ValueError, match="no engine openvin: use any of"):
        pick(["openvin"], ALL)


def test_names_of_engines_are_their_own() -> None:
    """Figures are kept by name, so that no two may share one."""
    assert len({each.name for each in ALL}) == len(ALL)


def test_a_measure_that_fails_leaves_the_engine_out() -> None:
    """The reason is kept, and later rounds ask no more."""
    entry = Entry(Contestant("openvino", "OpenVINO", "int4"), Scripted(0.5, 1.5))
    assert entry.measure(FIRST, [[1]]) == pytest.approx(500.0)
    entry.failed = "it broke"
    assert entry.measure(FIRST, [[1]]) is None
    assert entry.record()["figures"] == {"first": [pytest.approx(500.0), None]}


def test_a_prompt_that_would_take_too_long_is_not_sent() -> None:
    """Ten seconds for 512 tokens are 39 for 2,000, which is over the limit; two are not."""
    slow, quick = (
        Entry(each, Scripted(s, s + 1)) for each, s in zip(ALL[:2], (10.0, 2.0), strict=True)
    )
    for entry, expected in ((slow, None), (quick, pytest.approx(1e3 / 31))):
        entry.measure(FIRST, [[1]])
        assert entry.measure(LONG, [[1]]) == expected
