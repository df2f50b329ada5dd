"""How many parts a body may have: counted as a parser would, and others are served meanwhile."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import BodyTooLarge
from gateway.parts import check_parts
from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, QUESTION, Gateway

SIZE = 8 * 1024 * 1024 - 400
LONGEST_S = 2.0
"""What others may wait for on a busy machine; on a free processor it is a tenth of that."""

TEXTS = st.text(st.sampled_from('a"\\{[:,é\n'), max_size=12)
BODIES = st.dictionaries(
    TEXTS,
    st.recursive(
        TEXTS | st.integers(0, 9) | st.none(),
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
        max_leaves=30,
    ),
    max_size=5,
)


def num_parts(value: object) -> float:
    """Return the parts of a parsed body; 40 commas are one."""
    if isinstance(value, dict):
        inner = [1 + num_parts(each) for each in value.values()]
    elif isinstance(value, list):
        inner = [num_parts(each) for each in value]
    else:
        return 0
    return 1 + sum(inner) + max(0, len(inner) - 1) / 40


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(body=BODIES, is_ascii=st.booleans(), is_spaced=st.booleans())
def test_as_many_as_a_parser_finds(body: dict[str, Any], is_ascii: bool, is_spaced: bool) -> None:
    """The limit is exact, whatever stands in texts and keys."""
    separators = (", ", ": ") if is_spaced else (",", ":")
    raw = json.dumps(body, ensure_ascii=is_ascii, separators=separators).encode()
    found = num_parts(body)
    check_parts(raw, int(found) + 1)
    if found >= 1.5:
        with pytest.raises(BodyTooLarge, match="'max_body_parts'"):
            check_parts(raw, int(found - 0.5))


@pytest.mark.parametrize("unit", ['{"a": [1]}, ', "\\", '"', '\\"{', "é:"])
def test_long_texts_are_no_parts(unit: str) -> None:
    """Code, JSON in a text and quotes of 2 MB count as one text, wherever it is cut into blocks."""
    text = unit * (2_000_000 // len(unit))
    check_parts(json.dumps({"a": text, "b": text}).encode(), 4)
    with pytest.raises(BodyTooLarge):
        check_parts(json.dumps({"a": text, "b": [{}]}).encode(), 4)


def filled(head: bytes, unit: bytes, tail: bytes) -> bytes:
    """Return a body of 8 MB with as many units as go into it."""
    return head + b",".join([unit] * ((SIZE - len(head)) // (len(unit) + 1))) + tail


def with_keys(head: bytes, tail: bytes) -> bytes:
    """Return a body of 8 MB with different keys."""
    return head + b",".join(b'"k%d":"a"' % number for number in range(SIZE // 15)) + tail


CHATS = b'{"model":"tiny","messages":['
ASKED = CHATS + b'{"role":"user","content":"a"}],'
INPUT = b'{"model":"tiny","input":['
LONG: dict[str, tuple[str, bytes, int]] = {
    "messages": (CHAT, filled(CHATS, b'{"role":"user","content":"a"}', b"]}"), 413),
    "calls": (CHAT, filled(CHATS, b'{"role":"assistant","tool_calls":[]}', b"]}"), 413),
    "objects": ("/v1/responses", filled(INPUT, b"{}", b"]}"), 413),
    "lists": ("/v1/embeddings", filled(INPUT, b"[1]", b"]}"), 413),
    "items": ("/v1/embeddings", filled(INPUT, b"1", b"]}"), 413),
    "nested": (CHAT, filled(ASKED + b'"x":[', b"[" * 900 + b"]" * 900, b"]}"), 413),
    "keys": (CHAT, with_keys(ASKED, b"}"), 413),
    "metadata": (CHAT, with_keys(ASKED + b'"metadata":{', b"}}"), 413),
    "texts": ("/v1/responses", filled(INPUT, b'"word"', b"]}"), 200),
    "a text among ids": ("/v1/responses", filled(INPUT + b'"a",', b"12345", b"]}"), 200),
    "ids": ("/detokenize", filled(b'{"model":"tiny","tokens":[', b"    7", b"]}"), 200),
    "stops": (CHAT, filled(ASKED + b'"stop_token_ids":[', b"12345", b"]}"), 400),
    "one text": ("/v1/responses", filled(INPUT + b'"', b"word", b'"]}'), 200),
}


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway with the limits that it has by itself."""
    running = Gateway(tmp_path_factory.mktemp("parts"), {}, {})
    running.wait_ready()
    yield running
    running.close()


@pytest.mark.parametrize("name", list(LONG))
def test_others_are_served_meanwhile(default: Gateway, name: str) -> None:
    """Whatever 8 MB hold, they are read or refused, and nobody else waits for long.

    In one of three rounds, for the gateway shares the machine with others.
    """
    path, raw, status = LONG[name]
    rounds: list[float] = []
    while not rounds or (rounds[-1] >= LONGEST_S and len(rounds) < 3):
        rounds.append(longest_wait_s(default, path, raw, status))
    assert min(rounds) < LONGEST_S, rounds


def longest_wait_s(default: Gateway, path: str, raw: bytes, status: int) -> float:
    """Return how long a short request waited at most while a long body was read."""
    waits: list[float] = []
    has_begun, is_over = threading.Event(), threading.Event()

    def others() -> None:
        with httpx.Client(base_url=default.url, timeout=60) as client:
            while not is_over.is_set():
                began = time.perf_counter()
                client.get("/health")
                waits.append(time.perf_counter() - began)
                has_begun.set()

    watcher = threading.Thread(target=others)
    watcher.start()
    try:
        assert has_begun.wait(30)
        sent = {"content-type": "application/json"}
        reply = default.http.post(path, content=raw, headers=sent)
    finally:
        is_over.set()
        watcher.join()
    assert reply.status_code == status, reply.text[:300]
    assert len(reply.content) < 2000 or status == 200
    return max(waits)


def test_the_limit_is_a_setting(start_gateway: StartGateway) -> None:
    """Whoever needs more sets it; the refusal names it, and a repetition would not help."""
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(120)]
    asked = {"model": "tiny", "messages": QUESTION * 200, "tools": tools}
    small = start_gateway(max_body_parts=1024)
    refused = small.http.post(CHAT, json=asked)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (413, "request_too_large")
    assert "more than 1024 objects" in error["message"]
    assert "'max_body_parts'" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert small.http.post(CHAT, json=asked | {"messages": QUESTION}).status_code == 200
