"""What an engine's answers are reduced to: when tokens came."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Replies:
    """The answers to prompts that were sent together, as whoever asked saw them."""

    first_s: float
    """From asking to the first token of the first prompt."""
    last_s: float
    """From asking to the last token of the last prompt."""
    tokens: int
    """Of each answer."""
    prompts: int

    @property
    def ms_per_token(self) -> float:
        """Return the mean over the tokens after the first; of one prompt alone."""
        return 1e3 * (self.last_s - self.first_s) / (self.tokens - 1)

    @property
    def tokens_per_s(self) -> float:
        """Return the tokens of all answers by the time that they took together."""
        return self.prompts * self.tokens / self.last_s
