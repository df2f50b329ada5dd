"""Live requests without a service: texts scored by two models as the shadow scores them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from compression.evaluation import builtin_slices
from gateway.engine.runner import Runner
from gateway.shadow.divergence import Divergence, candidates, compare
from gateway.shadow.records import Position, ScoredPosition
from gateway.shadow.slices import by_slice, places_of, slices_of

TOP_K = 20
"""As ``shadow.top_k``."""
PROMPT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and its answer; both are text that people wrote."""

    kind: str
    token_ids: tuple[int, ...]
    slices: tuple[str, ...]
    num_prompt: int = PROMPT_TOKENS
    """How many of the tokens are not scored."""

    @property
    def answer(self) -> tuple[int, ...]:
        """Return the tokens that are scored."""
        return self.token_ids[self.num_prompt :]


@dataclass(frozen=True, slots=True)
class Read:
    """A text as the full model reads it."""

    text: Text
    hidden: torch.Tensor
    """Its states at the positions that predict the answer."""


def texts(directory: Path, per_kind: int, num_tokens: int) -> Iterator[Text]:
    """Yield pieces of the built-in texts, cut into requests of so many tokens."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for kind, body in builtin_slices().items():
        ids = tokenizer.encode(body, add_special_tokens=False).ids
        count = min(per_kind, len(ids) // num_tokens)
        for start in range(0, count * num_tokens, num_tokens):
            piece = ids[start : start + num_tokens]
            prompt = tokenizer.decode(piece[:PROMPT_TOKENS])
            answer = tokenizer.decode(piece[PROMPT_TOKENS:])
            messages = [{"role": "user", "content": prompt}]
            names = slices_of(
                {"messages": messages}, num_prompt_tokens=PROMPT_TOKENS, answer=answer
            )
            yield Text(kind, tuple(piece), names)


@torch.inference_mode()
def read(runner: Runner, text: Text) -> Read:
    """Let a model read a text."""
    hidden = runner.hidden(list(text.token_ids))
    return Read(text, hidden[PROMPT_TOKENS - 1 : -1].clone())


@torch.inference_mode()
def score(full: Runner, expected: Read, served: Runner) -> Divergence:
    """Return how far a model is from the full one on a text, as the shadow would find it."""
    return score_rows(expected, full, served.logits(read(served, expected.text).hidden))


@torch.inference_mode()
def score_decoded(full: Runner, expected: Read, served: Runner) -> Divergence:
    """Return the same of a model that decodes the answer token by token from its cache."""
    ids = list(expected.text.token_ids)
    cache = served.new_cache(len(ids))
    rows = [served.forward([(cache, ids[:PROMPT_TOKENS], 1)])]
    rows += [served.forward([(cache, [token], 1)]) for token in ids[PROMPT_TOKENS:-1]]
    return score_rows(expected, full, torch.cat(rows))


@torch.inference_mode()
def score_rows(expected: Read, full: Runner, logits: torch.Tensor) -> Divergence:
    """Return how far logits ``[tokens of the answer, vocab]`` are from the full model's."""
    answer = expected.text.answer
    p = full.logits(expected.hidden).log_softmax(1)
    q = logits.log_softmax(1)
    top = q.topk(TOP_K)
    rows = zip(answer, top.indices.tolist(), top.values.tolist(), strict=True)
    positions = [
        Position(token, float(q[place, token]), dict(zip(ids, values, strict=True)))
        for place, (token, ids, values) in enumerate(rows)
    ]
    likeliest = p.argmax(1).tolist()
    told = [
        ScoredPosition({token: float(p[place, token]) for token in candidates(position)}, best)
        for place, (position, best) in enumerate(zip(positions, likeliest, strict=True))
    ]
    return compare(positions, told)


def divergences(text: Text, found: Divergence) -> dict[str, float]:
    """Return the mean of each slice that the text is in, as a monitor takes it."""
    places = places_of(text.slices, len(found.kl))
    scores = by_slice(
        places, divergences=found.kl, agreeing=found.agrees, delta_nlls=found.nll_delta
    )
    return {name: each.divergence for name, each in scores.items()}
