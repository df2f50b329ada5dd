"""Caches whose first tokens a new prompt may share: pure bookkeeping of token ids.

What is shared is copied, byte for byte: on a CPU that takes a thousandth of the time of reading the
tokens again, and every cache stays in one piece for attention.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.engine.pages import PAGE_TOKENS


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Token ids whose keys and values ``cache`` holds, from position 0 on."""

    token_ids: Sequence[int]
    cache: Any
    num_pages: int
    """Pages to give back with it; 0 while the sequence that wrote it still runs."""


class PrefixCache:
    """Finds the longest beginning that a prompt shares with what was read before.

    Prefixes are found by a hash over their whole pages, each chained to the one before it, and then
    compared token by token. The least recently used one is the first to go.
    """

    def __init__(self) -> None:
        self._prefixes: OrderedDict[Prefix, tuple[int, ...]] = OrderedDict()
        self._by_hash: dict[int, dict[Prefix, None]] = {}
        self.num_pages = 0
        """Pages that can be had back by forgetting."""

    def add(self, prefix: Prefix) -> None:
        """Remember a prefix; one shorter than a page is never found."""
        chain = tuple(_chain(prefix.token_ids))
        self._prefixes[prefix] = chain
        self.num_pages += prefix.num_pages
        for link in chain:
            self._by_hash.setdefault(link, {})[prefix] = None

    def discard(self, prefix: Prefix) -> None:
        """Forget a prefix; an unknown one is ignored."""
        if prefix not in self._prefixes:
            return
        self.num_pages -= prefix.num_pages
        for link in self._prefixes.pop(prefix):
            sharers = self._by_hash[link]
            del sharers[prefix]
            if not sharers:
                del self._by_hash[link]

    def longest(self, token_ids: Sequence[int]) -> tuple[Prefix, int] | None:
        """Return what shares most tokens with ``token_ids``, and how many, or None.

        At least one whole page is shared, and never the last token: it has to be read for the
        logits that follow it.
        """
        found: dict[Prefix, None] = {}
        for link in _chain(token_ids[:-1]):
            sharers = self._by_hash.get(link)
            if sharers is None:
                break
            found = sharers
        if not found:
            return None
        best = max(found, key=lambda prefix: _shared(prefix.token_ids, token_ids))
        count = min(_shared(best.token_ids, token_ids), len(token_ids) - 1)
        if count < PAGE_TOKENS:
            return None  # two chains had the same hash
        self._prefixes.move_to_end(best)
        return best, count

    def evict(self, *, keep: Prefix | None = None) -> int:
        """Forget the least recently used prefix that holds pages; return how many, 0 if none.

        ``keep`` is spared.
        """
        for prefix in self._prefixes:
            if prefix.num_pages and prefix is not keep:
                self.discard(prefix)
                return prefix.num_pages
        return 0


def _chain(token_ids: Sequence[int]) -> Iterator[int]:
    link = 0
    for start in range(0, len(token_ids) - PAGE_TOKENS + 1, PAGE_TOKENS):
        link = hash((link, *token_ids[start : start + PAGE_TOKENS]))
        yield link


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many token ids two sequences have in common from the beginning."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))
