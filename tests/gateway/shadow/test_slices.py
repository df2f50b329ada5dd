"""The slices of traffic: every request is in one of each dimension, and in no invented one."""

import math
import time
from typing import Any

import pytest

from gateway.errors import SettingsError
from gateway.shadow.slices import (
    ALL,
    VOCABULARY,
    OwnSlices,
    all_slices,
    by_slice,
    is_known_before,
    places_of,
    slices_of,
)
from gateway.shadow.text_kind import domain_of, script_of


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    """Return a chat's body: questions of the user with answers between them."""
    messages: list[dict[str, Any]] = []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]
    return {"model": "m", "messages": messages[:-1], **fields}


def dimension(name: str, fields: dict[str, Any], answer: str = "", tokens: int = 10) -> str:
    """Return the one value that a request has in this dimension."""
    names = slices_of(fields, num_prompt_tokens=tokens, answer=answer)
    (found,) = [each for each in names if each.startswith(f"{name}:")]
    return found.removeprefix(f"{name}:")


@pytest.mark.parametrize(
    ("tokens", "length"),
    [(0, "0-127"), (127, "0-127"), (128, "128-511"), (512, "512-2047"), (9999, "2048+")],
)
def test_length(tokens: int, length: str) -> None:
    """The borders of prompt lengths belong to the longer class."""
    assert dimension("length", chat("Hello"), tokens=tokens) == length


def test_turns() -> None:
    """Only a second question makes a conversation; a system prompt does not."""
    single = chat("Hello")
    single["messages"].insert(0, {"role": "system", "content": "Be brief."})
    assert dimension("turns", single) == "single"
    assert dimension("turns", chat("Hello", "And now?")) == "multi"
    assert dimension("turns", {"model": "m", "prompt": "Once upon"}) == "single"


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Où est la mer ?", "latin"),
        ("海はどこですか", "cjk"),
        ("바다는 어디", "cjk"),
        ("Где море?", "cyrillic"),
        ("أين البحر؟", "arabic"),
        ("समुद्र कहाँ है", "devanagari"),
        ("איפה הים", "other"),
        ("12 + 30!", None),
        ("The word 海 means sea", "latin"),
    ],
)
def test_script(text: str, script: str | None) -> None:
    """Most letters decide; no letters decide nothing."""
    assert script_of(text) == script


def test_script_is_that_of_the_answer() -> None:
    """A model's words count before the question's; without letters anywhere it is ``other``."""
    assert dimension("script", chat("Say it in Russian"), "Привет, мир") == "cyrillic"
    assert dimension("script", chat("Say it in Russian"), "123") == "latin"
    assert dimension("script", {"model": "m", "prompt": [1, 2, 3]}) == "other"


@pytest.mark.parametrize(
    ("question", "answer", "domain"),
    [
        (
            "Tell me about the sea",
            "The sea is wide. It was so in 2019-2020, on 2021-03-04.",
            "prose",
        ),
        ("Write a Python function that sorts", "", "code"),
        ("Sort it", "def sort(items):\n    return sorted(items)", "code"),
        ("How?", "Use this:\n```\nls -l\n```", "code"),
        ("And?", "SELECT name FROM ships;", "code"),
        ("What is 12 * 7?", "84", "math"),
        ("Solve", "\\frac{1}{2} of it", "math"),
        ("Find it: 2x + 3", "", "math"),
        ("Give me data", '{"name": "x", "n": 1}', "json"),
        ("Give me data", "```json\n[1, 2]\n```", "json"),
        ("Describe a class of ships", "It was important from the start.", "prose"),
    ],
)
def test_domain(question: str, answer: str, domain: str) -> None:
    """Question and answer together tell the domain."""
    assert domain_of(question, answer) == domain


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({}, "free"),
        ({"response_format": {"type": "text"}}, "free"),
        ({"response_format": {"type": "json_object"}}, "json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "schema"),
        ({"guided_regex": "a+"}, "schema"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, "free"),
        ({"tools": [], "response_format": None}, "free"),
    ],
)
def test_format(fields: dict[str, Any], form: str) -> None:
    """What the answer is held to is its format."""
    assert dimension("format", chat("Hello", **fields)) == form


def test_sampling() -> None:
    """Temperature 0 and a single candidate are greedy, the default is not."""
    assert dimension("sampling", chat("a", temperature=0)) == "greedy"
    assert dimension("sampling", chat("a", top_k=1)) == "greedy"
    assert dimension("sampling", chat("a")) == "sampled"


def test_parts_of_a_message_and_single_prompts_are_read() -> None:
    """Text comes as parts, and as a list of one prompt, too."""
    parts = [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "Где море?"}]
    body = {"model": "m", "messages": [{"role": "user", "content": parts}]}
    assert dimension("script", body) == "cyrillic"
    assert dimension("script", {"model": "m", "prompt": ["Где море?"]}) == "cyrillic"


def test_every_slice_is_of_the_closed_vocabulary() -> None:
    """A request is in ``all`` and in one slice of each dimension but position."""
    own = (OwnSlices("tenant", ("blue", "green")),)
    names = slices_of(chat("Hi", metadata={"tenant": "red"}), num_prompt_tokens=1, own=own)
    assert set(names) < set(all_slices(own))
    assert [name.partition(":")[0] for name in names] == [
        ALL,
        *(each for each in VOCABULARY if each != "position"),
        "metadata.tenant",
    ]
    assert len(all_slices()) == 26


def test_own_slices_are_bounded() -> None:
    """Ten thousand values of a client make no more slices than the operator named."""
    own = (OwnSlices("tenant", ("blue",)),)
    seen = {
        name
        for number in range(10_000)
        for name in slices_of(
            chat("Hi", metadata={"tenant": f"t{number}"}), num_prompt_tokens=1, own=own
        )
    }
    assert {name for name in seen if name.startswith("metadata")} == {"metadata.tenant:other"}
    assert len(slices_of(chat("Hi"), num_prompt_tokens=1, own=own)) == 7


def test_wrong_own_slices_are_refused() -> None:
    """Names that are no labels, too many, and twice the same are one clear line each."""
    with pytest.raises(SettingsError, match="'a b' is no name"):
        OwnSlices("tenant", ("a b",))
    with pytest.raises(SettingsError, match="17 values"):
        OwnSlices("tenant", tuple(f"v{number}" for number in range(17)))
    with pytest.raises(SettingsError, match="each one once"):
        all_slices((OwnSlices("a", ("x",)), OwnSlices("a", ("y",))))


def test_positions_get_only_their_tokens() -> None:
    """Damage behind token 255 is seen whole in its slice, and thinned in all others."""
    divergences = [0.01] * 256 + [1.0] * 44
    scores = by_slice(
        places_of([ALL, "domain:prose"], 300),
        divergences=divergences,
        agreeing=[True] * 256 + [False] * 44,
        delta_nlls=[0.5] * 300,
    )
    assert scores["position:0-63"].num_tokens == 64
    assert scores["position:64-255"].divergence == pytest.approx(0.01)
    assert scores["position:256+"].divergence == pytest.approx(1.0)
    assert scores["position:256+"].num_agreeing == 0
    assert scores[ALL].divergence == pytest.approx((2.56 + 44) / 300)
    assert scores["domain:prose"] == scores[ALL]
    assert scores[ALL].delta_nll == pytest.approx(150)
    assert places_of([ALL], 64) == {ALL: range(64), "position:0-63": range(64)}
    nothing = places_of([ALL], 0)
    assert by_slice(nothing, divergences=[], agreeing=[], delta_nlls=[]) == {}


def test_a_position_without_a_number_damages_its_slices_only() -> None:
    """NaN at one position is infinite divergence there and in the whole, not elsewhere."""
    divergences = [0.01] * 70
    divergences[65] = math.nan
    places = places_of([ALL], 70)
    scores = by_slice(places, divergences=divergences, agreeing=[True] * 70, delta_nlls=[0.0] * 70)
    assert scores[ALL].divergence == math.inf
    assert scores["position:64-255"].divergence == math.inf
    assert scores["position:0-63"].divergence == pytest.approx(0.01)


def test_what_is_known_before_the_answer() -> None:
    """Only positions cannot be told from a request."""
    assert not is_known_before("position:256+")
    assert all(is_known_before(name) for name in all_slices() if not name.startswith("position"))


@pytest.mark.parametrize(
    "unit", ["def a", "SELECT ", "\n \n", "a" * 9, "a(", "{ ", "1 ", "import a.", "python "]
)
def test_no_text_keeps_the_process_busy(unit: str) -> None:
    """Text made to confuse the patterns is told in milliseconds."""
    text = (unit * 5000)[:5000]
    started = time.thread_time()
    slices_of(chat(text), num_prompt_tokens=1, answer=text)
    assert time.thread_time() - started < 0.25
