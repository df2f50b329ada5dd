"""Exact scores: one engine keeps what it served, another compares the whole distributions."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import httpx
import orjson
import pytest
import torch

from compression.events import ignore
from compression.fidelity import TokenScores, score_tokens
from compression.prepare import build_to
from gateway.capture import MAX_ROWS_WAIT_S, ROWS_HEADER, Wish, headers_of
from gateway.engine import captures, row_feed
from gateway.engine.captures import Captures
from gateway.engine.runner import load_runner
from gateway.engine.scoring import divergences
from gateway.engine.tokenizer import load_tokenizer
from gateway.errors import EngineRefused
from gateway.score import RowsAt
from gateway.shadow.divergence import Divergence, compare
from gateway.shadow.embedded_capture import EmbeddedCapture, WholeRows
from gateway.shadow.embedded_scorer import EmbeddedScorer, RowsLost
from gateway.shadow.exact import reading
from gateway.shadow.records import Captured
from gateway.shadow.releases import Releases
from gateway.upstream import EngineClient
from tests.engine.fakes import MODEL, RunningEngine, body, post, running_engine, wait_until

MIB = 1024 * 1024
CHUNK = 128
"""Tokens that a reference reads in a step."""


@pytest.fixture(scope="module")
def served(
    tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEngine]:
    """Serve a tiny random model in int4."""
    directory = tmp_path_factory.mktemp("built") / "int4"
    built = build_to(str(tiny_llama_dir), "int4", None, directory, ignore).directory
    runner = load_runner(built, threads=1, max_model_len=None)
    with running_engine(runner, load_tokenizer(built), row_bytes=MIB) as engine:
        yield engine


@pytest.fixture(scope="module")
def full(tiny_llama_dir: Path) -> Iterator[RunningEngine]:
    """Serve the full model as a reference is served, its sums exact on every processor."""
    runner = load_runner(tiny_llama_dir, threads=1, max_model_len=None, reads_in_float32=True)
    tokenizer = load_tokenizer(tiny_llama_dir)
    with running_engine(runner, tokenizer, token_budget=CHUNK, fetches_rows=True) as engine:
        yield engine


def client_of(engine: RunningEngine) -> EngineClient:
    """Return the gateway's client of an engine."""
    return EngineClient(engine.url, served_name=MODEL, read_timeout_s=30)


async def serve(client: EngineClient, capture: EmbeddedCapture, count: int) -> Captured:
    """Ask for so many tokens, as the gateway does for a drawn request; return what was captured."""
    fields = body(max_tokens=count, ignore_eos=True, temperature=0.8, seed=3)
    path = "/v1/chat/completions"
    async with client.generate(path, capture.fields(fields), "r", capture.headers()) as reply:
        orjson.loads(await reply.body())
    captured = await capture.result(client)
    assert captured is not None
    assert len(captured.positions) == count
    return captured


async def exact(
    served: RunningEngine, full: RunningEngine, count: int, chunk_positions: int
) -> tuple[Captured, Divergence]:
    """Return an answer and its score; afterwards nothing of it is kept."""
    client, reference = client_of(served), client_of(full)
    releases = Releases()
    capture = EmbeddedCapture(8, WholeRows(200, releases))
    captured = await serve(client, capture, count)
    scorer = EmbeddedScorer(reference, chunk_positions=chunk_positions)
    scored = await reading(scorer, captured)
    capture.forget(client)
    wait = asyncio.gather(*releases._tasks)
    await wait
    await client.aclose()
    await reference.aclose()
    return captured, compare(captured.positions, scored)


def offline(served: RunningEngine, full: RunningEngine, captured: Captured) -> TokenScores:
    """Return the comparison of the same tokens by the code of ``narrowgate compare``."""
    answer = [position.token_id for position in captured.positions]
    prompt = list(captured.prompt_token_ids)
    ids = prompt + answer
    runner = served.runner
    cache = runner.new_cache(len(ids))
    rows = [runner.forward([(cache, prompt, 1)])]
    rows += [runner.forward([(cache, [token], 1)]) for token in answer[:-1]]
    cache = full.runner.new_cache(len(ids))
    found = []
    for start in range(0, len(ids) - 1, CHUNK):
        part = ids[:-1][start : start + CHUNK]
        wanted = min(len(part), start + len(part) - len(prompt) + 1)
        found.append(full.runner.forward([(cache, part, wanted)]))
    return score_tokens(torch.cat(found), torch.cat(rows), answer)


@pytest.mark.parametrize(("count", "chunk_positions"), [(1, 1024), (150, 1024), (150, 50)])
def test_an_exact_score_is_that_of_the_offline_comparison(
    served: RunningEngine, full: RunningEngine, count: int, chunk_positions: int
) -> None:
    """Position by position to 2e-6 nats, also over several steps and chunks; top-k says less."""
    captured, found = asyncio.run(exact(served, full, count, chunk_positions))
    expected = offline(served, full, captured)
    assert found.estimator == "exact"
    assert found.kl == pytest.approx(expected.kld.tolist(), abs=2e-6)
    assert all(bound <= kl + 1e-6 for bound, kl in zip(found.bound, found.kl, strict=True))
    assert 0 < found.mean_bound < found.mean_kl
    assert fmean(found.kl) > 1e-4  # int4 moves this model
    assert served.service.captures.row_budget.used == 0


def test_the_bound_holds_where_a_token_is_impossible() -> None:
    """A token that only one side knows costs a hundred nats at most, and equal rows nothing."""
    rows = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    rows[:, 3] = float("-inf")
    assert divergences(rows.clone(), rows.clone()) == [0, 0]
    damaged = rows.clone()
    damaged[0, 0] = float("-inf")
    found = divergences(rows.clone(), damaged)
    assert 0 < found[0] < 101
    assert found[1] == 0


async def ask(engine: RunningEngine, wish: Wish, count: int) -> bytes | None:
    """Have an answer captured; return what is told of it."""
    client = client_of(engine)
    fields = body(max_tokens=count, ignore_eos=True)
    async with client.generate("/v1/chat/completions", fields, "r", headers_of(wish)) as reply:
        await reply.body()
    found = await client.take_capture(wish.capture_id)
    await client.aclose()
    return found


def num_rows(raw: bytes | None) -> int | None:
    """Return how many rows a capture says are kept."""
    assert raw is not None
    found: int | None = orjson.loads(raw)["num_rows"]
    return found


def test_rows_are_given_up_as_soon_as_they_cannot_be_whole(served: RunningEngine) -> None:
    """An answer that gets too long, or finds no room, keeps nothing; those before it stay."""
    budget = served.service.captures.row_budget
    row_bytes = 4 * served.service.limits.vocab_size
    assert budget.total // row_bytes > 150
    long, first, second = (Wish(f"{number:032x}", 2, num) for number, num in enumerate((9, 99, 99)))
    assert num_rows(asyncio.run(ask(served, long, 10))) is None
    assert budget.used == 0
    assert num_rows(asyncio.run(ask(served, first, 9))) == 9
    taken = budget.total - budget.used - 5 * row_bytes
    assert budget.take(taken)
    assert num_rows(asyncio.run(ask(served, second, 9))) is None
    assert budget.used == taken + 9 * row_bytes
    budget.give_back(taken)

    found = httpx.get(f"{served.url}/engine/capture/{first.capture_id}/rows?start=2&stop=9")
    assert len(found.raise_for_status().content) == 7 * row_bytes
    for query in ("start=2&stop=10", "start=3&stop=3", "start=9&stop=4"):
        url = f"{served.url}/engine/capture/{first.capture_id}/rows?{query}"
        assert httpx.get(url).status_code == 404
    refused = httpx.get(f"{served.url}/engine/capture/{first.capture_id}/rows?start=-1&stop=x")
    assert refused.json()["error"]["param"] == "start"
    assert httpx.delete(f"{served.url}/engine/capture/{first.capture_id}").status_code == 204
    assert budget.used == 0


def test_nobody_needs_to_come_for_rows() -> None:
    """They grow old with their answer, or some time after its numbers were told."""
    now = [0.0]
    store = Captures(row_bytes=1024, vocab_size=4, clock=lambda: now[0])
    for capture_id in ("left", "told"):
        rows = store.open(Wish(capture_id, 1, 8), [1], max_tokens=5).rows
        assert rows is not None
        rows.take(torch.zeros(4))
    assert store.pop("told") is not None
    assert store.row_budget.used == 32
    now[0] = captures.MAX_AGE_S + 1
    store.forget_old()
    assert (store.rows("left", 0, 1), store.row_budget.used) == (None, 16)
    assert store.rows("told", 0, 1) is not None
    now[0] = MAX_ROWS_WAIT_S + 1
    store.forget_old()
    assert (store.rows("told", 0, 1), store.row_budget.used) == (None, 0)


def test_an_answer_that_is_left_keeps_no_rows(served: RunningEngine) -> None:
    """Its client hangs up in the middle, and the gateway says the word."""

    async def leave() -> None:
        client = client_of(served)
        releases = Releases()
        capture = EmbeddedCapture(2, WholeRows(200, releases))
        fields = body(max_tokens=200, ignore_eos=True, stream=True)
        path = "/v1/chat/completions"
        async with client.generate(path, fields, "r", capture.headers()) as reply:
            await reply.read()
        assert served.service.captures.row_budget.used > 0
        capture.forget(client)
        await asyncio.gather(*releases._tasks)
        await client.aclose()

    asyncio.run(leave())
    wait_until(lambda: served.service.loop.num_unfinished == 0)
    assert served.service.captures.row_budget.used == 0


class Keeper:
    """Keeps nothing, or holds its tongue, or gives some rows and then nothing more."""

    def __init__(self, num_rows: int, vocab_size: int, *, is_silent: bool) -> None:
        self.num_given = 0
        self.is_asked = asyncio.Event()
        self._num_rows = num_rows
        self._vocab_size = vocab_size
        self._is_silent = is_silent

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                while (await reader.readline()).strip():
                    pass
                self.is_asked.set()
                query = line.split()[1].decode().partition("?")[2].split("&")
                start, stop = (int(part.partition("=")[2]) for part in query)
                if stop <= self._num_rows:
                    raw = bytes(4 * self._vocab_size * (stop - start))
                    self.num_given += stop - start
                    head = b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n" % len(raw)
                    writer.write(head + raw)
                elif self._is_silent:
                    await reader.read()
                else:
                    writer.write(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n")
        finally:
            writer.close()


def test_rows_that_do_not_come_end_the_score_alone(
    full: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone or silent in the middle: the reference says so, frees all, and scores the next text."""
    monkeypatch.setattr(row_feed, "_TIMEOUT_S", 0.2)
    vocab_size = full.service.limits.vocab_size

    async def score(keeper: Keeper, count: int) -> None:
        async with await asyncio.start_server(keeper, "127.0.0.1", 0) as server:
            where = RowsAt(port=server.sockets[0].getsockname()[1], capture_id="0" * 32)
            client = client_of(full)
            ids = [5] * (count + 1)
            asked = [[5]] * count
            try:
                await EmbeddedScorer(client).score_exactly(ids, 1, asked, where)
            finally:
                await client.aclose()

    for is_silent in (False, True):
        keeper = Keeper(160, vocab_size, is_silent=is_silent)
        with pytest.raises(RowsLost, match="rows"):
            asyncio.run(score(keeper, 200))
        assert keeper.num_given == 160
        wait_until(lambda: full.service.loop.num_unfinished == 0)
        assert full.service.loop._scheduler.num_held_pages == 0
    asyncio.run(score(Keeper(200, vocab_size, is_silent=False), 200))


def where_of(server: asyncio.Server) -> RowsAt:
    """Return an answer that a server is to keep."""
    return RowsAt(port=server.sockets[0].getsockname()[1], capture_id="0" * 32)


def test_only_an_engine_that_was_started_for_it_fetches(served: RunningEngine) -> None:
    """Another one says so in one line, and opens no connection."""

    async def score() -> None:
        keeper = Keeper(5, served.service.limits.vocab_size, is_silent=False)
        async with await asyncio.start_server(keeper, "127.0.0.1", 0) as server:
            client = client_of(served)
            with pytest.raises(EngineRefused, match="'rows' is not taken here"):
                await EmbeddedScorer(client).score_exactly([5] * 6, 1, [[5]] * 5, where_of(server))
            await client.aclose()
        assert not keeper.is_asked.is_set()

    asyncio.run(score())


class Stranger:
    """Answers with a head, then with the same bytes again and again until nobody reads."""

    def __init__(self, head: bytes, each: bytes, *, every_s: float) -> None:
        self.num_sent = 0
        self.is_left = asyncio.Event()
        self._head = head
        self._each = each
        self._every_s = every_s

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + self._head + b"\r\n\r\n")
        try:
            while not reader.at_eof():
                writer.write(self._each)
                self.num_sent += len(self._each)
                await writer.drain()
                await asyncio.sleep(self._every_s)
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.is_left.set()


@pytest.mark.parametrize(
    ("head", "each", "every_s"),
    [
        (b"200 X", b"x" * 65536, 0.0),  # no end, and far more than was asked for
        (b"200 X", b"x", 0.02),  # never silent, never done
        (b"422 X\r\ncontent-type: application/json", b'{"message": "SECRET"}', 0.0),
        (b"200 X\r\ncontent-length: 6", b"SECRET", 0.01),
    ],
)
def test_nothing_of_what_a_stranger_says_goes_on(
    full: RunningEngine, monkeypatch: pytest.MonkeyPatch, head: bytes, each: bytes, every_s: float
) -> None:
    """Not its words, not more bytes than rows have, and not for longer than the deadline."""
    monkeypatch.setattr(row_feed, "_DEADLINE_S", 0.5)

    async def score() -> None:
        stranger = Stranger(head, each, every_s=every_s)
        async with await asyncio.start_server(stranger, "127.0.0.1", 0) as server:
            client = client_of(full)
            with pytest.raises(RowsLost) as caught:
                async with asyncio.timeout(30):
                    await EmbeddedScorer(client).score_exactly(
                        [5] * 6, 1, [[5]] * 5, where_of(server)
                    )
            await client.aclose()
            async with asyncio.timeout(30):
                await stranger.is_left.wait()
        assert str(caught.value).startswith("'rows' cannot be read: name an answer that")
        assert "SECRET" not in str(caught.value)
        # What lies in the sockets between the two.
        assert stranger.num_sent < 32 * MIB

    asyncio.run(score())
    wait_until(lambda: full.service.loop.num_unfinished == 0)


def test_a_gateway_that_leaves_ends_a_score_that_waits(full: RunningEngine) -> None:
    """While rows are waited for nothing is computed, and nothing is left of it."""
    keeper = Keeper(0, full.service.limits.vocab_size, is_silent=True)

    async def leave() -> None:
        async with await asyncio.start_server(keeper, "127.0.0.1", 0) as server:
            where = RowsAt(port=server.sockets[0].getsockname()[1], capture_id="0" * 32)
            client = client_of(full)
            scorer = EmbeddedScorer(client)
            work = asyncio.ensure_future(scorer.score_exactly([5] * 40, 1, [[5]] * 39, where))
            await keeper.is_asked.wait()
            # Others are answered meanwhile: the step thread waits for nobody.
            reply = await asyncio.to_thread(post, full, body(max_tokens=2))
            assert reply.status_code == 200
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await client.aclose()

    asyncio.run(leave())
    wait_until(lambda: full.service.loop.num_unfinished == 0)
    assert full.service.loop._scheduler.num_held_pages == 0


@pytest.mark.parametrize(
    ("headers", "words"),
    [({ROWS_HEADER: "0"}, "a number from 1 to"), ({ROWS_HEADER: "x"}, "is 'x'")],
)
def test_bad_headers(served: RunningEngine, headers: dict[str, str], words: str) -> None:
    """One error that names the header, its value and the remedy."""
    asked = headers_of(Wish("0" * 32, 2)) | headers
    url = f"{served.url}/v1/chat/completions"
    refused = httpx.post(url, json=body(), headers=asked, timeout=30)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == ROWS_HEADER
    assert words in refused.json()["error"]["message"]
