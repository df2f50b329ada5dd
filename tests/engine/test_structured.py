"""Tests of answers held to a form, and of calls of tools, on a model with random weights."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest

from gateway.engine.runner import load_runner
from gateway.engine.tokenizer import load_tokenizer
from tests.engine.fakes import (
    ANSWER,
    MESSAGES,
    MODEL,
    RunningEngine,
    make_runner,
    make_toy_tokenizer,
    post,
    running_engine,
    wait_until,
)

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}. Answer as "
    "<tool_call>{...}</tool_call>.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }}:{{ call.function.arguments.city }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"name": {"enum": ["Rome", "Oslo"]}},
}


def tool(name: str, parameters: Any = None) -> Any:
    """Return a tool on offer."""
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


BROKEN = {"name": "f", "arguments": "["}
TOOLS: Any = [tool("weather", CITY), tool("stop")]


@pytest.fixture(scope="module")
def engine(
    tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningEngine]:
    """Return an engine around a real decoder whose template knows tools."""
    runner: Any = load_runner(tiny_llama_dir, threads=1, max_model_len=None)
    directory = tmp_path_factory.mktemp("with-tools") / "checkpoint"
    shutil.copytree(tiny_llama_dir, directory)
    (directory / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    with running_engine(runner, load_tokenizer(directory)) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: RunningEngine) -> Iterator[openai.OpenAI]:
    """Return the official client, without retries."""
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    """Send one chat request; sampled, because greedy random weights repeat themselves."""
    base: dict[str, Any] = {"temperature": 1, "seed": 4, "max_tokens": 200}
    return client.chat.completions.create(model=MODEL, messages=MESSAGES, **base | fields)


def test_json_schema_is_held(client: openai.OpenAI) -> None:
    """Five answers of random weights all fit the schema, and end by themselves."""
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": CITY, "strict": True}}
    reply = chat(client, response_format=form, n=5)

    for choice in reply.choices:
        value = json.loads(choice.message.content)
        assert choice.finish_reason == "stop"
        assert set(value) == {"city", "days"}
        assert value["city"] in {"Rome", "Oslo"}
        assert value["days"] <= 9


def test_the_clients_own_parsing_works(client: openai.OpenAI) -> None:
    """``parse`` of the official client sends a strict schema and reads the answer."""

    class Colour(pydantic.BaseModel):
        name: Literal["red", "blue"]
        is_warm: bool

    reply = client.chat.completions.parse(
        model=MODEL,
        messages=MESSAGES,
        response_format=Colour,
        seed=1,
        logit_bias={"2": 0},
    )

    assert reply.choices[0].finish_reason == "stop"
    assert isinstance(reply.choices[0].message.parsed, Colour)


def test_json_object_and_vllms_forms(client: openai.OpenAI) -> None:
    """Any object, a regular expression, a choice, and a schema under vLLM's names."""
    start = chat(client, response_format={"type": "json_object"}, max_tokens=20)
    assert start.choices[0].message.content.startswith("{")
    for extra, pattern in (
        ({"guided_regex": "[ab]{3}-[0-9]+!"}, r"[ab]{3}-[0-9]+!"),
        ({"guided_choice": ['y"es', "no"]}, 'y"es|no'),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"guided_json": {"const": [1]}}, r"\[1\]"),
    ):
        reply = chat(client, extra_body=extra, seed=2)
        assert re.fullmatch(pattern, reply.choices[0].message.content)


def test_log_probabilities_stay_those_of_the_model(client: openai.OpenAI) -> None:
    """A form changes what is chosen, never what is reported: forced tokens are improbable."""
    reply = chat(client, extra_body={"guided_choice": ["Zq"]}, logprobs=True, top_logprobs=1)

    entries = reply.choices[0].logprobs.content
    assert any(entry.logprob < entry.top_logprobs[0].logprob for entry in entries)


def test_a_form_in_a_batch_touches_nobody_else(tmp_path: Path) -> None:
    """Beside a constrained answer a free one is what it is alone, and both are decoded together."""
    tokenizer = make_toy_tokenizer(tmp_path)
    runner = make_runner(tokenizer, ANSWER, delay_s=0.01)
    with running_engine(runner, tokenizer) as engine:
        url = f"{engine.url}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            forms: list[str] = []
            asked: dict[str, Any] = {"extra_body": {"guided_regex": "a{150}"}, "temperature": 0}
            form = threading.Thread(
                target=lambda: forms.append(chat(client, **asked).choices[0].message.content)
            )
            form.start()
            wait_until(lambda: len(runner.batches) > 3)
            together = chat(client, temperature=0).choices[0].message.content
            form.join()

    assert together == ANSWER
    assert forms == ["a" * 150]
    assert max(map(len, runner.batches)) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call_fits_its_schema(client: openai.OpenAI, stream: bool) -> None:
    """Name and arguments are those of a tool on offer, plain and streamed."""
    asked: dict[str, Any] = {
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    if stream:
        chunks = list(chat(client, **asked, stream=True))
        deltas = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        name, reason = deltas[0].function.name, chunks[-1].choices[0].finish_reason
        arguments = "".join(delta.function.arguments for delta in deltas)
        assert {delta.index for delta in deltas} == {0}
        assert deltas[0].id
        assert not any(chunk.choices[0].delta.content for chunk in chunks)
    else:
        [choice] = chat(client, **asked).choices
        [call] = choice.message.tool_calls
        name, arguments, reason = call.function.name, call.function.arguments, choice.finish_reason
        assert choice.message.content is None
    assert name in {"weather", "stop"}
    if reason == "tool_calls":
        value = json.loads(arguments)
        assert name == "stop" or value["city"] in {"Rome", "Oslo"}
    else:
        assert reason == "length"


def test_a_named_call_is_that_one(client: openai.OpenAI) -> None:
    """The named function is called with arguments of its schema; the reason is OpenAI's."""
    named: Any = {"type": "function", "function": {"name": "weather"}}
    [choice] = chat(client, tools=TOOLS, tool_choice=named).choices

    [call] = choice.message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    assert choice.finish_reason == "stop"


def test_free_choice_leaves_text_alone(client: openai.OpenAI) -> None:
    """With auto the model may answer in text; with none the tools do not reach the prompt."""
    auto = chat(client, tools=TOOLS, max_tokens=5)
    none = chat(client, tools=TOOLS, tool_choice="none", max_tokens=5)
    bare = chat(client, max_tokens=5)

    assert auto.choices[0].message.tool_calls is None
    assert auto.usage.prompt_tokens > none.usage.prompt_tokens == bare.usage.prompt_tokens


def test_earlier_calls_and_results_reach_the_template(engine: RunningEngine) -> None:
    """Arguments are an object there; ids and names come along."""
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": call}]},
        {"role": "tool", "content": "sun", "tool_call_id": "1"},
    ]
    body = {"model": MODEL, "messages": messages, "max_tokens": 1, "return_token_ids": True}
    ids = post(engine, body).json()["prompt_token_ids"]

    text = b"".join(map(engine.tokenizer.vocabulary.bytes_of, ids)).decode()
    assert "<tool_call>weather:Rome</tool_call><|im_end|>\n<|im_start|>tool\nsun<|im_end|>" in text


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        (
            {"tools": [tool("f", {"enum": []})], "tool_choice": "required"},
            "tools",
            "unsupported_schema",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "invalid_value",
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
            "invalid_value",
        ),
        (
            {"tools": TOOLS, "tool_choice": "required", "ignore_eos": True},
            "ignore_eos",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": BROKEN}]}]},
            "messages.0.tool_calls.0.function.arguments",
            "invalid_value",
        ),
    ],
)
def test_wrong_choices_are_refused(
    engine: RunningEngine, fields: dict[str, Any], param: str, code: str
) -> None:
    """Each before generation starts, with the field and what to do."""
    response = post(engine, {"model": MODEL, "messages": MESSAGES, **fields})

    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["code"]) == (param, code)


def test_a_template_in_another_form_can_only_be_told_to_call(engine: RunningEngine) -> None:
    """Without marks of calls in the template, auto is refused and says what to send."""
    tokenizer = engine.tokenizer
    kept = tokenizer.__dict__.get("calls_are_marked_up")
    tokenizer.__dict__["calls_are_marked_up"] = False
    response = post(engine, {"model": MODEL, "messages": MESSAGES, "tools": TOOLS})
    tokenizer.__dict__["calls_are_marked_up"] = kept

    assert response.json()["error"]["param"] == "tool_choice"
    assert "required" in response.json()["error"]["message"]
