"""False alarms of the real pair: answers that int8 writes, scored by the full model.

``python -m benchmarks.shadow.real_pair`` lets the demo model in int8 answer thousands of requests
(questions, and beginnings of the built-in texts; every second one greedy, the rest sampled),
decoded from the cache as it serves, has the full model score each answer as the shadow does, and
feeds the monitor with the tolerances of the artifact's manifest. No verdict may become ``drift``.
With ``--scores FILE`` each request's scores are appended to a file, and a run that was ended goes
on behind them. With ``--damage NAME`` as well a damaged copy answers, and nothing is concluded: the
two files are for ``benchmarks.shadow.floors``.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.machine import describe
from benchmarks.shadow.damage import RESULTS
from benchmarks.shadow.damaged import DAMAGES, write_damaged
from benchmarks.shadow.live import requests
from benchmarks.shadow.scores import Read, Text, divergences, score_rows
from compression.evaluation import builtin_slices
from compression.events import ignore
from compression.prepare import prepare
from compression.recipe import FULL
from gateway.engine.runner import Runner, load_runner
from gateway.shadow.monitor import Monitor
from gateway.shadow.slices import ALL, all_slices, slices_of
from gateway.shadow.tolerance import ToleranceRules, Tolerances
from gateway.shadow.verdict import State

MAX_MODEL_LEN = 512
ANSWER_TOKENS = 16
BATCH = 16
PIECE_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and its prompt as the model gets it."""

    fields: dict[str, Any]
    prompt_ids: tuple[int, ...]
    is_greedy: bool


def asked(tokenizer: PreTrainedTokenizerBase) -> Iterator[Asked]:
    """Yield requests for ever: questions and pieces of text in turn, orders of their own."""
    pieces = [
        {
            "messages": [
                {"role": "user", "content": f"Continue:\n{body[at : at + PIECE_CHARACTERS]}"}
            ]
        }
        for body in builtin_slices().values()
        for at in range(0, len(body) - PIECE_CHARACTERS, PIECE_CHARACTERS)
    ]
    seed = 0
    while True:
        for number, body in enumerate([*requests(seed), *pieces]):
            fields = {"messages": body["messages"], "temperature": (number + seed) % 2}
            ids = tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=False
            )
            yield Asked(fields, tuple(ids), is_greedy=not fields["temperature"])
        seed += 1


@torch.inference_mode()
def answer(served: Runner, batch: list[Asked], end_id: int, random: torch.Generator) -> list[Any]:
    """Let the served model answer all; return of each its tokens and logits ``[tokens, vocab]``."""
    caches = [served.new_cache(len(each.prompt_ids) + ANSWER_TOKENS) for each in batch]
    logits = torch.cat(
        [
            served.forward([(cache, list(each.prompt_ids), 1)])
            for cache, each in zip(caches, batch, strict=True)
        ]
    )
    rows: list[list[Tensor]] = [[] for _ in batch]
    tokens: list[list[int]] = [[] for _ in batch]
    live = list(range(len(batch)))
    for _ in range(ANSWER_TOKENS):
        for place, index in enumerate(live):
            row = logits[place]
            rows[index].append(row)
            tokens[index].append(_choose(row, batch[index].is_greedy, random))
        live = [index for index in live if tokens[index][-1] != end_id]
        if not live or len(tokens[live[0]]) == ANSWER_TOKENS:
            break
        logits = served.forward([(caches[index], [tokens[index][-1]], 1) for index in live])
    return [(ids, torch.stack(each)) for ids, each in zip(tokens, rows, strict=True)]


def _choose(row: Tensor, is_greedy: bool, random: torch.Generator) -> int:
    if is_greedy:
        return int(row.argmax())
    return int(torch.multinomial(row.softmax(0), 1, generator=random))


@torch.inference_mode()
def read(full: Runner, each: Asked, ids: list[int], text: str) -> Read:
    """Let the full model read a prompt and its answer."""
    names = slices_of(each.fields, num_prompt_tokens=len(each.prompt_ids), answer=text)
    hidden = full.hidden([*each.prompt_ids, *ids[:-1]])
    found = Text("live", tuple(ids), names, num_prompt=0)
    return Read(found, hidden[len(each.prompt_ids) - 1 :].clone())


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one scored request."""

    mean: float
    """Nats a token."""
    seconds: float
    """Spent on it: the share of its batch."""
    slices: dict[str, float]


class Scores:
    """All requests so far, in memory and, where a path is given, in a file of JSON lines."""

    def __init__(self, path: Path | None) -> None:
        self.kept: list[Kept] = []
        self._path = path
        if path is None or not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        whole = len(lines) // BATCH * BATCH  # a batch that was cut off is answered again
        self.kept = [Kept(**json.loads(line)) for line in lines[:whole]]
        path.write_text("".join(f"{line}\n" for line in lines[:whole]), encoding="utf-8")

    def add(self, batch: Sequence[Kept]) -> None:
        """Take in the requests of a batch."""
        self.kept += batch
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(asdict(each))}\n" for each in batch)


def report(kept: Sequence[Kept], tolerances: Tolerances) -> dict[str, Any]:
    """Let a monitor see all requests in their order, write what it said, and return it."""
    monitor = Monitor("benchmark", all_slices(), tolerances)
    changes = [
        (number, change.slice, change.after.value)
        for number, each in enumerate(kept, 1)
        for change in monitor.observe(each.slices, float(number))
    ]
    tolerance = tolerances.of(ALL)
    means = [each.mean for each in kept]
    record = {
        "command": "python -m benchmarks.shadow.real_pair",
        "machine": describe(),
        "scored": len(kept),
        "seconds": round(sum(each.seconds for each in kept)),
        "mean_nats": statistics.fmean(means),
        "median_nats": statistics.median(means),
        "largest_nats": max(means),
        "tolerance_nats": tolerance.nats if tolerance else None,
        "alarms": [each for each in changes if each[2] == State.DRIFT.value],
        "verdicts": changes,
    }
    path = RESULTS / "shadow_real_pair.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


@contextmanager
def served_files(sound: Path, damage: str | None) -> Iterator[Path]:
    """Yield the artifact itself, or a copy with the damage that is removed afterwards."""
    if damage is None:
        yield sound
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "damaged"
        write_damaged(sound, DAMAGES[damage], place)
        yield place


def main() -> int:
    """Measure, write what was seen, and return 0 if no verdict became drift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scores", type=Path, help="keep each request's scores, and go on behind")
    parser.add_argument("--damage", choices=DAMAGES, help="serve a damaged copy: scores alone")
    options = parser.parse_args()
    if options.damage is not None and options.scores is None:
        parser.error("'--damage' needs '--scores FILE': only an undamaged pair has a result")
    artifact = prepare("smollm2", "int8", None, ignore, is_measured=True)
    source = prepare("smollm2", FULL, None, ignore).directory
    with served_files(artifact.directory, options.damage) as directory:
        served = load_runner(directory, threads=options.threads, max_model_len=MAX_MODEL_LEN)
    full = load_runner(source, threads=options.threads, max_model_len=MAX_MODEL_LEN)
    tokenizer = AutoTokenizer.from_pretrained(source)
    scores = Scores(options.scores)
    rest = islice(asked(tokenizer), len(scores.kept), None)
    while len(scores.kept) < options.requests:
        started = time.monotonic()
        batch = list(islice(rest, BATCH))
        random = torch.Generator().manual_seed(len(scores.kept))
        replies = answer(served, batch, tokenizer.eos_token_id, random)
        found = []
        for each, (ids, logits) in zip(batch, replies, strict=True):
            expected = read(full, each, ids, tokenizer.decode(ids))
            found.append((expected.text, score_rows(expected, full, logits)))
        seconds = (time.monotonic() - started) / BATCH
        scores.add(
            [Kept(score.mean_kl, seconds, divergences(text, score)) for text, score in found]
        )
        if len(scores.kept) % (10 * BATCH) == 0:
            mean = statistics.fmean(each.mean for each in scores.kept)
            print(f"{len(scores.kept)}: {mean:.4f} nats", file=sys.stderr, flush=True)
    if options.damage is not None:
        return 0
    fidelity = artifact.manifest.fidelity if artifact.manifest else ()
    record = report(scores.kept, Tolerances(ToleranceRules(), fidelity))
    print(json.dumps({name: value for name, value in record.items() if name != "machine"}))
    return 1 if record["alarms"] else 0


if __name__ == "__main__":
    sys.exit(main())
