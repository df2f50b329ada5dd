"""A checkpoint's chat template, run in jinja2's sandbox as transformers runs it.

Templates are programs of strangers. One that asks for more than messages, tools, special tokens and
a few functions is not taken here, so that transformers' own sandbox is the one it meets.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

_KEPT = "range"
"""The only one of jinja2's own functions that a template finds here."""


class ChatTemplate:
    """A template that was found plain; rendering it needs no lock."""

    def __init__(self, source: str, template: Template, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._template = template
        self._special_tokens = special_tokens

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool,
    ) -> str:
        """Return the conversation as text.

        Raises:
            jinja2.TemplateError: the template refuses the messages.
            ValueError: there are none.
        """
        if not messages:
            raise ValueError(
                "Cannot apply chat template to an empty conversation. Provide at least one message."
            )
        return self._template.render(
            messages=[_turn(message) for message in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
        )


def read_template(source: str, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """Return the template; None if it asks for more than is offered here, or cannot be read.

    ``special_tokens`` are those it may name, such as ``bos_token``.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    others = {name for name in environment.globals if name != _KEPT}
    for name in others:
        del environment.globals[name]
    try:
        if others & find_undeclared_variables(environment.parse(source)):
            return None
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        template = environment.from_string(source)
    except (TemplateError, SyntaxError, RecursionError, OverflowError):
        return None
    return ChatTemplate(source, template, special_tokens)


def _turn(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without empty fields, its reasoning under both names that templates read."""
    turn = {key: value for key, value in message.items() if value is not None}
    reasoning = turn.get("reasoning_content")
    if reasoning is None:
        return turn
    return {"thinking": reasoning, **turn, "reasoning_content": reasoning}


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes the characters of HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
