"""Comparisons on demand: what is refused, how they go, end and are told, and the real process."""

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from compression.events import OnProgress, Progress
from gateway.app import Application, create_service
from gateway.backends.embedded import OVERHEAD_BYTES
from gateway.comparisons.command import CompareCommand
from gateway.comparisons.comparisons import KEPT, Comparisons
from gateway.comparisons.room import WORK_BYTES, room
from gateway.errors import LoadRefused, NoMemory
from gateway.prepared import Prepared
from gateway.settings import load_settings
from gateway.specs import VariantSpec
from tests.gateway.conftest import StartGateway
from tests.gateway.fake_launch import FakeLaunch
from tests.gateway.harness import Gateway, eventually, is_alive, until

MODELS: dict[str, Any] = {
    "tiny": {"model": "fake", "revision": "main", "ladder": ["int4", "int8", "full"]},
    "far": {"model": "fake", "urls": ["http://127.0.0.1:1"]},
    "mixed": {
        "model": "fake",
        "ladder": [
            {"recipe": "int4"},
            {"name": "other", "recipe": "int8", "model": "elsewhere"},
            {"name": "there", "urls": ["http://127.0.0.1:1"]},
        ],
    },
    "plain": {"model": "fake", "recipe": "full"},
}
BASE = OVERHEAD_BYTES + WORK_BYTES
PATH = "/admin/compare"


class Child:
    """A comparing process that ends when it is told to."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.niceness: list[int] = []
        self.report: dict[str, Any] = {"recipes": [], "odd": float("nan")}
        self.failure: Exception | None = None
        self.may_end = asyncio.Event()
        self.was_ended = False

    async def __call__(
        self, arguments: list[str], on_progress: OnProgress, *, niceness: int
    ) -> dict[str, Any]:
        """Report progress, wait, and give the report or fail."""
        self.words.append(arguments)
        self.niceness.append(niceness)
        on_progress(Progress("compare", 1, 9, "tokens", "int4 on code"))
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.was_ended = True
            raise
        if self.failure is not None:
            raise self.failure
        return {"report": self.report}


class Launch(FakeLaunch):
    """Prepares directories of known size, and notes how."""

    def __init__(self) -> None:
        super().__init__()
        self.specs: list[VariantSpec] = []

    async def prepare(self, spec: VariantSpec, on_progress: OnProgress) -> Prepared:
        """Return an artifact of 100 bytes."""
        self.specs.append(spec)
        on_progress(Progress("quantize", 1, 1, "tensors"))
        return Prepared(Path("/nowhere"), {"bytes_in_memory": 100})


@dataclasses.dataclass
class Desk:
    """A gateway in this process, its comparing child, and a client."""

    http: httpx.AsyncClient
    child: Child
    comparisons: Comparisons
    launch: Launch
    events: Callable[[], list[tuple[str, dict[str, Any]]]]
    pool: Any

    async def start(self, **fields: Any) -> httpx.Response:
        """Ask for a comparison."""
        return await self.http.post(PATH, json={"model": "tiny", **fields})

    async def ended(self, comparison_id: str) -> dict[str, Any]:
        """Return a comparison once it has ended."""
        await until(lambda: self.comparisons.find(comparison_id).state != "running")
        found: dict[str, Any] = (await self.http.get(f"{PATH}/{comparison_id}")).json()
        return found


@asynccontextmanager
async def desk(**settings: Any) -> AsyncIterator[Desk]:
    """Open a gateway whose engines are never started."""
    fields = {"models": MODELS, "shadow": {"ledger": {"path": "off"}}, **settings}
    launch, child = Launch(), Child()
    service = create_service(load_settings(None, fields, {}), launch=launch)
    comparisons = Comparisons(launch, service.pool, run=child)
    service = dataclasses.replace(service, comparisons=comparisons)
    transport = httpx.ASGITransport(Application(service))

    def events() -> list[tuple[str, dict[str, Any]]]:
        kept = service.pool.events._kept
        return [(each.kind, each.fields) for each in kept if each.kind.startswith("comparison")]

    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield Desk(http, child, comparisons, launch, events, service.pool)
    await comparisons.close()


def test_the_command_line_is_that_of_the_command() -> None:
    """Every flag has the name of its field; what nobody said is not there."""
    command = CompareCommand(
        model="m", recipe=("int4", "int8"), max_tokens=9, vllm_python=Path("p"), engine="vllm"
    )
    assert command.words() == [
        *("-m", "gateway.engine.compare", "--model=m", "--recipe=int4", "--recipe=int8"),
        *("--max-tokens=9", "--engine=vllm", "--vllm-python=p"),
    ]


def test_from_the_request_to_the_report() -> None:
    """202 and an id; progress as events; the report under the id, a number that is none as null."""

    async def use() -> None:
        async with desk() as at:
            begun = await at.start(max_tokens=40, threads=2)
            assert begun.status_code == 202
            found = begun.json()
            assert begun.headers["location"] == f"{PATH}/{found['id']}"
            assert (found["state"], found["recipes"]) == ("running", ["int4", "int8"])
            await until(lambda: bool(at.child.words))
            assert at.child.words[0][2:] == [
                *("--model=fake", "--recipe=int4", "--recipe=int8", "--revision=main"),
                *("--max-tokens=40", "--threads=2"),
            ]
            assert at.child.niceness == [19]
            running = (await at.http.get(f"{PATH}/{found['id']}")).json()
            assert running["progress"]["detail"] == "int4 on code"
            assert running["report"] is None
            at.child.may_end.set()
            done = await at.ended(found["id"])
            assert (done["state"], done["report"]) == ("done", {"recipes": [], "odd": None})
            assert done["finished"] >= done["created"]
            (listed,) = (await at.http.get(PATH)).json()["data"]
            assert (listed["id"], "report" in listed) == (found["id"], False)
            kinds = [(kind, fields.get("state")) for kind, fields in at.events()]
            assert kinds == [
                ("comparison", "running"),
                ("comparison_progress", None),
                ("comparison", "done"),
            ]
            assert not at.launch.specs  # without a budget the child alone prepares

    asyncio.run(use())


def test_progress_leaves_room_for_other_events() -> None:
    """The log of events gets it at most every 5 s, whatever the stage; who asks sees all of it."""

    async def use() -> None:
        async with desk() as at:
            now = 0.0

            async def run(arguments: list[str], on_progress: OnProgress, *, niceness: int) -> Any:
                nonlocal now
                for step in range(100):
                    on_progress(Progress(("quantize", "compare")[step % 2], step, 99, "tokens"))
                    now += 0.25
                return {"report": {"recipes": []}}

            comparisons = Comparisons(at.launch, at.pool, run=run, clock=lambda: now)
            command = CompareCommand(model="fake", recipe=("int4",))
            begun = comparisons.start("tiny", command)
            await until(lambda: begun.state != "running")
            assert begun.progress is not None
            assert begun.progress.done == 99
            told = [fields for kind, fields in at.events() if kind == "comparison_progress"]
            assert [each["done"] for each in told] == [0, 20, 40, 60, 80]

    asyncio.run(use())


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"model": "nope"}, 404, "model", "nope"),
        ({"model": "far"}, 400, "model", "'model' is 'far', whose engines are elsewhere"),
        ({"recipes": ["int6"]}, 400, "recipes", "variant of this model (int4, int8, full) or a pr"),
        ({"recipes": ["/etc/passwd.yaml"]}, 400, "recipes", "names '/etc/passwd.yaml'"),
        ({"recipes": []}, 400, "recipes", "at least 1"),
        ({"recipe": "int4"}, 400, "recipe", "not known here: use one of model, recipes, max"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"threads": 0}, 400, "threads", "greater than or equal to 1"),
        ({"model": "plain"}, 400, "recipes", 'name presets, as in "recipes": ["int8"]'),
        ({"model": "mixed", "recipes": ["other"]}, 400, "recipes", "made from another checkpoint"),
        ({"model": "mixed", "recipes": ["there"]}, 400, "recipes", "has engines elsewhere"),
    ],
)
def test_refusals(fields: dict[str, Any], status: int, param: str, words: str) -> None:
    """One error names the field, the value and the remedy; nothing is begun."""

    async def use() -> None:
        async with desk() as at:
            refused = await at.start(**fields)
            error = refused.json()["error"]
            assert (refused.status_code, error["param"]) == (status, param)
            assert words in error["message"]
            assert not at.child.words

    asyncio.run(use())


@pytest.mark.parametrize(
    ("fields", "recipes"),
    [
        ({"model": "tiny@int8"}, ["int8"]),
        ({"model": "tiny@full"}, ["full"]),
        ({"recipes": ["nf4", "int4", "nf4"]}, ["nf4", "int4"]),
        ({"model": "mixed"}, ["int4"]),
    ],
)
def test_what_is_compared(fields: dict[str, Any], recipes: list[str]) -> None:
    """A pinned variant, presets, or all variants of the same checkpoint that are made here."""

    async def use() -> None:
        async with desk() as at:
            assert (await at.start(**fields)).json()["recipes"] == recipes

    asyncio.run(use())


def test_one_at_a_time_and_its_end() -> None:
    """A second one is refused by the first one's name; DELETE ends it, and then forgets it."""

    async def use() -> None:
        async with desk() as at:
            first = (await at.start()).json()["id"]
            refused = await at.start()
            assert refused.status_code == 409
            error = refused.json()["error"]
            assert error["code"] == "comparison_running"
            assert f"{first} of tiny is running" in error["message"]
            ended = (await at.http.delete(f"{PATH}/{first}")).json()
            assert ended["state"] == "ended"
            second = (await at.start()).json()["id"]
            await until(lambda: bool(at.child.words))
            assert (await at.http.delete(f"{PATH}/{second}")).json()["state"] == "ended"
            assert at.child.was_ended
            assert (await at.http.get(f"{PATH}/{second}")).json()["state"] == "ended"
            assert (await at.http.delete(f"{PATH}/{second}")).status_code == 200
            for answer in (
                await at.http.get(f"{PATH}/{second}"),
                await at.http.delete(f"{PATH}/x"),
            ):
                assert answer.status_code == 404
            at.pool.drain()
            assert (await at.start()).json()["error"]["code"] == "draining"

    asyncio.run(use())


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (LoadRefused("no model 'fake': name one that exists"), "no model 'fake'"),
        (ZeroDivisionError("secret"), "internal error: see the server's log"),
    ],
)
def test_failures_are_told(failure: Exception, words: str) -> None:
    """The child's refusal in its own words, a defect without them; the next one may begin."""

    async def use() -> None:
        async with desk() as at:
            at.child.failure = failure
            at.child.may_end.set()
            found = await at.ended((await at.start()).json()["id"])
            assert found["state"] == "failed"
            assert words in found["error"]
            assert "secret" not in str(at.events())
            assert (await at.start()).status_code == 202

    asyncio.run(use())


def test_the_last_ones_are_remembered() -> None:
    """Older ones are forgotten, the latest is listed first."""

    async def use() -> None:
        async with desk() as at:
            at.child.may_end.set()
            ids = []
            for _ in range(KEPT + 2):
                ids.append((await at.start()).json()["id"])
                await until(lambda: at.comparisons.find(ids[-1]).state == "done")
            listed = [each["id"] for each in (await at.http.get(PATH)).json()["data"]]
            assert listed == ids[: -KEPT - 1 : -1]

    asyncio.run(use())


def test_memory_is_held_of_the_budget() -> None:
    """As much as the child is told it may take; engines get the rest; it is free again after."""

    async def use() -> None:
        async with desk(memory_budget=BASE + 350) as at:
            begun = (await at.start()).json()
            await until(lambda: bool(at.child.words))
            assert at.child.words[0][-1] == "--memory=200"
            held = (await at.http.get(f"{PATH}/{begun['id']}")).json()["memory_bytes"]
            assert held == BASE + 300
            assert at.pool.unused_bytes() == 50
            assert [(each.settings.recipe, each.niceness) for each in at.launch.specs] == [
                ("full", 19),
                ("int4", 19),
                ("int8", 19),
            ]
            memory = at.pool._memory
            with pytest.raises(NoMemory, match="50 of the memory budget are free"):
                memory.hold(51, "x").__enter__()
            waiting = asyncio.create_task(memory.make_room(at.pool._roster.variant("tiny"), 100))
            await asyncio.sleep(0)
            assert not waiting.done()
            at.child.may_end.set()
            await waiting  # woken by the end of the comparison
            assert (await at.ended(begun["id"]))["state"] == "done"
            assert at.pool.unused_bytes() == BASE + 250

    asyncio.run(use())


def test_without_room_there_is_no_comparison() -> None:
    """At once where nothing could fit; once the sizes are known where these do not."""

    async def use() -> None:
        async with desk(memory_budget=BASE - 1) as at:
            refused = await at.start()
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "insufficient_memory"
            assert not (await at.http.get(PATH)).json()["data"]
        async with desk(memory_budget=BASE + 199) as at:
            found = await at.ended((await at.start()).json()["id"])
            assert found["state"] == "failed"
            assert f"needs {BASE + 200} bytes, and {BASE + 199} of the" in found["error"]
            assert not at.child.words
            assert at.pool.unused_bytes() == BASE + 199

    asyncio.run(use())


def test_recipes_take_turns_where_they_must() -> None:
    """Room for all of them, or else for the largest."""
    full, small, large = (
        Prepared(Path("/nowhere"), {"bytes_in_memory": size}) for size in (1000, 100, 300)
    )
    assert dataclasses.astuple(room(full, [small, large], BASE + 1400)) == (BASE + 1400, 400)
    assert dataclasses.astuple(room(full, [small, large], BASE + 1399)) == (BASE + 1300, 300)


def comparing(gateway: Gateway) -> list[psutil.Process]:
    """Return the comparing processes of a gateway."""
    found = []
    for child in psutil.Process(gateway.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "gateway.engine.compare" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_the_real_process(start_gateway: StartGateway, tiny_llama_dir: Path) -> None:
    """It is nice and reports as the command does; DELETE ends it, as the gateway's end does."""
    gateway = start_gateway(models={"tiny": {"model": str(tiny_llama_dir), "recipe": "int8"}})
    begun = gateway.http.post(PATH, json={"model": "tiny", "max_tokens": 40}).json()
    where = f"{PATH}/{begun['id']}"
    (child,) = eventually(lambda: comparing(gateway))
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == 19
    eventually(lambda: gateway.http.get(where).json()["state"] != "running", 240)
    found = gateway.http.get(where).json()
    assert (found["state"], found["error"]) == ("done", None)
    report = found["report"]
    assert report["command"].startswith(f"narrowgate compare --model={tiny_llama_dir}")
    (recipe,) = report["recipes"]
    assert recipe["recipe"] == "int8"
    assert 0 < recipe["all"]["kld_mean"] < 1
    assert recipe["bytes"] < recipe["bytes_full"]

    again = gateway.http.post(PATH, json={"model": "tiny"}).json()
    (child,) = eventually(lambda: comparing(gateway))
    assert gateway.http.delete(f"{PATH}/{again['id']}").json()["state"] == "ended"
    assert not is_alive(child.pid)

    last = gateway.http.post(PATH, json={"model": "tiny"}).json()
    (child,) = eventually(lambda: comparing(gateway))
    with gateway.stream({"tokens": 1000, "pace_s": 0.02}) as stream:
        events = stream.iter_raw()
        next(events)
        gateway.process.terminate()
        eventually(lambda: f"{last['id']} of tiny is ended" in gateway.log)
        assert not is_alive(child.pid)
        assert gateway.process.poll() is None  # a request still runs
        gateway.process.terminate()
        assert gateway.process.wait(30) == 0
    assert "Traceback" not in gateway.log
