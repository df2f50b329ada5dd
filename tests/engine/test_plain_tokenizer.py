"""The tokenizer that is read without transformers is the one that transformers reads."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError

from gateway.engine.plain_tokenizer import read_plain_tokenizer
from gateway.engine.tokenizer import Tokenizer, load_backend, load_tokenizer
from tests.checkpoints import CHAT_TEMPLATE, make_tokenizer

TEXTS = (
    "",
    " ",
    "\n\n\t  x",
    "The quick brown fox, 12345 times; don't!",
    "Zoë s'est levée à 7h30 — «déjà» 🦊👩‍👩‍👧",
    "日本語と中文、한국어 и русский",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start",
    "e\u0301\u200d\u00a0\ufeff\x00\x1b\ud7ff",
    "def f(x):\r\n\treturn  x**2  # ≤ 3",
)
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief. <b>&amp; 'quoted'</b>"},
    {"role": "user", "content": "Wetter in Köln? 🦊", "name": None},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I must ask.",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": ["é", 1]}}}
        ],
    },
    {"role": "tool", "content": "17 °C", "tool_call_id": "1"},
]
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
TEMPLATES = (
    CHAT_TEMPLATE,
    "{{ bos_token }}{{ pad_token }}{{ sep_token }}|{{ sep_token is defined }}|{{ documents }}",
    "{% for m in messages %}\n    {% if m.role == 'tool' %}\n{% break %}{% endif %}\n{{ m }}\n"
    "{% endfor %}",
    "{{ tools | tojson }}{{ messages | tojson(indent=2) }}{{ messages[0].content | tojson }}",
    "{% macro say(x) %}[{{ x | trim | upper }}]{% endmacro %}{{ say(messages[1].content) }}",
    "{% set all = [] %}{% for i in range(3) %}{% set _ = all.append(i) %}{% endfor %}{{ all }}",
    "{{ messages[2].thinking }}{{ messages[2].reasoning_content }}",
    "{{ messages[1].name is defined }}",
    "{% set kept = {} %}{{ kept.update({'a': 1}) }}",
    "{{ raise_exception('only user turns') }}",
    "{{ strftime_now('%Y') }}{{ enable_thinking is defined }}{{ date_string | default('none') }}",
    "{{ messages[9].content.x }}",
    "{{ ''.__class__.__mro__ }}|{{ messages.__init__.__globals__ }}",
    "{{ messages[1].content | length / 0 }}",
    "",
)
ADDED = {
    "content": "<|endoftext|>",
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}
NAME = ADDED | {"content": "<|im_start|>"}
WORDY: dict[str, Any] = {
    "add_bos_token": False,
    "add_prefix_space": False,
    "added_tokens_decoder": {"0": ADDED},
    "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    "bos_token": {"__type": "AddedToken", **ADDED},
    "errors": "replace",
    "model_input_names": ["input_ids"],
    "sep_token": None,
    "split_special_tokens": False,
    "tokenizer_class": "Qwen2Tokenizer",
}
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": False,
    "use_regex": True,
}
PADDING = {
    "strategy": "BatchLongest",
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}
TRUNCATION = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}


def both(directory: Path) -> tuple[Tokenizer, Tokenizer]:
    """Return the tokenizer of a directory as it is read without and with transformers."""
    plain = read_plain_tokenizer(directory)
    assert plain is not None
    return tuple(  # type: ignore[return-value]
        Tokenizer(backend, eos_ids=frozenset({2}), source=directory)
        for backend in (plain, load_backend(directory))
    )


def require_alike(directory: Path) -> None:
    """Compare ids, texts, pieces and what is known of the vocabulary, on odd and random texts."""
    plain, whole = both(directory)
    rng = random.Random(5)
    noise = ["".join(chr(rng.randrange(1, 0xD7FF)) for _ in range(40)) for _ in range(50)]
    for text in (*TEXTS, *noise):
        for adds in (False, True):
            ids = plain.encode(text, add_special_tokens=adds)
            assert ids == whole.encode(text, add_special_tokens=adds)
        assert plain.decode(ids) == whole.decode(ids)
        assert plain.pieces(ids) == whole.pieces(ids)
    every = range(plain.num_ids + 2)
    assert plain.num_ids == whole.num_ids
    assert plain.longest_token_bytes == whole.longest_token_bytes
    ours, theirs = plain.vocabulary, whole.vocabulary
    assert [ours.bytes_of(id_) for id_ in every] == [theirs.bytes_of(id_) for id_ in every]
    assert [ours.text_bytes(id_) for id_ in every] == [theirs.text_bytes(id_) for id_ in every]
    assert plain.backend.eos_token_id == whole.backend.eos_token_id
    assert plain.backend.chat_template == whole.backend.chat_template
    assert plain.is_special("<|im_end|>")
    assert not plain.is_special("fox")
    assert render(plain, TURNS, None) == render(whole, TURNS, None)


def render(
    tokenizer: Tokenizer, turns: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str:
    """Return what a template gives, or how it fails."""
    try:
        return tokenizer.render(turns, tools, add_generation_prompt=bool(tools))
    except (TemplateError, TypeError, ValueError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"


def save(directory: Path) -> Path:
    """Save the tiny tokenizer."""
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.mark.real_model
def test_the_real_model_is_read_alike(demo_model_dir: Path) -> None:
    """The demo model's ids, texts and prompts are those of transformers."""
    require_alike(demo_model_dir)


def test_a_saved_tokenizer_is_read_alike(tmp_path: Path) -> None:
    """A tokenizer as transformers saves it needs no transformers to be read."""
    require_alike(save(tmp_path))


def test_entries_without_effect_are_read_alike(tmp_path: Path) -> None:
    """Configs of other versions name the same tokens in more words."""
    directory = save(tmp_path)
    set_file(post_processor=BYTE_LEVEL)(directory)
    set_config(**WORDY)(directory)
    names = {"eos_token": "<|im_end|>", "bos_token": ADDED}
    set_names(**names, additional_special_tokens=["<|im_end|>", NAME])(directory)

    require_alike(directory)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_templates_render_alike(
    tmp_path: Path, template: str, tools: list[dict[str, Any]] | None
) -> None:
    """Texts, and the words of what goes wrong, are those of transformers."""
    (save(tmp_path) / "chat_template.jinja").write_text(template)
    plain, whole = both(tmp_path)

    for turns in (TURNS, TURNS[:1], []):
        assert render(plain, turns, tools) == render(whole, turns, tools)


@pytest.mark.parametrize(
    "template",
    [
        "{% set ns = namespace(a=1) %}{{ ns.a }}",
        "{{ dict(a=1) }}",
        "{{ lipsum() }}",
        "{% generation %}{{ messages }}{% endgeneration %}",
        "{% for m in messages %}",
        "{% for m in messages %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    ],
)
def test_templates_that_ask_for_more_are_left_to_transformers(
    tmp_path: Path, template: str
) -> None:
    """What strangers' templates may do beyond the plain is decided in one place."""
    (save(tmp_path) / "chat_template.jinja").write_text(template)

    assert read_plain_tokenizer(tmp_path) is None
    assert load_tokenizer(tmp_path).backend.chat_template == template


def add_file(name: str) -> Callable[[Path], Any]:
    """Return what puts a file beside the tokenizer."""
    return lambda directory: (directory / name).write_text("{}")


def set_config(**entries: Any) -> Callable[[Path], Any]:
    """Return what changes entries of ``tokenizer_config.json``."""
    return lambda directory: rewrite(directory, lambda config: config.update(entries))


def set_names(**entries: Any) -> Callable[[Path], Any]:
    """Return what writes ``special_tokens_map.json``."""
    return lambda directory: (directory / "special_tokens_map.json").write_text(json.dumps(entries))


def set_file(**entries: Any) -> Callable[[Path], Any]:
    """Return what changes entries of ``tokenizer.json``."""

    def change(directory: Path) -> None:
        rewrite(directory, lambda config: config.update(entries), name="tokenizer.json")

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_names(cls_token="<|im_start|>"),
        set_names(bos_token="<|endoftext|>"),
        set_names(bos_token={**NAME, "lstrip": True}),
        set_names(bos_token=["<|im_start|>"]),
        set_names(additional_special_tokens=["<|im_start|>"]),
        set_names(image_token="<|im_start|>"),
        set_names(bos_token=7),
        set_names(bos_token={"content": []}),
        add_file("added_tokens.json"),
        add_file("additional_chat_templates"),
        set_config(eos_token="fox"),
        set_config(eos_token=""),
        set_config(pad_token="<|new|>"),
        set_config(bos_token={"content": "<|im_start|>"}),
        set_config(extra_special_tokens=["<|new|>"]),
        set_config(extra_special_tokens={"image_token": "<|im_end|>"}),
        set_config(image_token="<|im_end|>"),
        set_config(added_tokens_decoder={"0": {"content": "<|endoftext|>", "special": True}}),
        set_config(added_tokens_decoder={"9": ADDED}),
        set_config(added_tokens_decoder={"0": ADDED | {"lstrip": True}}),
        set_config(split_special_tokens=True),
        set_config(add_prefix_space=True),
        set_config(add_bos_token=True),
        set_config(add_bos_token=False),
        set_config(chat_template=[{"name": "default", "template": "{{ messages }}"}]),
        set_config(fix_mistral_regex=True),
        set_file(padding=PADDING),
        set_file(truncation=TRUNCATION),
        lambda directory: (directory / "tokenizer_config.json").write_text("["),
        lambda directory: (directory / "tokenizer_config.json").write_bytes(b"\xff"),
        lambda directory: (directory / "chat_template.jinja").write_bytes(b"\xff"),
        lambda directory: (directory / "config.json").write_text('{"model_type": "mistral3"}'),
        lambda directory: (directory / "tokenizer.json").unlink(),
    ],
)
def test_whatever_is_out_of_the_ordinary_is_left_to_transformers(
    tmp_path: Path, change: Callable[[Path], Any]
) -> None:
    """Files that could make another tokenizer of it are not guessed at."""
    directory = save(tmp_path)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    assert read_plain_tokenizer(directory) is not None

    change(directory)

    assert read_plain_tokenizer(directory) is None


def test_a_plain_tokenizer_loads_no_transformers(tmp_path: Path) -> None:
    """Ids, a prompt and a grammar come about without the import that takes a second."""
    code = """
import sys
from pathlib import Path
from gateway.engine.grammar import GrammarCompiler, regex_grammar
from gateway.engine.tokenizer import load_tokenizer
tokenizer = load_tokenizer(Path(sys.argv[1]))
assert tokenizer.encode(tokenizer.render([{"role": "user", "content": "hi"}]))
GrammarCompiler(tokenizer, tokenizer.num_ids).compile(regex_grammar("a|b", param="x"))
print("transformers" in sys.modules)
"""
    command = [sys.executable, "-c", code, str(save(tmp_path))]

    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "False\n"


def rewrite(
    directory: Path, change: Callable[[dict[str, Any]], Any], *, name: str = "tokenizer_config.json"
) -> None:
    """Change a JSON file."""
    path = directory / name
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
