"""What was said so far, and with whom."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import RemoteFailed


@dataclass(slots=True)
class Conversation:
    """The messages that the next question goes along with."""

    model: str
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return all messages, that of the system first."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.turns]

    def ask(self, question: str) -> None:
        """Add a question."""
        self.turns.append({"role": "user", "content": question})

    def answer(self, text: str) -> None:
        """Add the answer to the last question; without any text that one is taken back."""
        if text:
            self.turns.append({"role": "assistant", "content": text})
        else:
            self.turns.pop()

    def reset(self) -> None:
        """Forget all but the system's message."""
        self.turns.clear()

    def save(self, file: Path) -> None:
        """Write a new file: JSON messages as the API takes them for ``.json``, else text.

        Raises:
            RemoteFailed: the file is there already or cannot be written.
        """
        messages = self.messages
        text = "\n\n".join(f"{one['role']}: {one['content']}" for one in messages)
        if file.suffix == ".json":
            text = json.dumps({"model": self.model, "messages": messages}, indent=1)
        try:
            with file.expanduser().open("x", encoding="utf-8") as out:
                out.write(text + "\n")
        except FileExistsError:
            raise RemoteFailed(f"{file} is there already: give another name") from None
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RemoteFailed(f"cannot write {file}: {reason}") from None
