"""Checks of the numeric libraries; they are asked in a child process, which may crash."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from gateway.doctor.finding import GB, Finding, Level
from gateway.doctor.host import Host

TIME_LIMIT_S = 120.0
_COMMAND = (sys.executable, "-m", "compression.capabilities")
_EMBEDDED = ("torch", "transformers", "safetensors", "numpy")
_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_SHM_BYTES = 1 * GB


class NoReport(Exception):
    """The child did not report; its words are why."""


def check_software(host: Host) -> tuple[list[Finding], dict[str, Any] | None]:
    """Return what was found, and the child's whole report."""
    missing = [name for name in _EMBEDDED if find_spec(name) is None]
    if missing:
        message = f"{', '.join(missing)} not installed: nothing can be compressed or served here"
        return [Finding("libraries", "fail", message, "pip install 'narrowgate[embedded]'")], None
    try:
        report = ask_child(_COMMAND, TIME_LIMIT_S)
    except NoReport as error:
        remedy = "install them anew: pip install --force-reinstall 'narrowgate[embedded]'"
        return [Finding("libraries", "fail", str(error), remedy)], None
    return judge(report, host), report


def ask_child(command: tuple[str, ...], limit_s: float) -> dict[str, Any]:
    """Return the report of a child.

    Raises:
        NoReport: it crashed, took too long, or said something else.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise NoReport(f"the libraries took longer than {limit_s:g} s to load") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise NoReport(f"loading the libraries was ended by {name}: one does not fit this machine")
    *_, last = done.stdout.splitlines() or [""]
    try:
        report = json.loads(last)
    except ValueError:
        report = None
    if done.returncode or not isinstance(report, dict):
        words = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise NoReport(f"the libraries cannot be loaded: {words.strip()}")
    return report


def judge(report: Mapping[str, Any], host: Host) -> list[Finding]:
    """Return what a report means on this host."""
    versions: Mapping[str, str] = report["versions"]
    found = [*_imports(report), *_pins(report)]
    if not found:
        shown = ", ".join(f"{name} {version}" for name, version in versions.items())
        found.append(Finding("libraries", "ok", shown))
    if report["torch"] is not None:
        found += [_gpu(report["torch"], host), *_kernels(report["kernels"])]
    if "vllm" in versions:
        found.append(_shared_memory(host))
    return found


def _imports(report: Mapping[str, Any]) -> list[Finding]:
    errors: Mapping[str, str] = report["import_errors"]
    wrong = [name for name in _COMPANIONS if name in errors]
    found = []
    for name, words in errors.items():
        remedy = f"pip install --force-reinstall {name}"
        if name in wrong or (name == "transformers" and wrong):
            # transformers loads them where it finds them, though nothing here needs them.
            remedy = f"pip uninstall {' '.join(wrong)}: nothing here needs it"
        is_needed = name in {"torch", "transformers"}
        level: Level = "fail" if is_needed else "warn"
        found.append(Finding("libraries", level, f"{name} cannot be imported: {words}", remedy))
    return found


def _pins(report: Mapping[str, Any]) -> list[Finding]:
    found = []
    for pin in report["unmet"]:
        message = f"{pin['package']} needs {pin['needs']}, {pin['found']} is installed"
        remedy = f"pip install '{pin['needs']}', or keep {pin['package']} in an environment apart"
        found.append(Finding("libraries", "warn", message, remedy))
    return found


def _gpu(torch: Mapping[str, Any], host: Host) -> Finding:
    has_driver = host.exists("proc/driver/nvidia/version") or host.exists("dev/kfd")
    build = f"CUDA {torch['cuda']}" if torch["cuda"] else f"ROCm {torch['hip']}"
    is_cpu_build = not torch["cuda"] and not torch["hip"]
    if has_driver and is_cpu_build:
        return Finding(
            "gpu",
            "warn",
            "a GPU is here, but torch is a build for processors; the embedded engine uses none",
            "for vLLM on the GPU, install it in an environment apart with its own torch",
        )
    if not is_cpu_build and not torch["gpus"]:
        return Finding(
            "gpu",
            "warn",
            f"torch is a build for {build}, but no GPU can be used",
            "install torch from its index of CPU builds, which is smaller by gigabytes",
        )
    if is_cpu_build:
        return Finding("gpu", "ok", "none, and torch is a build for processors")
    return Finding("gpu", "ok", f"{', '.join(torch['gpus'])}; the embedded engine uses none")


def _kernels(kernels: list[Mapping[str, Any]]) -> list[Finding]:
    found = []
    for kernel in kernels:
        scheme = kernel["scheme"]
        if "error" in kernel:
            message = f"{scheme} cannot run here: {kernel['error']}"
            found.append(Finding("kernels", "fail", message, "serve with --recipe full"))
            continue
        times = kernel["speed_against_bf16"]
        message = f"{scheme} runs on {kernel['kernel']}, {times:.1f} times as fast as bf16"
        if times < 1:
            remedy = "look again when nothing else runs; if it stays so, take another recipe"
            found.append(Finding("kernels", "warn", message, remedy))
        else:
            most = kernel["packed_up_to_rows"]
            rows = "any number of rows" if most is None else f"up to {most} rows"
            message += f" for one token, and packed for {rows} together"
            found.append(Finding("kernels", "ok", message))
    return found


def _shared_memory(host: Host) -> Finding:
    size, shown = host.shared_memory(), "/dev/shm"  # noqa: S108 (only named)
    if size is None or size >= _SHM_BYTES:
        return Finding("shared_memory", "ok", "enough")
    return Finding(
        "shared_memory",
        "warn",
        f"{shown} has {size / GB:.2f} GB, and vLLM's processes talk through it",
        "docker run --shm-size=2g, or a memory volume at /dev/shm",
    )
