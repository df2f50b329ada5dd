"""One question to a variant and to the full model, over a real gateway with fake engines."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway.errors import EngineFault, NotSupportedByEngine
from gateway.model_settings import VariantSettings
from gateway.shadow.note import Note
from gateway.shadow.records import Capture
from gateway.shadow.token_texts import token_texts
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient
from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, QUESTION, Gateway, body, eventually
from tests.gateway.shadow.counts import settled

PATH = "/admin/side-by-side"
FAKE: dict[str, Any] = {"model": "fake"}
MODELS = {
    "ladder": FAKE | {"ladder": ["int4", "full"], "shadow": "off"},
    "tiny": FAKE | {"recipe": "int4"},
    "whole": FAKE | {"recipe": "full", "shadow": "off"},
    "refused": FAKE | {"recipe": "int4", "shadow": "off"},
}
LAUNCH = {
    "nll": {"reference": 0.75, "full": 0.75},
    "score_faults": {"ladder": "uneven", "tiny": "uneven", "refused": "refuse"},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway with a full model on a ladder, as a reference, and alone."""
    settings = {"models": MODELS, "shadow": {"rate": 1, "floor_every": 0}}
    started = Gateway(tmp_path_factory.mktemp("pairs"), settings, LAUNCH)
    started.wait_ready()
    yield started
    started.close()


def ask(gateway: Gateway, model: str, **fields: Any) -> httpx.Response:
    """Ask both."""
    return gateway.http.post(PATH, json={"model": model, "messages": QUESTION} | fields)


def test_the_ladders_full_model_answers(gateway: Gateway) -> None:
    """It is loaded for the question; both answers are requests like others, each with its time."""
    reply = ask(gateway, "ladder", max_tokens=4).json()
    assert (reply["model"], reply["variant"]) == ("ladder", "int4")
    assert (reply["compressed"]["name"], reply["full"]["name"]) == ("ladder@int4", "ladder@full")
    for side in ("compressed", "full"):
        assert reply[side]["text"] == " aaa aab aac aad"
        assert reply[side]["usage"]["completion_tokens"] == 4
        assert reply[side]["seconds"] > 0
    for variant in ("int4", "full"):
        counted = {"model": "ladder", "variant": variant}
        assert gateway.metric("requests_total", **counted, outcome="ok") == 1
        assert gateway.metric("generated_tokens_total", **counted) == 4
        assert gateway.metric("requests_running", **counted) == 0


def test_the_key_pays_for_both_answers(start_gateway: StartGateway) -> None:
    """Prompt and answer of the full model count too, on the ladder and as a reference."""
    boss = [{"name": "boss", "key": "sk-boss", "admin": True}]
    header = {"authorization": "Bearer sk-boss"}
    gateway = start_gateway(models=MODELS, api_keys=boss)
    for model in ("ladder", "tiny"):
        before = gateway.metric("key_tokens_total", key="boss")
        asked = {"model": model, "messages": QUESTION, "max_tokens": 4}
        reply = gateway.http.post(PATH, json=asked, headers=header)
        reply.raise_for_status()
        paid = [reply.json()[side]["usage"]["total_tokens"] for side in ("compressed", "full")]
        assert min(paid) > 4
        assert gateway.metric("key_tokens_total", key="boss") == before + sum(paid)


def test_the_full_models_load_is_no_time_of_the_variant(start_gateway: StartGateway) -> None:
    """A variant's request ends with its own answer, though the client waits for more."""
    gateway = start_gateway(models=MODELS, launch=LAUNCH | {"prepare_s": 1})
    gateway.http.post("/admin/models/ladder@int4/load").raise_for_status()
    started = time.perf_counter()
    ask(gateway, "ladder").raise_for_status()
    assert time.perf_counter() - started > 1
    counted = {"model": "ladder", "variant": "int4", "outcome": "ok"}
    assert gateway.metric("request_duration_seconds_count", **counted) == 1
    assert gateway.metric("request_duration_seconds_sum", **counted) < 1


def test_each_token_has_its_text_and_score(gateway: Gateway) -> None:
    """Where the full model finds another token likelier, that is told; the sums are the tokens'."""
    scores = ask(gateway, "ladder@int4").json()["scores"]
    assert [token["text"] for token in scores["tokens"]] == ["\x00", "\x01", "\x02", "\x03"]
    assert [token["agrees"] for token in scores["tokens"]] == [True, True, False, True]
    kl = [token["kl"] for token in scores["tokens"]]
    assert kl[2] > 10 * kl[0] > 0
    assert scores["first_divergence"] == 2
    assert scores["top1_agreement"] == 0.75
    assert scores["total_kl"] == pytest.approx(sum(kl))
    assert scores["mean_kl"] == pytest.approx(sum(kl) / 4)


def test_the_score_is_the_shadows(gateway: Gateway) -> None:
    """The same answer has the same mean divergence in the shadow's own metric."""
    gateway.http.post(CHAT, json=body(fake={"tokens": 4})).raise_for_status()
    eventually(settled(gateway, 1))
    sums = {"model": "tiny", "variant": "int4", "slice": "all", "estimator": "topk"}
    from_traffic = gateway.metric("fidelity_kl_nats_total", **sums)
    reply = ask(gateway, "tiny").json()
    assert reply["full"]["name"] == "tiny@reference"
    assert reply["scores"]["mean_kl"] == pytest.approx(from_traffic, rel=1e-12)
    assert gateway.metric("shadow_candidates_total", model="tiny") == 1  # it is not drawn itself


@pytest.mark.parametrize(
    ("model", "fields", "status", "words"),
    [
        ("ladder@full", {}, 400, "is the full model itself: name a compressed variant"),
        ("whole", {}, 400, "is the full model itself"),
        ("nobody", {}, 404, "no model 'nobody' is served here"),
        ("ladder", {"max_tokens": 513}, 400, "'max_tokens' is 513"),
        ("ladder", {"max_tokens": 0}, 400, "'max_tokens' is 0"),
        ("ladder", {"temperature": 3}, 400, "'temperature' is 3"),
        ("ladder", {"messages": []}, 400, "'messages' is []"),
        ("ladder", {"stream": True}, 400, "'stream'"),
        ("refused", {}, 400, "this engine scores nothing"),
    ],
)
def test_refusals_have_words(
    gateway: Gateway, model: str, fields: dict[str, Any], status: int, words: str
) -> None:
    """What cannot be asked is refused in one line that names it."""
    reply = ask(gateway, model, **fields)
    assert reply.status_code == status
    assert words in reply.json()["error"]["message"]


def test_the_full_model_leaves_with_the_keep_alive(start_gateway: StartGateway) -> None:
    """Loaded for a question, it goes as any idle variant does; the pinned active one stays."""
    model = FAKE | {"ladder": ["int4", "full"], "keep_alive_s": 0.3, "pin": True, "shadow": "off"}
    gateway = start_gateway(models={"tiny": model}, launch=LAUNCH)
    assert ask(gateway, "tiny", max_tokens=2).status_code == 200

    def states() -> dict[str, str]:
        found = gateway.http.get("/admin/models").json()["data"]
        return {each["id"]: each["state"] for each in found}

    eventually(lambda: states() == {"tiny@int4": "ready", "tiny@full": "stopped"})


def test_settings_without_a_full_model_say_what_to_add(start_gateway: StartGateway) -> None:
    """Under a memory budget without room for references the remedy is named."""
    gateway = start_gateway(memory_budget=1000)
    reply = ask(gateway, "tiny")
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert "add 'full' to its 'ladder'" in message
    assert "'shadow.reference.memory'" in message


def test_it_is_for_administrators(start_gateway: StartGateway) -> None:
    """A key without admin rights may not ask."""
    keys = [{"name": "boss", "key": "sk-boss", "admin": True}, {"name": "user", "key": "sk-user"}]
    gateway = start_gateway(api_keys=keys)
    found = {}
    for key in ("sk-user", "sk-boss"):
        asked = {"model": "tiny", "messages": QUESTION}
        header = {"authorization": f"Bearer {key}"}
        found[key] = gateway.http.post(PATH, json=asked, headers=header).status_code
    assert found == {"sk-user": 403, "sk-boss": 200}


class Silent(EngineClient):
    """An engine that writes what it is told."""

    def __init__(self, pieces: list[str]) -> None:
        super().__init__("http://127.0.0.1:1", served_name="x", read_timeout_s=1)
        self.pieces = pieces

    async def detokenize(self, token_ids: Any, request_id: str) -> str:
        """Return the text of the first tokens."""
        return b"".join(piece.encode("latin-1") for piece in self.pieces[: len(token_ids)]).decode(
            "utf-8", "replace"
        )


def test_an_engine_that_cannot_tell_is_refused() -> None:
    """Where nothing can be captured, and where nothing was, the error says who can."""
    spec = VariantSpec("there", "full", VariantSettings(model="x", urls=("http://10.0.0.1",)))

    class Nothing:
        def fields(self, fields: Any) -> dict[str, Any]:
            return dict(fields)

        def headers(self) -> dict[str, str]:
            return {}

        def pass_on(self, event: bytes) -> bytes:
            return event

        async def result(self, client: EngineClient) -> None:
            return None

        def forget(self, client: EngineClient) -> None: ...

    async def use() -> None:
        client = Silent([])
        with pytest.raises(NotSupportedByEngine, match="'there@full' does not tell"):
            Note(lambda info, engine: None).ask({}, spec, client, None)
        nothing: Capture = Nothing()
        note = Note(lambda info, engine: nothing)
        note.ask({}, spec, client, None)
        with pytest.raises(NotSupportedByEngine, match="on engine 'embedded' or 'vllm'"):
            await note.read(b"{}", client)
        note.decline()
        with pytest.raises(NotSupportedByEngine):
            await note.read(b"{}", client)
        await client.aclose()

    asyncio.run(use())


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        (["a", " b", ""], ["a", " b", ""]),
        # One character of three bytes in two tokens, then plain text.
        (["\xe2\x82", "\xac", "!"], ["", "€", "!"]),
        # A text that ends amid a character shows what a client got.
        (["a", "\xe2"], ["a", "\ufffd"]),
        ([], []),
    ],
)
def test_texts_of_tokens_join_to_the_answer(pieces: list[str], texts: list[str]) -> None:
    """Each token has what it adds, and a character comes with the token that ends it."""

    async def use() -> list[str]:
        client = Silent(pieces)
        found = await token_texts(client, list(range(len(pieces))), "r")
        await client.aclose()
        return found

    assert asyncio.run(use()) == texts


def test_an_engines_nonsense_is_its_fault() -> None:
    """A text that is none is an error of the engine, not a crash."""

    class Broken(EngineClient):
        async def _ask(self, path: str, fields: Any, request_id: str) -> Any:
            return {"prompt": 3}

    async def use() -> None:
        client = Broken("http://127.0.0.1:1", served_name="x", read_timeout_s=1)
        with pytest.raises(EngineFault, match="text of tokens"):
            await client.detokenize([1], "r")
        await client.aclose()

    asyncio.run(use())
