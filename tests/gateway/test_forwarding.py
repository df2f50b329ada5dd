"""Routes that an engine may have: passed through where it has them, refused by name where not."""

import json
from typing import Any

import httpx
import openai
import pytest

from tests.gateway.harness import QUESTION, Gateway, eventually

BODIES: dict[str, dict[str, Any]] = {
    "/tokenize": {"model": "tiny", "prompt": "abc"},
    "/detokenize": {"model": "tiny", "tokens": [97, 98]},
    "/v1/embeddings": {"model": "tiny", "input": "abc", "dimensions": 2},
    "/v1/responses": {"model": "tiny", "input": "abc", "reasoning": {"effort": "low"}},
}


def test_tokenize_and_back(gateway: Gateway) -> None:
    """Ids, count and context come from the model's engine, and the ids give the text again."""
    body = {"model": "tiny", "messages": QUESTION, "return_token_strs": True}
    reply = gateway.http.post("/tokenize", json=body)
    found = reply.json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 4096
    assert reply.headers["x-narrowgate-variant"] == "int4"
    back = gateway.http.post("/detokenize", json={"model": "tiny", "tokens": found["tokens"]})
    assert back.json() == {"prompt": "one two three"}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {"prompt": "a", "messages": QUESTION}, "prompt"),
        ("/tokenize", {"prompt": None}, "prompt"),
        ("/tokenize", {"add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"shout": True}, "shout"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [900]}, "tokens"),
        ("/v1/responses", {"model": None}, "model"),
        ("/v1/embeddings", {"model": "nope"}, "model"),
    ],
)
def test_bad_bodies(gateway: Gateway, path: str, fields: dict[str, Any], param: str) -> None:
    """A wrong field is named on these routes too."""
    reply = gateway.http.post(path, json=BODIES[path] | fields)
    assert reply.status_code == (404 if fields == {"model": "nope"} else 400)
    assert reply.json()["error"]["param"] == param


def test_embeddings_by_the_official_client(gateway: Gateway) -> None:
    """Embeddings of an engine that makes them arrive, and their prompt tokens are counted."""
    before = gateway.metric("prompt_tokens_total")
    reply = gateway.openai.embeddings.create(model="tiny", input="abc", encoding_format="float")
    assert reply.data[0].embedding == [0.5, -0.5]
    assert gateway.metric("prompt_tokens_total") == before + 4
    assert gateway.metric("requests_total", operation="embedding", outcome="ok") >= 1


def test_embeddings_never_stream(gateway: Gateway) -> None:
    """A field 'stream' on a route without streams is the engine's business."""
    reply = gateway.http.post("/v1/embeddings", json=BODIES["/v1/embeddings"] | {"stream": True})
    assert reply.json()["object"] == "list"


def test_responses_are_passed_on_as_they_are(gateway: Gateway) -> None:
    """Fields that only the engine knows reach it, and nothing is added to them."""
    reply = gateway.http.post("/v1/responses", json=BODIES["/v1/responses"]).json()
    assert reply["seen"] == ["input", "model", "reasoning"]


def test_streamed_responses_by_the_official_client(gateway: Gateway) -> None:
    """Every event arrives, a text that speaks of the end is not the end, usage is counted."""
    before = gateway.metric("generated_tokens_total")
    stream = gateway.openai.responses.create(model="tiny", input="abc", stream=True)
    kinds = [event.type for event in stream]
    assert kinds == ["response.created", "response.output_text.delta", "response.completed"]
    eventually(lambda: gateway.metric("generated_tokens_total") == before + 2)


def test_a_broken_response_ends_in_an_error(gateway: Gateway) -> None:
    """A stream of events that stops early ends in an error that the official client raises."""
    stream = gateway.openai.responses.create(
        model="tiny", input="x", stream=True, extra_body={"fake": {"fault": "truncate", "after": 2}}
    )
    with pytest.raises(openai.APIError, match="ended before the answer"):
        list(stream)


@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize("path", list(BODIES))
def test_an_engine_without_the_route(gateway: Gateway, path: str, status: int) -> None:
    """What the engine lacks is 404 with a code, the model's name and what to do instead."""
    body = BODIES[path] | {"fake": {"status": status, "body": "Not Found"}}
    reply = gateway.http.post(path, json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (404, "not_supported_by_engine")
    assert "'tiny@int4' has no " + path in error["message"]
    assert reply.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", list(BODIES))
@pytest.mark.parametrize("broken", ["[]", "not json", '{"usage": {"prompt_tokens": -1}}'])
def test_replies_that_cannot_be_read(gateway: Gateway, path: str, broken: str) -> None:
    """A reply that is no JSON object, or miscounts, is the engine's fault, not ours."""
    reply = gateway.http.post(path, json=BODIES[path] | {"fake": {"status": 200, "body": broken}})
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "engine_error")


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/version", "/v1/models"])
def test_head(gateway: Gateway, path: str) -> None:
    """HEAD answers as GET does, without the body."""
    reply = gateway.http.head(path)
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-type"] == gateway.http.get(path).headers["content-type"]


def test_versions(gateway: Gateway) -> None:
    """Gateway and engines say their versions."""
    found = gateway.http.get("/version").json()
    assert set(found) == {"version", "engines"}
    assert found["engines"] == {"tiny@int4": "0.fake"}


def test_replies_say_how_long_they_took(gateway: Gateway) -> None:
    """The time that passed here stands in OpenAI's header, in milliseconds."""
    reply: httpx.Response = gateway.http.post("/tokenize", json=BODIES["/tokenize"])
    assert 0 <= int(reply.headers["openai-processing-ms"]) < 10_000


def test_the_document_describes_every_route(gateway: Gateway) -> None:
    """Each POST has a body and the error envelope, every reference leads somewhere."""
    document = gateway.http.get("/openapi.json").json()
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in schemas
    posts = {name: path["post"] for name, path in document["paths"].items() if "post" in path}
    admin = {name: posts.pop(name) for name in list(posts) if name.startswith("/admin/")}
    assert (len(posts), len(admin)) == (6, 7)
    for each in admin.values():
        assert {"403", "404"} <= set(each["responses"])
        assert {"200", "202"} & set(each["responses"])
    for operation in posts.values():
        assert operation["requestBody"]["required"]
        assert {"200", "400", "401", "404", "413", "503"} <= set(operation["responses"])
    assert "422" not in text
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
