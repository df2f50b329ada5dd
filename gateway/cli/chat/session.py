"""One chat from the first question to the end of input."""

import argparse
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.cli.chat.conversation import Conversation
from gateway.cli.chat.screen import Screen
from gateway.cli.remote import MODEL_NOT_FOUND, Answer, Endpoint
from gateway.errors import RemoteFailed
from gateway.terminal import Terminal

PROMPT = ">>> "
HELP = """\
/reset        forget what was said
/model NAME   go on with another model; without a name: list them
/save FILE    write the conversation, as JSON if the name ends in .json
/help         this list
/quit         end; Ctrl-D does, too
Ctrl-C stops an answer."""
_SAMPLING = ("temperature", "top_p", "max_tokens", "seed")


def run_chat(options: argparse.Namespace, terminal: Terminal) -> int:
    """Chat until the end of input; with piped input, answer it once."""
    sampling = {key: getattr(options, key) for key in _SAMPLING}
    with Endpoint(options.url, options.api_key) as endpoint:
        model = _choose(options.model, endpoint)
        session = Session(
            endpoint,
            Conversation(model, options.system),
            {key: value for key, value in sampling.items() if value is not None},
            is_interactive=sys.stdin.isatty(),
        )
        return session.run()


def _choose(wanted: str | None, endpoint: Endpoint) -> str:
    names = _names(endpoint)
    if not names:
        raise RemoteFailed(f"{endpoint.url} serves no model")
    if wanted is not None and wanted not in names:
        raise RemoteFailed(f"no model {wanted!r} there: use one of {', '.join(names)}")
    return wanted or names[0]


def _names(endpoint: Endpoint) -> list[str]:
    return [str(card.get("id")) for card in endpoint.models()]


class Session:
    """A conversation with one endpoint."""

    def __init__(
        self,
        endpoint: Endpoint,
        conversation: Conversation,
        sampling: Mapping[str, Any],
        *,
        is_interactive: bool,
    ) -> None:
        self._endpoint = endpoint
        self._conversation = conversation
        self._sampling = sampling
        self._is_interactive = is_interactive
        self._screen = Screen(is_interactive=is_interactive)

    def run(self) -> int:
        """Read and answer to the end of input; return the exit code."""
        if not self._is_interactive:
            question = sys.stdin.read().strip()
            if not question:
                raise RemoteFailed("no question: pipe one in, or run this in a terminal")
            self._ask(question)
            return 0
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (input() edits lines and remembers them from here on)
        self._screen.note(
            f"{self._conversation.model} at {self._endpoint.url}. /help lists commands, "
            "Ctrl-D ends."
        )
        while (line := self._read()) is not None:
            try:
                if line.startswith("/"):
                    if not self._obey(*line[1:].partition(" ")[::2]):
                        return 0
                elif line:
                    self._ask(line)
            except RemoteFailed as error:
                self._screen.refuse(error)
        return 0

    def _read(self) -> str | None:
        """Return the next line, empty for one given up with Ctrl-C; None at the end."""
        try:
            return input(PROMPT).strip()
        except KeyboardInterrupt:
            self._screen.note("\nCtrl-D or /quit ends.")
            return ""
        except EOFError:
            self._screen.note("")
            return None

    def _ask(self, question: str) -> None:
        conversation, said = self._conversation, ""
        conversation.ask(question)
        answer: Answer | None = None
        was_stopped = False
        try:
            with self._endpoint.chat(
                conversation.model, conversation.messages, self._sampling
            ) as answer:
                for piece in answer.pieces():
                    # First kept, then shown: Ctrl-C may come at any moment.
                    said += "" if piece.is_reasoning else piece.text
                    self._screen.write(piece)
        except KeyboardInterrupt:
            if not self._is_interactive:
                raise
            was_stopped = True
        except RemoteFailed as error:
            raise self._explained(error) from None
        finally:
            conversation.answer(said)
            if answer is not None:
                self._screen.end(answer, was_stopped=was_stopped)
            elif was_stopped:
                self._screen.note("\n(stopped)")

    def _explained(self, error: RemoteFailed) -> RemoteFailed:
        if error.code != MODEL_NOT_FOUND:
            return error
        return RemoteFailed(f"{error} (there are: {', '.join(_names(self._endpoint))})")

    def _obey(self, command: str, rest: str) -> bool:
        """Do a command; return whether the chat goes on."""
        rest, note = rest.strip(), self._screen.note
        match command:
            case "quit" | "exit" | "bye":
                return False
            case "help" | "?":
                note(HELP)
            case "reset":
                self._conversation.reset()
                note("forgotten")
            case "save" if rest:
                self._conversation.save(Path(rest))
                note(f"saved {rest}")
            case "model" if rest:
                self._conversation.model = _choose(rest, self._endpoint)
                note(f"now {rest}")
            case "model":
                note("\n".join(_names(self._endpoint)))
            case "save":
                note("/save needs the name of a file")
            case _:
                note(f"no command /{command}: /help lists them")
        return True
