"""Events in, events out: wherever the chunks end, whatever the engine does."""

import json
import random

import pytest

from gateway.errors import ApiError, EngineDown, EngineFault
from gateway.registry import Metrics
from gateway.streaming import DONE, MAX_FRAME_BYTES, EventRelay, FrameSplitter
from gateway.trace import RequestTrace


def event(**fields: object) -> bytes:
    """Return one event as our engine writes it."""
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def text(content: str, **fields: object) -> bytes:
    """Return one event with text."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return event(choices=[choice], **fields)


FINISH = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})


class Relayed:
    """What came out of a relay, and what it recorded."""

    def __init__(self, *chunks: bytes, includes_usage: bool = False, num_choices: int = 1) -> None:
        self.metrics = Metrics()
        trace = RequestTrace(self.metrics)
        trace.route("m", "v", is_stream=True)
        relay = EventRelay(trace, includes_usage=includes_usage, num_choices=num_choices)
        self.error: ApiError | None = None
        out = []
        try:
            out = [relay.feed(chunk) for chunk in chunks]
            out.append(relay.finish())
        except ApiError as error:
            self.error = error
        self.out = b"".join(out)
        trace.close()

    def count(self, name: str, **labels: str) -> float:
        """Return one sample, 0 where there is none."""
        return self.metrics.registry.get_sample_value(f"narrowgate_{name}", labels) or 0.0


def cut(data: bytes, generator: random.Random) -> list[bytes]:
    """Cut data at random places, often into single bytes."""
    chunks = []
    while data:
        size = generator.choice([1, 1, 2, 3, 10, 1000])
        chunks.append(data[:size])
        data = data[size:]
    return chunks


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("seed", range(50))
def test_splitter_finds_the_same_events_wherever_chunks_end(seed: int, line_end: bytes) -> None:
    """Random borders give the same events as one piece, byte for byte."""
    generator = random.Random(seed)
    events = []
    for _ in range(generator.randint(1, 12)):
        num_lines = generator.randint(1, 3)
        alphabet = 'a{}": é\u2028漢'
        lines = ["data: " + "".join(generator.choices(alphabet, k=8)) for _ in range(num_lines)]
        events.append(line_end.join(line.encode() for line in lines) + line_end * 2)
    splitter = FrameSplitter()
    found = [frame for chunk in cut(b"".join(events), generator) for frame in splitter.feed(chunk)]
    rest = splitter.flush()
    assert [*found, *([rest] if rest else [])] == events


def test_splitter_never_splits_a_crlf() -> None:
    """A CRLF whose halves come apart is one line end, not an empty line."""
    splitter = FrameSplitter()
    assert splitter.feed(b"data: a\r") == []
    assert splitter.feed(b"\ndata: b\r") == []
    assert splitter.feed(b"\n\r\n") == [b"data: a\r\ndata: b\r\n\r\n"]
    assert splitter.flush() == b""


def test_splitter_is_bounded() -> None:
    """An endless line is a defect of the engine, not our memory's end."""
    splitter = FrameSplitter()
    for _ in range(MAX_FRAME_BYTES // 65536):
        splitter.feed(b"x" * 65536)
    with pytest.raises(EngineFault):
        splitter.feed(b"x")


@pytest.mark.parametrize("seed", range(30))
def test_relay_is_transparent(seed: int) -> None:
    """Random borders change nothing in what the client gets or what is counted."""
    finish = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=None)
    stream = text("a", usage=None) + text("b", usage=None) + finish + USAGE + DONE
    done = Relayed(*cut(stream, random.Random(seed)), includes_usage=True)
    assert done.out == stream
    assert done.count("prompt_tokens_total", model="m", variant="v") == 3
    assert done.count("generated_tokens_total", model="m", variant="v") == 2
    assert done.count("inter_token_latency_seconds_count", model="m", variant="v") == 1


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (text("x", usage=None), text("x")),
        (
            b'data: {"choices": [{"delta": {"content": "x"}}], "usage": null}\n\n',
            b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n',
        ),
        (
            b'data: {"usage":null,"choices":[{"delta":{"content":"x"}}]}\n\n',
            b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n',
        ),
        (text(',"usage":null'), text(',"usage":null')),
        (text('"usage"'), text('"usage"')),
        (b": keep-alive\n\n", b": keep-alive\n\n"),
        (b"event: x\ndata: {}\n\n", b"event: x\ndata: {}\n\n"),
        (b"\n\n", b""),
        (USAGE, b""),
    ],
)
def test_unasked_usage_leaves_no_trace(frame: bytes, expected: bytes) -> None:
    """Null keys and the report itself vanish; the same words inside a text stay."""
    assert Relayed(frame, FINISH, DONE).out == expected + FINISH + DONE


def test_usage_on_a_chunk_with_text_is_kept() -> None:
    """Engines that report with every chunk keep their chunks; the last report counts."""
    frames = [
        text("a", usage={"prompt_tokens": 9, "completion_tokens": 1}),
        text("b", usage={"prompt_tokens": 9, "completion_tokens": 2}),
    ]
    done = Relayed(*frames, FINISH, USAGE, DONE)
    assert done.out == b"".join(frames) + FINISH + DONE
    assert done.count("generated_tokens_total", model="m", variant="v") == 2


@pytest.mark.parametrize(
    "end",
    [DONE, b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", b"data: [DONE]\n", b"data: [DONE]", b""],
)
def test_every_way_to_end(end: bytes) -> None:
    """After a finish reason a stream may end in any way; the client gets one [DONE]."""
    done = Relayed(text("a"), FINISH, end)
    assert done.error is None
    assert done.out.count(b"[DONE]") == 1
    labels = {"model": "m", "variant": "v", "operation": "chat", "outcome": "ok"}
    assert done.count("requests_total", finish_reason="stop", **labels) == 1


@pytest.mark.parametrize("cut_off", [b"", b'data: {"choi', b"data: {}\n"])
def test_stream_that_ends_early_is_an_error(cut_off: bytes) -> None:
    """Without a finish reason and without [DONE] the answer is incomplete."""
    assert isinstance(Relayed(text("a"), cut_off).error, EngineDown)


@pytest.mark.parametrize(
    "frame",
    [
        b"<html>\n\n",
        b'data: {"usage":{"prompt_tokens":"x"}}\n\n',
        b'data: {"usage":{"prompt_tokens":1}\n\n',
        b'data: {"usage": ["x"]}\n\n',
    ],
)
def test_garbage_is_an_error(frame: bytes) -> None:
    """What is no event, or a report that cannot be read, is the engine's fault."""
    assert isinstance(Relayed(frame).error, EngineFault)


@pytest.mark.parametrize("asks", [True, False])
def test_a_text_that_is_the_word_usage(asks: bool) -> None:
    """The word as a token, a tool's name or in a list is text, not a report."""
    event = b'data: {"choices":[{"index":0,"delta":{"content":"usage"},"finish_reason":null}]}\n\n'
    found = Relayed(event, FINISH, DONE, includes_usage=asks)
    assert found.error is None
    assert b'"content":"usage"' in found.out


def test_nothing_follows_done() -> None:
    """Bytes after [DONE] are dropped."""
    assert Relayed(text("a"), FINISH, DONE, text("b"), b"junk\n\n").out.endswith(DONE)


@pytest.mark.parametrize(
    ("frame", "num_texts"),
    [
        (text("a"), 1),
        (text(""), 0),
        (text('"'), 1),
        (event(choices=[{"delta": {"role": "assistant", "content": ""}}]), 0),
        (event(choices=[{"delta": {"role": "assistant", "content": None}}]), 0),
        (event(choices=[{"delta": {"content": "", "reasoning_content": "hm"}}]), 1),
        (event(choices=[{"delta": {"tool_calls": [{"index": 0}]}}]), 1),
        (b'data: {"choices": [{"delta": {"content": "spaced"}}]}\n\n', 1),
        (FINISH, 0),
        (event(choices=[{"index": 0, "text": "a", "finish_reason": None}]), 1),
        (event(choices=[{"index": 0, "text": "", "finish_reason": "stop"}]), 0),
    ],
)
def test_what_counts_as_text(frame: bytes, num_texts: int) -> None:
    """The first text starts the clock of tokens: roles, empty deltas and ends do not."""
    done = Relayed(frame, FINISH, DONE)
    assert done.count("time_to_first_token_seconds_count", model="m", variant="v") == num_texts


def piece(index: int, content: str, finish: str | None = None) -> bytes:
    """Return one event of one of several choices."""
    return event(choices=[{"index": index, "text": content, "finish_reason": finish}])


def test_choices_have_times_of_their_own() -> None:
    """Two choices of two texts have two times between tokens, not three, and one first."""
    frames = [piece(index, "a") for index in (0, 1, 0, 1)]
    ends = [piece(index, "", "stop") for index in (0, 1)]
    done = Relayed(*frames, *ends, DONE, num_choices=2)

    assert done.out == b"".join([*frames, *ends, DONE])
    assert done.count("inter_token_latency_seconds_count", model="m", variant="v") == 2
    assert done.count("time_to_first_token_seconds_count", model="m", variant="v") == 1


@pytest.mark.parametrize("end", [b"", b'data: {"choi'])
def test_a_stream_ends_early_while_a_choice_is_open(end: bytes) -> None:
    """One choice's end is not the answer's: the other one may have been cut off."""
    frames = [piece(0, "a"), piece(1, "a"), piece(0, "", "stop"), end]

    assert isinstance(Relayed(*frames, num_choices=2).error, EngineDown)
    assert Relayed(*frames[:3], piece(1, "", "length"), num_choices=2).error is None
    both = event(choices=[{"index": i, "text": "", "finish_reason": "stop"} for i in range(2)])
    assert Relayed(both, num_choices=2).error is None


def test_chunks_of_an_engine_without_the_key_get_a_null_usage() -> None:
    """Who asks for usage finds the key in every chunk, whatever the engine writes."""
    quoted = text('a "usage" }')
    failure = event(error={"message": "m", "type": "t", "param": None, "code": "c"})
    asked = Relayed(quoted, FINISH, failure, DONE, includes_usage=True)
    chunk, finish, error, done, _ = asked.out.split(b"\n\n")
    assert json.loads(chunk[6:]) == json.loads(quoted[6:]) | {"usage": None}
    assert json.loads(finish[6:])["usage"] is None
    assert (error + b"\n\n", done) == (failure, b"data: [DONE]")
    assert Relayed(quoted, FINISH, DONE).out == quoted + FINISH + DONE
