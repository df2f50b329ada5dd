"""Who comes in: keys, models, administrators, hosts and origins, on a running gateway."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.admission.addresses import HostList, is_loopback
from gateway.admission.door import Door
from gateway.admission.keys import KeyRing
from gateway.api_key import ApiKey
from gateway.errors import AdminOnly, HostNotAllowed, InvalidApiKey
from gateway.listening import warn_if_open
from gateway.registry import Metrics
from gateway.settings import load_settings
from tests.gateway.harness import CHAT, Gateway, body, eventually

MODELS = {
    "tiny": {"model": "fake", "recipe": "int4"},
    "other": {"model": "fake", "recipe": "full"},
}
KEYS = """keys:
  - {name: all, key: sk-all}
  - {name: other, key: sk-other, models: [other]}
  - {name: boss, key: sk-boss, admin: true}
"""


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file with the keys."""
    file = tmp_path_factory.mktemp("keys") / "keys.yaml"
    file.write_text(KEYS)
    return file


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[Gateway]:
    """Return a gateway with keys."""
    settings = {
        "models": MODELS,
        "api_keys_file": str(key_file),
        "protect_metrics": True,
        "cors_origins": ["https://app.example"],
        "allowed_hosts": ["llm.example"],
    }
    gateway = Gateway(tmp_path_factory.mktemp("guarded"), settings, {})
    gateway.wait_ready()
    yield gateway
    gateway.close()


def bearer(secret: str) -> dict[str, str]:
    """Return the header with a key."""
    return {"authorization": f"Bearer {secret}"}


def code_of(reply: httpx.Response) -> tuple[int, str]:
    """Return status and code of a refusal; it has the whole envelope and an id."""
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    return reply.status_code, error["code"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("sk-wrong"),
        {"x-api-key": ""},
        {"authorization": "Basic sk-all"},
        {"x-api-key": "ä"},
    ],
)
def test_no_key_no_entry(guarded: Gateway, headers: dict[str, str]) -> None:
    """Without a valid key every path but the probes is 401 with WWW-Authenticate."""
    sent = httpx.Headers(headers, encoding="latin-1")
    for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/openapi.json", "/nowhere"):
        reply = guarded.http.get(path, headers=sent)
        assert code_of(reply) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["error"]["type"] == "invalid_request_error"
    for path in ("/health", "/ready", "/version"):
        assert guarded.http.get(path, headers=sent).status_code == 200


def test_the_key_comes_before_the_body(guarded: Gateway) -> None:
    """A request without a key is refused while its body is still on its way."""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", guarded.port), timeout=5) as client:
        client.sendall(head.encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_keys_open(guarded: Gateway) -> None:
    """A key opens as Bearer and as x-api-key, and rejections are counted."""
    for headers in (bearer("sk-all"), {"authorization": "bearer  sk-all"}, {"x-api-key": "sk-all"}):
        assert guarded.http.post(CHAT, json=body(), headers=headers).status_code == 200
    with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="sk-no", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x"}]
            )
        assert caught.value.code == "invalid_api_key"
    text = guarded.http.get("/metrics", headers=bearer("sk-all")).text
    assert 'admission_rejections_total{model="_other",reason="invalid_key"}' in text
    assert 'key_requests_total{key="all"} 3' in text
    assert "sk-" not in text


def test_only_the_models_of_a_key(guarded: Gateway) -> None:
    """A key sees, finds and uses its own models only, and no reply names another one."""
    listed = guarded.http.get("/v1/models", headers=bearer("sk-other"))
    assert [card["id"] for card in listed.json()["data"]] == ["other", "other@full"]
    every = guarded.http.get("/v1/models", headers=bearer("sk-all")).json()["data"]
    assert [card["id"] for card in every] == ["tiny", "tiny@int4", "other", "other@full"]
    refused = [
        guarded.http.get("/v1/models/tiny", headers=bearer("sk-other")),
        guarded.http.get("/v1/models/none", headers=bearer("sk-other")),
        *(
            guarded.http.post(CHAT, json=body() | {"model": name}, headers=bearer("sk-other"))
            for name in ("tiny", "tiny@int4", "none")
        ),
    ]
    for reply in refused:
        assert code_of(reply) == (404, "model_not_found")
        assert "int4" not in reply.text.replace("'tiny@int4'", "")  # only what was asked for
        assert reply.json()["error"]["message"].endswith("is served here: use one of other")
    eventually(lambda: "loading" not in guarded.http.get("/ready").text)
    used = guarded.http.post(CHAT, json=body() | {"model": "other"}, headers=bearer("sk-other"))
    assert used.status_code == 200


def test_admin_paths_need_the_admin_key(guarded: Gateway) -> None:
    """With an admin key, only it opens what is under /admin/."""
    path = "/admin/anything"
    assert code_of(guarded.http.get(path)) == (401, "invalid_api_key")
    assert code_of(guarded.http.get(path, headers=bearer("sk-all"))) == (403, "admin_only")
    assert code_of(guarded.http.get(path, headers=bearer("sk-boss"))) == (404, "not_found")


def test_admin_paths_without_an_admin_key(gateway: Gateway) -> None:
    """Without one they are for this machine, and not for a web page that runs on it."""
    path = "/admin/anything"
    assert code_of(gateway.http.get(path)) == (404, "not_found")
    page = {"origin": gateway.url}
    assert code_of(gateway.http.post(path, headers=page)) == (404, "not_found")
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        reply = gateway.http.post(path, headers={"origin": origin})
        assert code_of(reply) == (403, "admin_only")


def door_of(**settings: Any) -> Door:
    """Return the door of a gateway with these settings."""
    made = load_settings(None, {"models": MODELS, **settings}, {})
    return Door(made, KeyRing(made.api_keys, None, aliases=list(MODELS)), Metrics())


@pytest.mark.parametrize("client", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", None])
def test_admin_paths_are_not_for_the_network(client: str | None) -> None:
    """Without an admin key no other machine comes in, with a key or without."""
    with pytest.raises(AdminOnly, match="this machine only"):
        door_of(host="0.0.0.0").check("/admin/x", {"host": "127.0.0.1"}, client)
    with pytest.raises(AdminOnly, match="this machine only"):
        door_of(host="0.0.0.0", api_keys=["k"]).check("/admin/x", bearer("k"), client)
    here = {"host": "127.0.0.1:8000"}
    page = {"host": "evil.example:8000", "origin": "http://evil.example:8000"}
    for local in ("127.0.0.1", "::1"):
        assert door_of(host="0.0.0.0").check("/admin/x", here, local) is None
        # A page that has pointed its own name at this machine.
        with pytest.raises(AdminOnly, match=r"call this path as 127\.0\.0\.1"):
            door_of(host="0.0.0.0").check("/admin/x", page, local)


def test_probes_may_call_by_address() -> None:
    """An allow-list of names does not keep out probes and scrapers, which know addresses only."""
    door = door_of(host="0.0.0.0", allowed_hosts=["api.example"])
    for path in ("/health", "/ready", "/metrics"):
        assert door.check(path, {"host": "10.1.2.3:8000"}, "10.0.0.1") is None
    with pytest.raises(HostNotAllowed):
        door.check("/v1/models", {"host": "10.1.2.3:8000"}, "10.0.0.1")


def test_an_admin_key_alone_closes_everything() -> None:
    """A single key of any kind means that nobody comes in without one."""
    key = {"name": "boss", "key": "k", "admin": True}
    door = door_of(api_keys=[key])
    with pytest.raises(InvalidApiKey):
        door.check("/v1/models", {"host": "localhost"}, "127.0.0.1")
    found = door.check("/v1/models", {"host": "localhost", **bearer("k")}, "127.0.0.1")
    assert isinstance(found, ApiKey)
    assert found.name == "boss"


@pytest.mark.parametrize(
    ("bound_to", "allowed", "host", "is_served"),
    [
        ("127.0.0.1", (), "127.0.0.1:8000", True),
        ("127.0.0.1", (), "LOCALHOST", True),
        ("127.0.0.1", (), "localhost.:80", True),
        ("::1", (), "[::1]:8000", True),
        ("127.0.0.9", (), "127.0.0.9", True),
        ("127.0.0.1", (), "evil.example", False),
        ("127.0.0.1", (), "localhost.evil.example", False),
        ("127.0.0.1", (), "localhost@evil.example", False),
        ("127.0.0.1", (), "localhost:80:80", False),
        ("127.0.0.1", (), "", False),
        ("localhost", ("llm.example",), "LLM.example:443", True),
        ("0.0.0.0", (), "anything.example", True),
        ("0.0.0.0", ("llm.example",), "llm.example", True),
        ("0.0.0.0", ("llm.example",), "10.0.0.1", False),
    ],
)
def test_hosts(bound_to: str, allowed: tuple[str, ...], host: str, is_served: bool) -> None:
    """On loopback only local names and those of the setting are served; elsewhere if it is set."""
    names = HostList(bound_to, allowed)
    if is_served:
        names.check(host)
    else:
        with pytest.raises(HostNotAllowed, match="'allowed_hosts'"):
            names.check(host)


def test_what_is_loopback() -> None:
    """Only addresses that stay on the machine, and the one name for them."""
    assert [is_loopback(host) for host in ("127.8.9.1", "::1", "localhost")] == [True] * 3
    assert is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("::ffff:10.0.0.1")
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.1.1.1", "x", "")] == [False] * 5


def test_an_open_service_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """One line says that others can reach it without a key, and only then."""
    warn_if_open("127.0.0.1", has_keys=False)
    warn_if_open("0.0.0.0", has_keys=True)
    assert not caplog.records
    warn_if_open("0.0.0.0", has_keys=False)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "'api_keys_file'" in caplog.text


def test_rebinding_is_refused(guarded: Gateway) -> None:
    """A name that somebody else pointed at 127.0.0.1 reads nothing, not even the probes."""
    for path in ("/v1/models", "/health", "/admin/x"):
        reply = guarded.http.get(path, headers={"host": "evil.example", **bearer("sk-boss")})
        assert code_of(reply) == (421, "host_not_allowed")
    reply = guarded.http.get("/v1/models", headers={"host": "llm.example:1", **bearer("sk-all")})
    assert reply.status_code == 200


def test_cors(guarded: Gateway, gateway: Gateway) -> None:
    """Pages of a listed origin may call and read refusals; by default no page may."""
    ask = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    page = {"origin": "https://app.example"}
    allowed = guarded.http.options(CHAT, headers=page | ask)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    refused = guarded.http.get("/v1/models", headers=page)
    assert code_of(refused) == (401, "invalid_api_key")
    assert refused.headers["access-control-allow-origin"] == "https://app.example"
    other = guarded.http.options(CHAT, headers={"origin": "https://evil.example"} | ask)
    assert "access-control-allow-origin" not in other.headers
    default = gateway.http.get("/v1/models", headers=page)
    assert "access-control-allow-origin" not in default.headers


def test_keys_change_without_a_restart(guarded: Gateway, key_file: Path) -> None:
    """SIGHUP reads the file at once; a broken one is logged and locks nobody out."""

    def status(secret: str) -> int:
        return guarded.http.get("/v1/models", headers=bearer(secret)).status_code

    assert status("sk-new") == 401
    key_file.write_text(KEYS.replace("sk-all", "sk-new"))
    guarded.process.send_signal(signal.SIGHUP)
    eventually(lambda: status("sk-new") == 200)
    assert status("sk-all") == 401
    key_file.write_text("keys: [{name: sk-typo")
    guarded.process.send_signal(signal.SIGHUP)
    eventually(lambda: "is not YAML; the keys stay as they were" in guarded.log)
    assert status("sk-new") == 200
    key_file.write_text(KEYS)
    guarded.process.send_signal(signal.SIGHUP)
    eventually(lambda: status("sk-all") == 200)
    assert "sk-" not in guarded.log


def test_no_keys_no_questions(gateway: Gateway) -> None:
    """Without keys any key, or none, is welcome, as before."""
    assert gateway.http.post(CHAT, json=body()).status_code == 200
    assert gateway.http.post(CHAT, json=body(), headers=bearer("none")).status_code == 200
