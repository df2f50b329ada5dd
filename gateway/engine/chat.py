"""A conversation → the ids of a prompt, through the checkpoint's chat template."""

from typing import Any

from jinja2 import TemplateError

from gateway.engine.tokenizer import Tokenizer
from gateway.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from gateway.protocol import Message

TEMPLATE_ROLES = {"developer": "system"}
"""OpenAI's newer name for a role; templates only know the older one."""


def prompt_ids(messages: list[Message], tokenizer: Tokenizer, *, max_model_len: int) -> list[int]:
    """Return the prompt's token ids; they leave room for one more at least.

    Raises:
        InvalidRequest: no chat template, or it refuses the messages.
        UnsupportedParameter: a message carries something other than text.
        ContextLengthExceeded: the prompt leaves no room for an answer.
    """
    if not tokenizer.has_chat_template:
        raise InvalidRequest(
            "this model has no chat template, so it cannot answer chat completions: "
            "add chat_template.jinja to its checkpoint",
            param="messages",
        )
    conversation = [_plain(index, message) for index, message in enumerate(messages)]
    try:
        text = tokenizer.render(conversation)
    except (TemplateError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRequest(
            f"the model's chat template refuses these messages: {reason}", param="messages"
        ) from error
    fewest = len(text.encode()) // tokenizer.longest_token_bytes
    if fewest >= max_model_len:
        raise _too_long(f"at least {fewest}", max_model_len)
    ids = tokenizer.encode(text)
    if len(ids) >= max_model_len:
        raise _too_long(str(len(ids)), max_model_len)
    if not ids:
        raise InvalidRequest("the messages render to an empty prompt", param="messages")
    return ids


def _too_long(num_tokens: str, max_model_len: int) -> ContextLengthExceeded:
    # Clients look for this wording as well as for the code.
    return ContextLengthExceeded(
        f"This model's maximum context length is {max_model_len} tokens, and your messages "
        f"resulted in {num_tokens} tokens, which leaves no room for an answer. "
        "Please reduce the length of the messages."
    )


def _plain(index: int, message: Message) -> dict[str, str]:
    """Return a message as templates expect it: a role and one string."""
    extras: dict[str, Any] = message.model_extra or {}
    for key in ("tool_calls", "function_call", "audio"):
        if extras.get(key):
            raise UnsupportedParameter(
                f"'messages.{index}.{key}' is not supported by this engine",
                param=f"messages.{index}.{key}",
            )
    role = TEMPLATE_ROLES.get(message.role, message.role)
    return {"role": role, "content": _text(index, message)}


def _text(index: int, message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    for number, part in enumerate(message.content):
        if part.type != "text":
            param = f"messages.{index}.content.{number}.type"
            raise UnsupportedParameter(
                f"{param!r} is {part.type[:40]!r}: this engine reads parts of type 'text' only",
                param=param,
            )
    return "\n".join(part.text or "" for part in message.content)
