"""What a chat shows: answers on stdout, everything about them on stderr."""

import sys
from unicodedata import category

from rich.console import Console
from rich.text import Text

from gateway.cli.remote import Answer, Piece

_KEPT = "\n\t"


class Screen:
    """Writes pieces as they come; where nobody watches, the answer alone."""

    def __init__(self, *, is_interactive: bool) -> None:
        self._is_interactive = is_interactive
        self._is_terminal = sys.stdout.isatty()
        self._notes = Console(stderr=True, highlight=False, soft_wrap=True)

    def write(self, piece: Piece) -> None:
        """Show a part of an answer."""
        text = printable(piece.text) if self._is_terminal else piece.text
        if not piece.is_reasoning:
            sys.stdout.write(text)
        elif self._is_interactive:
            self._notes.print(Text(printable(piece.text), style="dim"), end="")
        sys.stdout.flush()

    def end(self, answer: Answer, *, was_stopped: bool) -> None:
        """End the line, and tell how the answer went."""
        sys.stdout.write("\n")
        sys.stdout.flush()
        if self._is_interactive:
            self.note(describe(answer) + (" (stopped)" if was_stopped else ""))

    def note(self, text: str) -> None:
        """Say something that is no answer."""
        self._notes.print(Text(printable(text), style="dim"))

    def refuse(self, error: Exception) -> None:
        """Say what went wrong; the chat goes on."""
        self._notes.print(Text(f"error: {printable(str(error))}", style="red"))


def describe(answer: Answer) -> str:
    """Return tokens, speed, time to the first token, and the variant."""
    words = [f"{answer.num_tokens} tokens"]
    if answer.tokens_per_s is not None:
        words.append(f"{answer.tokens_per_s:.1f} tokens/s")
    if answer.first_s is not None:
        words.append(f"first after {answer.first_s:.2f} s")
    if answer.variant is not None:
        words.append(f"variant {answer.variant}")
    return ", ".join(words)


def printable(text: str) -> str:
    """Return the text without control characters: a model must not steer the terminal."""
    return "".join(one for one in text if one in _KEPT or category(one) != "Cc")
