"""An engine that is begun before it is known what it serves: taken once, or gone."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from compression.events import OnProgress, Progress, ignore
from gateway.backends.begun import Begun
from gateway.errors import ChildFailed, LoadRefused
from gateway.launch import Launcher
from gateway.prepared import Prepared
from gateway.settings import load_settings
from gateway.specs import VariantSpec, first_loaded, make_specs
from gateway.upstream import EngineClient
from tests.gateway.harness import until

PATIENT = [sys.executable, "-c", "import sys; sys.exit('told ' + sys.stdin.readline())"]
"""An engine that waits for the name of its directory."""
PROGRESS = Progress("quantize", 0, 1, "tensors")


def client(name: str = "a@int4") -> EngineClient:
    """Return a client of an engine that never answers."""
    return EngineClient("http://127.0.0.1:9", served_name=name, read_timeout_s=1)


def specs(model: dict[str, Any] | None = None) -> tuple[VariantSpec, VariantSpec]:
    """Return the variants of a model with two rungs."""
    rungs = [{"recipe": "int4"}, {"recipe": "int8"}]
    fields = {"models": {"a": {"model": "x", "ladder": rungs, **(model or {})}}}
    first, second = make_specs(load_settings(None, fields, {}))[0].variants
    return first, second


def children() -> list[psutil.Process]:
    """Return the processes that this one has started and that still run."""
    return [each for each in psutil.Process().children() if not is_gone(each)]


def is_gone(process: psutil.Process) -> bool:
    """Return whether a process has ended; another thread may bury it at any moment."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run(work: Callable[[Begun], Awaitable[None]]) -> None:
    """Do something with an engine that was begun for the first rung."""

    async def whole() -> None:
        begun = Begun()
        await begun.begin(specs()[0], PATIENT, client())
        try:
            await work(begun)
        finally:
            await begun.close()

    before = {each.pid for each in children()}
    asyncio.run(whole())
    assert {each.pid for each in children()} <= before


def test_it_is_told_what_it_serves() -> None:
    """Whoever takes the engine tells it a directory, and then waits for it as for any other."""

    async def work(begun: Begun) -> None:
        engine = begun.take(specs()[0])
        assert engine is not None
        assert begun.take(specs()[0]) is None
        with pytest.raises(ChildFailed, match="ended with code 1 while it started: told /some"):
            await engine.serve(Path("/some"), 20)

    run(work)


def test_it_is_for_one_variant() -> None:
    """Another variant does not get it, and ends it by being loaded first."""

    async def work(begun: Begun) -> None:
        first, second = specs()
        assert begun.take(second) is None
        begun.keep_for(first)
        begun.keep_for(second)
        assert begun.take(first) is None

    run(work)


def test_one_that_has_ended_is_not_taken() -> None:
    """An engine that did not survive the waiting is started anew."""
    others = {each.pid for each in children()}

    async def work(begun: Begun) -> None:
        (child,) = (each for each in children() if each.pid not in others)
        assert begun._held is not None
        _, engine = begun._held
        child.kill()
        await until(lambda: engine.has_ended)  # another thread tells the loop so
        assert begun.take(specs()[0]) is None

    run(work)


def test_one_that_cannot_be_started_is_no_error() -> None:
    """What is wrong with it is said when it is started for good."""

    async def work() -> None:
        begun = Begun()
        await begun.begin(specs()[0], ["/no/such/program"], client())
        assert begun.take(specs()[0]) is None
        await begun.close()

    asyncio.run(work())


@pytest.mark.parametrize("ending", ["progress", "refusal"])
def test_nothing_waits_beside_a_build(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """The first sign of work, or an error, ends what was begun."""
    settings = load_settings(None, {"models": {"a": {"model": "x"}}}, {})
    spec = make_specs(settings)[0].variants[0]
    seen: list[int] = []

    async def prepare(
        spec: VariantSpec, tell: OnProgress, *, is_measured: bool, stall_s: float
    ) -> Prepared:
        seen.append(len(children()))
        if ending == "refusal":
            raise LoadRefused("no")
        tell(PROGRESS)
        return Prepared(Path("/nowhere"), None)

    async def work() -> None:
        launcher = Launcher(settings)
        monkeypatch.setattr(launcher, "_command", lambda *_: PATIENT)
        await launcher.begin()
        try:
            await launcher.prepare(spec, ignore)
        except LoadRefused:
            seen.append(-1)
        await until(lambda: len(children()) < seen[0])
        await launcher.close()

    monkeypatch.setattr("gateway.launch.prepare", prepare)
    asyncio.run(work())
    assert seen[1:] == ([-1] if ending == "refusal" else [])


@pytest.mark.parametrize(
    ("fields", "is_begun"),
    [
        ({}, True),
        ({"models": {"a": {"model": "x", "preload": False}}}, False),
        ({"models": {"a": {"model": "x", "urls": ["http://127.0.0.1:9"]}}}, False),
        ({"models": {"a": {"model": "x", "engine": "vllm"}}}, False),
        ({"models": {"a": {"model": "x", "recipe": "/no/such.yaml"}}}, False),
        ({"memory_budget": "4GB"}, False),
    ],
)
def test_only_what_will_surely_be_started_is_begun(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], is_begun: bool
) -> None:
    """Engines elsewhere, other engines, errors and models that wait for a request begin nothing."""
    settings = load_settings(None, {"models": {"a": {"model": "x"}}, **fields}, {})
    before = len(children())

    async def work() -> None:
        launcher = Launcher(settings)
        monkeypatch.setattr(launcher, "_command", lambda *_: PATIENT)
        await launcher.begin()
        assert (len(children()) > before) is is_begun
        await launcher.close()
        assert len(children()) == before

    asyncio.run(work())


def test_the_first_model_that_is_preloaded_is_loaded_first() -> None:
    """Its active rung is the one."""
    models = {
        "a": {"model": "x", "preload": False},
        "b": {"model": "x", "ladder": [{"recipe": "int4"}, {"recipe": "int8"}], "active": "int8"},
    }
    found = first_loaded(load_settings(None, {"models": models}, {}))
    assert found is not None
    assert found.served_name == "b@int8"


@pytest.mark.parametrize(("line", "code"), [("", 0), ("/no/such\n", 2)])
def test_the_real_engine_waits_for_its_directory(line: str, code: int) -> None:
    """It ends quietly when nobody needs it, and with a refusal of what it was told otherwise."""
    words = ["-m", "gateway.engine", "--model=-", "--served-model-name=x", "--port=0"]
    result = subprocess.run(
        [sys.executable, *words], input=line, capture_output=True, text=True, check=False
    )
    assert result.returncode == code
    assert ("'/no/such'" in result.stderr) is bool(line)
