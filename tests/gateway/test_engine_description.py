"""What is read of an engine's own words, and what is told where they are none."""

import json
from typing import Any

import pytest

from gateway.engine_description import read_card, read_description, read_names
from gateway.errors import EngineFault

URL = "http://h:1"


def models(*cards: Any) -> bytes:
    """Return a list of models as servers send it."""
    return json.dumps({"object": "list", "data": cards}).encode()


def test_a_description_is_taken_with_what_nobody_knows_here() -> None:
    """A newer engine may tell more."""
    info = read_description(b'{"served_model_name":"m","dtype":"bfloat16","new":1}', "m", URL)
    assert (info.served_model_name, info.dtype, info.max_model_len) == ("m", "bfloat16", None)


def test_a_card_tells_the_context_alone() -> None:
    """Other servers describe nothing more."""
    info = read_card(models({"id": "a"}, {"id": "m", "max_model_len": 64}), "m", URL)
    assert (info.served_model_name, info.max_model_len, info.schemes) == ("m", 64, None)
    assert read_names(models({"id": "a"}, {"id": 5}), URL) == ["a", "5"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", r"http://h:1/engine/info does not describe an engine \("),
        (b"{}", "'served_model_name' Field required"),
        (b'{"served_model_name":"m","max_model_len":"far"}', "'max_model_len' Input should be"),
        (b'{"served_model_name":"b"}', "does not serve 'm' but b: correct 'model'"),
    ],
)
def test_what_is_no_description(content: bytes, words: str) -> None:
    """The address, the field and the setting are named."""
    with pytest.raises(EngineFault, match=words):
        read_description(content, "m", URL)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"data":{"id":1}}', models({}), models(1)])
def test_what_is_no_list_of_models(content: bytes) -> None:
    """The same is told of all, whoever asked."""
    for read in (lambda: read_card(content, "m", URL), lambda: read_names(content, URL)):
        with pytest.raises(EngineFault, match="v1/models is no list of models: corr"):
            read()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (models(), "does not serve 'm' but nothing: correct 'model'"),
        (models(*({"id": f"n{i}"} for i in range(9))), "but n0, n1, n2, n3, n4, n5, n6, n7: corr"),
        (
            models({"id": "m", "max_model_len": "far"}),
            r"http://h:1/v1/models does not describe an engine \('max_model_len' Input should be",
        ),
    ],
)
def test_a_list_without_the_model(content: bytes, words: str) -> None:
    """What is served instead is named, and no more than eight."""
    with pytest.raises(EngineFault, match=words):
        read_card(content, "m", URL)
