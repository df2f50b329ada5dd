"""The evaluation text: what ships, what users bring, how it is cut."""

import ast
import json
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from compression.errors import EvaluationError
from compression.evaluation import BUILTIN_NAMES, builtin_slices, cut, slices_from

OPERATORS: dict[type[ast.AST], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: lambda base, exponent: base ** int(exponent),
}


class ByteTokenizer:
    """One token a byte, behind as many special tokens as asked for."""

    def __init__(self, *prefix: int) -> None:
        self.prefix = list(prefix)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return (self.prefix if add_special_tokens else []) + list(text.encode())


def evaluate(expression: str) -> Fraction:
    """Return the exact value of an arithmetic expression."""

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(str(node.value))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(ast.dump(node))

    return value(ast.parse(expression.strip().replace("^", "**"), mode="eval").body)


def test_seven_slices_ship_in_a_few_kilobytes() -> None:
    """The built-in text has the seven promised slices of 4 to 6 KB each."""
    slices = builtin_slices()
    assert tuple(slices) == BUILTIN_NAMES
    assert len(slices) == 7
    for name, text in slices.items():
        assert 3_900 <= len(text.encode()) <= 6_000, name


def test_text_is_clean() -> None:
    """No slice holds tabs, trailing blanks, replacement characters or a paragraph twice."""
    for name, text in builtin_slices().items():
        assert text.endswith("\n"), name
        assert not re.search(r"\t|\r|\ufffd|[ \u3000]+$", text, flags=re.M), name
        long = [part for part in text.split("\n\n") if len(part) > 60]
        assert len(long) == len(set(long)), name


def test_languages_are_what_they_say() -> None:
    """Each language slice is written in the characters of its language."""
    slices = builtin_slices()
    han = sum("\u4e00" <= character <= "\u9fff" for character in slices["chinese"])
    assert han > 1_000
    assert not re.search("[a-zA-Z]", slices["chinese"])
    assert sum(slices["german"].count(character) for character in "äöüß") > 60
    assert sum(slices["french"].count(character) for character in "éèàçùêœ") > 80
    assert slices["english"].isascii()


def test_arithmetic_is_true() -> None:
    """Both sides of every equation between numbers are equal."""
    checked = 0
    for line in builtin_slices()["arithmetic"].splitlines():
        if re.search(r"\bb\b|\db\b", line):
            continue
        for chain in re.findall(r"[\d(-][\d.+*/^() -]*(?:=[\d.+*/^() -]+)+", line):
            sides = [side.strip().rstrip(".") for side in chain.split("=")]
            values = {evaluate(side) for side in sides}
            assert len(values) == 1, line
            checked += 1
    assert checked >= 65


def test_json_documents_parse_and_differ() -> None:
    """The JSON slice is a sequence of valid documents of different shapes."""
    text = builtin_slices()["json"]
    decoder = json.JSONDecoder()
    documents, position = [], 0
    while position < len(text.rstrip()):
        document, position = decoder.raw_decode(text, position)
        documents.append(document)
        position += len(text[position:]) - len(text[position:].lstrip())
    assert len(documents) >= 6
    order = documents[0]
    assert sum(line["total"] for line in order["lines"]) == order["totals"]["gross"]


def test_code_parses_and_works() -> None:
    """The Python part of the code slice parses, and what it defines does what it says."""
    parts = re.split(r"^# ---- file: (\S+) ----\n", builtin_slices()["code"], flags=re.M)
    files = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert set(files) == {"cache.py", "ring.c", "debounce.js", "report.sql", "backup.sh"}
    assert len(files["cache.py"]) > sum(map(len, files.values())) / 2
    tree = ast.parse(files["cache.py"])
    scope: dict[str, Callable[..., object]] = {}
    exec(compile(tree, "cache.py", "exec"), scope)  # noqa: S102
    scope["test_cache_forgets_after_its_time"]()
    graph = {"a": {"b": 1.0, "c": 5.0}, "b": {"c": 1.0}}
    assert scope["shortest_path"](graph, "a", "c") == ["a", "b", "c"]


def test_each_file_of_a_directory_is_a_slice(tmp_path: Path) -> None:
    """A user's files become slices named by their stems; hidden files and folders do not."""
    (tmp_path / "support.txt").write_text("Hallo, Ärger!", encoding="utf-8")
    (tmp_path / "logs.md").write_bytes(b"\xef\xbb\xbfstarted")
    (tmp_path / ".DS_Store").write_bytes(b"\xff\xfe")
    (tmp_path / "folder").mkdir()
    assert slices_from(tmp_path) == {"logs": "started", "support": "Hallo, Ärger!"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no file"),
        ({"a.txt": b" \n"}, "a.txt' is empty"),
        ({"a.txt": b"good \xff"}, r"a.txt' is not UTF-8 \(byte 5\)"),
        ({"a.txt": b"one", "a.md": b"two"}, "make the slice 'a'"),
    ],
)
def test_bad_directories_are_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    """Whatever cannot be a slice is named, in one line."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(EvaluationError, match=message) as caught:
        slices_from(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    """A directory that is not there is named with the option it came from."""
    with pytest.raises(EvaluationError, match=r"--text .*nowhere' is no directory"):
        slices_from(tmp_path / "nowhere")


@pytest.mark.parametrize("prefix", [(), (7,), (7, 8)])
def test_windows_predict_every_token_once(prefix: tuple[int, ...]) -> None:
    """Each token of the text is a target once, but for the first of a window without prefix."""
    text = "".join(chr(33 + index % 90) for index in range(100))
    windows = cut("s", text, ByteTokenizer(*prefix), window_tokens=32)
    body = [token for window in windows for token in window.token_ids[len(prefix) :]]
    assert bytes(body).decode() == text
    assert all(len(window.token_ids) <= 32 for window in windows)
    assert all(window.token_ids[: len(prefix)] == prefix for window in windows)
    predicted = sum(len(window.targets) for window in windows)
    assert predicted == (100 if prefix else 100 - len(windows))


def test_rows_belong_to_targets() -> None:
    """The logits at position i predict the token at i + 1."""
    (window,) = cut("s", "abcdef", ByteTokenizer(1))
    positions = range(len(window.token_ids))[window.rows]
    assert [window.token_ids[position + 1] for position in positions] == list(window.targets)
    assert bytes(window.targets) == b"abcdef"


def test_max_tokens_keeps_the_first() -> None:
    """A limit keeps the beginning of the text."""
    windows = cut("s", "abcdef" * 10, ByteTokenizer(), window_tokens=4, max_tokens=10)
    assert bytes(token for window in windows for token in window.token_ids) == b"abcdefabcd"


def test_a_tail_that_predicts_nothing_is_left_out() -> None:
    """A last window of one token without a prefix has no target and is dropped."""
    assert len(cut("s", "abcde", ByteTokenizer(), window_tokens=4)) == 1


def test_too_little_text_is_refused() -> None:
    """A slice with fewer than two tokens to predict is named."""
    with pytest.raises(EvaluationError, match="slice 'tiny' has 2 tokens: too few"):
        cut("tiny", "ab", ByteTokenizer())
