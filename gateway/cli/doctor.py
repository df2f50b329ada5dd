"""``narrowgate doctor``: what will be slow or will fail here."""

import argparse

import orjson
from rich.console import Console
from rich.text import Text

from gateway.cli.exits import EXIT_FAILED
from gateway.doctor.examination import examine
from gateway.doctor.finding import Finding
from gateway.terminal import Terminal

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_ENDINGS = {
    "ok": "Nothing to mend.",
    "warn": "It will run; see the lines with warn.",
    "fail": "Something will not work: see the lines with fail.",
}


def run_doctor(options: argparse.Namespace, terminal: Terminal) -> int:
    """Check this machine; exit code 1 says that something will fail."""
    with Console(stderr=True).status("Loading the libraries, timing kernels ..."):
        found = examine(options.config, options.port)
    if options.json:
        terminal.note(orjson.dumps(found.fields(), option=orjson.OPT_INDENT_2).decode())
    else:
        console = Console(highlight=False, soft_wrap=True, emoji=False)
        width = max(len(finding.check) for finding in found.findings)
        for finding in found.findings:
            console.print(_line(finding, width))
        console.print(_ENDINGS[found.level])
    return EXIT_FAILED if found.level == "fail" else 0


def _line(finding: Finding, width: int) -> Text:
    line = Text(f"{finding.level:<4}", style=_COLOURS[finding.level])
    line.append(f"  {finding.check:<{width}}  {finding.message}", style="not bold default")
    if finding.remedy is not None:
        line.append(f" -> {finding.remedy}", style="default")
    return line
