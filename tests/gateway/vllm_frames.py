"""What vLLM 0.32 sends, with and without the fields that a capture asks for: real frames, cut."""

import json
from typing import Any

CHAT_PROMPT = [1, 4093, 198, 1780, 2, 198, 1, 520, 9531, 198]
CHAT_TOKENS = [(60, "L"), (39614, "É"), (314, " is")]
TEXT_PROMPT = [504, 3575, 282, 4649, 314]
TEXT_TOKENS = [(7042, " Paris"), (30, "."), (198, "\n")]
LOGPROBS = [
    {60: -2.473951816558838, 504: -3.098951816558838, 18: -3.223951816558838},
    {39614: -1.3585869073867798, 49: -2.3585867881774902, 5921: -2.4835867881774902},
    {314: -2.0046560764312744, 365: -2.1921560764312744, 28: -2.1921560764312744},
]
USAGE = '"usage":{"prompt_tokens":10,"total_tokens":13,"completion_tokens":3}'
DONE = b"data: [DONE]\n\n"


def _named(token_id: int) -> str:
    return f"token_id:{token_id}"


def _entry(token_id: int, logprob: float, text: str) -> dict[str, Any]:
    return {"token": _named(token_id), "logprob": logprob, "bytes": list(text.encode())}


def chat_logprobs(index: int) -> dict[str, Any]:
    """Return the ``logprobs`` of one streamed token of a chat."""
    token_id, text = CHAT_TOKENS[index]
    tops = LOGPROBS[index]
    top = [_entry(each, value, _named(each)) for each, value in tops.items()]
    return {"content": [_entry(token_id, tops[token_id], text) | {"top_logprobs": top}]}


def text_logprobs(index: int) -> dict[str, Any]:
    """Return the ``logprobs`` of one streamed token of a text completion."""
    values = list(LOGPROBS[index].values())
    token_id = TEXT_TOKENS[index][0]
    names = [_named(token_id), *map(_named, list(LOGPROBS[index])[1:])]
    return {
        "text_offset": [13 * index],
        "token_logprobs": values[:1],
        "tokens": names[:1],
        "top_logprobs": [dict(zip(names, values, strict=True))],
    }


def _event(fields: str) -> bytes:
    return f"data: {{{fields}}}\n\n".encode()


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _chunk(kind: str, choice: str, more: str = "") -> bytes:
    head = f'"id":"c-1","object":"{kind}","created":1795351999,"model":"x"'
    return _event(f'{head},"choices":[{choice}]{more}')


def chat_stream(*, captured: bool, shows_ids: bool = False, kept_back: int = 0) -> list[bytes]:
    """Return the events of a chat; ``kept_back`` tokens of it are held by a parser."""
    kind = "chat.completion.chunk"
    prompt = _json(CHAT_PROMPT) if captured or shows_ids else "null"
    first = '{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
    first += '"finish_reason":null}'
    events = [_chunk(kind, first, f',"prompt_token_ids":{prompt},"prompt_text":null')]
    for index, (token_id, text) in enumerate(CHAT_TOKENS):
        is_last = index == len(CHAT_TOKENS) - 1
        is_kept_back = index < kept_back
        if is_kept_back and not (captured or shows_ids):
            continue
        delta = "{}" if is_kept_back else f'{{"content":{_json(text)}}}'
        logprobs = _json(chat_logprobs(index)) if captured else "null"
        ids = f"[{token_id}]" if captured or shows_ids else "null"
        end = '"finish_reason":"length","stop_reason":null' if is_last else '"finish_reason":null'
        choice = f'{{"index":0,"delta":{delta},"logprobs":{logprobs},{end},"token_ids":{ids}}}'
        events.append(_chunk(kind, choice))
    return [*events, _chunk(kind, "", f",{USAGE}"), DONE]


def text_stream(*, captured: bool) -> list[bytes]:
    """Return the events of a text completion."""
    events = []
    for index, (token_id, text) in enumerate(TEXT_TOKENS):
        logprobs = _json(text_logprobs(index)) if captured else "null"
        end = '"length"' if index == len(TEXT_TOKENS) - 1 else "null"
        prompt = _json(TEXT_PROMPT) if captured and not index else "null"
        ids = f"[{token_id}]" if captured else "null"
        choice = f'{{"index":0,"text":{_json(text)},"logprobs":{logprobs},"finish_reason":{end},'
        choice += f'"stop_reason":null,"prompt_token_ids":{prompt},"token_ids":{ids}}}'
        events.append(_chunk("text_completion", choice))
    return [*events, _chunk("text_completion", "", f",{USAGE}"), DONE]


def chat_body(*, captured: bool) -> bytes:
    """Return the plain reply to a chat."""
    message = '{"role":"assistant","content":"LÉ is","refusal":null,"tool_calls":[],'
    message += '"reasoning":"\\u001b\\""}'
    content = [chat_logprobs(index)["content"][0] for index in range(len(CHAT_TOKENS))]
    logprobs = _json({"content": content}) if captured else "null"
    ids = _json([token_id for token_id, _ in CHAT_TOKENS]) if captured else "null"
    prompt = _json(CHAT_PROMPT) if captured else "null"
    return (
        f'{{"id":"c-1","object":"chat.completion","created":1795351999,"model":"x","choices":'
        f'[{{"index":0,"message":{message},"logprobs":{logprobs},"finish_reason":"length",'
        f'"stop_reason":null,"token_ids":{ids},"routed_experts":null}}],"service_tier":null,'
        f'{USAGE},"prompt_logprobs":null,"prompt_token_ids":{prompt},"metrics":null}}'
    ).encode()


def text_body(*, captured: bool) -> bytes:
    """Return the plain reply to a text completion."""
    told = [text_logprobs(index) for index in range(len(TEXT_TOKENS))]
    joined = {name: [each[name][0] for each in told] for name in told[0]}
    logprobs = _json(joined) if captured else "null"
    ids = _json([token_id for token_id, _ in TEXT_TOKENS]) if captured else "null"
    prompt = _json(TEXT_PROMPT) if captured else "null"
    return (
        f'{{"id":"c-1","object":"text_completion","created":1795351999,"model":"x","choices":'
        f'[{{"index":0,"text":" Paris.\\n","logprobs":{logprobs},"finish_reason":"length",'
        f'"stop_reason":null,"token_ids":{ids},"prompt_logprobs":null,'
        f'"prompt_token_ids":{prompt},"routed_experts":null}}],"service_tier":null,{USAGE},'
        f'"metrics":null}}'
    ).encode()
