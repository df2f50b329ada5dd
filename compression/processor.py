"""The processor that figures are measured on."""

import platform
from pathlib import Path

_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def processor() -> str:
    """Return the processor's model name and the instruction sets that matter here."""
    fields = _fields()
    if not fields:
        return platform.processor() or platform.machine()
    sets = ", ".join(_sets(fields)) or "no vectors"
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{fields.get('model name', platform.processor())} ({family}; {sets})"


def instruction_sets() -> str:
    """Return what kernels are chosen by: the architecture and the instruction sets, by spaces."""
    return " ".join((platform.machine(), *_sets(_fields())))


def _fields() -> dict[str, str]:
    """Return what Linux tells of the first processor; empty elsewhere."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return fields
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _sets(fields: dict[str, str]) -> list[str]:
    flags = fields.get("flags", "").split()
    return [each for each in _SETS if each in flags]
