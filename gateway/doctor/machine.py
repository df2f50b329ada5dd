"""Checks of the machine: Python, processors, instructions, memory, limits, clock."""

import os
import platform
import resource
import sys
import time
from pathlib import Path

from gateway.doctor.finding import GB, Finding
from gateway.doctor.host import Host

_LEAST_BYTES, _FEW_BYTES = 0.5 * GB, 2 * GB
_FEW_FILES = 4096
_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "avx512_bf16": "bf16",
    "amx_tile": "AMX",
}
_SLOW_CLOCKS = frozenset({"hpet", "acpi_pm", "jiffies"})


def check_machine(host: Host) -> list[Finding]:
    """Return what was found, one finding a check."""
    return [
        _python(sys.version_info[:3]),
        _processors(host, len(os.sched_getaffinity(0))),
        _instructions(host, platform.machine()),
        _memory(host),
        _files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        _clock(host, time.time()),
    ]


def _python(version: tuple[int, ...]) -> Finding:
    shown = ".".join(map(str, version))
    if (3, 11) <= version[:2] < (3, 14):
        return Finding("python", "ok", shown)
    return Finding("python", "fail", f"{shown} is not supported", "use Python 3.11 to 3.13")


def _processors(host: Host, num_usable: int) -> Finding:
    name = host.processor().get("model name", platform.processor() or "unknown processor")
    message = f"{name}, {num_usable} usable"
    quota = host.cpu_quota()
    if quota is not None and quota < num_usable:
        return Finding(
            "processors",
            "warn",
            f"{message}, but the control group grants {quota:g}: more threads than that wait for "
            "each other",
            f"serve with --threads {max(1, int(quota))}, or raise the limit",
        )
    if num_usable == 1:
        return Finding(
            "processors",
            "warn",
            f"{message}: the gateway and its engine share it",
            "give it two or more",
        )
    return Finding("processors", "ok", message)


def _instructions(host: Host, architecture: str) -> Finding:
    if architecture not in {"x86_64", "AMD64"}:
        return Finding(
            "instructions",
            "warn",
            f"the packed kernels were tried on x86-64 only, this is {architecture}",
            "measure with `narrowgate compare` before you rely on it",
        )
    flags = set(host.processor().get("flags", "").split())
    shown = ", ".join(dict.fromkeys(title for flag, title in _SETS.items() if flag in flags))
    if "avx2" not in flags:
        return Finding(
            "instructions",
            "warn",
            "no AVX2: the packed int4 and int8 kernels have no fast code here",
            "use a processor of 2013 or later",
        )
    if "avx512_bf16" in flags or "amx_bf16" in flags:
        return Finding("instructions", "ok", f"{shown}: prompts are read in bf16")
    return Finding(
        "instructions",
        "warn",
        f"{shown}, no bf16 products: prompts are read in float32, which takes longer; tokens of "
        "answers do not",
        "a processor with AVX-512-BF16 or AMX reads them faster",
    )


def _memory(host: Host) -> Finding:
    sizes, limit = host.memory(), host.memory_limit()
    total, free = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    message = f"{free / GB:.1f} GB free of {total / GB:.1f} GB"
    if limit is not None and limit < total:
        message += f", limited to {limit / GB:.1f} GB by the control group"
        free = min(free, limit)
    remedy = "end other programs or take a smaller model; int4 takes about a third of bf16"
    if free < _LEAST_BYTES:
        return Finding("memory", "fail", f"{message}: too little for any model", remedy)
    if free < _FEW_BYTES:
        return Finding("memory", "warn", f"{message}: enough for very small models only", remedy)
    return Finding("memory", "ok", message)


def _files(soft_limit: int) -> Finding:
    if 0 <= soft_limit < _FEW_FILES:
        return Finding(
            "open_files",
            "warn",
            f"{soft_limit}: each stream takes two, so some {soft_limit // 2} at once",
            "ulimit -n 65536 (LimitNOFILE= in a systemd unit)",
        )
    return Finding("open_files", "ok", "unlimited" if soft_limit < 0 else str(soft_limit))


def _clock(host: Host, now: float) -> Finding:
    if now < Path(__file__).stat().st_mtime - 86400:
        return Finding(
            "clock",
            "fail",
            "the clock is behind the files of this program: certificates of the hub will not hold",
            "set it, best by NTP",
        )
    place = "sys/devices/system/clocksource/clocksource0/current_clocksource"
    source = (host.read(place) or "").strip()
    if source in _SLOW_CLOCKS:
        return Finding(
            "clock",
            "warn",
            f"the kernel's clock source is {source}: looking at the time is slow, and every token "
            "does",
            "boot with tsc or kvm-clock as the source",
        )
    return Finding("clock", "ok", source or "set")
