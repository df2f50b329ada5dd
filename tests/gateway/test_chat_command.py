"""`narrowgate chat`, `models` and `completion`, as people use them."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from tests.gateway.harness import Gateway
from tests.ports import free_port

WORDS = ["Sea\u2028", "\x1b[31m and", " sky"]


class FakeApi:
    """An OpenAI endpoint of another make: one key, one model, slow answers to the word slow."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.num_broken = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply(200, {"data": [{"id": "other"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                api.bodies.append(body)
                if self.headers["authorization"] != "Bearer k":
                    self._reply(401, {"error": {"message": "Wrong key", "code": "invalid_api_key"}})
                elif body["messages"][-1]["content"] == "break":
                    self._events([{"error": {"message": "out of luck"}}])
                else:
                    is_slow = "slow" in body["messages"][-1]["content"]
                    pieces = [{"choices": [{"delta": {"content": word}}]} for word in WORDS]
                    usage = {"choices": [], "usage": {"completion_tokens": 3}}
                    self._events([*pieces, usage], pause_s=2 if is_slow else 0.001)

            def _reply(self, status: int, content: dict[str, Any]) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(content).encode())

            def _events(self, events: list[dict[str, Any]], pause_s: float = 0) -> None:
                self.send_response(200)
                self.end_headers()
                try:
                    for event in events:
                        time.sleep(pause_s)
                        data = json.dumps(event, ensure_ascii=False).encode()
                        self.wfile.write(b"data: " + data + b"\n\n")
                    self.wfile.write(b"data: [DONE]\n\n")
                except OSError:
                    api.num_broken += 1

            def log_message(self, format: str, *args: Any) -> None:
                """Stay quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """Return a running endpoint."""
    fake = FakeApi()
    yield fake
    fake.close()


Pipe = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pipe:
    """Return what runs a command with piped input and returns exit code, stdout and stderr."""
    for name in ("NARROWGATE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(question: str, *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(question))
        code = main(words)
        return code, *capsys.readouterr()

    return run


def test_piped_question(gateway: Gateway, pipe: Pipe) -> None:
    """With piped input nothing but the answer is printed."""
    code, out, err = pipe("one two three\n", "chat", "--url", gateway.url)
    assert (code, err) == (0, "")
    assert len(out.split()) == 4
    assert out.endswith("\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "who"], "no model 'who' there: use one of tiny, tiny@int4"),
        (["--url", "127.0.0.1"], "--url is '127.0.0.1': it must start with http:// or https://"),
        (["--url", "http://x:y"], "--url is 'http://x:y': Invalid port"),
        (["--api-key", "a\nb"], "the API key has characters that no header can carry"),
        (["--temperature", "9"], "temperature"),
    ],
)
def test_refusals(gateway: Gateway, pipe: Pipe, words: list[str], message: str) -> None:
    """What cannot work is one line and exit code 2."""
    code, out, err = pipe("hi", "chat", "--url", gateway.url, *words)
    assert (code, out) == (2, "")
    assert err.startswith("narrowgate: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_nobody_there(pipe: Pipe) -> None:
    """Where nobody answers, the command that starts a server is named."""
    code, _, err = pipe("hi", "chat", "--url", f"http://127.0.0.1:{free_port()}")
    assert code == 2
    assert "start one with `narrowgate serve --model smollm2`" in err


def test_no_question(gateway: Gateway, pipe: Pipe) -> None:
    """Empty input is refused."""
    code, _, err = pipe(" \n", "chat", "--url", gateway.url)
    assert (code, "no question" in err) == (2, True)


def test_other_endpoints(api: FakeApi, pipe: Pipe) -> None:
    """Any OpenAI API will do, with or without /v1; its line separators break no event."""
    words = ["chat", "--url", f"{api.url}/v1/", "--api-key", "k", "--system", "Be brief."]
    code, out, err = pipe("hi", *words, "--temperature", "0", "--max-tokens", "9")
    assert (code, out, err) == (0, "".join(WORDS) + "\n", "")
    assert api.bodies[0] == {
        "model": "other",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
        ],
        "stream": True,
        "temperature": 0.0,
        "max_tokens": 9,
        "stream_options": {"include_usage": True},
    }


def test_wrong_key_and_broken_answers(api: FakeApi, pipe: Pipe) -> None:
    """A refused key says how to pass one; an error inside a stream is told."""
    code, _, err = pipe("hi", "chat", "--url", api.url)
    assert (code, "Wrong key (pass a key with --api-key" in err) == (2, True)
    code, _, err = pipe("break", "chat", "--url", api.url, "--api-key", "k")
    assert (code, "the answer broke off: out of luck" in err) == (2, True)


def test_key_of_the_environment(api: FakeApi, pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key may come from the environment."""
    monkeypatch.setenv("NARROWGATE_API_KEY", "k")
    assert pipe("hi", "chat", "--url", api.url)[0] == 0


class Typist:
    """Somebody at a terminal with a chat."""

    def __init__(self, *words: str) -> None:
        self.shown = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            # Whoever runs the tests in the background ignores it, and so would the chat.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(sys.executable, [sys.executable, "-m", "gateway", "chat", *words])  # noqa: S606

    def see(self, text: str, timeout_s: float = 60) -> None:
        """Wait until that is shown, from where the last one ended."""
        until = time.monotonic() + timeout_s
        while text not in self.shown:
            ready, _, _ = select.select([self._terminal], [], [], until - time.monotonic())
            assert ready, f"{text!r} is not in {self.shown!r}"
            self.shown += os.read(self._terminal, 65536).decode()
        self.shown = self.shown.partition(text)[2]

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._terminal, text.encode())

    def end(self) -> int:
        """Return the exit code; a chat that does not end is killed."""
        until = time.monotonic() + 60
        while (found := os.waitpid(self._pid, os.WNOHANG))[0] == 0:
            time.sleep(0.01)
            if time.monotonic() > until:
                os.kill(self._pid, signal.SIGKILL)
        os.close(self._terminal)
        return os.waitstatus_to_exitcode(found[1])


def test_chat_in_a_terminal(api: FakeApi, tmp_path: Path) -> None:
    """A whole chat: figures, commands, Ctrl-C ends an answer alone, and errors end nothing."""
    person = Typist("--url", api.url, "--api-key", "k")
    person.see("other at http://127.0.0.1")
    person.see(">>> ")
    person.type("hello\n")
    person.see("Sea\u2028[31m and sky\r\n")  # no escape sequences
    person.see("3 tokens, ")
    person.see(" tokens/s, first after ")
    person.type("/model nope\n")
    person.see("error: no model 'nope' there: use one of other")
    person.type("break\n")
    person.see("error: the answer broke off: out of luck")
    person.type("slow\n")
    person.see("Sea")
    person.type("\x03")
    person.see("(stopped)")
    file = tmp_path / "said.json"
    person.type(f"/save {file}\n")
    person.see("saved")
    person.type(f"/save {file}\n")
    person.see("is there already")
    person.type("/reset\n")
    person.see("forgotten")
    person.type("again\n")
    person.see("3 tokens")
    person.type("/what\n")
    person.see("no command /what")
    person.see(">>> ")  # before that, the terminal takes Ctrl-D for itself
    person.type("\x04")
    assert person.end() == 0
    said = json.loads(file.read_text())["messages"]
    assert [one["role"] for one in said] == ["user", "assistant", "user", "assistant"]
    assert [one["content"] for one in said] == ["hello", "".join(WORDS), "slow", WORDS[0]]
    assert api.bodies[-1]["messages"] == [{"role": "user", "content": "again"}]


def test_models(gateway: Gateway, api: FakeApi, pipe: Pipe) -> None:
    """Models are a table with variant, state and sizes; of other endpoints the names."""
    code, out, _ = pipe("", "models", "--url", gateway.url)
    assert code == 0
    title, first, second = (line.split() for line in out.splitlines())
    assert title == ["model", "variant", "state", "bits", "memory", "of", "context"]
    assert first[:3] == ["tiny", "int4", "ready"]
    assert second[0] == "tiny@int4"
    assert pipe("", "models", "--url", api.url)[1].splitlines()[1].split()[:2] == ["other", "-"]


def test_models_as_json(gateway: Gateway, pipe: Pipe) -> None:
    """--json prints what the API says."""
    _, out, _ = pipe("", "models", "--url", gateway.url, "--json")
    assert json.loads(out) == gateway.http.get("/v1/models").json()["data"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("nar com", {"compare", "completion"}),
        ("nar build --recipe int4-", {"int4-fast", "int4-gptq"}),
        ("nar chat --mo", {"--model"}),
        ("nar completion z", {"zsh"}),
    ],
)
def test_bash_completes(words: str, expected: set[str], pipe: Pipe, tmp_path: Path) -> None:
    """In bash commands, flags, recipes and shells complete."""
    script = tmp_path / "script"
    script.write_text(pipe("", "completion", "bash")[1])
    typed = words.split()
    code = (
        f"source {script}; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; "
        f'_shtab_narrowgate; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)  # noqa: S607
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_scripts_are_valid(shell: str, pipe: Pipe) -> None:
    """Each shell that is installed accepts its script."""
    code, out, _ = pipe("", "completion", shell)
    assert code == 0
    assert "narrowgate" in out
    if shutil.which(shell) is not None:
        subprocess.run([shell, "-n"], input=out, text=True, check=True)
