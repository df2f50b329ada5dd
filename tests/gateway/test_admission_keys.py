"""Keys: kept as digests, read from a file that may change, and broken files change nothing."""

import hashlib
import logging
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway.admission.door import check_model
from gateway.admission.keys import CHECK_EVERY_S, KeyRing
from gateway.api_key import ApiKey, digest_of
from gateway.errors import ModelNotFound, SettingsError
from gateway.settings import load_settings

MODELS = {"a": {"model": "x"}, "b": {"model": "y"}}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ring_of(file: Path | None, *fixed: ApiKey, clock: Clock | None = None) -> KeyRing:
    """Return a ring of keys for the models a and b."""
    return KeyRing(fixed, file, aliases=["a", "b"], clock=clock or Clock())


def name_of(ring: KeyRing, secret: str) -> str | None:
    """Return the name of the key with this secret."""
    found = ring.find(secret.encode())
    return None if found is None else found.name


def test_secrets_and_digests_open_alike(tmp_path: Path) -> None:
    """A key in clear and one made with sha256sum both open, and nothing else does."""
    command = shutil.which("sha256sum")
    assert command is not None
    printed = subprocess.run([command], input="sk-two", capture_output=True, text=True, check=True)
    digest = f"sha256:{printed.stdout.split()[0]}"
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys:\n  - {{name: one, key: sk-one}}\n  - {{name: two, key: '{digest}'}}\n")
    ring = ring_of(file, ApiKey(name="three", key="sk-three"))
    assert [name_of(ring, f"sk-{name}") for name in ("one", "two", "three")] == [
        "one",
        "two",
        "three",
    ]
    for wrong in (
        "sk-four",
        "",
        "sk-on",
        "sk-one ",
        digest,
        digest[7:],
    ):
        assert name_of(ring, wrong) is None


def test_secrets_are_not_kept() -> None:
    """Neither the settings nor a key holds the secret, and neither prints its digest."""
    settings = load_settings(
        None, {"models": MODELS}, {"NARROWGATE_API_KEYS": "[sk-secret, {name: t, key: sk-other}]"}
    )
    assert [key.name for key in settings.api_keys] == ["key-1", "t"]
    assert settings.api_keys[0].key == digest_of(b"sk-secret")
    assert settings.api_keys[0].key == "sha256:" + hashlib.sha256(b"sk-secret").hexdigest()
    shown = repr(settings) + str(settings) + repr(settings.api_keys)
    assert "sk-" not in shown
    assert settings.api_keys[0].key not in shown


WRONG_KEYS: list[tuple[Any, str]] = [
    (["sk-hidden", "sk-hidden"], "the keys 'key-1' and 'key-2' are one secret: remove one"),
    ([{"name": "t", "key": "sk-hidden space"}], "'api_keys.0.key' (command line): the key must be"),
    ([{"name": "t", "key": "sha256:hidden"}], "64 digits"),
    ([{"name": "t", "key": 4711}], "the key must be text"),
    ([{"name": "t"}], "missing setting 'api_keys.0.key'"),
    ([{"name": "ä", "key": "sk-hidden"}], "'ä' must be 1 to 64 letters"),
    ([{"name": "t", "key": "sk-hidden", "models": ["c"]}], "the key 't' is for the model 'c'"),
    ([{"name": "t", "key": "k", "requests_per_minute": 0}], "greater than or equal to 1"),
    ([{"name": "t", "key": "k", "rpm": 5}], "unknown setting 'api_keys.0.rpm'"),
    ({"sk-hidden": 1}, "must be a list of keys"),
    ([["sk-hidden"]], "'api_keys.0' (command line)"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG_KEYS)
def test_wrong_keys_in_settings(keys: Any, message: str) -> None:
    """Each mistake is one line that names the field, and no line quotes a secret."""
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"models": MODELS, "api_keys": keys}, {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "keys: []",
        "[a]",
        "keys: {sk-hidden",
        "keys: [{name: t, key: sk-hidden}, {name: t, key: b}]",
        "keys: [{name: t, key: sk-hidden, models: [c]}]",
        "keys: [{name: t, key: sk-hidden, key: sk-hidden}]",
        "keys: [sk-hidden]",
        "\xff",
    ],
)
def test_broken_file(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    """A broken file ends the start in one line; later the old keys stay, with one log line."""
    broken, file, clock = tmp_path / "broken.yaml", tmp_path / "keys.yaml", Clock()
    broken.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"key file .*broken\.yaml") as caught:
        ring_of(broken)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)
    file.write_text("keys: [{name: t, key: old}]")
    ring = ring_of(file, clock=clock)
    with caplog.at_level(logging.INFO):
        os.replace(broken, file)
        for _ in range(3):
            clock.now += CHECK_EVERY_S
            assert name_of(ring, "old") == "t"
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        file.write_text("keys: [{name: t, key: new}]")
        clock.now += CHECK_EVERY_S
        assert (name_of(ring, "new"), name_of(ring, "old")) == ("t", None)


def test_file_is_looked_at_once_a_second(tmp_path: Path) -> None:
    """A changed file counts after at most a second, and between two looks nothing is read."""
    file, clock = tmp_path / "keys.yaml", Clock()
    file.write_text("keys: [{name: t, key: old}]")
    ring = ring_of(file, clock=clock)
    file.write_text("keys: [{name: t, key: new-one}]")
    clock.now += CHECK_EVERY_S * 0.9
    assert name_of(ring, "old") == "t"
    clock.now += CHECK_EVERY_S * 0.1
    assert name_of(ring, "old") is None
    assert name_of(ring, "new-one") == "t"
    file.unlink()
    clock.now += CHECK_EVERY_S
    assert name_of(ring, "new-one") == "t"


def test_models_of_others_are_not_told() -> None:
    """What a key does not open is not found, in words that list only what it opens."""
    key = ApiKey(name="t", key="k", models=("a",))
    check_model(key, "a")
    check_model(key, "a@int4")
    check_model(None, "b")
    for name in ("b", "b@int4", "nothing", ""):
        with pytest.raises(ModelNotFound) as caught:
            check_model(key, name)
        assert str(caught.value) == f"no model {name!r} is served here: use one of a"
