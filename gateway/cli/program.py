"""One command from its words to its exit code."""

import sys
from collections.abc import Sequence

from gateway.cli.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED
from gateway.cli.parser import make_parser
from gateway.errors import ApiError, ChildFailed, StartupError
from gateway.terminal import Terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = make_parser().parse_args(arguments)
    try:
        with Terminal() as terminal:
            code: int = options.run(options, terminal)
            return code
    except (StartupError, ApiError) as error:
        print(f"narrowgate: error: {error}", file=sys.stderr)
        return EXIT_FAILED if isinstance(error, (ChildFailed, ApiError)) else EXIT_REFUSED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
