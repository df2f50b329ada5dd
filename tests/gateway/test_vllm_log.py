"""The log of a starting vLLM: how far it is, and what really ended it."""

import time

import pytest

from compression.events import Progress
from gateway.backends.vllm_log import RECENT_S, VllmLog

# As vLLM 0.32 writes them; paths are shortened.
STARTING = """\
(Worker pid=26515) INFO 11-22 12:49:46 [cpu_model_runner.py:68] Starting to load model /m...
Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]
Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00,  7.09it/s]
(Worker pid=26515) INFO 11-22 12:49:47 [default_loader.py:501] Loading weights took 0.15 seconds
(EngineCore pid=26403) INFO 11-22 12:49:48 [core.py:402] init engine (profile) took 0.40 s
"""
DYING = """\
(Worker pid=29127) ERROR 11-22 12:59:35 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=29127) ERROR 11-22 12:59:35 [multiproc_executor.py:1063]   File "/site-packages/torch/_ops.py", line 1368, in __getattr__
(Worker pid=29127) ERROR 11-22 12:59:35 [multiproc_executor.py:1063]     raise AttributeError(
(Worker pid=29127) ERROR 11-22 12:59:35 [multiproc_executor.py:1063] AttributeError: '_C' object has no attribute 'cpu_gemm_wna16'
(EngineCore pid=29097) ERROR 11-22 12:59:35 [core.py:1512] EngineCore encountered a fatal error.
(EngineCore pid=29097) ERROR 11-22 12:59:35 [core.py:1512] RuntimeError: Worker failed with error 'no attribute', please check
(APIServer pid=29002) RuntimeError: Engine core initialization failed. See root cause above.
"""  # noqa: E501


def _read(text: str) -> tuple[VllmLog, list[Progress]]:
    told: list[Progress] = []
    log = VllmLog("m@int4", told.append)
    for line in text.splitlines():
        log.hear(line)
    return log, told


def test_progress() -> None:
    """Weights are counted, and each later step is told once it begins."""
    log, told = _read(STARTING)
    assert [(each.done, each.total) for each in told if each.total] == [(0, 2), (1, 2)]
    words = [each.detail.removeprefix("vLLM of m@int4: ") for each in told if not each.total]
    assert words == ["loads the weights", "has loaded the weights", "is warm"]
    assert log.cause is None


def test_the_cause_is_told_and_not_its_consequences() -> None:
    """The innermost process knows why; what others make of it says nothing."""
    log, _ = _read(STARTING + DYING)
    assert log.cause == "AttributeError: '_C' object has no attribute 'cpu_gemm_wna16'"


def test_of_a_ready_engine_only_the_last_errors_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a start or some request told long ago did not end the engine now."""
    log, _ = _read(DYING)
    log.settle()
    told = [log.cause]
    log.hear("(EngineCore pid=2) ERROR 11-22 12:00:00 [core.py:1] ValueError: new")
    told.append(log.cause)
    later = time.monotonic() + RECENT_S + 1
    monkeypatch.setattr("time.monotonic", lambda: later)
    told.append(log.cause)
    assert told == [None, "ValueError: new", None]


def test_errors_of_the_outermost_process_count_where_there_are_no_others() -> None:
    """An argument that is refused never reaches a worker."""
    line = "(APIServer pid=1) ValueError: max_model_len 9999 is too long"
    assert _read(line)[0].cause == "ValueError: max_model_len 9999 is too long"
    assert _read("ValueError: bare")[0].cause == "ValueError: bare"


def test_the_field_is_told_and_not_the_count_of_fields() -> None:
    """pydantic's head line counts; the line below it has the reason."""
    log, _ = _read(
        "(APIServer pid=1) pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
        "  Value error, max_model_len (9) is too large [type=value_error, input_value=1]\n"
        "    For further information visit https://errors.pydantic.dev/2.14/v/value_error\n"
    )
    assert log.cause == "max_model_len (9) is too large"
