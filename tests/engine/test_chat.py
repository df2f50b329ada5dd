"""Tests of prompts and parameters: what is understood, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest

from compression.errors import CorruptCheckpoint
from gateway.engine.chat import chat_prompt
from gateway.engine.parameters import ModelLimits, sampling_params
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
    ids = chat_prompt(request.messages, tokenizer, max_model_len=room).ids
    return b"".join(map(tokenizer.vocabulary.bytes_of, ids)).decode()


def params(**fields: Any) -> Any:
    """Return the sampling parameters of a request with these fields."""
    request = parse_chat({"model": "m", "messages": [USER], **fields})
    return sampling_params(request, limits=ModelLimits(50, 320))


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
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
            },
            "messages.1.tool_calls",
        ),
        ({"role": "tool", "content": "42", "tool_call_id": "1"}, "messages.1.role"),
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
    length = len(chat_prompt(request.messages, tokenizer, max_model_len=1000).ids)

    assert len(chat_prompt(request.messages, tokenizer, max_model_len=length + 1).ids) == length
    with pytest.raises(ContextLengthExceeded, match=f"resulted in {length} tokens") as caught:
        chat_prompt(request.messages, tokenizer, max_model_len=length)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "messages"


def test_a_huge_prompt_is_refused_without_being_read(tokenizer: Tokenizer) -> None:
    """Ten megabytes are refused by their length alone."""
    request = parse_chat({"model": "m", "messages": [{"role": "user", "content": "x" * 10**7}]})

    with pytest.raises(ContextLengthExceeded, match="at least"):
        chat_prompt(request.messages, tokenizer, max_model_len=256)


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
    request = parse_chat({"model": "m", "messages": [USER], "max_tokens": 50})
    limits = ModelLimits(max_model_len=50, vocab_size=320)
    assert sampling_params(request, limits=limits, num_prompt_tokens=30).max_tokens == 20


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_beyond_the_context_is_refused(name: str) -> None:
    """What the model can never write is named, with what it can."""
    with pytest.raises(InvalidRequest, match="holds 50 tokens") as caught:
        params(**{name: 51})

    assert (caught.value.param, caught.value.code) == (name, "invalid_value")


def test_answers_that_never_fit_the_cache_together_are_refused() -> None:
    """n times prompt and answer is held against the cache, where its size is known."""
    fields = {"model": "m", "messages": [USER], "n": 4, "max_tokens": 20}
    request = parse_chat(fields)

    sampling_params(request, limits=ModelLimits(50, 320, kv_tokens=120), num_prompt_tokens=10)
    with pytest.raises(ContextLengthExceeded, match="120 tokens of context") as caught:
        sampling_params(request, limits=ModelLimits(50, 320, kv_tokens=119), num_prompt_tokens=10)
    assert caught.value.param == "n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("best_of", 2),
        ("echo", True),
        ("include_stop_str_in_output", True),
        ("use_beam_search", True),
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
        ("repetition_penalty", 1.0),
        ("min_p", 0),
        ("logit_bias", {}),
        ("stop_token_ids", []),
        ("ignore_eos", False),
        ("tools", []),
        ("tool_choice", "none"),
        ("response_format", {"type": "text"}),
        ("service_tier", "auto"),
        ("echo", False),
        ("skip_special_tokens", True),
        ("user", "me"),
        ("metadata", {"a": "b"}),
        ("store", True),
        ("anything_else", None),
    ],
)
def test_default_values_change_nothing(name: str, value: Any) -> None:
    """Clients that spell out the defaults are served."""
    assert params(**{name: value}) == params()


def test_extensions_reach_the_sampler() -> None:
    """vLLM's fields and the penalties have their place, too."""
    found = params(
        min_p=0.1,
        presence_penalty=-1,
        frequency_penalty=2,
        repetition_penalty=1.5,
        logit_bias={"5": -100, "319": 1.5},
        stop_token_ids=[7],
        ignore_eos=True,
        min_tokens=3,
        prompt_logprobs=2,
        return_token_ids=True,
    )

    assert (found.min_p, found.presence_penalty, found.frequency_penalty) == (0.1, -1, 2)
    assert (found.repetition_penalty, found.logit_bias) == (1.5, ((5, -100), (319, 1.5)))
    assert (found.stop_token_ids, found.ignore_eos, found.min_tokens) == ({7}, True, 3)
    assert (found.prompt_logprobs, found.returns_token_ids) == (2, True)
    assert found.end_ids(frozenset({1, 2})) == {7}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {"320": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"\u0663": 1}),
        ("logit_bias", {"5": 100.5}),
        ("stop_token_ids", [320]),
        ("min_tokens", 11),
    ],
)
def test_values_that_do_not_fit_the_model_are_refused(name: str, value: Any) -> None:
    """Ids outside the vocabulary and contradictions are errors that name the field."""
    with pytest.raises(InvalidRequest) as caught:
        params(**{"max_tokens": 10, name: value})

    assert (caught.value.param, caught.value.code) == (name, "invalid_value")


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
