"""When tokens came over HTTP, by what the measured servers send."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from benchmarks.engines.children import EngineFailed
from benchmarks.engines.over_http import Server, StreamedAnswer

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(choice: str, rest: str = "") -> bytes:
    """Return a chunk of a stream; ``rest`` are more of its keys."""
    return (
        'data: {"id":"c-1","object":"text_completion","created":1,"model":"m",'
        f'"choices":[{choice}]{rest}}}\n\n'
    ).encode()


def ours(text: str, finish: str = "null") -> bytes:
    """Return a chunk as our engine and vLLM send it."""
    choice = f'{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{finish}}}'
    return event(choice, ',"usage":null')


def llamacpp(text: str, finish: str = "null", usage: str = "") -> bytes:
    """Return a chunk as llama.cpp's server sends it; its last one has no text, but the usage."""
    choice = f'{{"text":"{text}","index":0,"logprobs":null,"finish_reason":{finish}}}'
    return event(choice, usage)


def usage(tokens: int) -> str:
    """Return the usage as keys of a chunk."""
    return (
        f',"usage":{{"prompt_tokens":9,"completion_tokens":{tokens},"total_tokens":{9 + tokens}}}'
    )


def answer_of(*pieces: bytes) -> StreamedAnswer:
    """Return an answer whose pieces came one second after the other, the first at 1 s."""
    answer = StreamedAnswer()
    for second, piece in enumerate(pieces, start=1):
        answer.take(piece, second)
    return answer


@pytest.mark.parametrize(
    ("pieces", "tokens", "expected"),
    [
        ((HEAD, ours("a"), ours("b", '"length"') + event("", usage(2)) + DONE), 2, (2, 3)),
        ((HEAD, ours("a"), ours("b", '"length"'), event("", usage(2)), DONE), 2, (2, 3)),
        ((HEAD, ours("", '"length"') + event("", usage(1)) + DONE), 1, (2, 2)),
        ((HEAD, ours(""), ours("", '"length"'), event("", usage(2)) + DONE), 2, (2, 3)),
        ((HEAD, llamacpp("a"), llamacpp("", '"length"', usage(1)), DONE), 1, (2, 3)),
        ((HEAD, llamacpp("", '"length"', usage(1)), DONE), 1, (2, 2)),
        ((HEAD + ours("a", '"length"') + DONE,), 1, (1, 1)),
    ],
)
def test_a_token_is_the_piece_with_its_choice(
    pieces: tuple[bytes, ...], tokens: int, expected: tuple[float, float]
) -> None:
    """Heads, counts and ends are none; a choice without text, half a character, is one."""
    answer = answer_of(*pieces)
    assert answer.is_over
    assert answer.times(tokens) == expected


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD, ours("a"), ours("b", '"stop"') + event("", usage(2)) + DONE),
        (HEAD, ours("a"), ours("b")),
        (HEAD, event("", usage(3)) + DONE),
        (b'HTTP/1.1 400 Bad Request\r\n\r\n{"error":{"message":"no"}}',),
        (),
    ],
)
def test_what_is_no_whole_answer_is_an_error(pieces: tuple[bytes, ...]) -> None:
    """Too short, broken off, without a choice, refused, or silent."""
    with pytest.raises(EngineFailed, match="no answer of 3 tokens"):
        answer_of(*pieces).times(3)


@contextmanager
def serving(reply: bytes) -> Iterator[Server]:
    """Run a server that answers each request with the same bytes."""
    ready, events = threading.Event(), asyncio.new_event_loop()
    ports: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    async def listen() -> None:
        listener = await asyncio.start_server(answer, "127.0.0.1", 0)
        ports.append(listener.sockets[0].getsockname()[1])
        ready.set()
        async with listener:
            await stopped.wait()

    stopped = asyncio.Event()
    thread = threading.Thread(target=events.run_until_complete, args=(listen(),))
    thread.start()
    try:
        ready.wait()
        yield Server(ports[0], psutil.Process(), {})
    finally:
        events.call_soon_threadsafe(stopped.set)
        thread.join()
        events.close()


def test_an_answer_of_half_a_character_is_measured() -> None:
    """Over a real socket, several at once."""
    with serving(HEAD + ours("", '"length"') + event("", usage(1)) + DONE) as server:
        replies = server.generate([[1], [2]], 1)
    assert (replies.tokens, replies.prompts) == (1, 2)
    assert 0 < replies.first_s <= replies.last_s
