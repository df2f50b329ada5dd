"""Tests of prompts and parameters: what is understood, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest

from compression.errors import CorruptCheckpoint
from gateway.engine.chat import prompt_ids
from gateway.engine.parameters import sampling_params
from gateway.engine.tokenizer import Tokenizer, load_tokenizer
from gateway.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter
from gateway.protocol import parse_chat
from tests.checkpoints import CHAT_TEMPLATE
from tests.engine.fakes import make_toy_tokenizer

STRICT_TEMPLATE = (
    "{% if messages[0]['role'] != 'user' %}"
    "{{ raise_exception('the first turn must be of the user') }}{% endif %}" + CHAT_TEMPLATE
)
USER = {"role": "user", "content": "hello"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return the tiny byte-level tokenizer."""
    return make_toy_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def prompt(tokenizer: Tokenizer, *messages: dict[str, Any], room: int = 256) -> str:
    """Return the prompt text of a conversation, by way of its ids."""
    request = parse_chat({"model": "m", "messages": list(messages)})
    ids = prompt_ids(request.messages, tokenizer, max_model_len=room)
    return b"".join(map(tokenizer.vocabulary.bytes_of, ids)).decode()


def params(**fields: Any) -> Any:
    """Return the sampling parameters of a request with these fields."""
    request = parse_chat({"model": "m", "messages": [USER], **fields})
    return sampling_params(request, room=50)


def test_a_conversation_is_written_as_the_template_says(tokenizer: Tokenizer) -> None:
    """Turns in order, special tokens as such, and the opening of the answer at the end."""
    text = prompt(tokenizer, {"role": "system", "content": "be brief"}, USER)

    assert text == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_text_parts_are_joined_and_developer_means_system(tokenizer: Tokenizer) -> None:
    """OpenAI's newer forms reach the template in the form it knows."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    text = prompt(tokenizer, {"role": "developer", "content": parts}, USER)

    assert text.startswith("<|im_start|>system\none\ntwo<|im_end|>")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.1.content.0.type"),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            "messages.1.tool_calls",
        ),
    ],
)
def test_what_is_not_text_is_refused(
    tokenizer: Tokenizer, message: dict[str, Any], param: str
) -> None:
    """Images and tool calls are named, not dropped."""
    with pytest.raises(UnsupportedParameter) as caught:
        prompt(tokenizer, USER, message)

    assert caught.value.param == param


def test_a_template_that_refuses_is_the_clients_error(tmp_path: Path) -> None:
    """The template's own words reach the client, with param messages."""
    strict = make_toy_tokenizer(tmp_path, chat_template=STRICT_TEMPLATE)

    with pytest.raises(InvalidRequest, match="first turn must be of the user") as caught:
        prompt(strict, {"role": "assistant", "content": "hm"})

    assert caught.value.param == "messages"


def test_without_a_template_chat_is_refused(tmp_path: Path) -> None:
    """A base model's checkpoint says what it lacks."""
    bare = make_toy_tokenizer(tmp_path, chat_template=None)

    with pytest.raises(InvalidRequest, match="no chat template"):
        prompt(bare, USER)


def test_a_prompt_must_leave_room_for_one_token(tokenizer: Tokenizer) -> None:
    """One token less than the context is accepted, a full context is not."""
    request = parse_chat({"model": "m", "messages": [USER]})
    length = len(prompt_ids(request.messages, tokenizer, max_model_len=1000))

    assert len(prompt_ids(request.messages, tokenizer, max_model_len=length + 1)) == length
    with pytest.raises(ContextLengthExceeded, match=f"resulted in {length} tokens") as caught:
        prompt_ids(request.messages, tokenizer, max_model_len=length)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def test_a_huge_prompt_is_refused_without_being_read(tokenizer: Tokenizer) -> None:
    """Ten megabytes are refused by their length alone."""
    request = parse_chat({"model": "m", "messages": [{"role": "user", "content": "x" * 10**7}]})

    with pytest.raises(ContextLengthExceeded, match="at least"):
        prompt_ids(request.messages, tokenizer, max_model_len=256)


def test_defaults_are_openais() -> None:
    """No field given means plain sampling up to the end of the context."""
    found = params()

    assert (found.temperature, found.top_p, found.top_k) == (1.0, 1.0, 0)
    assert (found.max_tokens, found.seed, found.stop, found.top_logprobs) == (50, None, (), None)


def test_fields_reach_the_sampler() -> None:
    """Every supported field has its place."""
    found = params(
        temperature=0, top_p=0.5, top_k=7, seed=-3, stop=["a", "b"], logprobs=True, top_logprobs=2
    )

    assert (found.temperature, found.top_p, found.top_k, found.seed) == (0, 0.5, 7, -3)
    assert (found.stop, found.top_logprobs) == (("a", "b"), 2)
    assert params(stop="x", logprobs=True).stop == ("x",)
    assert params(logprobs=True).top_logprobs == 0
    assert params(top_k=-1).top_k == 0


def test_the_token_limit_is_capped_to_the_room() -> None:
    """max_completion_tokens wins over max_tokens, and neither exceeds what is left."""
    assert params(max_tokens=10).max_tokens == 10
    assert params(max_tokens=10, max_completion_tokens=5).max_tokens == 5
    assert params(max_tokens=10**9).max_tokens == 50


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1.0),
        ("logit_bias", {"5": 1.0}),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("min_p", 0.1),
        ("repetition_penalty", 1.1),
        ("anything_else", False),
    ],
)
def test_what_cannot_be_honoured_is_refused(name: str, value: Any) -> None:
    """A non-default value of an unsupported parameter is an error that names it."""
    with pytest.raises(UnsupportedParameter) as caught:
        params(**{name: value})

    assert caught.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 1),
        ("presence_penalty", 0),
        ("frequency_penalty", 0.0),
        ("logit_bias", {}),
        ("tools", []),
        ("tool_choice", "none"),
        ("response_format", {"type": "text"}),
        ("service_tier", "auto"),
        ("user", "me"),
        ("metadata", {"a": "b"}),
        ("store", True),
        ("anything_else", None),
    ],
)
def test_default_values_of_unsupported_parameters_are_fine(name: str, value: Any) -> None:
    """Clients that spell out the defaults are served."""
    assert params(**{name: value}) == params()


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0", "model": {}}'])
def test_a_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path, content: str | None) -> None:
    """Missing or broken tokenizer files name the directory."""
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(CorruptCheckpoint, match=tmp_path.name) as caught:
        load_tokenizer(tmp_path)

    assert "\n" not in str(caught.value)


def test_every_end_token_of_the_checkpoint_counts(tmp_path: Path) -> None:
    """Ids of generation_config, config and tokenizer all end an answer."""
    make_toy_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')

    assert load_tokenizer(tmp_path).eos_ids == {2, 5, 6, 7}
