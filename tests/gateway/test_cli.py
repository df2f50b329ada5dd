"""The command line and what it shows."""

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compression.events import Progress
from gateway.cli import engine, main
from gateway.cli.parser import make_parser
from gateway.terminal import Terminal


@pytest.fixture(autouse=True)
def quiet_root_logger() -> Iterator[None]:
    """Take back what the command line does to the root logger."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints one line."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"narrowgate {version('narrowgate')}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve"], "no model: pass --model NAME"),
        (["serve", "--recipe", "int4"], "--recipe needs --model"),
        (["serve", "--threads", "2"], "--threads needs --model"),
        (["serve", "--name", "x"], "--name needs --model"),
        (["serve", "--model", "x", "--recipe", "int6"], "unknown recipe 'int6'"),
        (["serve", "--model", "x", "--name", "a b"], "the alias 'a b' must be"),
        (["serve", "--model", "x", "--port", "-1"], "setting 'port' is -1"),
        (["serve", "--model", "x", "--host", "no.such.host.invalid"], "cannot listen on"),
        (["serve", "--model", "x", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["serve", "--config", "/no/such.yaml"], "cannot read the settings file /no/such.yaml"),
        (["build", "--model", "/no/such", "--out", "/no/out"], "/no/such"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot work is one line on stderr and exit code 2."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *_, last = captured.err.splitlines()
    assert last.startswith("narrowgate: error: ")
    assert message in last


@pytest.mark.parametrize("command", ["build", "engine"])
def test_a_preparation_that_hangs_is_ended(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A hub that never answers costs ``--prepare-timeout-s``, and the error says so."""
    words = [command, "--model", "some/model"]
    words += ["--out", str(tmp_path / "out")] if command == "build" else []
    with pytest.raises(SystemExit):
        main([*words, "--prepare-timeout-s", "0"])
    assert "--prepare-timeout-s: '0' is no number of seconds above 0" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        began = time.monotonic()
        assert main([*words, "--prepare-timeout-s", "2.5"]) == 1
        lasted_s = time.monotonic() - began
    *_, last = capsys.readouterr().err.splitlines()
    assert "made no progress for 2.5 s and was ended" in last
    assert 2.5 <= lasted_s < 60  # it would wait for ever


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "--model", "x", "--recipe", "int8", "--max-tokens", "-1"],
        ["compare", "--model", "x", "--recipe", "int8", "--threads", "0"],
        ["serve", "--model", "x", "--threads", "0"],
        ["serve", "--model", "x", "--max-model-len", "many"],
    ],
)
def test_wrong_numbers(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A count below one is refused at once: one line with the flag, and exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"narrowgate: error: argument {words[-2]}: {words[-1]!r} is not a whole number of at "
        f"least 1; see narrowgate {words[0]} --help\n"
    )


@pytest.mark.parametrize("rate", ["1.5", "-1", "much", "nan"])
def test_wrong_rates(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A share of requests is from 0 to 1."""
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--model", "x", f"--shadow={rate}"])
    assert caught.value.code == 2
    assert f"{rate!r} is no share: give 0 to 1" in capsys.readouterr().err


def test_values_that_look_like_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that starts with a dash reaches the child as a value."""
    assert main(["build", "--model=--no/such", f"--out={tmp_path / 'out'}"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("narrowgate: error: ")
    assert "'--no/such'" in last


def test_core_install_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the numeric libraries a build is refused with the way to install them."""
    monkeypatch.setattr("gateway.job.find_spec", lambda name: None)
    assert main(["build", "--model", "x", "--out", "/no/out"]) == 2
    assert capsys.readouterr().err == (
        "narrowgate: error: this needs the embedded extra: pip install 'narrowgate[embedded]'\n"
    )


def test_serving_never_loads_heavy_libraries() -> None:
    """The gateway's process imports no numerics, no model library and no plotting."""
    code = (
        "import sys, gateway.cli\n"
        "heavy = {'torch', 'numpy', 'transformers', 'matplotlib', 'huggingface_hub'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def _end(words: list[str], module: str, number: signal.Signals, place: Path) -> tuple[int, str]:
    """End a command while its child works; return its code and what it then printed."""
    fake, script = place / "fakes", place / "run.py"
    main = fake.joinpath(*module.split("."), "__main__.py")
    main.parent.mkdir(parents=True)
    for package in (main.parent, *main.parent.parents):
        if package == fake:
            break
        (package / "__init__.py").touch()
    main.write_text("import time; print('waiting', flush=True); time.sleep(60)")
    # Children find the fake first, because they start in its directory.
    script.write_text(
        "import os, sys, gateway.cli\n"
        f"os.chdir({str(fake)!r})\n"
        f"sys.exit(gateway.cli.main({words!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
    )
    with process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert "waiting" in first
        process.send_signal(number)
        rest = process.stderr.read()
        return process.wait(30), rest


SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@SIGNALS
def test_interrupted_build_is_quiet(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A signal ends a build without a traceback; the exit code says which signal it was."""
    words = ["build", "--model", "x", "--out", "out"]
    assert _end(words, "compression", number, tmp_path) == (code, "")


@SIGNALS
def test_an_ended_search_says_that_it_goes_on(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Whoever ends it after minutes learns that they are not lost."""
    words = ["search", "--model", "x", "--budget", "kld<=0.05", "--out", "out.yaml"]
    said = "Ended. What was measured is kept: the same command goes on from there.\n"
    assert _end(words, "compression.search", number, tmp_path) == (code, said)


def test_progress_as_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Elsewhere than in a terminal progress is a line every few seconds, and the last one."""
    caplog.set_level(logging.INFO)
    with Terminal() as terminal:
        for done in range(101):
            terminal.on_progress(Progress("quantize", done, 100, "tensors", "layer"))
        terminal.on_progress(Progress("fetch", 5_000_000, 0, "bytes"))
    assert caplog.messages == [
        "compressing: 0/100 tensors layer",
        "compressing: 100/100 tensors layer",
        "fetching: 5 MB",
    ]


def test_progress_as_bars() -> None:
    """In a terminal each stage is a bar that ends full."""
    terminal = Terminal()
    screen = io.StringIO()
    terminal._err = Console(file=screen, force_terminal=True, width=100)
    with terminal:
        for done in (0, 50, 100):
            terminal.on_progress(Progress("quantize", done, 100, "tensors", "[layer]"))
    assert "Compressing" in screen.getvalue()
    assert "100/100" in screen.getvalue()
    assert "[layer]" in screen.getvalue()


def test_summary_of_a_build(capsys: pytest.CaptureFixture[str]) -> None:
    """A build says where the artifact is, how small it became and what it took."""
    manifest = {
        "bytes_before": 269_000_000,
        "bytes_in_memory": 93_000_000,
        "bits_per_weight": 4.973,
        "seconds": 12.34,
        "peak_memory_bytes": 512_000_000,
    }
    with Terminal() as terminal:
        terminal.built("/out", manifest)
    assert capsys.readouterr().out == (
        "built /out\n"
        "  weights 269.0 MB -> 93.0 MB in memory, 4.97 bits per weight\n"
        "  took 12.3 s, peak memory 512.0 MB\n"
    )


@pytest.mark.parametrize(
    ("environment", "words", "expected"),
    [
        ({}, [], ("127.0.0.1", 8000)),
        ({"NARROWGATE_HOST": "::1", "NARROWGATE_PORT": "8123"}, [], ("::1", 8123)),
        ({"NARROWGATE_PORT": "8123"}, ["--port", "9"], ("127.0.0.1", 9)),
        ({"NARROWGATE_PORT": "tcp://10.0.0.1:8000"}, [], ("127.0.0.1", 8000)),
    ],
)
def test_where_an_engine_listens(
    environment: dict[str, str],
    words: list[str],
    expected: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Flags win over the environment, and the help tells what would be taken."""
    for name in ("NARROWGATE_HOST", "NARROWGATE_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    options = make_parser().parse_args(["engine", "--model", "x", *words])
    assert (options.host, options.port) == expected
    with pytest.raises(SystemExit):
        make_parser().parse_args(["engine", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    default = expected[1] if not words else environment["NARROWGATE_PORT"]
    assert f"default: {expected[0]} (NARROWGATE_HOST)" in told
    assert f"default: {default} (NARROWGATE_PORT)" in told


def test_a_port_of_the_environment_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused in one line where it would be taken, and only there."""
    monkeypatch.setenv("NARROWGATE_PORT", "x")
    with pytest.raises(SystemExit):
        make_parser().parse_args(["engine", "--model", "x"])
    assert "--port: 'x' is no port" in capsys.readouterr().err
    assert make_parser().parse_args(["engine", "--model", "x", "--port", "1"]).port == 1


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_an_open_engine_is_warned_about(
    host: str, is_open: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line before it starts: it knows no keys."""

    def run(work: Coroutine[Any, Any, Any]) -> tuple[int, Any]:
        work.close()
        return 0, engine._Program(["engine"])

    started: list[str] = []
    monkeypatch.setattr(engine, "run_until_signal", run)
    monkeypatch.setattr(os, "execve", lambda path, words, environment: started.append(path))
    options = make_parser().parse_args(["engine", "--model", "smollm2", "--host", host])
    assert engine.run_engine(options, Terminal()) == 0
    assert started == ["engine"]
    warned = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert len(warned) == is_open
    assert all("0.0.0.0 can be reached from other machines" in line for line in warned)
