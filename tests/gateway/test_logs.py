"""Log lines: their form, what they say of a request, and what they never say."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.logs import PRIVATE, PROBES, JsonForm, RequestContext, TextForm
from gateway.record import RECORD, REQUEST_ID, RequestRecord
from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually

SECRET = "the vault opens with kumquat"


@pytest.fixture
def in_request() -> Iterator[RequestRecord]:
    """Be inside of a request."""
    record = RequestRecord("POST", CHAT, {}, model="tiny", variant="int4")
    tokens = REQUEST_ID.set("id-1"), RECORD.set(record)
    yield record
    REQUEST_ID.reset(tokens[0])
    RECORD.reset(tokens[1])


def line(form: logging.Formatter, name: str, message: str, **rest: Any) -> str:
    """Return a formatted line."""
    made = logging.getLogger(name).makeRecord(
        name, logging.ERROR, "x.py", 1, message, (), rest.pop("exc_info", None), extra=rest
    )
    RequestContext().filter(made)
    return form.format(made)


def failure() -> Any:
    """Return the info of an exception that quotes a prompt, as does its cause."""
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise ValueError(f"cannot read {SECRET}") from cause
    except ValueError as error:
        return type(error), error, error.__traceback__


@pytest.fixture(scope="module")
def json_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway that logs everything as JSON."""
    settings = {"log_format": "json", "log_level": "debug"}
    gateway = Gateway(tmp_path_factory.mktemp("logs"), settings, {})
    gateway.wait_ready()
    yield gateway
    gateway.close()


def access_lines(gateway: Gateway) -> list[dict[str, Any]]:
    """Return the lines of requests in a JSON log."""
    found = [json.loads(line) for line in gateway.log.splitlines()]
    lines = [line for line in found if line["logger"] == "gateway.access"]
    return [line for line in lines if line["path"] not in PROBES]


def test_json_line_has_the_request(in_request: RequestRecord) -> None:
    """A JSON line has time, level, logger, message, request id, model and variant, and is ASCII."""
    found = json.loads(text := line(JsonForm(), "gateway.x", "hällo \ud800\nnext"))
    assert text.isascii()
    assert "\n" not in text
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "error",
        "logger": "gateway.x",
        "message": "hällo \ud800\nnext",
        "request_id": "id-1",
        "model": "tiny",
        "variant": "int4",
    }


def test_text_line_has_the_request(in_request: RequestRecord) -> None:
    """A text line has the request's id in brackets."""
    assert line(TextForm(), "gateway.x", "hello").endswith(" ERROR gateway.x [id-1]: hello")


@pytest.mark.parametrize("form", [TextForm, JsonForm])
def test_private_words(form: type[TextForm | JsonForm]) -> None:
    """What may quote a prompt is in the line only where prompts are logged."""
    private = {PRIVATE: SECRET}
    assert SECRET not in line(form(), "gateway.x", "refused", **private)
    assert f"refused: {SECRET}" in line(form(shows_prompts=True), "gateway.x", "refused", **private)


@pytest.mark.parametrize("form", [TextForm, JsonForm])
def test_exceptions_in_a_request(
    form: type[TextForm | JsonForm], in_request: RequestRecord
) -> None:
    """A traceback inside a request names the types and places of all causes, not their words."""
    text = line(form(), "gateway.x", "failed", exc_info=failure())
    assert "builtins.ValueError" in text
    assert "builtins.KeyError" in text
    assert "test_logs.py" in text
    assert "kumquat" not in text
    assert SECRET in line(form(shows_prompts=True), "gateway.x", "failed", exc_info=failure())


def test_exceptions_elsewhere() -> None:
    """Outside of requests our own tracebacks keep their words; those of libraries do not."""
    assert SECRET in line(TextForm(), "gateway.pool.replica", "failed", exc_info=failure())
    assert SECRET not in line(TextForm(), "uvicorn.error", "failed", exc_info=failure())


def test_one_line_for_each_request(json_gateway: Gateway) -> None:
    """The end of a request is one line with outcome, model, tokens and times."""
    gateway = json_gateway
    names = ("plain", "streamed", "refused", "listed")
    ids = {name: {"x-request-id": name} for name in names}
    gateway.http.post(CHAT, json=body(), headers=ids["plain"])
    gateway.http.post(CHAT, json=body(stream=True, fake={"tokens": 3}), headers=ids["streamed"])
    gateway.http.post(CHAT, json=body() | {"model": "who"}, headers=ids["refused"])
    gateway.http.get("/v1/models", headers=ids["listed"])

    def found() -> list[dict[str, Any]]:
        # A line is written after the client has its reply, so their order is not that of requests.
        lines = {line["request_id"]: line for line in access_lines(gateway)}
        return [lines[name] for name in names] if lines.keys() >= set(names) else []

    plain, streamed, refused, listed = eventually(found)
    shown = ("method", "path", "status", "outcome", "model", "variant", "output_tokens")
    assert [plain[key] for key in shown] == ["POST", CHAT, 200, "ok", "tiny", "int4", 4]
    assert plain["duration_s"] > 0
    assert (streamed["output_tokens"], streamed["finish_reason"]) == (3, "stop")
    assert 0 < streamed["first_token_s"] <= streamed["duration_s"]
    assert (refused["status"], refused["outcome"]) == (404, "rejected")
    assert refused["error"] == "model_not_found"
    assert "model" not in refused
    assert (listed["path"], listed["status"]) == ("/v1/models", 200)


def test_no_words_of_requests_at_any_level(json_gateway: Gateway) -> None:
    """At level debug, through refusals, engine errors and broken streams, no prompt is logged."""
    gateway = json_gateway
    num_before = len(access_lines(gateway))
    messages = [{"role": "user", "content": SECRET}]
    wrongs: list[dict[str, Any]] = [
        {},
        {"stream": True},
        {"temperature": SECRET},
        {"messages": SECRET},
        {"model": SECRET},
        {SECRET: 1},
        {"fake": {"status": 400, "body": SECRET}},
        {"fake": {"status": 500, "body": f'{{"error":{{"message":"{SECRET}"}}}}'}},
        {"fake": {"fault": "garbage"}},
        {"stream": True, "fake": {"fault": "error", "after": 1}},
    ]
    for wrong in wrongs:
        gateway.http.post(CHAT, json=body() | {"messages": messages} | wrong)
    gateway.http.post(CHAT, content=f'{{"{SECRET}', headers={"content-type": "application/json"})
    eventually(lambda: len(access_lines(gateway)) >= num_before + len(wrongs) + 1)
    assert "engine status 500" in gateway.log
    assert "kumquat" not in gateway.log


def test_text_log_with_prompts(start_gateway: StartGateway) -> None:
    """With log_prompts the body of a request is logged; a path forges no line; looks have none."""
    gateway = start_gateway(log_prompts=True)
    gateway.http.post(CHAT, json=body() | {"messages": [{"role": "user", "content": SECRET}]})
    assert eventually(lambda: SECRET in gateway.log)
    gateway.http.get("/x%0aERROR forged")
    line = eventually(lambda: [one for one in gateway.log.splitlines() if "forged" in one])[0]
    assert "gateway.access" in line
    assert "/x\\nERROR forged 404" in line
    assert "/ready" not in gateway.log
    for path in ("/admin/live", "/dashboard", "/admin/models/nobody"):
        gateway.http.get(path)
    gateway.http.post("/admin/models/tiny/load")
    eventually(lambda: "POST /admin/models/tiny/load 200" in gateway.log)
    assert "/admin/live" not in gateway.log
    assert "/dashboard" not in gateway.log
    assert "/admin/models/nobody 404" in gateway.log
