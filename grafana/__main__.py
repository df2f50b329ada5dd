"""``python -m grafana`` writes the generated files; ``--check`` only says which differ."""

import argparse
import sys

from grafana import files


def main() -> int:
    """Return the exit code: 1 if files differ and were not to be written."""
    parser = argparse.ArgumentParser(prog="python -m grafana", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if files differ")
    if not parser.parse_args().check:
        files.write()
        return 0
    for name in (differing := files.differences()):
        print(f"{name} differs: run python -m grafana", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
