"""``python -m deploy.stack``: serve, with Prometheus and Alertmanager beside it."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from compression.paths import cache_home
from deploy.stack.layout import Layout
from deploy.stack.running import run_stack
from deploy.stack.servers import Ports, check_ports, make_servers
from gateway.errors import ChildFailed, StartupError

_MAX_PORT = 65535


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stack and return its exit code."""
    options = _parser().parse_args(arguments)
    ports = Ports(options.port, options.prometheus_port, options.alertmanager_port)
    layout = Layout(cache_home() / f"stack-{ports.gateway}")
    try:
        gateway, prometheus, alertmanager = make_servers(ports, layout, options.serve_flags)
        servers = (gateway, prometheus, alertmanager)
        check_ports(servers)
        layout.write(
            {"narrowgate" if each is gateway else each.name: each.port for each in servers}
        )

        def announce() -> None:
            print(
                f"\npage          {gateway.url}/dashboard"
                f"\nAPI           {gateway.url}/v1"
                f"\nPrometheus    {prometheus.url}"
                f"\nAlertmanager  {alertmanager.url}"
                f"\nlogs, data    {layout.home}"
                "\n\nCtrl-C ends all of them.",
                flush=True,
            )

        return asyncio.run(run_stack(servers, announce))
    except StartupError as error:
        print(f"stack: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, ChildFailed) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.stack", description=__doc__)
    for name, port in (("port", 8000), ("prometheus-port", 9090), ("alertmanager-port", 9093)):
        parser.add_argument(
            f"--{name}", type=_port, default=port, metavar="N", help=f"default: {port}"
        )
    parser.add_argument("serve_flags", nargs="*", metavar="-- FLAGS", help="of narrowgate serve")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give 1 to {_MAX_PORT}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
