"""Small varied requests for a running service, until the verdict of its model is no longer open.

``python -m benchmarks.shadow.live --port 8000`` prints each change of the whole model's verdict,
with requests and seconds, and ends with ``ok`` or ``drift``. One request at a time: scores are
made while nobody is served.
"""

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_SUBJECTS = ("the sea", "a bicycle", "bread", "the moon", "a library", "rain", "a clock", "tea")
_ASKS = (
    "Explain {} in two sentences.",
    "Write three questions about {}.",
    "Erkläre {} in einem Satz.",
    "Décris {} en une phrase.",
    "Write a Python function that prints a line about {}.",
    "What would a child ask about {}?",
    "Compute 17 * 23 and then say something about {}.",
    "Give a JSON object that describes {}.",
)
MAX_TOKENS = 16
_BATCH = 8
"""Requests after which all are scored: each one that comes breaks a scoring off."""
_OPEN = {None, "learning", "stale"}
"""Verdicts that decide nothing."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the service says of its active variant."""

    variant: str
    scored: int
    verdict: str | None
    """Of the whole model."""
    numbers: Mapping[str, Any]


def requests(seed: int) -> list[dict[str, Any]]:
    """Return every question in an order of its own, greedy and sampled in turn."""
    questions = [ask.format(subject) for ask in _ASKS for subject in _SUBJECTS]
    random.Random(seed).shuffle(questions)
    return [
        {"messages": [{"role": "user", "content": text}], "temperature": index % 2}
        for index, text in enumerate(questions)
    ]


def standing(client: httpx.Client, model: str | None) -> Standing:
    """Return how the active variant stands."""
    found = client.get("/admin/fidelity").raise_for_status().json()["data"]
    active = next(each for each in found if each["active"] and model in {None, each["model"]})
    whole = next((each for each in active["slices"] if each["slice"] == "all"), None)
    state = None if whole is None else whole["state"]
    return Standing(active["variant"], active["scored"], state, whole or {})


def drive(client: httpx.Client, model: str | None, limit: int) -> Standing:
    """Ask until the verdict is ``ok`` or ``drift``, ``limit`` requests at most."""
    started, name, seen = time.monotonic(), _alias(client, model), None
    for number in range(limit):
        bodies = requests(number // len(_ASKS) // len(_SUBJECTS))
        body = bodies[number % len(bodies)] | {"model": name, "max_tokens": MAX_TOKENS}
        client.post("/v1/chat/completions", json=body | {"seed": number}).raise_for_status()
        if (number + 1) % _BATCH and number + 1 < limit:
            continue
        while client.get("/admin/shadow").json()["models"][name]["in_flight"]:
            time.sleep(0.1)
        time.sleep(1)  # verdicts are a second old at most
        now = standing(client, model)
        if now.verdict != seen or (number + 1) % (5 * _BATCH) == 0:
            seen = now.verdict
            _say(now, number + 1, time.monotonic() - started)
        if now.verdict not in _OPEN:
            break
    return standing(client, model)


def _alias(client: httpx.Client, model: str | None) -> str:
    variants = client.get("/admin/models").raise_for_status().json()["data"]
    return model or str(variants[0]["model"])


def _say(now: Standing, asked: int, seconds: float) -> None:
    whole = now.numbers
    figures = ""
    if whole.get("n"):
        tolerance = whole["tolerance"]
        known = "not known yet" if tolerance is None else f"{tolerance:.4f}"
        figures = (
            f"; mean {whole['mean']:.4f} nats, {whole['lower']:.4f} to {whole['upper']:.4f}, "
            f"tolerance {known}"
        )
    print(
        f"{seconds:6.1f} s, {asked} asked, {now.scored} scored: "
        f"{now.variant} is {now.verdict or 'not watched'}{figures}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Drive a service from the command line; return 0 if the verdict was decided."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="default: the first that is served")
    parser.add_argument("--limit", type=int, default=3000, help="requests at most")
    options = parser.parse_args(arguments)
    with httpx.Client(base_url=f"http://127.0.0.1:{options.port}", timeout=600) as client:
        last = drive(client, options.model, options.limit)
    return 0 if last.verdict not in _OPEN else 1


if __name__ == "__main__":
    sys.exit(main())
