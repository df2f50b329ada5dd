"""Which tools a chat offers, and which of them the answer must call."""

import json
from dataclasses import dataclass

from gateway.engine.answer_format import ANY_OBJECT, answer_schema, check_free_end
from gateway.engine.grammar import Grammar, json_rule, lark_grammar
from gateway.engine.tokenizer import Tokenizer
from gateway.engine.tool_markup import CALL_END, CALL_START
from gateway.errors import InvalidRequest, UnsupportedParameter
from gateway.protocol import ChatRequest, NamedToolChoice, Tool


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """The tools on offer; ``must_call`` holds those of which one has to be called.

    ``marks`` are the marks around a call as Lark writes them.
    """

    offered: tuple[Tool, ...]
    marks: tuple[str, str]
    must_call: tuple[Tool, ...] = ()
    is_named: bool = False
    calls_once: bool = False


def tool_choice(request: ChatRequest, tokenizer: Tokenizer) -> ToolChoice | None:
    """Return what the request says of tools, None if the answer may call none.

    Raises:
        InvalidRequest: a choice without tools, or of one that is not on offer.
        UnsupportedParameter: the model's chat template cannot offer tools.
    """
    tools, choice = tuple(request.tools or ()), request.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise InvalidRequest("'tool_choice' needs 'tools' to choose from", param="tool_choice")
        return None
    if choice == "none":
        return None
    _require_template(tokenizer, is_free=choice in (None, "auto"))
    is_named = isinstance(choice, NamedToolChoice)
    must_call = _must_call(request, tools)
    if must_call:
        check_free_end(request, "tool_choice")
        if answer_schema(request) is not None:
            raise InvalidRequest(
                "'response_format' cannot be used with a 'tool_choice' that asks for a call",
                param="response_format",
            )
    calls_once = is_named or request.parallel_tool_calls is False
    marks = (_mark(tokenizer, CALL_START), _mark(tokenizer, CALL_END))
    return ToolChoice(tools, marks, must_call, is_named, calls_once)


def tool_grammar(choice: ToolChoice, request: ChatRequest) -> Grammar | None:
    """Return the grammar of an answer with calls, None where the model is free."""
    schema = answer_schema(request)
    if not choice.must_call and schema is None:
        return None
    rules = [_calls_rule(choice, choice.must_call or choice.offered)]
    if schema is None:
        rules.insert(0, "start: calls")
        return lark_grammar("\n".join(rules), param="tools")
    rules.insert(0, f"start: calls | answer\nanswer: {json_rule(schema[0])}")
    return lark_grammar("\n".join(rules), param=schema[1])


def _mark(tokenizer: Tokenizer, text: str) -> str:
    """Return a mark as Lark writes it: bare if it is one special token, else quoted."""
    return text if tokenizer.is_special(text) else json.dumps(text)


def _require_template(tokenizer: Tokenizer, *, is_free: bool) -> None:
    if not tokenizer.knows_tools:
        raise UnsupportedParameter(
            "'tools': this model's chat template knows no tools: leave them out, "
            "or serve a model that was taught to call tools",
            param="tools",
        )
    if is_free and not tokenizer.calls_are_marked_up:
        raise UnsupportedParameter(
            "'tool_choice' is 'auto', but this model's calls are not marked with "
            f"{CALL_START}, the only form that is read here: send 'required' or name a function",
            param="tool_choice",
        )


def _must_call(request: ChatRequest, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    choice = request.tool_choice
    if choice == "required":
        return tools
    if not isinstance(choice, NamedToolChoice):
        return ()
    named = tuple(tool for tool in tools if tool.function.name == choice.function.name)
    if not named:
        raise InvalidRequest(
            f"'tool_choice' names {choice.function.name[:64]!r}, which is not among the 'tools'",
            param="tool_choice",
        )
    return named


def _calls_rule(choice: ToolChoice, tools: tuple[Tool, ...]) -> str:
    """Return the rules ``calls`` and ``call`` in llguidance's Lark."""
    bodies = " | ".join(_body(tool) for tool in tools)
    call = f'call: {choice.marks[0]} "\\n" ({bodies}) "\\n" {choice.marks[1]}'
    repeated = "call" if choice.calls_once else 'call ("\\n" call)*'
    return f"calls: {repeated}\n{call}"


def _body(tool: Tool) -> str:
    # The parameters stay a schema of their own, because references start at its root.
    head = json.dumps(f'{{"name": {json.dumps(tool.function.name)}, "arguments": ')
    return f'{head} {json_rule(tool.function.parameters or ANY_OBJECT)} "}}"'
