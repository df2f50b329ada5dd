"""What the log of a starting vLLM tells: how far it is, and what ended it."""

import asyncio
import re
import time

from compression.events import OnProgress, Progress

_SHARDS = re.compile(r"Loading safetensors checkpoint shards: +\d+% Completed \| (\d+)/(\d+)")
_STEPS = (
    (re.compile(r"Starting to load model"), "loads the weights"),
    (re.compile(r"Loading weights took"), "has loaded the weights"),
    (re.compile(r"Dynamo bytecode transform|torch\.compile took|Compiling a graph"), "compiles"),
    (re.compile(r"Capturing (CUDA )?graphs|graph captur", re.I), "captures graphs"),
    (re.compile(r"init engine \("), "is warm"),
)
_PREFIX = re.compile(
    r"^\((?P<process>APIServer|EngineCore|Worker|VllmWorker)[^)]*\) "
    r"(?:(?P<level>[A-Z]+) [\d-]+ [\d:]+ \[[^\]]*\] ?)?"
)
_CAUSE = re.compile(r"^ *(?:[\w.]+\.)?([A-Z]\w*(?:Error|Exception|Interrupt)): (.+)")
_CONSEQUENCES = ("Engine core initialization failed", "Worker failed with error", "WorkerProc")
_OF_FIELDS = re.compile(r"\d+ validation errors? for \w+$")
"""pydantic's head line; what is wrong stands in the lines below it."""
_FIELD = re.compile(r"^ +(?:Value error, )?(.+?)(?: \[type=.*)?$")
_COMPILER_HEAD = "C++ compile error"
"""The compiler's own words stand below it, after its command line and ``Output:``."""
_GIVEN_UP = "EngineCore failed to start"
_OF_COMPILING = re.compile("InductorError|BackendCompilerFailed|CppCompileError")
_WITHOUT_COMPILING = (
    "give it a C++ compiler that works (the one that CXX names, else g++), or set "
    "'vllm_options': {enforce-eager: true}, which compiles nothing"
)
_DEPTH = {"Worker": 3, "VllmWorker": 3, "EngineCore": 2, "APIServer": 1}


RECENT_S = 10.0


class VllmLog:
    """Reads an engine's log lines, whichever of its processes wrote them."""

    def __init__(self, name: str, on_progress: OnProgress) -> None:
        self._name = name
        self._on_progress = on_progress
        self._cause: tuple[int, str] | None = None
        self._heard_at = time.monotonic()
        self._is_ready = False
        self._is_in_output = False
        self.given_up = asyncio.Event()
        """Set once its core has failed; its worker may then ignore that it is told to end."""

    @property
    def cause(self) -> str | None:
        """Return the error that began it all: of the innermost process that told one, the last.

        Of a ready engine only one of the last seconds: an older one was some request's.
        """
        is_old = self._is_ready and time.monotonic() - self._heard_at > RECENT_S
        if self._cause is None or is_old:
            return None
        cause = self._cause[1]
        return f"{cause}: {_WITHOUT_COMPILING}" if _OF_COMPILING.search(cause) else cause

    def settle(self) -> None:
        """Take note that the engine is ready."""
        self._cause, self._is_ready = None, True

    def hear(self, line: str) -> None:
        """Take one line of the log."""
        if found := _SHARDS.search(line):
            self._tell("shards", int(found[1]), int(found[2]))
            return
        for pattern, words in _STEPS:
            if pattern.search(line):
                self._tell(words, 0, 0)
        if _GIVEN_UP in line:
            self.given_up.set()
        prefix = _PREFIX.match(line)
        text = line[prefix.end() :] if prefix else line
        if self._cause and _OF_FIELDS.search(self._cause[1]) and (field := _FIELD.match(text)):
            self._cause = (self._cause[0], field[1])
            return
        if self._cause and self._cause[1].endswith(_COMPILER_HEAD):
            self._hear_compiler(text, self._cause)
        cause = _CAUSE.match(text)
        if cause is None or any(words in text for words in _CONSEQUENCES):
            return
        depth = _DEPTH[prefix["process"]] if prefix else 0
        if self._cause is None or depth >= self._cause[0]:
            self._cause = (depth, f"{cause[1]}: {cause[2].strip()}")
            self._heard_at = time.monotonic()

    def _hear_compiler(self, text: str, head: tuple[int, str]) -> None:
        """Add the compiler's first error to the head that promises it."""
        if text.startswith(("Output:", "Traceback")):
            self._is_in_output = text.startswith("Output:")
        elif self._is_in_output and "error:" in text:
            self._cause = (head[0], f"{head[1]}: {text.strip()}")
            self._is_in_output = False

    def _tell(self, words: str, done: int, total: int) -> None:
        self._on_progress(Progress("start", done, total, "steps", f"vLLM of {self._name}: {words}"))
