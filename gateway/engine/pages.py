"""How much of the cache's memory is spoken for: pure counting, no memory of its own."""

from dataclasses import dataclass

PAGE_TOKENS = 16
"""Tokens of one page, in all layers."""


@dataclass(frozen=True, slots=True)
class PageSizes:
    """What a sequence costs in pages.

    Args:
        total: pages there are.
        per_sequence: pages that each sequence takes beside those of its tokens, because the
            operating system hands memory out in whole pages of its own.
    """

    total: int
    per_sequence: int = 0

    def needed(self, num_tokens: int) -> int:
        """Return the pages of a sequence of so many tokens; none for an empty one."""
        return self.per_sequence + -(-num_tokens // PAGE_TOKENS) if num_tokens else 0

    @property
    def longest(self) -> int:
        """Return the most tokens that one sequence can have with all pages to itself."""
        return max(0, self.total - self.per_sequence) * PAGE_TOKENS


class PageBudget:
    """The pages that are free, and their taking and giving back."""

    def __init__(self, sizes: PageSizes) -> None:
        self.sizes = sizes
        self.free = sizes.total

    @property
    def used(self) -> int:
        """Return the pages that are taken."""
        return self.sizes.total - self.free

    def take(self, count: int) -> bool:
        """Take ``count`` pages, or none and return False if fewer are free."""
        if count > self.free:
            return False
        self.free -= count
        return True

    def give_back(self, count: int) -> None:
        """Return pages that were taken.

        Raises:
            ValueError: more than were taken.
        """
        if count > self.used:
            raise ValueError(f"{count} pages given back of {self.used} taken")
        self.free += count
