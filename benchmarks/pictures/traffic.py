"""Varied requests for a while: streams and plain ones, pinned ones, refused ones, abandoned ones."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.shadow.live import requests

_CHAT = "/v1/chat/completions"
_PINNED = ("full", "int4-fast")
"""Variants that some requests name, so that there is something to compare."""


@contextmanager
def traffic(url: str, model: str) -> Iterator[None]:
    """Send requests to a gateway while the block is open, one at a time with short pauses."""
    stop = threading.Event()
    worker = threading.Thread(target=_send, args=(url, model, stop))
    worker.start()
    try:
        yield
    finally:
        stop.set()
        worker.join()


def _send(url: str, model: str, stop: threading.Event) -> None:
    draw = random.Random(7)
    with httpx.Client(base_url=url, timeout=120) as client:
        number = 0
        while not stop.is_set():
            number += 1
            _send_one(client, model, number, draw)
            stop.wait(draw.uniform(0.1, 1.2))


def _send_one(client: httpx.Client, model: str, number: int, draw: random.Random) -> None:
    name = f"{model}@{_PINNED[number // 6 % 2]}" if number % 6 == 0 else model
    bodies = requests(0)
    body = bodies[number % len(bodies)] | {
        "model": name,
        "max_tokens": draw.choice((12, 24, 48)),
        "seed": number,
    }
    if number % 40 == 20:
        client.post(_CHAT, json=body | {"model": "another"})
    elif number % 40 == 30:
        client.post(_CHAT, json=body | {"temperature": 9})
    elif number % 5 == 0:
        client.post(_CHAT, json=body)
    else:
        _stream(client, body, leaves=number % 25 == 13)


def _stream(client: httpx.Client, body: dict[str, Any], *, leaves: bool) -> None:
    with client.stream("POST", _CHAT, json=body | {"stream": True}) as reply:
        began = time.monotonic()
        for _ in reply.iter_lines():
            if leaves and time.monotonic() - began > 0.2:
                return
