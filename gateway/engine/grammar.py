"""The form an answer must have, as a grammar that is compiled before generation starts."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from gateway.engine.constraint import Constraint
from gateway.engine.tokenizer import Tokenizer
from gateway.errors import UnsupportedSchema

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One line, written as Python's ``json`` does: a small model never ends free white space."""

MAX_REASON = 300
"""Characters of the compiler's words that a reply quotes."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """The source of a grammar, and the request's field that asked for it."""

    source: str
    param: str


def json_grammar(schema: dict[str, Any] | bool, *, param: str) -> Grammar:
    """Return the grammar of all JSON texts that a schema allows."""
    return lark_grammar(f"start: {json_rule(schema)}", param=param)


def regex_grammar(regex: str, *, param: str) -> Grammar:
    """Return the grammar of all texts that a regular expression matches as a whole."""
    return Grammar(LLMatcher.grammar_from_regex(regex), param)


def choice_grammar(choices: list[str], *, param: str) -> Grammar:
    """Return the grammar of a few given texts."""
    return lark_grammar("start: " + " | ".join(map(json.dumps, choices)), param=param)


def lark_grammar(lark: str, *, param: str) -> Grammar:
    """Return a grammar written in llguidance's form of Lark."""
    return Grammar(LLMatcher.grammar_from_lark(lark), param)


def json_rule(schema: dict[str, Any] | bool) -> str:
    """Return a schema as a term of a Lark rule."""
    styled = {"x-guidance": JSON_STYLE}
    if isinstance(schema, bool):
        return f"%json {json.dumps(styled if schema else styled | {'enum': []})}"
    return f"%json {json.dumps({**schema, **styled})}"


@dataclass
class GrammarCompiler:
    """Makes constraints for one model; ``vocab_size`` is the width of its logits."""

    tokenizer: Tokenizer
    vocab_size: int
    # One thread: a matcher must not be used by two at a time.
    _executor: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="grammar")
    )

    def compile(self, grammar: Grammar) -> LLMatcher:
        """Return a matcher at the start of the grammar; takes up to seconds for a huge one.

        Raises:
            UnsupportedSchema: no text fits the grammar, or it has parts that cannot be held.
        """
        matcher = LLMatcher(self._vocabulary, grammar.source, log_level=0)
        if matcher.is_error():
            raise _unsupported(grammar, matcher.get_error())
        # Whether any text fits shows at its first token.
        probe = matcher.deep_copy()
        is_open = any(probe.compute_bitmask()) and not probe.is_error()
        if not is_open or (probe.is_stopped() and not probe.is_accepting()):
            raise _unsupported(grammar, "no text fits it")
        return matcher

    def constrain(self, matcher: LLMatcher) -> Constraint:
        """Return the constraint of one sequence, which starts where ``matcher`` stands."""
        return Constraint(matcher.deep_copy(), self._executor)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        # Made at first use: it takes about a second for a large vocabulary.
        size = max(self.vocab_size, self.tokenizer.num_ids)
        eos_ids = sorted(self.tokenizer.eos_ids)
        return LLTokenizer(self.tokenizer.to_json(), n_vocab=size, eos_token=eos_ids)


def _unsupported(grammar: Grammar, message: str) -> UnsupportedSchema:
    reason = " ".join(message.split())
    reason = reason if len(reason) <= MAX_REASON else reason[:MAX_REASON] + "…"
    return UnsupportedSchema(
        f"{grammar.param!r} cannot be held to: {reason}; change or simplify it",
        param=grammar.param,
    )
