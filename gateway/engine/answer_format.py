"""The form that a request asks of its answer: ``response_format``, or vLLM's parameters for it."""

import json
from typing import Any

from gateway.engine.grammar import Grammar, choice_grammar, json_grammar, regex_grammar
from gateway.engine.parameters import Request
from gateway.errors import InvalidRequest, UnsupportedParameter

ANY_OBJECT: dict[str, Any] = {"type": "object"}
MAX_CHOICES = 1024
FORMS = ("json", "json_object", "regex", "choice")
"""What ``structured_outputs`` may hold."""


def answer_schema(request: Request) -> tuple[dict[str, Any] | bool, str] | None:
    """Return the JSON schema of the answer and the field it came from, None where there is none.

    Raises:
        InvalidRequest: the field holds no schema.
    """
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return ANY_OBJECT, "response_format"
    if wanted.json_schema is None:
        raise InvalidRequest(
            "'response_format' of type 'json_schema' needs the key 'json_schema'",
            param="response_format.json_schema",
        )
    schema = wanted.json_schema.json_schema
    return (ANY_OBJECT if schema is None else schema), "response_format.json_schema.schema"


def answer_grammar(request: Request) -> Grammar | None:
    """Return the grammar of the answer, None if any text will do.

    Raises:
        InvalidRequest: several forms at once, or one that is not well written.
        UnsupportedParameter: a form that this engine does not know, or parameters against it.
    """
    found = [grammar for grammar in (_response_format(request), *_vllm(request)) if grammar]
    if len(found) > 1:
        names = " and ".join(repr(grammar.param) for grammar in found)
        raise InvalidRequest(f"{names} exclude each other: send one", param=found[1].param)
    if not found:
        return None
    check_free_end(request, found[0].param)
    return found[0]


def check_free_end(request: Request, param: str) -> None:
    """Refuse parameters that forbid an answer to end where its form does.

    Raises:
        UnsupportedParameter: names the parameter.
    """
    for name in ("ignore_eos", "min_tokens"):
        if getattr(request, name):
            raise UnsupportedParameter(
                f"{name!r} cannot be used with {param!r}, which ends the answer: leave it out",
                param=name,
            )


def _response_format(request: Request) -> Grammar | None:
    found = answer_schema(request)
    return None if found is None else json_grammar(found[0], param=found[1])


def _vllm(request: Request) -> list[Grammar]:
    """Return the grammars of ``guided_*`` and ``structured_outputs``."""
    asked = {
        "guided_json": ("json", request.guided_json),
        "guided_regex": ("regex", request.guided_regex),
        "guided_choice": ("choice", request.guided_choice),
    }
    structured = request.structured_outputs
    if structured is not None:
        if not isinstance(structured, dict):
            raise InvalidRequest(
                "'structured_outputs' must be an object", param="structured_outputs"
            )
        for form, value in structured.items():
            param = f"structured_outputs.{form[:40]}"
            if form not in FORMS and value is not None:
                raise UnsupportedParameter(
                    f"{param!r} is not supported: this engine knows {', '.join(FORMS)}", param=param
                )
            asked[param] = (form, value)
    return [_form(form, value, param) for param, (form, value) in asked.items() if value]


def _form(form: str, value: Any, param: str) -> Grammar:
    if form == "json_object":
        return json_grammar(ANY_OBJECT, param=param)
    if form == "json":
        return json_grammar(_schema(value, param), param=param)
    if form == "regex" and isinstance(value, str):
        return regex_grammar(value, param=param)
    is_texts = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
    if form == "choice" and is_texts and len(value) <= MAX_CHOICES:
        return choice_grammar(value, param=param)
    wanted = "a text" if form == "regex" else f"1 to {MAX_CHOICES} texts"
    raise InvalidRequest(f"{param!r} must be {wanted}", param=param)


def _schema(value: Any, param: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param!r} must be a JSON schema", param=param)
    return value
