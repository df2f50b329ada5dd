"""The real serving process over fake engines: ``python -m tests.gateway.run_gateway JSON``."""

import gc
import json
import signal
import sys
from pathlib import Path

import uvloop

from gateway.errors import StartupError
from gateway.serve import serve
from gateway.settings import load_settings
from gateway.terminal import Terminal
from tests.gateway.fake_launch import FakeLaunch


def main() -> int:
    """Serve until told to stop."""
    options = json.loads(sys.argv[1])
    settings = load_settings(None, options["settings"], {})
    signal.signal(signal.SIGUSR2, lambda *_: tell_blocks(Path(options["notebook"])))
    launch = FakeLaunch(notebook=Path(options["notebook"]), **options["launch"])
    try:
        with Terminal() as terminal:
            terminal.log_as(
                settings.log_format, settings.log_level, shows_prompts=settings.log_prompts
            )
            return uvloop.run(serve(settings, terminal, launch=launch))
    except StartupError as error:
        print(f"narrowgate: error: {error}", file=sys.stderr)
        return 2


def tell_blocks(notebook: Path) -> None:
    """Write how many blocks of memory Python's objects hold; see ``Gateway.num_blocks``."""
    gc.collect()
    notebook.with_suffix(".blocks").write_text(f"{sys.getallocatedblocks()}\n")


sys.exit(main())
