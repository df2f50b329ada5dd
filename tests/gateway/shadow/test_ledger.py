"""The ledger: what goes in comes out as figures, old rows go, and damage costs only the past."""

import asyncio
import math
import sqlite3
import time
from pathlib import Path

import pytest

from gateway.errors import SettingsError, StartupError
from gateway.shadow.ledger import Ledger, LedgerRules
from gateway.shadow.ledger_entry import LedgerEntry
from gateway.shadow.ledger_file import LedgerFile, Window, read_aggregates
from gateway.shadow.slices import ALL, by_slice, places_of
from gateway.shadow_settings import Estimator

NOW = time.time()


def entry(
    divergences: list[float],
    *,
    at: float = NOW,
    variant: str = "int4",
    domain: str = "prose",
    estimator: Estimator = "topk",
) -> LedgerEntry:
    """Return the entry of a request with these divergences, the reference agreeing below 0.1."""
    agreeing = [each < 0.1 for each in divergences]
    slices = by_slice(
        places_of([ALL, f"domain:{domain}"], len(divergences)),
        divergences=divergences,
        agreeing=agreeing,
        delta_nlls=[each / 2 for each in divergences],
    )
    first = agreeing.index(False) if False in agreeing else None
    return LedgerEntry(
        at, "r-1", "chat", variant, "abc", "def", estimator, slices, max(divergences), first
    )


def test_what_goes_in_comes_out_as_figures(tmp_path: Path) -> None:
    """Means over requests and over tokens, agreement and extremes are right, slice by slice."""
    file = LedgerFile(tmp_path / "ledger.sqlite")
    file.write([entry([0.1, 0.3]), entry([0.02] * 6), entry([0.2] * 70, domain="code")])
    found = {each.slice: each for each in file.aggregates(Window())}
    file.close()
    assert set(found) == {ALL, "domain:prose", "domain:code", "position:0-63", "position:64-255"}
    prose = found["domain:prose"]
    assert (prose.num_requests, prose.num_tokens, prose.num_broken) == (2, 8, 0)
    assert prose.mean_divergence == pytest.approx(0.11)
    assert prose.standard_error == pytest.approx(0.09)
    assert prose.token_divergence == pytest.approx((0.4 + 0.12) / 8)
    assert prose.max_divergence == pytest.approx(0.3)
    assert prose.agreement == pytest.approx(6 / 8)
    assert prose.delta_nll == pytest.approx((0.2 + 0.06) / 8)
    assert found["position:64-255"].num_tokens == 6
    assert found[ALL].num_tokens == 78
    assert found["domain:code"].standard_error is None


def test_numbers_that_are_none_are_counted_apart(tmp_path: Path) -> None:
    """A broken request neither spoils a mean nor vanishes."""
    file = LedgerFile(tmp_path / "ledger.sqlite")
    file.write([entry([0.1]), entry([math.nan, 0.1]), entry([math.inf])])
    found = {each.slice: each for each in file.aggregates(Window())}[ALL]
    file.write([entry([math.nan], variant="broken")])
    (broken, *_) = file.aggregates(Window(variant="broken"))
    file.close()
    assert (found.num_requests, found.num_broken) == (3, 2)
    assert found.mean_divergence == pytest.approx(0.1)
    assert found.token_divergence == pytest.approx(0.1)
    assert (broken.mean_divergence, broken.token_divergence, broken.delta_nll) == (None,) * 3


def test_windows_and_estimators_are_kept_apart(tmp_path: Path) -> None:
    """A window has its first moment and not its last; exact and top-k figures never mix."""
    file = LedgerFile(tmp_path / "ledger.sqlite")
    file.write([entry([0.1], at=at) for at in (10.0, 20.0, 30.0)])
    file.write([entry([0.5], at=20.0, estimator="exact"), entry([0.7], at=20.0, variant="int8")])
    found = [each for each in file.aggregates(Window(since=10, until=30)) if each.slice == ALL]
    file.close()
    assert [(each.variant, each.estimator, each.num_requests) for each in found] == [
        ("int4", "exact", 1),
        ("int4", "topk", 2),
        ("int8", "topk", 1),
    ]
    assert (found[1].first, found[1].last) == (10.0, 20.0)


def test_old_rows_go(tmp_path: Path) -> None:
    """Beyond the age and beyond the number, the oldest are forgotten."""
    file = LedgerFile(tmp_path / "ledger.sqlite")
    file.write([entry([0.1], at=float(at)) for at in range(100)])
    file.forget(before=10, max_rows=1000)
    assert file.aggregates(Window())[0].num_requests == 90
    file.forget(before=0, max_rows=30)
    (found, *_) = file.aggregates(Window())
    file.close()
    assert (found.num_requests, found.first) == (30, 70.0)


def test_no_text_is_in_the_file(tmp_path: Path) -> None:
    """The columns are these, and only names and digests among them are words."""
    path = tmp_path / "ledger.sqlite"
    file = LedgerFile(path)
    file.write([entry([0.1])])
    file.close()
    connection = sqlite3.connect(path)
    tables = ("sources", "slices", "requests", "scores", "monitors")
    rows = [row for each in tables for row in connection.execute(f"SELECT * FROM {each}")]  # noqa: S608
    connection.close()
    words = {value for row in rows for value in row if not isinstance(value, (int, float))}
    slices = {ALL, "domain:prose", "position:0-63"}
    assert words - {None} == {"r-1", "chat", "int4", "abc", "def", "topk"} | slices


def test_batches_are_written_while_others_read(tmp_path: Path) -> None:
    """What was added is soon in the file, where a second process can read it."""

    async def main() -> None:
        path = tmp_path / "new" / "ledger.sqlite"
        ledger = Ledger(path, LedgerRules(batch_s=0.01))
        writing = asyncio.create_task(ledger.run())
        for _ in range(50):
            ledger.add(entry([0.1]))
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            while not read_aggregates(path, Window()):  # noqa: ASYNC110 - another process gets no event
                await asyncio.sleep(0.01)
        assert read_aggregates(path, Window())[0].num_requests == 50
        ledger.add(entry([0.1]))
        assert (await ledger.aggregates(Window()))[0].num_requests == 51
        writing.cancel()
        await ledger.close()
        assert read_aggregates(path, Window())[0].num_requests == 51
        assert ledger.num_lost == 0

    asyncio.run(main())


def test_states_survive(tmp_path: Path) -> None:
    """What monitors know is there after a restart, the last version of it."""

    async def main() -> None:
        path = tmp_path / "ledger.sqlite"
        ledger = Ledger(path)
        await ledger.keep_states({"chat@int4": {"version": 1}, "chat@int8": {"a": [0.1]}})
        await ledger.keep_states({"chat@int4": {"version": 2}})
        await ledger.close()
        ledger = Ledger(path)
        assert await ledger.states() == {"chat@int4": {"version": 2}, "chat@int8": {"a": [0.1]}}
        await ledger.close()

    asyncio.run(main())


def test_retention_works_by_itself(tmp_path: Path) -> None:
    """A service that never looks, and is never asked, keeps its file within bounds."""

    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite", LedgerRules(max_rows=10, clean_s=0.01))
        for _ in range(30):
            ledger.add(entry([0.1]))
        assert (await ledger.aggregates(Window()))[0].num_requests == 30
        running = asyncio.create_task(ledger.run())
        async with asyncio.timeout(5):
            while (await ledger.aggregates(Window()))[0].num_requests > 10:  # noqa: ASYNC110 - a timer tells nobody
                await asyncio.sleep(0.005)
            # What is kept becomes too old while nothing comes in.
            ledger._rules = LedgerRules(max_age_s=1e-9, clean_s=0.01)
            while await ledger.aggregates(Window()):  # noqa: ASYNC110 - a timer tells nobody
                await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await ledger.close()

    asyncio.run(main())


def test_a_newer_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    """What a newer program wrote is not damage: one line names file, formats and remedy."""
    path = tmp_path / "ledger.sqlite"
    LedgerFile(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    before = path.read_bytes()
    words = "it has format 9, and this program knows formats up to 1: use the program that wrote"
    with pytest.raises(SettingsError) as refused:
        Ledger(path)
    line = str(refused.value)
    assert str(path) in line
    assert words in line
    assert "'shadow.ledger.path'" in line
    assert "\n" not in line
    with pytest.raises(StartupError, match=words):
        read_aggregates(path, Window())
    assert not list(tmp_path.glob("*.damaged-*"))
    assert path.read_bytes() == before


def test_two_services_do_not_share_a_file(tmp_path: Path) -> None:
    """The second one is refused at its start; the file is free once the first has closed it."""

    async def main() -> None:
        path = tmp_path / "ledger.sqlite"
        first = Ledger(path)
        with pytest.raises(SettingsError, match=r"ledger\.sqlite' is written by another service"):
            Ledger(path)
        first.add(entry([0.1]))
        assert (await first.aggregates(Window()))[0].num_requests == 1
        assert read_aggregates(path, Window())[0].num_requests == 1
        await first.close()
        await Ledger(path).close()

    asyncio.run(main())


@pytest.mark.parametrize("damage", ["from the start", "an older format"])
def test_a_damaged_file_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """A file that is no ledger is kept under another name, one line says so, and all goes on."""

    path = tmp_path / "ledger.sqlite"
    if damage == "from the start":
        path.write_bytes(b"this was never a database, but it is long enough for one" * 100)
    else:
        LedgerFile(path).close()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 0")
        connection.close()
    before = path.read_bytes()

    async def main() -> None:
        ledger = Ledger(path)
        ledger.add(entry([0.1]))
        assert (await ledger.aggregates(Window()))[0].num_requests == 1
        await ledger.close()

    asyncio.run(main())
    (aside,) = tmp_path.glob("ledger.sqlite.damaged-*")
    assert aside.read_bytes() == before
    (line,) = caplog.messages
    assert "is damaged" in line
    assert aside.name in line


def test_damage_while_it_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that breaks under the service is replaced too, and later entries are kept."""

    async def main() -> None:
        path = tmp_path / "ledger.sqlite"
        ledger = Ledger(path)
        for _ in range(300):
            ledger.add(entry([0.1] * 300))
        await ledger.flush()
        await ledger.close()
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(8192)
            file.write(b"\xff" * (size - 8192))
        ledger = Ledger(path)
        assert await ledger.aggregates(Window()) == []
        ledger.add(entry([0.1]))
        assert (await ledger.aggregates(Window()))[0].num_requests == 1
        await ledger.close()
        assert [message for message in caplog.messages if "is damaged" in message]

    asyncio.run(main())


def test_what_cannot_be_written_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk costs entries, not the service, and is told once."""

    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.sqlite", LedgerRules(max_waiting=5))
        for _ in range(7):
            ledger.add(entry([0.1]))
        assert ledger.num_lost == 2
        await ledger.flush()
        limit = sqlite3.connect(tmp_path / "ledger.sqlite")
        limit.execute("BEGIN EXCLUSIVE")  # stands for any reason why nothing can be written
        ledger._file._connection.execute("PRAGMA busy_timeout = 1")  # type: ignore[union-attr]
        for _ in range(2):
            ledger.add(entry([0.1]))
            await ledger.flush()
        assert ledger.num_lost == 4
        limit.close()
        assert len(caplog.messages) == 1
        assert "cannot be used now: database is locked" in caplog.messages[0]
        assert (await ledger.aggregates(Window()))[0].num_requests == 5
        await ledger.close()

    asyncio.run(main())


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    """A place that cannot hold a ledger, or holds none, is one clear line."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(SettingsError, match="name another file"):
        Ledger(tmp_path / "file" / "ledger.sqlite")
    with pytest.raises(SettingsError, match="name another file"):
        Ledger(tmp_path)
    connection = sqlite3.connect(tmp_path / "theirs.sqlite")
    connection.execute("CREATE TABLE precious (thing TEXT)")
    connection.close()
    with pytest.raises(SettingsError, match="the database of another program"):
        Ledger(tmp_path / "theirs.sqlite")
    left = sorted(each.name for each in tmp_path.iterdir() if each.suffix != ".lock")
    assert left == ["file", "theirs.sqlite"]
    with pytest.raises(StartupError, match="no ledger"):
        read_aggregates(tmp_path / "nothing", Window())
    with pytest.raises(StartupError, match="cannot be read"):
        read_aggregates(tmp_path / "file", Window())
    with pytest.raises(SettingsError, match="'max_rows' is 0"):
        LedgerRules(max_rows=0)


def test_a_hundred_thousand_rows_are_summed_quickly(tmp_path: Path) -> None:
    """Figures of 10,000 requests with ten slices each come within two seconds."""
    file = LedgerFile(tmp_path / "ledger.sqlite")
    names = [ALL, *(f"own:{number}" for number in range(8))]
    slices = by_slice(places_of(names, 1), divergences=[0.1], agreeing=[True], delta_nlls=[0.0])
    one = entry([0.1])
    many = LedgerEntry(NOW, "r", "chat", "int4", "a", "b", "topk", slices, one.max_divergence, None)
    file.write([many] * 10_000)
    started = time.perf_counter()
    found = file.aggregates(Window())
    assert time.perf_counter() - started < 2
    file.close()
    assert {each.num_requests for each in found} == {10_000}
