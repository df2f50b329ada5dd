"""`narrowgate doctor`: what it finds on machines that are not well."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compression.demo_model import DEMO_MODEL as REAL_DEMO_MODEL
from gateway.cli import main
from gateway.doctor import machine, service
from gateway.doctor.examination import Examination
from gateway.doctor.finding import Finding, Level
from gateway.doctor.host import Host
from gateway.doctor.service import DEMO_MODEL, check_port, check_service
from gateway.doctor.software import NoReport, ask_child, check_software, judge
from gateway.doctor.storage import check_storage
from gateway.doctor.vllm import check_vllm
from tests.gateway.harness import Gateway
from tests.ports import free_port

GOOD = {
    "versions": {"torch": "2.13.0+cpu", "transformers": "5.23.0"},
    "import_errors": {},
    "unmet": [],
    "torch": {"cuda": None, "hip": None, "gpus": []},
    "kernels": [
        {
            "scheme": "int4",
            "kernel": "int4x16",
            "speed_against_bf16": 2.5,
            "packed_up_to_rows": 80,
        }
    ],
}


VLLM: dict[str, Any] = {
    "version": "0.32.0",
    "has_command": False,
    "device": "cpu",
    "capability": None,
    "options": {},
    "flags": [],
    "num_devices": 0,
    "has_tracing": False,
    "architectures": [],
    "has_bitsandbytes_plugin": False,
    "cpu_features": [],
    "head_sizes": [],
    "fp8_weights": None,
}


def host(root: Path, files: Mapping[str, str]) -> Host:
    """Return a machine that is made of these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Host(root)


def levels(findings: list[Finding]) -> dict[str, Level]:
    """Return the levels by check; the worst of equal ones."""
    found: dict[str, Level] = {}
    for finding in findings:
        if found.get(finding.check, "ok") == "ok":
            found[finding.check] = finding.level
    return found


def test_quota_of_version_2(tmp_path: Path) -> None:
    """The least quota and limit of our control group and those above counts."""
    found = host(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/b/memory.max": "1000000\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
    )
    assert (found.cpu_quota(), found.memory_limit()) == (1.5, 1000000)


def test_quota_of_version_1(tmp_path: Path) -> None:
    """Version 1 has files of its own, and a number for no limit."""
    place = "sys/fs/cgroup"
    found = host(
        tmp_path,
        {
            f"{place}/cpu/cpu.cfs_quota_us": "50000\n",
            f"{place}/cpu/cpu.cfs_period_us": "100000\n",
            f"{place}/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert (found.cpu_quota(), found.memory_limit()) == (0.5, None)


def test_no_limits(tmp_path: Path) -> None:
    """A machine without control groups has no limits."""
    assert (Host(tmp_path).cpu_quota(), Host(tmp_path).memory_limit()) == (None, None)


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 14, 0), "fail")]
)
def test_python(version: tuple[int, ...], level: Level) -> None:
    """Python must be one that is supported."""
    assert machine._python(version).level == level


def test_threads_beyond_the_quota(tmp_path: Path) -> None:
    """More processors than the quota grants are slow: the remedy names the threads."""
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000"}
    found = machine._processors(host(tmp_path, files), 8)
    assert (found.level, "grants 2.5" in found.message) == ("warn", True)
    assert found.remedy == "serve with --threads 2, or raise the limit"


@pytest.mark.parametrize(
    ("flags", "architecture", "level", "said"),
    [
        ("sse2", "x86_64", "warn", "no AVX2"),
        ("avx2", "x86_64", "warn", "AVX2, no bf16 products"),
        ("avx2 avx512f avx512_bf16", "x86_64", "ok", "AVX2, AVX-512, bf16"),
        ("avx2 amx_tile amx_bf16", "x86_64", "ok", "AVX2, AMX"),
        ("", "aarch64", "warn", "aarch64"),
    ],
)
def test_instructions(
    flags: str, architecture: str, level: Level, said: str, tmp_path: Path
) -> None:
    """What the processor lacks is said with what it means."""
    found = machine._instructions(
        host(tmp_path, {"proc/cpuinfo": f"model name\t: X\nflags\t\t: {flags}\n"}), architecture
    )
    assert (found.level, said in found.message) == (level, True)


@pytest.mark.parametrize(
    ("free_kb", "limit", "level"),
    [(9_000_000, None, "ok"), (1_000_000, None, "warn"), (9_000_000, 400_000_000, "fail")],
)
def test_memory(free_kb: int, limit: int | None, level: Level, tmp_path: Path) -> None:
    """Free memory counts, and no more of it than the control group grants."""
    text = f"MemTotal: 16000000 kB\nMemAvailable: {free_kb} kB\n"
    files = {"proc/meminfo": text, "proc/self/cgroup": "0::/\n"}
    files["sys/fs/cgroup/memory.max"] = "max" if limit is None else str(limit)
    assert machine._memory(host(tmp_path, files)).level == level


def test_open_files_and_clock(tmp_path: Path) -> None:
    """Few descriptors, a slow clock and a wrong one are told."""
    assert machine._files(1024).level == "warn"
    assert machine._files(65536).level == machine._files(-1).level == "ok"
    place = "sys/devices/system/clocksource/clocksource0/current_clocksource"
    slow = host(tmp_path, {place: "acpi_pm\n"})
    assert machine._clock(slow, 4e9).level == "warn"
    assert machine._clock(slow, 0).level == "fail"


def test_storage(tmp_path: Path) -> None:
    """A place that is not there yet is judged by what is above it; a file is no place."""
    assert check_storage(tmp_path / "new" / "home").message.startswith(str(tmp_path / "new"))
    (tmp_path / "file").touch()
    assert check_storage(tmp_path / "file").level == "fail"


@pytest.mark.parametrize(
    ("change", "level", "said"),
    [
        ({}, "ok", "torch 2.13.0+cpu, transformers 5.23.0"),
        (
            {
                "import_errors": {
                    "transformers": "RuntimeError: operator torchvision::nms does not exist",
                    "torchvision": "RuntimeError: operator torchvision::nms does not exist",
                }
            },
            "fail",
            "pip uninstall torchvision",
        ),
        ({"import_errors": {"torch": "OSError: libfoo.so"}, "torch": None}, "fail", "libfoo.so"),
        ({"import_errors": {"bitsandbytes": "OSError: x"}}, "warn", "bitsandbytes cannot be"),
        (
            {"unmet": [{"package": "vllm", "needs": "torch==2.14.0", "found": "2.13.0+cpu"}]},
            "warn",
            "vllm needs torch==2.14.0, 2.13.0+cpu is installed",
        ),
    ],
)
def test_libraries(change: dict[str, Any], level: Level, said: str, tmp_path: Path) -> None:
    """Libraries that do not fit together are told with what to do."""
    found = [one for one in judge(GOOD | change, Host(tmp_path)) if one.check == "libraries"]
    assert levels(found) == {"libraries": level}
    assert any(said in f"{one.message} {one.remedy}" for one in found)


def test_gpus(tmp_path: Path) -> None:
    """A GPU and torch must be of one kind."""
    driver = host(tmp_path, {"proc/driver/nvidia/version": "NVRM"})
    cuda = GOOD | {"torch": {"cuda": "12.8", "hip": None, "gpus": []}}
    assert levels(judge(GOOD, driver))["gpu"] == "warn"
    assert levels(judge(cuda, Host(tmp_path / "none")))["gpu"] == "warn"
    assert levels(judge(GOOD, Host(tmp_path / "none")))["gpu"] == "ok"


def test_kernels(tmp_path: Path) -> None:
    """A kernel that does not run fails, one that is slower than bf16 is a warning."""
    broken = GOOD | {"kernels": [{"scheme": "int4", "error": "not compiled"}]}
    slow = GOOD | {"kernels": [GOOD["kernels"][0] | {"speed_against_bf16": 0.8}]}  # type: ignore[index]
    assert levels(judge(broken, Host(tmp_path)))["kernels"] == "fail"
    assert levels(judge(slow, Host(tmp_path)))["kernels"] == "warn"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "was ended by SIGABRT"),
        ("import time; time.sleep(60)", "took longer than 0.5 s"),
        ("import no_such_module", "No module named 'no_such_module'"),
        ("print('hello')", "exit code 0"),
    ],
)
def test_children_that_fail(code: str, said: str) -> None:
    """A child that crashes, hangs or talks nonsense is a finding, never an exception or a wait."""
    with pytest.raises(NoReport, match=said):
        ask_child((sys.executable, "-c", code), 0.5 if "sleep" in code else 60)


def test_core_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the extra the remedy is to install it, and no child is started."""
    monkeypatch.setattr("gateway.doctor.software.find_spec", lambda name: None)
    (found,), report = check_software(Host(tmp_path))
    assert (found.level, report) == ("fail", None)
    assert found.remedy == "pip install 'narrowgate[embedded]'"


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each model of the settings is looked for; what is not here and not on a hub fails."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "hf/hub/models--org--here/snapshots").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/model.safetensors").touch()
    (tmp_path / "empty").mkdir()
    models = {
        "demo": DEMO_MODEL,
        "full": str(tmp_path / "full"),
        "empty": str(tmp_path / "empty"),
        "lost": "/no/such/directory",
        "hub": "org/name",
        "cached": "org/here",
    }
    file = tmp_path / "settings.yaml"
    file.write_text(
        json.dumps({"models": {key: {"model": value} for key, value in models.items()}})
    )
    found = levels(check_service(file, free_port()))
    assert {key: found[f"model:{key}"] for key in models} == {
        "demo": "ok",
        "full": "ok",
        "empty": "fail",
        "lost": "fail",
        "hub": "ok",
        "cached": "ok",
    }
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = levels(check_service(file, free_port()))
    assert (found["model:hub"], found["model:cached"]) == ("fail", "ok")
    file.write_text("modles: {}")
    assert levels(check_service(file, free_port()))["settings"] == "fail"


def test_port(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway on the port is told by its version; anything else there is a failure."""
    assert check_port("127.0.0.1", free_port()).level == "ok"
    found = check_port("127.0.0.1", gateway.port)
    assert (found.level, "narrowgate 0." in found.message) == ("warn", True)
    monkeypatch.setattr(service, "_gateway_version", lambda host, port: None)
    assert check_port("127.0.0.1", gateway.port).level == "fail"


def test_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is no fault; one that fails here, or needs kernels of ours, is told with the remedy."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path))
    monkeypatch.delenv("NARROWGATE_VLLM_PYTHON", raising=False)
    (none,) = check_vllm()
    assert (none.level, "make vllm-env" in none.message) == ("ok", True)
    python = tmp_path / "python"
    monkeypatch.setenv("NARROWGATE_VLLM_PYTHON", str(python))
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    (broken,) = check_vllm()
    assert (broken.level, broken.remedy) == ("warn", "make vllm-env")
    said = VLLM | {"int8_error": 0.13, "has_int4_kernel": False}
    python.write_text(f"#!/bin/sh\necho 'narrowgate-vllm-probe:{json.dumps(said)}'\n")
    (found, int8, int4) = check_vllm()
    assert found.message == f"0.32.0 on cpu, {python}"
    assert (int8.level, int8.message.startswith("int8: vLLM's int8 product is off by 13%")) == (
        "warn",
        True,
    )
    assert int4.message.startswith("int4: ")


def test_demo_model_has_one_name() -> None:
    """The doctor, which must not import what converts it, calls the demo model by its name."""
    assert DEMO_MODEL == REAL_DEMO_MODEL


def test_report_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON report has every check, and what the libraries say, with stable keys."""
    # Only torch is imported: the others take long, and nothing here depends on them.
    child = "import compression.capabilities as it; it.MODULES = {'torch': 'torch'}; it.main()"
    monkeypatch.setattr("gateway.doctor.software._COMMAND", (sys.executable, "-c", child))
    code = main(["doctor", "--json", "--port", str(free_port())])
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"narrowgate", "level", "checks", "libraries"}
    assert code == (1 if report["level"] == "fail" else 0)
    assert all(set(one) == {"check", "level", "message", "remedy"} for one in report["checks"])
    assert {one["check"] for one in report["checks"]} >= {
        *("python", "processors", "instructions", "memory", "open_files", "clock", "storage"),
        *("libraries", "gpu", "kernels", "settings", "port"),
    }
    assert "torch" in report["libraries"]["versions"]
    assert {one["scheme"] for one in report["libraries"]["kernels"]} == {"int8", "int5", "int4"}


def test_failure_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check that fails is one line with its remedy, and exit code 1."""
    worst = Examination((Finding("disk", "fail", "full [x]", "free it"),), None)
    monkeypatch.setattr("gateway.cli.doctor.examine", lambda file, port: worst)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out == (
        "fail  disk  full [x] -> free it\nSomething will not work: see the lines with fail.\n"
    )
