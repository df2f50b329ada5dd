"""A conversation → the ids of a prompt, through the checkpoint's chat template."""

import json
from collections.abc import Sequence as Items
from typing import Any

from jinja2 import TemplateError

from gateway.engine.prompts import Prompt, fit
from gateway.engine.tokenizer import Tokenizer
from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.protocol import Message, Tool

TEMPLATE_ROLES = {"developer": "system"}
"""OpenAI's newer name for a role; templates only know the older one."""


def chat_prompt(
    messages: list[Message],
    tokenizer: Tokenizer,
    *,
    max_model_len: int,
    tools: Items[Tool] = (),
) -> Prompt:
    """Return the prompt; it leaves room for one more token at least.

    Raises:
        InvalidRequest: no chat template, or it refuses the messages.
        UnsupportedParameter: a message carries something that this engine cannot read.
        ContextLengthExceeded: the prompt leaves no room for an answer.
    """
    text = chat_text(messages, tokenizer, tools=tools)
    prompt = fit(
        text,
        lambda: tokenizer.encode(text),
        tokenizer,
        max_model_len=max_model_len,
        param="messages",
    )
    if not prompt.ids:
        raise InvalidRequest("the messages render to an empty prompt", param="messages")
    return prompt


def chat_text(
    messages: list[Message],
    tokenizer: Tokenizer,
    *,
    tools: Items[Tool] = (),
    add_generation_prompt: bool = True,
) -> str:
    """Return the conversation as the model's chat template writes it.

    Raises:
        InvalidRequest: no chat template, or it refuses the messages.
        UnsupportedParameter: a message carries something that this engine cannot read.
    """
    if not tokenizer.has_chat_template:
        raise InvalidRequest(
            "this model has no chat template, so it cannot answer chat completions: "
            "add chat_template.jinja to its checkpoint",
            param="messages",
        )
    conversation = [_plain(index, message, tokenizer) for index, message in enumerate(messages)]
    offered = [tool.model_dump(exclude_none=True) for tool in tools]
    try:
        return tokenizer.render(
            conversation, offered or None, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InvalidRequest(
            f"the model's chat template refuses these messages: {reason}", param="messages"
        ) from error


def _plain(index: int, message: Message, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a message as templates expect it: a role, one string, and its calls of tools."""
    role = TEMPLATE_ROLES.get(message.role, message.role)
    turn: dict[str, Any] = {"role": role, "content": _text(index, message)}
    if message.tool_calls or role == "tool":
        _require_tools(index, message, tokenizer)
    if message.tool_calls:
        turn["tool_calls"] = _calls(index, message)
    for key in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, key)) is not None:
            turn[key] = value
    return turn


def _require_tools(index: int, message: Message, tokenizer: Tokenizer) -> None:
    if not tokenizer.knows_tools:
        param = f"messages.{index}.{'tool_calls' if message.tool_calls else 'role'}"
        raise UnsupportedParameter(
            f"{param!r}: this model's chat template knows no tools, so it cannot show their "
            "calls and results: leave such messages out, or serve a model that was taught tools",
            param=param,
        )


def _calls(index: int, message: Message) -> list[dict[str, Any]]:
    """Return the calls of a message with their arguments as an object, as templates want them."""
    found: list[dict[str, Any]] = []
    for number, call in enumerate(message.tool_calls or ()):
        param = f"messages.{index}.tool_calls.{number}.function.arguments"
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise InvalidRequest(f"{param!r} must be a JSON object written as text", param=param)
        function = {"name": call.function.name, "arguments": arguments}
        found.append({"id": call.id, "type": "function", "function": function})
    return found


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
